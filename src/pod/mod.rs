//! Pods: their life cycle, their rules and the operations on them.
//!
//! ```text
//!            create                     delete
//! (nothing) ───────► creating ─────► running ─────► deleting ─────► deleted
//!                        │     done               ▲     done
//!                        └─────────► deleting ────┘
//!                          failed    (reason set) ─────► failed
//! ```
//!
//! A row that names the operation is written before the engine is called; the container carries the operation's id as a
//! label. So a kill between any two steps leaves a (row, container) pair that [`reconcile`] resolves: forward where the
//! container exists, back where it does not. Whether a `running` pod's container runs, is paused or has exited is up to
//! the engine, and is read from its inventory.
//!
//! Locks: [`Locks`] holds one lock per pod during an operation on it. It is taken before a row shows the operation, so
//! reconciliation never touches work in progress. No other lock is held across an await.

pub mod admission;
mod commit;
mod create;
mod delete;
mod exec;
mod gpu_access;
pub mod images;
mod init;
mod keys;
mod lifecycle;
mod maintenance;
mod overuse;
mod ports;
mod processes;
pub mod reconcile;
mod saved;
mod shell;
mod view;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

pub use self::{
    admission::Refusal,
    commit::Committed,
    create::NewPod,
    exec::Executed,
    lifecycle::Action,
    maintenance::AskedBy,
    shell::{NewShell, Shell, ShellBlock, ShellEvent},
};
use crate::{
    account::Accounts,
    config::LiveConfig,
    db::{Db, DbError, Outcome},
    engine::{Container, Engine, EngineError},
    gpu::Gpus,
    model::{
        drain::Drain,
        ids::{ContainerId, PodId, SessionId},
        names::{ImageRef, PodRef, UserName, container_name},
        pod::{ContainerStatus, Pod, State},
        user::{Caller, SshKey},
    },
};

/// How long an operation waits for another one on the same pod.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Interval between checks whether that one has ended.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// How long a read waits for the engine's first container list after a start.
const FIRST_LIST: Duration = Duration::from_secs(2);

/// Labels on our containers.
pub mod label {
    pub const USER: &str = "pody.user";
    pub const INSTANCE: &str = "pody.instance";
    pub const WORKLOAD: &str = "pody.workload";
    pub const POD: &str = "pody.pod";
    pub const OP: &str = "pody.op";
    /// All of them: an image committed from a pod must not inherit them.
    pub const ALL: [&str; 5] = [USER, INSTANCE, WORKLOAD, POD, OP];
}

/// Why an operation on a pod failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum PodError {
    #[error("there is no pod {0}")]
    #[strum(serialize = "pod_not_found")]
    NotFound(String),
    #[error("{}", .0.refusal())]
    Draining(Box<Drain>),
    #[error("pod {0} already exists; choose another name, or delete it with `pody rm {0}`")]
    #[strum(serialize = "pod_exists")]
    Exists(String),
    #[error("a container named {0} exists that pody did not create; choose another name")]
    #[strum(serialize = "foreign_container")]
    Foreign(String),
    #[error("{pod} is busy: {what}; try again in a moment")]
    #[strum(serialize = "pod_busy")]
    Busy { pod: String, what: &'static str },
    #[error(transparent)]
    #[strum(transparent)]
    Refused(#[from] Refusal),
    #[error("{image} is not an image that you may use; {}", if .allowed.is_empty() {
        "there are none yet: ask an admin to list one under [[images]] in config.toml and to build or pull it".to_owned()
    } else { format!("choose one of: {}", .allowed.join(", ")) })]
    #[strum(serialize = "image_not_allowed")]
    Image { image: ImageRef, allowed: Vec<String> },
    #[error("{0} is not your image; only your own commits can be deleted")]
    NotYourImage(String),
    #[error("{image} is in use by {}; delete that first", .pods.join(", "))]
    ImageInUse { image: String, pods: Vec<String> },
    #[error("image {0} already exists; choose another tag, or delete it with `pody post image/delete image:{0}`")]
    ImageExists(String),
    #[error(
        "no free port: the pod needs {needed}, and {free} of the {all} ports of this host are free; delete a pod, or ask an admin for more in available_ports"
    )]
    #[strum(serialize = "no_free_port")]
    NoPort { needed: usize, free: usize, all: usize },
    #[error("{pod} is {status}; {next}")]
    #[strum(serialize = "pod_not_running")]
    NotRunning { pod: String, status: String, next: &'static str },
    #[error("/bin/bash does not run in {pod}; install it in the image")]
    NoShell { pod: String },
    #[error("{pod} has no session {session}; `pody shell NAME --list` lists its sessions")]
    #[strum(serialize = "session_not_found")]
    NoSession { pod: String, session: SessionId },
    #[error(
        "{pod} was created before pods could run commands in the background; create it again, or end the command line with &"
    )]
    NoInit { pod: String },
    #[error("a command line has at most {max} bytes and no NUL; put a longer one into a file in the pod and run that")]
    #[strum(serialize = "command_too_long")]
    Command { max: usize },
    #[error("a command's timeout is 1 to {max} s, you asked for {asked}")]
    #[strum(serialize = "timeout_out_of_range")]
    Timeout { asked: u64, max: u64 },
    #[error("cannot create the directory {path} of a volume: {source}")]
    #[strum(serialize = "volume_failed")]
    Volume { path: std::path::PathBuf, source: std::io::Error },
    #[error(
        "cannot write the init program of pods below {path}: {source}; check that its disk has space and is writable"
    )]
    #[strum(serialize = "init_failed")]
    Init { path: std::path::PathBuf, source: std::io::Error },
    #[error("{pod} has reached its pids_limit of {limit} processes; end some of them, or restart it")]
    #[strum(serialize = "pids_limit")]
    NoPids { pod: String, limit: u64 },
    #[error(
        "the quota storage_size needs Docker on overlay2 over xfs with pquota, which this host does not have; ask an admin to set storage_size to \"\""
    )]
    #[strum(serialize = "storage_size_unsupported")]
    StorageUnsupported,
    #[error(
        "Docker cannot give GPUs to pods on this host; ask an admin to install the NVIDIA Container Toolkit and restart Docker, or to set the quota gpus to none"
    )]
    NoGpuDriver,
    #[error("the network {0} of the config does not exist; ask an admin to create it with `docker network create {0}`")]
    #[strum(serialize = "network_not_found")]
    Network(String),
    #[error(transparent)]
    #[strum(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
}

