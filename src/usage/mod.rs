//! Who used how much of what, and when.
//!
//! [`sampler`] looks at each pod's cgroup every `[usage] sample_seconds` and follows the snapshots of the GPUs. What was used
//! between two looks is a delta, and a delta is written in one transaction with the cursor that it was counted from: a kill
//! in between loses nothing, since counting goes on from the old cursor, and doubles nothing.
//!
//! Deltas go into buckets of 10 s, 1 min and 1 h at once ([`STEPS`]), each kept for its time: a window that begins in the middle
//! of a job counts its part, to the finest bucket that is still there.

mod gpu_time;
pub mod query;
mod sampler;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

pub use self::sampler::{Sources, run};

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
