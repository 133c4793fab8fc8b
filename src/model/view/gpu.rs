//! The GPUs of the host and who uses them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::model::{
    gpu::{Library, MigInstance, ProcessKind, Reading},
    names::UserName,
    usage::GpuUuid,
    words::words,
};

/// All GPUs, at one time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpusView {
    /// RFC 3339.
    pub at: String,
    /// Seconds since then.
    pub age: f64,
    pub library: Library,
    pub gpus: Vec<DeviceView>,
    /// The caller's pods that lost their GPUs; for admins everybody's.
    #[serde(default)]
    pub lost_pods: Vec<LostPod>,
}

/// A pod that lost its GPUs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LostPod {
    pub pod: String,
    pub user: UserName,
    pub reason: String,
}

words! {
    /// Whether a GPU could be read.
    DeviceState, "state of a GPU" {
        Ok = "ok",
        Unknown = "unknown",
    }
}

/// One GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceView {
    pub index: u32,
    pub uuid: GpuUuid,
    pub name: String,
    pub state: DeviceState,
    /// Why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `null` while it is unknown.
    pub reading: Option<Reading>,
    pub users: Vec<UserName>,
    pub processes: Vec<ProcessView>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mig: Vec<MigInstance>,
}

/// A process on a GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessView {
    /// As the host sees it.
    pub pid: i32,
    /// The container's name, "" for a process of the host.
    pub pod: String,
    pub cmd: Cow<'static, str>,
    /// Seconds.
    pub uptime: f64,
    /// Bytes.
    pub memory_used: u64,
    pub gpu_memory_used: Option<u64>,
    pub user: Option<UserName>,
    pub pid_in_pod: Option<i32>,
    /// Percent.
    pub utilization: Option<u32>,
    pub kinds: Vec<ProcessKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
}
