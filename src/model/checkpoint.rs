//! The words of checkpoints: kinds, states, requests and views.
//!
//! A checkpoint. Its row is removed with its directory; one that could not be completed loses its row at once.
//!
//! ```text
//!  insert ───► creating ───► ready ───► deprecated      insert ───► ready: registered from the remote store
//!                  │           │            │
//!   its user       │           │ by hand,   │ after a time
//!   is deleted     │           ▼ expired    │
//!                  └──────► deleting ◄──────┘
//! ```
//!
//! Its copy in the remote store. The row outlives the checkpoint until the copy is deleted.
//!
//! ```text
//!  insert ───► queued ───► copying ───► copied          insert ───► copied: of a registered checkpoint
//!
//!  queued, copying ───► failed ───► copying: retried
//!  copied ───► queued: incomplete in the store
//!  any ───► deleting: with its checkpoint
//! ```

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    ids::{CheckpointId, PodId},
    names::{InstanceName, PodRef, UserName},
    time::Millis,
    transitions::transitions,
    words::words,
};

words! {
    /// What is saved.
    Kind, "kind of checkpoint" {
        /// The processes; files as the pod has them when it is restored.
        Simple = "simple",
        /// The processes and what the pod wrote into its file system.
        Rootfs = "rootfs",
        /// The files alone; the restored pod starts from its beginning.
        RootfsOnly = "rootfsonly",
    }
}

impl Kind {
    pub fn has_processes(self) -> bool {
        self != Self::RootfsOnly
    }

    pub fn has_files(self) -> bool {
        self != Self::Simple
    }
}

words! {
    /// How a checkpoint's large files are compressed.
    Compression, "compression" {
        None = "none",
        Zstd = "zstd",
        Lz4 = "lz4",
        Gzip = "gzip",
    }
}

words! {
    CheckpointStatus, "state of a checkpoint" {
        Creating = "creating",
        Ready = "ready",
        /// To be deleted after a time; no longer restored from.
        Deprecated = "deprecated",
        Deleting = "deleting",
    }
}

transitions! {
    CheckpointStatus of "checkpoint" from [Creating, Ready] {
        // The user is deleted while it is made.
        Creating => [Ready, Deleting],
        Ready => [Deprecated, Deleting],
        Deprecated => [Deleting],
        Deleting => [],
    }
}

words! {
    /// Who requested a checkpoint.
    Origin, "origin of a checkpoint" {
        /// People, by a request.
        Hand = "hand",
        Schedule = "schedule",
        Drain = "drain",
    }
}

impl Default for Origin {
    /// Servers that know no other do not send it.
    fn default() -> Self {
        Self::Hand
    }
}

words! {
    CopyStatus, "state of a copy" {
        Queued = "queued",
        Copying = "copying",
        Copied = "copied",
        Failed = "failed",
        Deleting = "deleting",
    }
}

transitions! {
    CopyStatus of "copy of checkpoint" from [Queued, Copied] {
        // An attempt may fail before it has begun to copy.
        Queued => [Copying, Failed, Deleting],
        Copying => [Copied, Failed, Deleting],
        Copied => [Queued, Deleting],
        Failed => [Copying, Deleting],
        Deleting => [],
    }
}

/// Whether the pod resumes after its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaveRunning {
    Yes,
    No,
}

/// A name that people give to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointName(String);

/// Why a text is not a checkpoint's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a checkpoint's name has 1 to 64 letters, digits and '.', '_', '-' and starts with a letter or digit")]
pub struct CheckpointNameError;

impl CheckpointName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CheckpointName {
    type Err = CheckpointNameError;

    fn from_str(s: &str) -> Result<Self, CheckpointNameError> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good =
            (1..=64).contains(&s.len()) && s.chars().all(known) && s.starts_with(|c: char| c.is_ascii_alphanumeric());
        if good { Ok(Self(s.to_owned())) } else { Err(CheckpointNameError) }
    }
}

impl TryFrom<String> for CheckpointName {
    type Error = CheckpointNameError;

    fn try_from(text: String) -> Result<Self, CheckpointNameError> {
        text.parse()
    }
}

impl From<CheckpointName> for String {
    fn from(name: CheckpointName) -> Self {
        name.0
    }
}

/// A request for a checkpoint.
#[derive(Clone, Debug)]
pub struct NewCheckpoint {
    pub kind: Kind,
    pub leave_running: LeaveRunning,
    pub compression: Compression,
    pub name: Option<CheckpointName>,
    pub reason: Option<String>,
    pub origin: Origin,
    /// A copy in the remote store is requested.
    pub remote: bool,
    /// Threads for it, if the caller wants fewer than the host would use.
    pub streams: Option<usize>,
}

/// What to restore: the checkpoint, or the newest of the pod.
#[derive(Clone, Debug)]
pub struct NewRestore {
    pub checkpoint: Option<CheckpointId>,
    pub pod: Option<PodRef>,
    /// `None` = under its own name.
    pub restore_as: Option<InstanceName>,
    /// `None` = as far as possible: kept if nobody else has them.
    pub connections: Option<Connections>,
}

/// What happens to TCP connections that were open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They continue, or the restore fails.
    Keep,
    Close,
}

/// A row of the table `checkpoints`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    pub id: CheckpointId,
    pub user: UserName,
    pub pod: PodId,
    pub instance: InstanceName,
    pub container_name: String,
    pub kind: Kind,
    pub compression: Compression,
    pub name: Option<CheckpointName>,
    pub reason: Option<String>,
    pub status: CheckpointStatus,
    /// Bytes that it takes; the expected size while it is made.
    pub size: u64,
    /// The image's id.
    pub image: String,
    pub created_at: Millis,
    #[serde(default)]
    pub origin: Origin,
}

/// Which checkpoints to list.
#[derive(Clone, Debug, Default)]
pub struct CheckpointFilter {
    /// `None` = the caller's own; everybody's with `all`.
    pub user: Option<UserName>,
    /// Everybody's, for admins.
    pub all: bool,
    pub pod: Option<PodRef>,
    pub ids: Option<Vec<CheckpointId>>,
    pub name: Option<CheckpointName>,
}

/// A row of the table `copies`.
#[derive(Clone, Debug)]
pub struct Copy {
    pub checkpoint: CheckpointId,
    pub user: UserName,
    pub store: String,
    pub status: CopyStatus,
    pub attempts: u32,
    pub error: Option<String>,
    pub due_at: Millis,
}

impl Copy {
    pub fn new(checkpoint: CheckpointId, user: UserName, store: String) -> Self {
        Self {
            checkpoint,
            user,
            store,
            status: CopyStatus::Queued,
            attempts: 0,
            error: None,
            due_at: Millis::default(),
        }
    }

    /// The state as people see it.
    pub fn words(&self) -> String {
        match (&self.error, self.status) {
            (Some(error), CopyStatus::Failed) => {
                format!("failed: {error}; next try at {}", self.due_at)
            }
            (_, status) => status.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), *kind);
        }
        let error = "full".parse::<Kind>().unwrap_err().to_string();
        assert_eq!(error, "\"full\" is not a valid kind of checkpoint; expected one of: simple, rootfs, rootfsonly");
    }

    #[test]
    fn names_cannot_be_paths() {
        for bad in ["", "..", "../x", "-x", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<CheckpointName>().is_err(), "{bad:?}");
        }
        assert!("before-upgrade_1.2".parse::<CheckpointName>().is_ok());
    }
}
