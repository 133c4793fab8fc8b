//! The words of checkpoints: kinds, states, what is asked for and what is shown.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use super::{CopyView, Phase, gpu::GpuWork, network::silence::Silenced};
use crate::{
    db::rfc3339,
    engine::RestartRule,
    host::process::ProcessId,
    ids::{ActionId, CheckpointId, ContainerId, PodId},
    names::{InstanceName, PodRef, UserName},
};

/// An enum whose variants are words, in texts, JSON and the database alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),*
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(s: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|word| word.as_str() == s).ok_or_else(|| UnknownWord {
                    text: s.chars().take(40).collect(),
                    what: $what,
                    known: vec![$($word),*],
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use words;

/// Why a text is not one of a few words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}; there are: {}", .known.join(", "))]
pub struct UnknownWord {
    pub text: String,
    pub what: &'static str,
    pub known: Vec<&'static str>,
}

words! {
    /// What is saved.
    Kind, "kind of checkpoint" {
        /// The processes; files as the pod has them when it is brought back.
        Simple = "simple",
        /// The processes and what the pod wrote into its file system.
        Rootfs = "rootfs",
        /// The files alone; the pod starts from its beginning when it is brought back.
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
    /// How a checkpoint's large files are packed.
    Compression, "compression" {
        None = "none",
        Zstd = "zstd",
        Lz4 = "lz4",
        Gzip = "gzip",
    }
}

words! {
    ActionKind, "kind of action" {
        Checkpoint = "checkpoint",
        Restore = "restore",
    }
}

words! {
    ActionStatus, "state of an action" {
        Running = "running",
        Done = "done",
        Error = "error",
    }
}

words! {
    CheckpointStatus, "state of a checkpoint" {
        Creating = "creating",
        Ready = "ready",
        /// To be deleted after a time; not restored from any more.
        Deprecated = "deprecated",
        Deleting = "deleting",
    }
}

words! {
    /// Who had a checkpoint made.
    Origin, "origin of a checkpoint" {
        /// People, by a request.
        Hand = "hand",
        Schedule = "schedule",
        Drain = "drain",
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

/// Whether the pod goes on after it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaveRunning {
    Yes,
    No,
}

/// A name that people give to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CheckpointName(String);

/// Why a text is no name of a checkpoint.
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

/// What is asked for.
#[derive(Clone, Debug)]
pub struct NewCheckpoint {
    pub kind: Kind,
    pub leave_running: LeaveRunning,
    pub compression: Compression,
    pub name: Option<CheckpointName>,
    pub reason: Option<String>,
    pub origin: Origin,
    /// A copy in the remote store is asked for.
    pub remote: bool,
    /// Threads for it, where the caller wants fewer than the host would take.
    pub streams: Option<usize>,
}

/// What is to be brought back: the checkpoint, or the newest of the pod.
#[derive(Clone, Debug)]
pub struct NewRestore {
    pub checkpoint: Option<CheckpointId>,
    pub pod: Option<PodRef>,
    /// `None` = under its own name.
    pub restore_as: Option<InstanceName>,
    /// `None` = what goes: kept where nobody else has them.
    pub connections: Option<Connections>,
}

/// What is to become of TCP connections that were open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They go on, or the restore fails.
    Keep,
    Close,
}

/// A row of the table `checkpoints`.
#[derive(Clone, Debug, Serialize)]
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
    /// Bytes that it takes; expected ones while it is made.
    pub size: u64,
    /// The image's id.
    pub image: String,
    #[serde(serialize_with = "as_time")]
    pub created_at: i64,
    pub origin: Origin,
    /// Its copy in the remote store.
    #[serde(flatten)]
    pub remote: Option<CopyView>,
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

/// Which actions to list.
#[derive(Clone, Debug)]
pub struct ActionFilter {
    pub kind: Option<ActionKind>,
    pub pod: Option<PodId>,
    /// Of all pods that ever had this container's name.
    pub container_name: Option<String>,
    pub checkpoint: Option<CheckpointId>,
    /// Everybody's, for admins.
    pub all: bool,
    pub limit: u32,
}

impl Default for ActionFilter {
    fn default() -> Self {
        Self { kind: None, pod: None, container_name: None, checkpoint: None, all: false, limit: 100 }
    }
}

/// A row of the table `actions`: one checkpoint or restore.
#[derive(Clone, Debug, Serialize)]
pub struct Action {
    pub id: ActionId,
    #[serde(rename = "type")]
    pub kind: ActionKind,
    pub user: UserName,
    pub pod: PodId,
    pub container_name: String,
    pub checkpoint: CheckpointId,
    pub status: ActionStatus,
    pub phase: Phase,
    /// Written or read so far.
    pub bytes: u64,
    /// Expected, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// How long the pod stood still; still counting while it does.
    pub frozen_ms: Option<u64>,
    /// What is not in the checkpoint, or was not brought back.
    pub losses: Vec<String>,
    pub error: Option<String>,
    /// The copy of its checkpoint in the remote store.
    #[serde(flatten)]
    pub remote: Option<CopyView>,
    #[serde(serialize_with = "as_time")]
    pub started_at: i64,
    #[serde(serialize_with = "as_time_if_any")]
    pub ended_at: Option<i64>,
    #[serde(skip)]
    pub event: i64,
    #[serde(skip)]
    pub journal: Journal,
}

/// What a later start of the daemon needs to know to settle an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub leave_running: LeaveRunning,
    pub container: Option<ContainerId>,
    /// The container's restart rule afterwards.
    pub restart: Option<RestartRule>,
    /// That of a container that stays stopped where it is not brought back.
    #[serde(default)]
    pub restart_if_not: Option<RestartRule>,
    /// The writable layer of a container that is brought back in place.
    pub upper: Option<PathBuf>,
    /// A restore makes a pod of its own.
    pub makes_pod: bool,
    /// A copy in the remote store is asked for.
    #[serde(default)]
    pub remote: bool,
    /// Containers that took addresses for a moment: how many names were used.
    #[serde(default)]
    pub placeholders: u32,
    /// A bridge drops what is for the pod.
    #[serde(default)]
    pub silenced: Option<Silenced>,
    /// Programs that are taken off their GPUs, or are to be put back on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuWork>,
    /// Processes that were told to go on while they are frozen, and must be stopped again.
    #[serde(default)]
    pub stopped: Vec<ProcessId>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            leave_running: LeaveRunning::Yes,
            container: None,
            restart: None,
            restart_if_not: None,
            upper: None,
            makes_pod: false,
            remote: false,
            placeholders: 0,
            silenced: None,
            gpu: None,
            stopped: Vec::new(),
        }
    }
}

pub(super) fn as_time<S: Serializer>(millis: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*millis))
}

pub(super) fn as_time_if_any<S: Serializer>(millis: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    millis.map(rfc3339).serialize(serializer)
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
        assert_eq!(error, "\"full\" is no kind of checkpoint; there are: simple, rootfs, rootfsonly");
    }

    #[test]
    fn names_cannot_be_paths() {
        for bad in ["", "..", "../x", "-x", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<CheckpointName>().is_err(), "{bad:?}");
        }
        assert!("before-upgrade_1.2".parse::<CheckpointName>().is_ok());
    }
}
