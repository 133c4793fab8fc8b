//! `[checkpoint]`, and `[checkpoint.remote]` for remote copies.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::byte_size;
use crate::model::{checkpoint::Compression, quantities::ByteSize};

/// The most threads that are started for one checkpoint by default, and the most that can be configured.
const MAX_OWN_STREAMS: usize = 8;

pub(super) const MAX_STREAMS: usize = 256;

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Where checkpoints are stored; `None` = `checkpoints` below `$PODY_HOME`. Read at start only.
    #[serde(deserialize_with = "empty_path_is_none")]
    pub directory: Option<PathBuf>,
    /// Used if the caller names none.
    pub compression: Compression,
    /// Pods checkpointed or restored at a time.
    pub parallelism: usize,
    /// Threads that hash and pack, and parts of files in transfer to or from the remote store; 0 = one per core, 8 at
    /// most.
    pub streams: usize,
    /// Bytes to leave free on the disk.
    #[serde(deserialize_with = "byte_size")]
    pub keep_free: ByteSize,
    /// Time that CRIU may take: these seconds, plus the time for the pod's size at the slowest rate (bytes per second).
    pub timeout_seconds: u64,
    #[serde(deserialize_with = "byte_size")]
    pub slowest_rate: ByteSize,
    /// CRIU's `ghost-limit`: largest deleted file that is still open, bytes.
    #[serde(deserialize_with = "byte_size")]
    pub deleted_file_limit: ByteSize,
    /// CRIU's `irmap-scan-path`: where files watched by inotify are searched.
    pub watch_paths: Vec<PathBuf>,
    /// The OCI runtime of pods, as Docker knows it: `pody-runc` under this name. Only it restores pods.
    pub runtime: String,
    /// `None` = found through the container's shim.
    #[serde(deserialize_with = "empty_path_is_none")]
    pub runc_root: Option<PathBuf>,
    /// Seconds from deprecating a checkpoint to its deletion.
    pub deprecated_seconds: u64,
    /// Automatic checkpoints that are kept per pod; 0 = no limit.
    pub keep_automatic: u32,
    /// Days until automatic checkpoints are deleted; 0 = never.
    pub keep_days: u32,
    /// Days until checkpoints that people made are deleted; 0 = never.
    pub keep_days_hand_made: u32,
    /// Shortest interval of a schedule, seconds.
    pub schedule_minimum_seconds: u64,
    /// Checkpoint pods when the host shuts down, and restore them at the next start.
    pub before_shutdown: bool,
    /// How to handle pods whose programs use GPUs.
    pub gpu: GpuCheckpoints,
    /// NVIDIA's program; `None` = `cuda-checkpoint` on the daemon's PATH.
    #[serde(deserialize_with = "empty_path_is_none")]
    pub cuda_checkpoint: Option<PathBuf>,
    pub remote: RemoteConfig,
}

impl CheckpointConfig {
    /// The number of threads or parts at a time.
    pub fn streams(&self) -> usize {
        match self.streams {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_OWN_STREAMS),
            streams => streams,
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        let watched = ["/root", "/home", "/etc", "/opt", "/srv", "/tmp", "/usr/local", "/var", "/workspace"];
        Self {
            directory: None,
            compression: Compression::None,
            parallelism: 2,
            streams: 0,
            keep_free: ByteSize(1 << 30),
            timeout_seconds: 30,
            slowest_rate: ByteSize(100 << 20),
            deleted_file_limit: ByteSize(1 << 30),
            watch_paths: watched.map(PathBuf::from).to_vec(),
            runtime: "pody".to_owned(),
            runc_root: None,
            deprecated_seconds: 86_400,
            keep_automatic: 0,
            keep_days: 0,
            keep_days_hand_made: 0,
            schedule_minimum_seconds: 600,
            before_shutdown: false,
            gpu: GpuCheckpoints::Off,
            cuda_checkpoint: None,
            remote: RemoteConfig::default(),
        }
    }
}

/// Whether pods whose programs use GPUs can be checkpointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuCheckpoints {
    /// Checkpoints of them are refused.
    Off,
    /// With NVIDIA's `cuda-checkpoint`.
    Experimental,
}

/// Where copies of checkpoints are stored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// `file:///directory`, `s3://bucket/prefix`, `gs://…` or `az://…`; empty = there is none.
    pub url: String,
    pub copy: CopyWhich,
    /// Whether the checkpoint stays on this host as well.
    pub keep_local: bool,
    /// Checkpoints copied at a time.
    pub parallelism: usize,
    pub options: RemoteOptions,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            copy: CopyWhich::Asked,
            keep_local: true,
            parallelism: 2,
            options: RemoteOptions::default(),
        }
    }
}

/// Which checkpoints are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyWhich {
    /// Those for which a copy was requested.
    Asked,
    All,
}

/// Settings of the remote store, including its keys.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct RemoteOptions(pub BTreeMap<String, String>);

impl RemoteOptions {
    /// Values that must not be shown.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let is_secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            ["key", "secret", "token", "sas", "password", "credential"].iter().any(|word| name.contains(word))
        };
        let secrets = self.0.iter().filter(move |(name, value)| is_secret(name) && value.len() >= 4);
        secrets.map(|(_, value)| value.as_str())
    }
}

// Written by hand, so that no key reaches a log through `{:?}`.
impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn empty_path_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Some(PathBuf::deserialize(deserializer)?).filter(|path| !path.as_os_str().is_empty()))
}
