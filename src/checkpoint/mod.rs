//! Checkpoint and restore: a running pod is saved with its processes and files, and restored in place, under another
//! name, or after it was deleted.
//!
//! - [`begin_checkpoint`], [`begin_restore`]: the request side: everything that can be checked, and the rows
//! - [`job`]: the phases, and recovery; [`crate::model::phase`] has their table
//! - [`store`]: the directory of a checkpoint
//! - [`preflight`]: what can be checked before a pod is touched; [`admission`]: quota; [`engine_support`]: what Docker
//!   must support
//! - [`gpu`]: programs on GPUs in a checkpoint and a restore
//! - [`remote`]: copies in the remote store
//! - [`schedules`]: `every 6h keep 4`, and retention; [`drain`]: maintenance of the host
//!
//! A request checks everything that can be checked, records the action and responds; a background task then runs the
//! phases, each written into the action's row before it begins. The pod's lock is held while its container is involved.

mod admission;
mod begin_checkpoint;
mod begin_restore;
mod drain;
mod engine_support;
mod error;
mod gpu;
mod job;
mod preflight;
mod remote;
mod schedules;
mod store;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Semaphore;

use self::store::Store;
pub use self::{error::CheckpointError, store::manifest::Manifest};
use crate::{
    account::Accounts,
    config::LiveConfig,
    db::{Db, DbError, NewEvent, Outcome, Tx},
    engine::Engine,
    gpu::Gpus,
    model::{
        action::{Action, ActionFilter, ActionStatus},
        checkpoint::{Checkpoint, CheckpointFilter, CheckpointStatus},
        ids::{ActionId, CheckpointId, PodId},
        names::UserName,
        time::Millis,
        user::{Actor, Caller},
        view::{action::ActionView, checkpoint::CheckpointView},
    },
    objects::LiveStorage,
    pod::Pods,
};

/// Finished actions that are kept.
const KEPT_ACTIONS: u32 = 10_000;

/// The front door for checkpoints and restores. Cheap to clone.
#[derive(Clone)]
pub struct Checkpoints(Arc<Inner>);

struct Inner {
    db: Db,
    config: LiveConfig,
    engine: Engine,
    accounts: Accounts,
    pods: Pods,
    gpus: Gpus,
    store: Store,
    /// Limits how many pods are saved or restored at a time.
    turns: Semaphore,
    /// Actions that a task of this daemon is working on.
    live: Mutex<HashMap<ActionId, Arc<Progress>>>,
    copies: remote::copying::Copies,
    /// Held while files are downloaded from the remote store.
    fetches: tokio::sync::Mutex<()>,
    /// Held by the restore that needs the engine's next address.
    addresses: Arc<tokio::sync::Mutex<()>>,
    /// Rows may be left that nothing works on.
    unsettled: AtomicBool,
    /// Bytes per second of the last dump.
    rate: AtomicU64,
}

/// The progress of an action.
struct Progress {
    pod: PodId,
    checkpoint: CheckpointId,
    bytes: AtomicU64,
    total: u64,
    /// Bytes that are copied to or from GPUs.
    gpu_bytes: u64,
    frozen_since: Mutex<Option<Instant>>,
}

impl Progress {
    fn frozen_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.frozen_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An action in progress; it ends when dropped.
struct ActionGuard(Checkpoints, ActionId);

impl Drop for ActionGuard {
    fn drop(&mut self) {
        self.0.live().remove(&self.1);
    }
}

impl Checkpoints {
    pub fn new(
        home: &Path,
        db: Db,
        config: LiveConfig,
        engine: Engine,
        gpus: Gpus,
        accounts: Accounts,
        pods: Pods,
    ) -> Self {
        let current = config.get();
        let directory = current.checkpoint.directory.clone().unwrap_or_else(|| home.join("checkpoints"));
        Self(Arc::new(Inner {
            db,
            engine,
            accounts,
            pods,
            gpus,
            store: Store::new(directory),
            turns: Semaphore::new(current.checkpoint.parallelism),
            live: Mutex::default(),
            copies: remote::copying::Copies::new(LiveStorage::new(config.clone())),
            fetches: tokio::sync::Mutex::default(),
            addresses: Arc::default(),
            unsettled: AtomicBool::new(true),
            rate: AtomicU64::new(preflight::EXPECTED_RATE),
            config,
        }))
    }

