//! Usage accounting: who used how much of what, and when.
//!
//! [`sampler`] reads each pod's cgroup every `[usage] sample_seconds` and follows the snapshots of the GPUs. The use
//! between two samples is a delta, and a delta is written in one transaction with the cursor from which it was counted:
//! a kill in between loses nothing, since counting continues from the old cursor, and counts nothing twice.
//!
//! Deltas are added to buckets of 10 s, 1 min and 1 h at once ([`STEPS`]), each with its own retention: a window that
//! begins in the middle of a job counts its part, to the resolution of the finest bucket that still exists.

pub mod buckets;
mod gpu_time;
pub mod query;
mod sampler;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::{Notify, watch};

pub use self::{gpu_time::Seated, sampler::run};
use crate::{gpu::GpuUuid, names::UserName};

/// Length of a bucket, and how long it is kept; seconds.
pub struct Step {
    pub seconds: i64,
    pub kept: i64,
}

const DAY: i64 = 86_400;

/// How long a reader waits for pending amounts to be written.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The channel from readers to the sampler, which rarely writes by itself. Cheap to clone.
#[derive(Clone, Default)]
pub struct Usage(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: Notify,
    written: watch::Sender<()>,
}

impl Usage {
    /// Waits until what was used up to a second ago is in the database.
    pub async fn catch_up(&self) {
        let mut written = self.0.written.subscribe();
        self.0.asked.notify_one();
        let _ = tokio::time::timeout(CATCH_UP, written.changed()).await;
    }

    /// Waits until a reader asks for a write.
    async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// Signals that pending amounts were written.
    fn tell(&self) {
        self.0.written.send_replace(());
    }
}

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
