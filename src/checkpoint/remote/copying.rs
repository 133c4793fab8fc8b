//! Copies in progress: how far each is, how it is cancelled, and how a copy is shown with its checkpoint.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    model::{
        checkpoint::{Checkpoint, Copy, CopyStatus},
        ids::CheckpointId,
        phase::ActionKind,
        view::{
            action::ActionView,
            checkpoint::{CheckpointView, CopyView},
        },
    },
    objects::{LiveStorage, ObjectError, Storage},
};

/// The progress of a copy.
pub(in crate::checkpoint) struct UnderWay {
    pub cancel: CancellationToken,
    bytes: AtomicU64,
    /// 0 = not known yet.
    total: AtomicU64,
}

impl UnderWay {
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// All copies in progress.
#[derive(Clone)]
pub(in crate::checkpoint) struct Copies {
    storage: LiveStorage,
    live: Arc<Mutex<HashMap<CheckpointId, Arc<UnderWay>>>>,
    /// Something is due.
    due: Arc<Notify>,
}

/// The outcome of a request to start a copy.
pub(in crate::checkpoint) enum Begun {
    Now(CopyGuard),
    /// It is already in progress.
    Before,
    TooMany,
}

/// A copy in progress; it ends when dropped.
pub(in crate::checkpoint) struct CopyGuard {
    copies: Copies,
    id: CheckpointId,
    pub under_way: Arc<UnderWay>,
}

impl Drop for CopyGuard {
    fn drop(&mut self) {
        self.copies.live().remove(&self.id);
        self.copies.resume();
    }
}

impl Copies {
    pub fn new(storage: LiveStorage) -> Self {
        Self { storage, live: Arc::default(), due: Arc::default() }
    }

    pub fn storage(&self) -> Result<Storage, ObjectError> {
        self.storage.get()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<CheckpointId, Arc<UnderWay>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a copy if fewer than `most` are in progress.
    pub fn begin(&self, id: CheckpointId, most: usize, stop: &CancellationToken) -> Begun {
        let mut live = self.live();
        if live.contains_key(&id) {
            return Begun::Before;
        }
        if live.len() >= most {
            return Begun::TooMany;
        }
        let (bytes, total) = Default::default();
        let under_way = Arc::new(UnderWay { cancel: stop.child_token(), bytes, total });
        live.insert(id, under_way.clone());
        Begun::Now(CopyGuard { copies: self.clone(), id, under_way })
    }

    pub fn resume(&self) {
        self.due.notify_one();
    }

    pub async fn wait_due(&self) {
        self.due.notified().await;
    }

    /// Cancels a copy in progress: its checkpoint is deleted.
    pub fn call_off(&self, id: CheckpointId) {
        if let Some(under_way) = self.live().get(&id) {
            under_way.cancel.cancel();
        }
        self.resume();
    }

    pub fn view(&self, copy: &Copy) -> CopyView {
        let mut view = CopyView::from(copy);
        if copy.status == CopyStatus::Copying
            && let Some(under_way) = self.live().get(&copy.checkpoint)
            && let total @ 1.. = under_way.total.load(Ordering::Relaxed)
        {
            view.bytes = Some(under_way.bytes.load(Ordering::Relaxed).min(total));
            view.total_bytes = Some(total);
        }
        view
    }
}

impl Checkpoints {
    /// Adds to each checkpoint the state of its copy.
    pub(in crate::checkpoint) async fn with_copies(
        &self,
        rows: Vec<Checkpoint>,
    ) -> Result<Vec<CheckpointView>, CheckpointError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let copies = self.copy_views().await?;
        let view = |row: Checkpoint| CheckpointView { remote: copies.get(&row.id).cloned(), row };
        Ok(rows.into_iter().map(view).collect())
    }

    /// Adds to each checkpoint action the state of its checkpoint's copy. A restore makes none.
    pub(in crate::checkpoint) async fn with_copies_of_actions(
        &self,
        mut actions: Vec<ActionView>,
    ) -> Result<Vec<ActionView>, CheckpointError> {
        if actions.iter().all(|action| action.kind != ActionKind::Checkpoint) {
            return Ok(actions);
        }
        let copies = self.copy_views().await?;
        for action in actions.iter_mut().filter(|action| action.kind == ActionKind::Checkpoint) {
            action.remote = copies.get(&action.checkpoint).cloned();
        }
        Ok(actions)
    }

    /// The table is small: it has a row for each checkpoint with a copy, however many actions there were.
    async fn copy_views(&self) -> Result<HashMap<CheckpointId, CopyView>, CheckpointError> {
        let copies: Vec<Copy> = self.0.db.read(|tx| tx.list_copies()).await?;
        Ok(copies.iter().map(|copy| (copy.checkpoint, self.0.copies.view(copy))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shows_its_progress_only_while_it_is_made() {
        // A file that does not exist: all defaults.
        let config = crate::config::LiveConfig::load("/nowhere/config.toml".into(), |_| Ok(())).unwrap();
        let copies = Copies::new(LiveStorage::new(config));
        let stop = CancellationToken::new();
        let id = CheckpointId::generate();
        let mut copy = Copy::new(id, "alice".parse().unwrap(), "file:///x".to_owned());
        let shown = |copy: &Copy| serde_json::to_value(copies.view(copy)).unwrap();
        let Begun::Now(at_work) = copies.begin(id, 1, &stop) else { panic!("not begun") };
        assert!(matches!(copies.begin(id, 1, &stop), Begun::Before));
        assert!(matches!(copies.begin(CheckpointId::generate(), 1, &stop), Begun::TooMany));
        copy.status = CopyStatus::Copying;
        assert_eq!(shown(&copy), serde_json::json!({"remote": "copying"}));
        at_work.under_way.expect(100);
        at_work.under_way.add(30);
        at_work.under_way.add(5);
        assert_eq!(
            shown(&copy),
            serde_json::json!({"remote": "copying", "remote_bytes": 35, "remote_total_bytes": 100})
        );
        copies.call_off(id);
        assert!(at_work.under_way.cancel.is_cancelled());
        drop(at_work);
        assert_eq!(shown(&copy), serde_json::json!({"remote": "copying"}));
        copy.status = CopyStatus::Copied;
        assert_eq!(shown(&copy), serde_json::json!({"remote": "copied"}));
    }
}