    /// Checkpoints that the caller may see, newest first.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: CheckpointFilter,
    ) -> Result<Vec<CheckpointView>, CheckpointError> {
        self.with_copies(self.list_rows(caller, filter).await?).await
    }

    async fn list_rows(&self, caller: &Caller, filter: CheckpointFilter) -> Result<Vec<Checkpoint>, CheckpointError> {
        let user = match (&filter.pod, &filter.user) {
            (Some(pod), _) => Some(pod.user.clone().unwrap_or_else(|| caller.user.clone())),
            (None, Some(user)) => Some(user.clone()),
            (None, None) if filter.all && caller.is_admin => None,
            (None, None) => Some(caller.user.clone()),
        };
        if user.as_ref() != Some(&caller.user) && !caller.is_admin {
            return Ok(Vec::new());
        }
        let rows: Vec<Checkpoint> = self.0.db.read(move |tx| tx.list_checkpoints(user.as_ref())).await?;
        let wanted = |row: &Checkpoint| {
            row.status != CheckpointStatus::Deleting
                && filter.pod.as_ref().is_none_or(|pod| pod.instance == row.instance)
                && filter.ids.as_ref().is_none_or(|ids| ids.contains(&row.id))
                && filter.name.as_ref().is_none_or(|name| row.name.as_ref() == Some(name))
        };
        Ok(rows.into_iter().filter(wanted).collect())
    }

    /// One checkpoint. Members do not see those of others.
    pub async fn find(&self, caller: &Caller, id: CheckpointId) -> Result<CheckpointView, CheckpointError> {
        let row = self.find_row(caller, id).await?;
        let found = self.with_copies(vec![row]).await?.pop();
        found.ok_or_else(|| CheckpointError::NotFound(id.to_string()))
    }

    async fn find_row(&self, caller: &Caller, id: CheckpointId) -> Result<Checkpoint, CheckpointError> {
        let row: Option<Checkpoint> = self.0.db.read(move |tx| tx.find_checkpoint(id)).await?;
        let row = row.filter(|row| may_see(caller, &row.user) && row.status != CheckpointStatus::Deleting);
        row.ok_or_else(|| CheckpointError::NotFound(id.to_string()))
    }

    /// What a checkpoint consists of.
    pub async fn manifest(&self, caller: &Caller, id: CheckpointId) -> Result<Manifest, CheckpointError> {
        let row = self.find_row(caller, id).await?;
        if !matches!(row.status, CheckpointStatus::Ready | CheckpointStatus::Deprecated) {
            return Err(CheckpointError::NotReady { id, status: row.status });
        }
        self.manifest_of(&row).await
    }

