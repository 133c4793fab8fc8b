//! Why runc, CRIU or what they need failed. Callers decide by the kind; the sentence is for people.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::host::disk::DiskError;

/// What a caller may do about a failure of CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// An address that sockets are bound to is missing or in use: bring the sockets back another way.
    AddressTaken,
    /// The engine gave the pod another address than the restore was made for: start it again.
    OtherAddress,
    /// We could not put back the content of a tmpfs: leave it to CRIU.
    NotFilled,
    /// A retry may succeed, e.g. after a connection was accepted.
    Transient,
    /// None of these: report it.
    Other,
}

/// What CRIU or runc failed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriuFailure {
    pub kind: FailureKind,
    /// A sentence with a remedy, and the line of the log that it comes from.
    pub log: String,
}

impl CriuFailure {
    /// A failure that callers can only report.
    pub fn other(log: impl Into<String>) -> Self {
        Self { kind: FailureKind::Other, log: log.into() }
    }
}

impl fmt::Display for CriuFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.log)
    }
}

/// Why a dump or a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// The host lacks something.
    #[error("checkpoints are unavailable: {0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(CriuFailure),
    #[error("{what} did not end within {} s and was ended", .limit.as_secs())]
    TimedOut { what: &'static str, limit: Duration },
    #[error(transparent)]
    Disk(#[from] DiskError),
}
