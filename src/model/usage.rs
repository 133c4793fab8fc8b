//! Usage: buckets, subjects, amounts.

use serde::{Deserialize, Serialize};

use super::names::UserName;

/// A GPU's own identifier. The index is for display only and may change between boots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuUuid(pub String);

/// Length of a bucket, and how long it is kept; seconds.
pub struct Step {
    pub seconds: i64,
    pub kept: i64,
}

const DAY: i64 = 86_400;

/// From fine to coarse.
pub const STEPS: [Step; 3] = [
    Step { seconds: 10, kept: DAY },
    Step { seconds: 60, kept: 14 * DAY },
    Step { seconds: 3600, kept: 2 * 365 * DAY },
];

/// What an amount is counted for: a pod, or a pod on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub user: UserName,
    /// The container's name: it outlives the pod.
    pub pod: String,
    /// `None` for CPU and memory.
    pub gpu: Option<GpuUuid>,
}

/// An amount. Amounts of the same subject add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Amount {
    pub cpu_seconds: f64,
    /// Bytes of memory × seconds.
    pub memory_byte_seconds: f64,
    /// Seconds during which a GPU computed for the pod.
    pub gpu_active_seconds: f64,
    /// Seconds during which the pod held a GPU without computing.
    pub gpu_held_seconds: f64,
    /// Bytes of a GPU's memory × seconds.
    pub gpu_memory_byte_seconds: f64,
    /// Estimated: the GPU's energy, shared among the pods that computed.
    pub gpu_joules: f64,
}

impl Amount {
    pub fn add(&mut self, other: &Self) {
        self.cpu_seconds += other.cpu_seconds;
        self.memory_byte_seconds += other.memory_byte_seconds;
        self.gpu_active_seconds += other.gpu_active_seconds;
        self.gpu_held_seconds += other.gpu_held_seconds;
        self.gpu_memory_byte_seconds += other.gpu_memory_byte_seconds;
        self.gpu_joules += other.gpu_joules;
    }

    /// A fraction of it.
    pub fn scaled(&self, share: f64) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds * share,
            memory_byte_seconds: self.memory_byte_seconds * share,
            gpu_active_seconds: self.gpu_active_seconds * share,
            gpu_held_seconds: self.gpu_held_seconds * share,
            gpu_memory_byte_seconds: self.gpu_memory_byte_seconds * share,
            gpu_joules: self.gpu_joules * share,
        }
    }

    pub fn gpu_seconds(&self) -> f64 {
        self.gpu_active_seconds + self.gpu_held_seconds
    }
}

/// What a GPU did in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpuAmount {
    /// Seconds during which it could be read.
    pub known_seconds: f64,
    /// Seconds without any process on it.
    pub free_seconds: f64,
    /// Utilization (0 to 1) × seconds.
    pub busy_seconds: f64,
    pub memory_byte_seconds: f64,
    pub joules: f64,
}

impl GpuAmount {
    pub fn add(&mut self, other: &Self) {
        self.known_seconds += other.known_seconds;
        self.free_seconds += other.free_seconds;
        self.busy_seconds += other.busy_seconds;
        self.memory_byte_seconds += other.memory_byte_seconds;
        self.joules += other.joules;
    }

    pub fn scaled(&self, share: f64) -> Self {
        Self {
            known_seconds: self.known_seconds * share,
            free_seconds: self.free_seconds * share,
            busy_seconds: self.busy_seconds * share,
            memory_byte_seconds: self.memory_byte_seconds * share,
            joules: self.joules * share,
        }
    }
}

/// A process on a GPU as of the last snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuCursor {
    pub user: UserName,
    pub pod: String,
    /// Milliseconds since 1970 up to which its use is counted.
    pub counted: i64,
    pub active: bool,
}