    /// Deletes a checkpoint, unless it is being made or read.
    pub async fn delete(&self, caller: &Caller, id: CheckpointId) -> Result<(), CheckpointError> {
        let row = self.find_row(caller, id).await?;
        let actor = Actor::from(caller);
        self.0
            .db
            .write(move |tx| {
                if tx.is_checkpoint_in_use(id)? {
                    return Err(CheckpointError::InUse(id));
                }
                if tx.is_held_by_drain(id)? {
                    return Err(CheckpointError::HeldByDrain(id));
                }
                match tx.update_checkpoint(id, CheckpointStatus::Deleting, row.size) {
                    // Another request has deleted it meanwhile.
                    Ok(()) | Err(DbError::NoRow { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                let object = format!("{id} of {}", row.container_name);
                tx.insert_event(&NewEvent::by(&actor).did("checkpoint.delete", object).of(&row.user))?;
                Ok(())
            })
            .await?;
        self.remove_deleted().await
    }

    /// One action, with its progress.
    pub async fn action(&self, caller: &Caller, id: ActionId) -> Result<ActionView, CheckpointError> {
        let row: Option<Action> = self.0.db.read(move |tx| tx.find_action(id)).await?;
        let row = row.filter(|row| may_see(caller, &row.user)).map(|row| self.with_progress(row));
        let found = self.with_copies_of_actions(row.into_iter().collect()).await?.pop();
        found.ok_or_else(|| CheckpointError::NoAction(id.to_string()))
    }

    /// Actions that the caller may see, newest first.
    pub async fn list_actions(
        &self,
        caller: &Caller,
        filter: ActionFilter,
    ) -> Result<Vec<ActionView>, CheckpointError> {
        let user = (!(filter.all && caller.is_admin)).then(|| caller.user.clone());
        let rows: Vec<Action> = self.0.db.read(move |tx| tx.list_actions(user.as_ref(), &filter)).await?;
        self.with_copies_of_actions(rows.into_iter().map(|row| self.with_progress(row)).collect()).await
    }

    fn with_progress(&self, row: Action) -> ActionView {
        let mut action = ActionView::from(row);
        if let Some(live) = self.live().get(&action.id) {
            action.bytes = live.bytes.load(Ordering::Relaxed);
            action.total_bytes = Some(live.total);
            if let Some(since) = *live.frozen_since() {
                action.frozen_ms = Some(millis_since(since));
            }
        }
        action
    }

    fn live(&self) -> MutexGuard<'_, HashMap<ActionId, Arc<Progress>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_work(&self, action: &Action, total: u64) -> (ActionGuard, Arc<Progress>) {
        let live = Arc::new(Progress {
            pod: action.pod,
            checkpoint: action.checkpoint,
            bytes: AtomicU64::new(0),
            total,
            gpu_bytes: action.journal.gpu.as_ref().map_or(0, |work| work.bytes),
            frozen_since: Mutex::default(),
        });
        self.live().insert(action.id, live.clone());
        (ActionGuard(self.clone(), action.id), live)
    }

    /// The action in progress on this pod.
    fn at_work_on(&self, pod: PodId) -> Option<ActionId> {
        self.live().iter().find(|(_, live)| live.pod == pod).map(|(id, _)| *id)
    }

    /// Records where an action is.
    async fn write_action(&self, action: &Action) -> Result<(), CheckpointError> {
        let row = action.clone();
        Ok(self.0.db.write(move |tx| tx.update_action(&row)).await?)
    }

    /// Ends an action that has nothing left to roll back: the row, its event, and what `also` writes.
    async fn end_action(
        &self,
        mut action: Action,
        ended: Result<(), String>,
        also: impl FnOnce(&Tx) -> Result<(), DbError> + Send + 'static,
    ) -> Result<(), CheckpointError> {
        action.ended_at = Some(Millis::now());
        action.status = if ended.is_ok() { ActionStatus::Done } else { ActionStatus::Error };
        action.error = ended.err();
        self.0
            .db
            .write(move |tx| {
                also(tx)?;
                tx.update_action(&action)?;
                tx.shrink_actions(KEPT_ACTIONS)?;
                let outcome = if action.status == ActionStatus::Done { Outcome::Ok } else { Outcome::Failed };
                tx.close_event(action.event, outcome, action.error.as_deref())
            })
            .await?;
        Ok(())
    }

    fn settle_later(&self) {
        self.0.unsettled.store(true, Ordering::Release);
    }
}

fn may_see(caller: &Caller, owner: &UserName) -> bool {
    caller.is_admin || caller.user == *owner
}

fn millis_since(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The daemon itself, acting on a user's pods.
fn caller_for(user: &UserName) -> Caller {
    Caller { user: user.clone(), is_admin: true, address: std::net::Ipv4Addr::LOCALHOST.into() }
}