/// One lock per pod.
#[derive(Clone, Default)]
struct Locks(Arc<Mutex<HashMap<PodId, Weak<tokio::sync::Mutex<()>>>>>);

impl Locks {
    fn of(&self, id: PodId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(id, Arc::downgrade(&lock));
        lock
    }

    async fn lock(&self, id: PodId) -> OwnedMutexGuard<()> {
        self.of(id).lock_owned().await
    }

    /// Whether an operation on the pod is in progress.
    fn is_held(&self, id: PodId) -> bool {
        self.of(id).try_lock().is_err()
    }

    fn try_lock(&self, id: PodId) -> Option<OwnedMutexGuard<()>> {
        self.of(id).try_lock_owned().ok()
    }
}

/// All operations on pods. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    db: Db,
    config: LiveConfig,
    engine: Engine,
    gpus: Gpus,
    accounts: Accounts,
    locks: Locks,
    /// Concurrent creates and starts: with more, the engine gets slower, not faster.
    engine_turns: Arc<Semaphore>,
    /// Notified of each create that succeeds: as long as others succeed, a create may wait for its turn.
    created: watch::Sender<()>,
    commits: commit::Commits,
    gpu_access: gpu_access::GpuAccess,
    init: init::InitStore,
    shells_held: shell::BlockedShells,
    /// Outcomes that the database could not store yet.
    unclosed: Arc<Mutex<Vec<Ended>>>,
}

/// How an operation ended whose event is still open.
struct Ended {
    event: i64,
    outcome: Outcome,
    detail: Option<String>,
}

impl Pods {
    pub fn new(home: &Path, db: Db, config: LiveConfig, engine: Engine, gpus: Gpus, accounts: Accounts) -> Self {
        let engine_turns = Arc::new(Semaphore::new(config.get().pod.engine_parallelism));
        Self {
            db,
            config,
            engine,
            gpus,
            accounts,
            locks: Locks::default(),
            engine_turns,
            created: watch::Sender::new(()),
            commits: commit::Commits::default(),
            gpu_access: gpu_access::GpuAccess::default(),
            init: init::InitStore::new(home),
            shells_held: shell::BlockedShells::default(),
            unclosed: Arc::default(),
        }
    }

    /// The pod that a caller means. Members get "not found" for others' pods.
    pub fn find(&self, caller: &Caller, wanted: &PodRef) -> Result<Arc<Pod>, PodError> {
        let name = self.name_of(caller, wanted)?;
        self.db.snapshot().pods.find(&name).cloned().ok_or_else(|| PodError::NotFound(wanted.to_string()))
    }

    /// The container name that is meant, whether it exists or not. Members get "not found" for others'.
    pub fn name_of(&self, caller: &Caller, wanted: &PodRef) -> Result<String, PodError> {
        let config = self.config.get();
        let user = wanted.user.as_ref().unwrap_or(&caller.user);
        if wanted.prefix.is_some() && wanted.prefix != config.name_prefix || user != &caller.user && !caller.is_admin {
            return Err(PodError::NotFound(wanted.to_string()));
        }
        Ok(container_name(config.name_prefix.as_ref(), user, &wanted.instance))
    }

    /// The pod of this id. Members get "not found" for others' pods.
    pub fn find_by_id(&self, caller: &Caller, id: PodId) -> Result<Arc<Pod>, PodError> {
        let rows = self.db.snapshot();
        let pod = rows.pods.get(id).filter(|pod| caller.is_admin || pod.user == caller.user);
        pod.cloned().ok_or_else(|| PodError::NotFound(id.to_string()))
    }

