//! Usage accounting: who used how much of what, and when.
//!
//! [`sampler`] reads each pod's cgroup every `[usage] sample_seconds` and follows the snapshots of the GPUs. The use
//! between two samples is a delta, and a delta is written in one transaction with the cursor from which it was counted:
//! a kill in between loses nothing, since counting continues from the old cursor, and counts nothing twice.
//!
//! Deltas are added to buckets of 10 s, 1 min and 1 h at once ([`crate::model::usage::STEPS`]), each with its own retention: a window that
//! begins in the middle of a job counts its part, to the resolution of the finest bucket that still exists.

mod gpu_time;
pub mod query;
mod sampler;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

pub use self::sampler::{Sources, run};

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
