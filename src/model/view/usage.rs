//! What was used, as sums and as series.

use serde::{Deserialize, Serialize};

use crate::model::{
    names::UserName,
    usage::{Amount, GpuUuid},
};

const JOULES_PER_KWH: f64 = 3_600_000.0;

/// What one row is about. Absent parts are summed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UsageKey {
    /// The begin of the hour or day, RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuUuid>,
}

/// One row of `/stat/usage`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageRow {
    #[serde(flatten)]
    pub key: UsageKey,
    pub cpu_seconds: f64,
    pub memory_byte_seconds: f64,
    pub gpu_active_seconds: f64,
    pub gpu_held_seconds: f64,
    pub gpu_memory_byte_seconds: f64,
    /// From the GPU's power, shared by those who computed: an estimate.
    pub estimated_kwh: f64,
    /// Nobody was on the GPU. Only where the sums are of whole GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_free_seconds: Option<f64>,
}

impl UsageRow {
    pub fn new(key: UsageKey, amount: Amount) -> Self {
        Self {
            key,
            cpu_seconds: amount.cpu_seconds,
            memory_byte_seconds: amount.memory_byte_seconds,
            gpu_active_seconds: amount.gpu_active_seconds,
            gpu_held_seconds: amount.gpu_held_seconds,
            gpu_memory_byte_seconds: amount.gpu_memory_byte_seconds,
            estimated_kwh: amount.gpu_joules / JOULES_PER_KWH,
            gpu_free_seconds: None,
        }
    }

    pub fn gpu_seconds(&self) -> f64 {
        self.gpu_active_seconds + self.gpu_held_seconds
    }
}

/// Points in time order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series<T> {
    /// Seconds of one point.
    pub step: i64,
    pub points: Vec<T>,
}

/// What a pod used, on average, in one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodPoint {
    /// RFC 3339, its begin.
    pub at: String,
    pub cpu_cores: f64,
    /// Bytes.
    pub memory: f64,
    /// GPUs computing, and GPUs held and not computing.
    pub gpus_active: f64,
    pub gpus_held: f64,
    pub gpu_memory: f64,
}

/// What a GPU did, on average, in one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpuPoint {
    /// RFC 3339, its begin.
    pub at: String,
    pub gpu: GpuUuid,
    /// Percent; `null` where it could not be read.
    pub utilization: Option<f64>,
    /// Bytes.
    pub memory: Option<f64>,
    /// Watts.
    pub power: Option<f64>,
    /// Part of the time in which nobody was on it.
    pub free: Option<f64>,
}
