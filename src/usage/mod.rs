//! Who used how much of what, and when.
//!
//! [`sampler`] looks at each pod's cgroup every `[usage] sample_seconds` and follows the snapshots of the GPUs. What was used
//! between two looks is a delta, and a delta is written in one transaction with the cursor that it was counted from: a kill
//! in between loses nothing, since counting goes on from the old cursor, and doubles nothing.
//!
//! Deltas go into buckets of 10 s, 1 min and 1 h at once ([`STEPS`]), each kept for its time: a window that begins in the middle
//! of a job counts its part, to the finest bucket that is still there.

pub mod buckets;
mod gpu_time;
pub mod query;
mod sampler;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::{Notify, watch};

pub use self::{gpu_time::Seated, sampler::run};
use crate::{gpu::GpuUuid, names::UserName};

/// Seconds of a bucket, and how long it is kept.
pub struct Step {
    pub seconds: i64,
    pub kept: i64,
}

const DAY: i64 = 86_400;

/// How long a reader waits for what is not written yet.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The way from readers to the sampler, which writes seldom by itself. Cheap to clone.
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

    /// Somebody wants to read.
    async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// It is written.
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

/// Whose usage it is: a pod's, or a pod's of one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub user: UserName,
    /// The container's name: it stays when the pod is gone.
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
    /// A GPU was computing for the pod.
    pub gpu_active_seconds: f64,
    /// A GPU's memory was held and nothing computed.
    pub gpu_held_seconds: f64,
    /// Bytes of a GPU's memory × seconds.
    pub gpu_memory_byte_seconds: f64,
    /// Estimated: the GPU's power, shared by those who computed.
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

    /// A part of it.
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

/// What a GPU itself did, whoever used it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpuAmount {
    /// It could be read.
    pub known_seconds: f64,
    /// Nobody was on it.
    pub free_seconds: f64,
    /// Utilisation (0 to 1) × seconds.
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
