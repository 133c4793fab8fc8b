//! Checkpoints, their copies in the remote store, and whether a pod can be saved.

use serde::{Deserialize, Serialize};

use crate::model::{
    checkpoint::{Checkpoint, Copy, Kind},
    ids::CheckpointId,
    names::{InstanceName, UserName},
    time::Millis,
    words::words,
};

/// A checkpoint with its copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointView {
    #[serde(flatten)]
    pub row: Checkpoint,
    /// Its copy in the remote store.
    #[serde(flatten)]
    pub remote: Option<CopyView>,
}

/// The state of a copy in the remote store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyView {
    /// `queued`, `copying`, `copied`, or `failed` and why.
    #[serde(rename = "remote")]
    pub state: String,
    /// Bytes that are there, of all that there are to be; while it is made.
    #[serde(rename = "remote_bytes", skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(rename = "remote_total_bytes", skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

impl From<&Copy> for CopyView {
    fn from(copy: &Copy) -> Self {
        Self { state: copy.words(), bytes: None, total_bytes: None }
    }
}

/// A checkpoint with what only its manifest has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointDetails {
    #[serde(flatten)]
    pub checkpoint: CheckpointView,
    /// Absent where the manifest cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<CheckpointContent>,
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointContent {
    /// As it was when the pod was saved.
    pub image: String,
    pub hostname: String,
    pub kernel: String,
    pub criu: String,
    pub frozen_ms: u64,
    pub losses: Vec<String>,
    pub tcp_connections: u32,
    pub files: Vec<CheckpointFile>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointFile {
    pub path: String,
    pub size: u64,
    /// Bytes that it takes.
    pub stored: u64,
    pub blake3: String,
}

/// A checkpoint in the remote store, also of another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoteCheckpoint {
    pub id: CheckpointId,
    pub user: UserName,
    /// Whether this host knows it.
    pub is_here: bool,
    #[serde(flatten)]
    pub content: Option<RemoteContent>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What its manifest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoteContent {
    pub instance: InstanceName,
    pub kind: Kind,
    pub size: u64,
    pub created_at: Millis,
}

/// Whether a pod can be saved, and what that would cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    pub pod: String,
    pub kind: Kind,
    pub can_be_saved: bool,
    /// What prevents it, each with its remedy.
    pub problems: Vec<String>,
    /// What would not be in it.
    pub losses: Vec<String>,
    pub processes: Vec<ProcessVerdict>,
    /// Bytes expected: memory, and files.
    pub memory: u64,
    /// Of GPUs, which is copied into the memory of processes.
    #[serde(default)]
    pub gpu_memory: u64,
    pub files: u64,
    /// How long the pod is expected to be frozen.
    pub freeze_ms: u64,
    pub space_needed: u64,
    pub space_free: u64,
}

/// One process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessVerdict {
    /// As the pod counts it.
    pub pid: i32,
    pub name: String,
    pub saved: Saved,
    pub notes: Vec<String>,
}

words! {
    /// Whether a process is saved.
    Saved, "verdict about a process" {
        Yes = "yes",
        No = "no",
        /// It is, except for what the notes say.
        Losses = "losses",
    }
}
