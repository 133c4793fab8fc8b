//! GPUs: which ones there are, their health, and whose processes are on them.
//!
//! One thread owns NVML ([`poller`]): listing processes holds the driver's global lock for milliseconds, so nothing
//! else calls it. The thread polls every `[gpu] poll_seconds` while a client is watching, every `idle_poll_seconds`
//! otherwise, and publishes a [`Snapshot`]. NVML knows host PIDs only; [`attribution`] finds the container, pod and
//! user of each.
//!
//! A GPU that cannot be read is [`Health::Unknown`], never zero; the others are not affected. A call that hangs costs
//! its GPU, not the daemon: a watchdog abandons the stuck thread and starts another one, which skips this GPU until the
//! call returns.

mod attribution;
pub mod enforcement;
pub mod health;
pub mod ledger;
mod nvml;
mod old_memory;
mod poller;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use self::{ledger::GpuLoad, poller::run};
use crate::{
    config::LiveConfig,
    db::Db,
    engine::Inventory,
    host::clock::Moment,
    model::{
        gpu::{Library, MigInstance, ProcessKind, Reading},
        ids::{ContainerId, PodId, ProcessId},
        names::UserName,
        quantities::GpuSet,
        usage::GpuUuid,
    },
};

/// A client counts as watching until this long after its last read.
const INTEREST: Duration = Duration::from_secs(15);

/// All GPUs at one time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Moment,
    pub library: Library,
    pub devices: Vec<Device>,
}

/// One GPU.
#[derive(Clone, Debug)]
pub struct Device {
    pub index: u32,
    pub uuid: GpuUuid,
    pub name: String,
    pub health: Health,
    pub processes: Vec<GpuProcess>,
    pub mig: Vec<MigInstance>,
}

/// Whether a GPU could be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    Known(Reading),
    Unknown { reason: String },
}

/// A process on a GPU.
#[derive(Clone, Debug)]
pub struct GpuProcess {
    pub id: ProcessId,
    pub owner: Arc<Owner>,
    /// The PID inside its pod.
    pub pid_inside: Option<i32>,
    /// `None` until it has been read.
    pub command: Option<Arc<str>>,
    /// Seconds since its start.
    pub uptime: f64,
    /// Bytes of host memory, as of when a client last watched.
    pub resident: u64,
    /// Bytes of GPU memory; `None` if the driver does not report it.
    pub gpu_memory: Option<u64>,
    /// Percent of the GPU's time; `None` if the driver does not report it.
    pub utilization: Option<u32>,
    pub kinds: Kinds,
    /// The MIG instance it runs in.
    pub gpu_instance: Option<u32>,
}

/// The driver's lists in which a process appears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    pub compute: bool,
    pub graphics: bool,
    pub mps: bool,
}

impl Kinds {
    pub fn listed(self) -> Vec<ProcessKind> {
        let kinds = [
            (self.compute, ProcessKind::Compute),
            (self.graphics, ProcessKind::Graphics),
            (self.mps, ProcessKind::Mps),
        ];
        kinds.into_iter().filter_map(|(is_listed, kind)| is_listed.then_some(kind)).collect()
    }
}

/// The owner of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Pod {
        pod: PodId,
        user: UserName,
        name: String,
        container: ContainerId,
    },
    /// A container that is not a pod.
    Container {
        name: String,
    },
    Host,
}

impl Owner {
    /// The user, for pods.
    pub fn user(&self) -> Option<&UserName> {
        match self {
            Self::Pod { user, .. } => Some(user),
            Self::Container { .. } | Self::Host => None,
        }
    }
}

/// The GPUs. Cheap to clone.
#[derive(Clone)]
pub struct Gpus(Arc<Shared>);

struct Shared {
    snapshot: ArcSwap<Snapshot>,
    taken: watch::Sender<u64>,
    /// When a client last read a snapshot, milliseconds since boot.
    looked: AtomicI64,
    /// Wakes the poller when a client begins to watch.
    woken: std::sync::Condvar,
    asleep: std::sync::Mutex<()>,
    config: LiveConfig,
    db: Db,
    inventory: Inventory,
}

impl Gpus {
    pub fn new(config: LiveConfig, db: Db, inventory: Inventory) -> Self {
        let snapshot = Snapshot { at: Moment::now(), library: Library::Starting, devices: Vec::new() };
        Self(Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            taken: watch::Sender::new(0),
            looked: AtomicI64::new(i64::MIN / 2),
            woken: std::sync::Condvar::new(),
            asleep: std::sync::Mutex::new(()),
            config,
            db,
            inventory,
        }))
    }

    /// The newest snapshot. Does not count as watching.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// The newest snapshot, for a client that watches: not older than a second, or two if the poller was idle.
    pub async fn look(&self) -> Arc<Snapshot> {
        let since = Moment::now().steady;
        let slept = since - self.0.looked.swap(since, Ordering::Relaxed) > INTEREST.as_millis() as i64;
        let library = self.snapshot().library.clone();
        if library == Library::Starting || slept && library != Library::Absent {
            let mut taken = self.0.taken.subscribe();
            self.0.woken.notify_all();
            let _ = tokio::time::timeout(Duration::from_secs(1), taken.changed()).await;
        }
        self.snapshot()
    }

    /// The load of each GPU, see [`ledger`].
    pub fn loads(&self) -> Vec<GpuLoad> {
        let rows = self.0.db.snapshot();
        let assigned: Vec<&GpuSet> = rows.pods.iter().filter_map(|pod| pod.spec.gpus.as_ref()).collect();
        ledger::loads(&self.snapshot().devices, &assigned)
    }

    /// Snapshots taken since the start.
    pub fn polls(&self) -> i64 {
        i64::try_from(*self.0.taken.borrow()).unwrap_or(i64::MAX)
    }

    /// Notifies of each new snapshot.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.taken.subscribe()
    }

    fn is_watched(&self) -> bool {
        Moment::now().steady - self.0.looked.load(Ordering::Relaxed) < INTEREST.as_millis() as i64
    }

    fn publish(&self, snapshot: Snapshot) {
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.taken.send_modify(|count| *count += 1);
    }

    /// Time to the next poll.
    fn interval(&self) -> Duration {
        let limits = &self.0.config.get().gpu;
        let seconds = if self.is_watched() { limits.poll_seconds } else { limits.idle_poll_seconds };
        Duration::from_secs_f64(seconds.max(0.1))
    }
}
