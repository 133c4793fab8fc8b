//! Pods: their life, their rules, and what is done with them.
//!
//! ```text
//!            create                     delete
//! (nothing) ───────► creating ─────► running ─────► deleting ─────► deleted
//!                        │     done               ▲     done
//!                        └─────────► deleting ────┘
//!                          failed    (reason set) ─────► failed
//! ```
//!
//! A row is written before the engine is asked and names the operation; the container carries the operation's id as a label.
//! So a kill between any two steps leaves a (row, container) pair that [`reconcile`] settles: forward where the container
//! exists, back where it does not. Whether a `running` pod's container runs, is paused or has exited is the engine's to
//! say, and is read from its inventory.
//!
//! Locks: [`Locks`] holds one lock per pod while something is done to it. It is taken before a row shows the work, so
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
    images::ImageView,
    lifecycle::Action,
    maintenance::{AskedBy, is_up},
    shell::{NewShell, SessionView, Shell, ShellEvent, ShellsHeld},
    view::{PodStats, PodView},
};
use crate::{
    account::Accounts,
    config::LiveConfig,
    db::{Db, DbError, NewEvent, Outcome, Tx},
    engine::{Container, Engine, EngineError},
    gpu::Gpus,
    model::{
        drain::Drain,
        ids::{ContainerId, PodId, SessionId},
        names::{ImageRef, PodRef, UserName, container_name},
        pod::{Pod, State},
        user::{Actor, Caller, SshKey},
    },
};

/// How long something waits for what is being done with the same pod.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Time between two looks whether it is over.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// How long a read waits for the first list of the engine after a start.
const FIRST_LIST: Duration = Duration::from_secs(2);

/// Labels of our containers.
pub mod label {
    pub const USER: &str = "pody.user";
    pub const INSTANCE: &str = "pody.instance";
    pub const WORKLOAD: &str = "pody.workload";
    pub const POD: &str = "pody.pod";
    pub const OP: &str = "pody.op";
    /// All of them: an image made of a pod must not carry them on.
    pub const ALL: [&str; 5] = [USER, INSTANCE, WORKLOAD, POD, OP];
}

/// Why something was not done with a pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("there is no pod {0}")]
    NotFound(String),
    #[error("{}", .0.refusal())]
    Draining(Box<Drain>),
    #[error("there is a pod {0} already; choose another name, or delete it with `pody rm {0}`")]
    Exists(String),
    #[error("a container named {0} is there that pody did not make; choose another name")]
    Foreign(String),
    #[error("{pod} is busy: {what}; try again in a moment")]
    Busy { pod: String, what: &'static str },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{image} is no image that you may use; {}", if .allowed.is_empty() {
        "there are none yet: ask an admin to name one under [[images]] in config.toml and to build or pull it".to_owned()
    } else { format!("there are: {}", .allowed.join(", ")) })]
    Image { image: ImageRef, allowed: Vec<String> },
    #[error("{0} is no image of yours; only your own commits can be deleted")]
    NotYourImage(String),
    #[error("{image} is in use by {}; delete that first", .pods.join(", "))]
    ImageInUse { image: String, pods: Vec<String> },
    #[error("there is an image {0} already; choose another tag, or delete it with `pody post image/delete image:{0}`")]
    ImageExists(String),
    #[error(
        "no free port: the pod needs {needed}, and {free} of the {all} ports of this host are free; ask an admin for more in available_ports, or delete a pod"
    )]
    NoPort { needed: usize, free: usize, all: usize },
    #[error("{pod} is {status}; {next}")]
    NotRunning { pod: String, status: String, next: &'static str },
    #[error("{pod} has no /bin/bash that runs; put one into its image")]
    NoShell { pod: String },
    #[error("{pod} has no session {session}; `pody shell NAME --list` shows those that it has")]
    NoSession { pod: String, session: SessionId },
    #[error(
        "{pod} was made before pods could run commands in the background; make it anew, or end the command line with &"
    )]
    NoInit { pod: String },
    #[error("a command line has at most {max} bytes and no NUL; put a longer one into a file in the pod and run that")]
    Command { max: usize },
    #[error("a command may run for 1 to {max} s, you asked for {asked}")]
    Timeout { asked: u64, max: u64 },
    #[error("the folder {path} of a volume cannot be made: {source}")]
    Volume { path: std::path::PathBuf, source: std::io::Error },
    #[error(
        "the first process of pods cannot be written below {path}: {source}; see that its disk has room and can be written"
    )]
    Init { path: std::path::PathBuf, source: std::io::Error },
    #[error("{pod} has used up its pids_limit of {limit} processes; end some of them, or restart it")]
    NoPids { pod: String, limit: u64 },
    #[error(
        "the quota storage_size needs an engine on overlay2 over xfs with pquota, and this one is not; ask an admin to set storage_size to \"\""
    )]
    StorageUnsupported,
    #[error(
        "Docker cannot give GPUs to pods on this host; ask an admin to install the NVIDIA container toolkit and restart Docker, or to set the quota gpus to none"
    )]
    NoGpuDriver,
    #[error("the network {0} of the config does not exist; ask an admin to make it with `docker network create {0}`")]
    Network(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
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

    /// Whether something is being done with the pod.
    fn is_held(&self, id: PodId) -> bool {
        self.of(id).try_lock().is_err()
    }

    fn try_lock(&self, id: PodId) -> Option<OwnedMutexGuard<()>> {
        self.of(id).try_lock_owned().ok()
    }
}

