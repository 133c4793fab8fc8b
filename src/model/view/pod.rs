//! Pods, what is run in them, and what they use.

use crate::model::pod::PodStatus;
use serde::{Deserialize, Serialize};

use super::schedule::ScheduleView;
use crate::model::{
    ids::SessionId,
    names::{InstanceName, UserName},
};

/// A pod, as `/pod/inspect` and `/pod/ps` show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodView {
    pub instance: InstanceName,
    pub container_id: Option<String>,
    pub name: String,
    /// The engine's status: `running`, `exited`, `created`, `paused`, …; `creating` and `deleting` are ours.
    pub status: PodStatus,
    pub image: String,
    pub networks: Vec<String>,
    /// `"20806:22"`: host, pod.
    pub port_mapping: Vec<String>,
    /// `None` = all.
    pub gpu_ids: Option<Vec<u32>>,
    /// Bytes, -1 = no limit.
    pub memory_limit: i64,
    pub shm_size: i64,
    pub user: UserName,
    /// RFC 3339.
    pub created_at: String,
    /// Why the pod has lost its GPUs, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_trouble: Option<String>,
    /// Its checkpoint schedule, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleView>,
}

/// Current resource usage of a pod, from its cgroup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodStats {
    pub instance: InstanceName,
    /// Since the start of its container.
    pub cpu_seconds: f64,
    /// Over the last tenth of a second.
    pub cpu_cores: f64,
    /// Bytes, without reclaimable page cache.
    pub memory_used: u64,
    /// Bytes, -1 = no limit.
    pub memory_limit: i64,
    pub pids: u64,
    pub pids_limit: i64,
    /// Bytes read from and written to disks since the start of its container; `null` where the kernel does not count
    /// them.
    pub disk_read: Option<u64>,
    pub disk_written: Option<u64>,
}

/// A new pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreatedPod {
    /// The last output of its container.
    pub log: String,
    pub info: PodView,
}

/// A command that ended, or that was started in the background.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecView {
    /// -1 for a command that exceeded its time limit.
    pub exit_code: i64,
    pub log: String,
    /// More was written than is shown.
    #[serde(default)]
    pub truncated: bool,
    /// What a command that was killed had written until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Of a command in the background: the session to attach to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
}

/// An image that was made from a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommitView {
    pub image_name: String,
    pub log: String,
}

/// A session as the pod's first process lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionView {
    pub session: String,
    pub command: String,
    /// Unix seconds.
    pub started: u64,
    pub attached: bool,
    /// `null` while it runs.
    pub exit_code: Option<i64>,
}
