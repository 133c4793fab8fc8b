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

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    ids::{ContainerId, OpId, PodId, WorkloadId},
    names::{InstanceName, UserName},
    quantities::GpuSet,
    time::Millis,
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

/// A container's status, in Docker's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ContainerStatus {
    /// Never started.
    Created,
    Running,
    Paused,
    /// Its first process has exited, and Docker starts it again after a delay.
    Restarting,
    Removing,
    Exited,
    /// Docker failed to remove it.
    Dead,
    /// A word that this version does not know.
    Unknown(String),
}

impl ContainerStatus {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Unknown(word) => word,
        }
    }

    /// Whether its processes run.
    pub fn is_running(&self) -> bool {
        *self == Self::Running
    }

    pub fn is_paused(&self) -> bool {
        *self == Self::Paused
    }

    /// Whether it has processes, or will have some again in a moment.
    pub fn is_up(&self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Restarting => true,
            Self::Created | Self::Removing | Self::Exited | Self::Dead | Self::Unknown(_) => false,
        }
    }

    /// Whether it has no processes and stays so until somebody starts it.
    pub fn is_stopped(&self) -> bool {
        match self {
            Self::Created | Self::Exited | Self::Dead => true,
            Self::Running | Self::Paused | Self::Restarting | Self::Removing | Self::Unknown(_) => false,
        }
    }
}

impl From<&str> for ContainerStatus {
    fn from(word: &str) -> Self {
        match word {
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "removing" => Self::Removing,
            "exited" => Self::Exited,
            "dead" => Self::Dead,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

impl fmt::Display for ContainerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ContainerStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A pod's status as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PodStatus {
    Creating,
    Deleting,
    /// Of a pod that exists, the status of its container.
    Container(ContainerStatus),
    /// Docker has not listed its container.
    Unknown,
}

impl PodStatus {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Creating => "creating",
            Self::Deleting => "deleting",
            Self::Container(status) => status.as_str(),
            Self::Unknown => "unknown",
        }
    }

    /// Whether the pod's processes run.
    pub fn is_running(&self) -> bool {
        *self == Self::Container(ContainerStatus::Running)
    }
}

impl fmt::Display for PodStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for PodStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PodStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let own = [Self::Creating, Self::Deleting, Self::Unknown];
        Ok(own
            .into_iter()
            .find(|status| status.as_str() == word)
            .unwrap_or_else(|| Self::Container(word.as_str().into())))
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
    pub created_at: Millis,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Docker's words, of API 1.41 to 1.53, and what may be done with a container in each.
    #[test]
    fn docker_statuses_are_known() {
        for (word, is_up, is_stopped) in [
            ("created", false, true),
            ("running", true, false),
            ("paused", true, false),
            ("restarting", true, false),
            ("removing", false, false),
            ("exited", false, true),
            ("dead", false, true),
        ] {
            let status = ContainerStatus::from(word);
            assert!(!matches!(status, ContainerStatus::Unknown(_)), "{word}");
            assert_eq!((status.is_up(), status.is_stopped()), (is_up, is_stopped), "{word}");
            assert_eq!((status.is_running(), status.is_paused()), (word == "running", word == "paused"));
            assert_eq!(serde_json::to_value(PodStatus::Container(status)).unwrap(), word);
        }
        let other = ContainerStatus::from("stopping");
        assert!(!other.is_up() && !other.is_stopped() && other.to_string() == "stopping");
        assert_eq!(serde_json::to_value(&other).unwrap(), "stopping");
    }
}