/// Everything that is done with pods. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    db: Db,
    config: LiveConfig,
    engine: Engine,
    gpus: Gpus,
    accounts: Accounts,
    locks: Locks,
    /// Creates and starts at a time: the engine gets slower with more, not faster.
    engine_turns: Arc<Semaphore>,
    /// Told of each create that succeeds: as long as others do, one may wait for its turn.
    created: watch::Sender<()>,
    commits: commit::Commits,
    gpu_access: gpu_access::GpuAccess,
    init: init::InitStore,
    shells_held: shell::Held,
    /// Ends of work that the database could not take.
    unclosed: Arc<Mutex<Vec<Ended>>>,
}

/// How work ended whose event is still open.
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
            shells_held: shell::Held::default(),
            unclosed: Arc::default(),
        }
    }

    /// The pod that a caller means. Others' pods are not there for members.
    pub fn find(&self, caller: &Caller, wanted: &PodRef) -> Result<Arc<Pod>, PodError> {
        let name = self.name_of(caller, wanted)?;
        self.db.snapshot().pods.find(&name).cloned().ok_or_else(|| PodError::NotFound(wanted.to_string()))
    }

    /// The container's name that is meant, whether there is one or not. Others' are not there for members.
    pub fn name_of(&self, caller: &Caller, wanted: &PodRef) -> Result<String, PodError> {
        let config = self.config.get();
        let user = wanted.user.as_ref().unwrap_or(&caller.user);
        if wanted.prefix.is_some() && wanted.prefix != config.name_prefix || user != &caller.user && !caller.is_admin {
            return Err(PodError::NotFound(wanted.to_string()));
        }
        Ok(container_name(config.name_prefix.as_ref(), user, &wanted.instance))
    }

    /// The pod of this id. Others' pods are not there for members.
    pub fn find_by_id(&self, caller: &Caller, id: PodId) -> Result<Arc<Pod>, PodError> {
        let rows = self.db.snapshot();
        let pod = rows.pods.get(id).filter(|pod| caller.is_admin || pod.user == caller.user);
        pod.cloned().ok_or_else(|| PodError::NotFound(id.to_string()))
    }

    /// The pod under its lock, to change it.
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
                State::Running | State::Deleted | State::Failed => "something else is being done with it",
            },
        };
        let Ok(guard) = tokio::time::timeout(LOCK_WAIT, self.locks.lock(id)).await else {
            return Err(busy(&*self.find(caller, wanted)?));
        };
        // It may have changed, or gone and come back as another, while we waited.
        let pod = self.find(caller, wanted)?;
        if pod.id != id || pod.state != State::Running {
            return Err(busy(&pod));
        }
        Ok((guard, pod))
    }

    /// The pod's container as the inventory has it.
    fn container(&self, pod: &Pod) -> Option<Arc<Container>> {
        self.engine.inventory().get(pod.container.as_ref()?)
    }

    /// The running container of a pod. While something is done with the pod, a checkpoint above all, it may stand still for
    /// a moment and go on by itself: that is waited for.
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
            if container.status == "running" {
                return Ok(container.id.clone());
            }
            if !self.locks.is_held(pod.id) || begun.elapsed() > LOCK_WAIT {
                break container;
            }
            tokio::time::sleep(LOCK_LOOK).await;
        };
        let next = match container.status.as_str() {
            _ if self.locks.is_held(pod.id) => {
                "something is being done with it: see `pody actions`, and try again then"
            }
            "paused" => "it goes on when whoever paused it unpauses it",
            "restarting" => "its first process ends again and again: see `pody logs`",
            _ => "start it with `pody start`",
        };
        Err(PodError::NotRunning { pod: pod.container_name.clone(), status: container.status.clone(), next })
    }

    /// Closes the event of work that has ended. What came of the work is not changed by a database that cannot take it now:
    /// it is written when it can.
    async fn close_event<T, E: std::fmt::Display>(&self, event: i64, done: &Result<T, E>) {
        let outcome = if done.is_ok() { Outcome::Ok } else { Outcome::Failed };
        let detail = done.as_ref().err().map(ToString::to_string);
        let text = detail.clone();
        let closed = self.db.write(move |tx| tx.close_event(event, outcome, text.as_deref())).await;
        if let Err::<_, DbError>(error) = closed {
            tracing::warn!(event, %error, "an event is closed later");
            self.unclosed.lock().unwrap_or_else(PoisonError::into_inner).push(Ended { event, outcome, detail });
        }
    }

    async fn close_left_events(&self) {
        let left = std::mem::take(&mut *self.unclosed.lock().unwrap_or_else(PoisonError::into_inner));
        if left.is_empty() {
            return;
        }
        // The closure may be dropped without having run: what is left is kept here, too.
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

    /// Public keys for a user's pods; without them where the database cannot tell.
    async fn keys_of(&self, user: &UserName) -> Vec<SshKey> {
        self.accounts.list_ssh_keys(user).await.unwrap_or_else(|error| {
            tracing::warn!(%user, %error, "SSH keys not read");
            Vec::new()
        })
    }
}

/// Writes down that work on a pod begins. It is closed when the work ends.
fn begin_event(tx: &Tx, actor: &Actor, action: &'static str, pod: &str, user: &UserName) -> Result<i64, DbError> {
    tx.insert_event(&NewEvent {
        actor: actor.name.clone(),
        source: actor.source.clone(),
        action,
        object: pod.to_owned(),
        user: Some(user.clone()),
        outcome: Outcome::Pending,
        detail: None,
    })
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