    /// Locks the pod for a change.
    pub(crate) async fn lock(
        &self,
        caller: &Caller,
        wanted: &PodRef,
    ) -> Result<(OwnedMutexGuard<()>, Arc<Pod>), PodError> {
        let id = self.find(caller, wanted)?.id;
        let busy = |pod: &Pod| PodError::Busy {
            pod: pod.container_name.clone(),
            what: match pod.state {
                State::Creating => "it is being created",
                State::Deleting => "it is being deleted",
                State::Running | State::Deleted | State::Failed => "another operation on it is in progress",
            },
        };
        let Ok(guard) = tokio::time::timeout(LOCK_WAIT, self.locks.lock(id)).await else {
            return Err(busy(&*self.find(caller, wanted)?));
        };
        // It may have changed, or been deleted and created again, while we waited.
        let pod = self.find(caller, wanted)?;
        if pod.id != id || pod.state != State::Running {
            return Err(busy(&pod));
        }
        Ok((guard, pod))
    }

    /// The pod's container from the inventory.
    fn container(&self, pod: &Pod) -> Option<Arc<Container>> {
        self.engine.inventory().get(pod.container.as_ref()?)
    }

    /// The running container of a pod. During an operation on the pod, a checkpoint above all, it may be paused for
    /// a moment and resume by itself: this waits for that.
    async fn running(&self, pod: &Pod) -> Result<ContainerId, PodError> {
        self.engine.wait_ready(FIRST_LIST).await;
        let begun = Instant::now();
        let container = loop {
            let Some(container) = self.container(pod) else {
                return Err(match &self.engine.health() {
                    crate::engine::Health::Down(why) => EngineError::Unavailable(why.clone()).into(),
                    _ => PodError::NotFound(pod.container_name.clone()),
                });
            };
            if container.status.is_running() {
                return Ok(container.id.clone());
            }
            if !self.locks.is_held(pod.id) || begun.elapsed() > LOCK_WAIT {
                break container;
            }
            tokio::time::sleep(LOCK_LOOK).await;
        };
        let next = match &container.status {
            _ if self.locks.is_held(pod.id) => {
                "an operation on it is in progress: see `pody actions`, and try again when it has ended"
            }
            ContainerStatus::Paused => "ask an admin to resume it with `docker unpause`",
            ContainerStatus::Restarting => "its first process keeps exiting: see `pody logs`",
            ContainerStatus::Created
            | ContainerStatus::Running
            | ContainerStatus::Removing
            | ContainerStatus::Exited
            | ContainerStatus::Dead
            | ContainerStatus::Unknown(_) => "start it with `pody start`",
        };
        Err(PodError::NotRunning { pod: pod.container_name.clone(), status: container.status.to_string(), next })
    }

    /// Closes the event of an operation that has ended. A database that cannot take the write now does not change
    /// the operation's outcome: the write is retried.
    async fn close_event<T, E: std::fmt::Display>(&self, event: i64, done: &Result<T, E>) {
        let outcome = if done.is_ok() { Outcome::Ok } else { Outcome::Failed };
        let detail = done.as_ref().err().map(ToString::to_string);
        let text = detail.clone();
        let closed = self.db.write(move |tx| tx.close_event(event, outcome, text.as_deref())).await;
        if let Err::<_, DbError>(error) = closed {
            tracing::warn!(event, %error, "cannot close an event now, will retry");
            self.unclosed.lock().unwrap_or_else(PoisonError::into_inner).push(Ended { event, outcome, detail });
        }
    }

    async fn close_left_events(&self) {
        let left = std::mem::take(&mut *self.unclosed.lock().unwrap_or_else(PoisonError::into_inner));
        if left.is_empty() {
            return;
        }
        // The closure may be dropped without having run, so a copy stays here.
        let closing: Vec<_> = left.iter().map(|ended| (ended.event, ended.outcome, ended.detail.clone())).collect();
        let closed: Result<(), DbError> = self
            .db
            .write(move |tx| {
                closing
                    .iter()
                    .try_for_each(|(event, outcome, detail)| tx.close_event(*event, *outcome, detail.as_deref()))
            })
            .await;
        if closed.is_err() {
            self.unclosed.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
        }
    }

    /// Public keys for a user's pods; none where the database cannot be read.
    async fn keys_of(&self, user: &UserName) -> Vec<SshKey> {
        self.accounts.list_ssh_keys(user).await.unwrap_or_else(|error| {
            tracing::warn!(%user, %error, "cannot read SSH keys");
            Vec::new()
        })
    }
}

impl Pod {
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (label::USER.to_owned(), self.user.to_string()),
            (label::INSTANCE.to_owned(), self.instance.to_string()),
            (label::WORKLOAD.to_owned(), self.workload.to_string()),
            (label::POD.to_owned(), self.id.to_string()),
            (label::OP.to_owned(), self.op.to_string()),
        ])
    }
}
