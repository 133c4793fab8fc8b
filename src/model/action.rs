//! Actions: one checkpoint or restore each, with the journal that recovery reads.
//!
//! ```text
//!  insert ───► running ───► done
//!                 └───────► error
//! ```
//!
//! A running action has a phase, see [`super::phase`]. It stays `running` after a kill until recovery has ended it.

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::LeaveRunning,
    ids::{ActionId, CheckpointId, ContainerId, PodId, ProcessId},
    names::UserName,
    phase::{ActionKind, Phase},
    pod::RestartRule,
    time::Millis,
    transitions::transitions,
    words::words,
};

words! {
    ActionStatus, "state of an action" {
        Running = "running",
        Done = "done",
        Error = "error",
    }
}

transitions! {
    ActionStatus of "action" from [Running] {
        Running => [Done, Error],
        Done => [],
        Error => [],
    }
}

/// Which actions to list.
#[derive(Clone, Debug)]
pub struct ActionFilter {
    pub kind: Option<ActionKind>,
    pub pod: Option<PodId>,
    /// Of all pods that ever had this container name.
    pub container_name: Option<String>,
    pub checkpoint: Option<CheckpointId>,
    /// Everybody's, for admins.
    pub all: bool,
    pub limit: u32,
}

impl Default for ActionFilter {
    fn default() -> Self {
        Self { kind: None, pod: None, container_name: None, checkpoint: None, all: false, limit: 100 }
    }
}

/// A row of the table `actions`: one checkpoint or restore.
#[derive(Clone, Debug)]
pub struct Action {
    pub id: ActionId,
    pub kind: ActionKind,
    pub user: UserName,
    pub pod: PodId,
    pub container_name: String,
    pub checkpoint: CheckpointId,
    pub status: ActionStatus,
    pub phase: Phase,
    /// Written or read so far.
    pub bytes: u64,
    /// How long the pod was frozen; counting while it is.
    pub frozen_ms: Option<u64>,
    /// What the checkpoint does not contain, or the restore did not bring back.
    pub losses: Vec<String>,
    pub error: Option<String>,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
    pub event: i64,
    pub journal: Journal,
}

impl Action {
    /// The name of a container while another takes its place: it has too many parts for a pod's.
    pub fn replaced_name(&self) -> String {
        format!("pody-replaced-{}", self.id)
    }
}

/// What a later start of the daemon needs to recover an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub leave_running: LeaveRunning,
    pub container: Option<ContainerId>,
    /// The container's restart policy afterwards.
    pub restart: Option<RestartRule>,
    /// The policy of a container that stays stopped if it is not restored.
    #[serde(default)]
    pub restart_if_not: Option<RestartRule>,
    /// The writable layer of a container that is restored in place.
    pub upper: Option<PathBuf>,
    /// The container that the restored one takes the place of, because another OCI runtime made it. It has another
    /// name meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<ContainerId>,
    /// A restore makes a pod of its own.
    pub makes_pod: bool,
    /// A copy in the remote store is requested.
    #[serde(default)]
    pub remote: bool,
    /// How many names of placeholder containers were used, which hold addresses for a moment.
    #[serde(default)]
    pub placeholders: u32,
    /// A bridge drops packets for the pod.
    #[serde(default, alias = "silenced")]
    pub held_traffic: Option<HeldTraffic>,
    /// Programs that are taken off their GPUs, or are to be put back on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuWork>,
    /// Processes that got SIGCONT while they are frozen, and must be stopped again.
    #[serde(default)]
    pub stopped: Vec<ProcessId>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            leave_running: LeaveRunning::Yes,
            container: None,
            restart: None,
            restart_if_not: None,
            upper: None,
            replaced: None,
            makes_pod: false,
            remote: false,
            placeholders: 0,
            held_traffic: None,
            gpu: None,
            stopped: Vec::new(),
        }
    }
}

/// What is to be done with GPUs; a later start of the daemon needs it too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuWork {
    pub program: PathBuf,
    /// In the order in which they are locked.
    pub processes: Vec<GpuProcess>,
    /// On all GPUs together.
    pub bytes: u64,
    /// For a restore onto other GPUs: `old=new,…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_map: Option<String>,
}

/// A process that uses CUDA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its PID inside the pod.
    pub pid: i32,
    pub name: String,
}

impl GpuProcess {
    pub fn who(&self) -> String {
        format!("{}[{}]", self.name, self.pid)
    }
}

/// The hold on a pod's traffic; a later start of the daemon needs it too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldTraffic {
    pub bridge: String,
    pub address: Ipv4Addr,
}
