//! A pod: its row, its specification, and its states.
//!
//! ```text
//!  insert ───► creating ───────────────► running ◄─── insert: adopted
//!                 │ cannot be created      │ │
//!                 ▼                        │ │ its container was removed outside pody
//!              deleting ◄──── delete ──────┘ │
//!                 │ │                        │
//!        rollback │ └──────► deleted ◄───────┘
//!                 ▼
//!               failed
//! ```
//!
//! `deleted` and `failed` are final: such a row stays, and frees the pod's name and ports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    ids::{ContainerId, OpId, PodId, WorkloadId},
    names::{InstanceName, UserName},
    quantities::GpuSet,
    transitions::transitions,
    words::words,
};

words! {
    /// Where a pod is in its life cycle.
    State, "state of a pod" {
        Creating = "creating",
        Running = "running",
        /// Also a pod that could not be created, while it is rolled back.
        Deleting = "deleting",
        Deleted = "deleted",
        /// It was never created.
        Failed = "failed",
    }
}

transitions! {
    State of "pod" from [Creating, Running] {
        Creating => [Running, Deleting],
        Running => [Deleting, Deleted],
        Deleting => [Deleted, Failed],
        Deleted => [],
        Failed => [],
    }
}

/// A row of the table `pods`.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: PodId,
    pub workload: WorkloadId,
    pub user: UserName,
    pub instance: InstanceName,
    pub container_name: String,
    pub state: State,
    pub spec: PodSpec,
    /// Created by pody 0.4.1 or by hand, and adopted.
    pub adopted: bool,
    pub container: Option<ContainerId>,
    /// The operation in progress, or the last one.
    pub op: OpId,
    /// The event of that operation.
    pub event: i64,
    /// Why it is being rolled back.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub created_at: i64,
}

/// A port of the host that is published to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub host: u16,
    pub container: u16,
}

/// A bind mount of a host directory. The source is resolved: no component of it is a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

/// A tmpfs mount in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub target: String,
    /// Bytes; `None` = the engine's default.
    pub size: Option<u64>,
}

/// Everything that can be requested of the engine for a container of ours: enough to create it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    /// By the engine's name.
    pub image: String,
    pub hostname: String,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    pub ports: Vec<PublishedPort>,
    /// Empty = the engine's default bridge.
    pub network: String,
    /// `None` = the host cannot give GPUs, and none are requested.
    pub gpus: Option<GpuSet>,
    /// Bytes; `None` = no limit, here and below.
    pub memory: Option<u64>,
    /// Thousandths of a core.
    pub cpu: Option<u64>,
    pub pids: Option<u64>,
    pub shm: Option<u64>,
    pub storage: Option<u64>,
    pub new_privileges: bool,
    /// `None` = the image's own program is PID 1, as in adopted pods and in pods of older versions.
    #[serde(default)]
    pub init: Option<Init>,
}

/// Our own PID 1 in a container, and what it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// On the host. Resolved, like a bind's source.
    pub program: PathBuf,
    /// The image's own entrypoint.
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// Whether programs may use io_uring; a pod whose programs do cannot be checkpointed.
    pub io_uring: bool,
}

impl Init {
    /// Path of the program in the container. It is below `/dev`, which is a tmpfs: elsewhere the engine would leave an
    /// empty file of that name in the container's writable layer, and so in commits.
    pub const INSIDE: &'static str = "/dev/pody-init";

    /// The engine's entrypoint and command. If the image has no entrypoint the container has none either, since a
    /// commit cannot unset one.
    pub fn to_run(&self) -> (Option<Vec<String>>, Option<Vec<String>>) {
        let io_uring = self.io_uring.then_some("--io-uring");
        let first = [Self::INSIDE, "init"].into_iter().chain(io_uring).chain(["--"]).map(str::to_owned);
        let command = Some(self.command.clone()).filter(|command| !command.is_empty());
        match self.entrypoint.is_empty() {
            true => (None, Some(first.chain(self.command.iter().cloned()).collect())),
            false => (Some(first.chain(self.entrypoint.iter().cloned()).collect()), command),
        }
    }

    /// Dockerfile lines that restore the image's own entrypoint and command.
    pub fn original(&self) -> Vec<String> {
        let list = |words: &[String]| serde_json::to_string(words).expect("texts");
        // In this order: an entrypoint unsets the command.
        let entrypoint = (!self.entrypoint.is_empty()).then(|| format!("ENTRYPOINT {}", list(&self.entrypoint)));
        let command = (!self.command.is_empty()).then(|| format!("CMD {}", list(&self.command)));
        entrypoint.into_iter().chain(command).collect()
    }
}

/// When the engine starts a container by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRule {
    /// `no`, `always`, `unless-stopped`, `on-failure`.
    pub name: String,
    pub retries: i64,
}

impl RestartRule {
    pub fn never() -> Self {
        Self { name: "no".to_owned(), retries: 0 }
    }

    /// The policy of pods.
    pub fn always() -> Self {
        Self { name: "always".to_owned(), retries: 0 }
    }

    /// For a pod that was checkpointed and stopped: a reboot must not start it from scratch.
    pub fn unless_stopped() -> Self {
        Self { name: "unless-stopped".to_owned(), retries: 0 }
    }
}
