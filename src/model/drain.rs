//! The drain of a host, and the pods in it.

use serde::{Deserialize, Serialize};

use super::{
    ids::{ActionId, CheckpointId, PodId},
    names::{InstanceName, UserName},
    phase::Phase,
    time::rfc3339,
    words::words,
};

words! {
    DrainState, "state of a drain" {
        Draining = "draining",
        Drained = "drained",
        Undraining = "undraining",
        /// Over, but for pods that did not come back.
        Ended = "ended",
    }
}

words! {
    DrainedState, "state of a drained pod" {
        /// It runs, and its turn comes.
        Waiting = "waiting",
        Saving = "saving",
        /// Saved and stopped.
        Saved = "saved",
        Stopping = "stopping",
        /// Stopped plainly: it could not be saved.
        Stopped = "stopped",
        /// Left running: it could not be saved.
        Running = "running",
        Returning = "returning",
        Back = "back",
        /// Did not come back.
        Failed = "failed",
    }
}

/// The row of the table `drain`.
#[derive(Clone, Debug)]
pub struct Drain {
    pub state: DrainState,
    /// Who asked, and from where.
    pub actor: String,
    pub source: String,
    pub reason: String,
    /// Pods that cannot be saved are stopped all the same.
    pub forced: bool,
    /// The host goes down: the next start brings the pods back.
    pub shutdown: bool,
    /// The kernel's id of the boot in which it was asked for.
    pub boot: String,
    /// Milliseconds since 1970.
    pub begun_at: i64,
}

impl Drain {
    /// Whether no pod may be created, started or restored.
    pub fn holds_pods(&self) -> bool {
        self.state != DrainState::Ended
    }

    /// Why not.
    pub fn refusal(&self) -> String {
        let (by, since) = (&self.actor, rfc3339(self.begun_at));
        match self.state {
            DrainState::Undraining => format!(
                "pods are being brought back after maintenance ({}); pods can be created, started and restored again when all are back",
                self.reason
            ),
            _ => format!(
                "this host is being drained for maintenance by {by} since {since} ({}); pods can be created, started and restored again after an admin's `pody undrain`",
                self.reason
            ),
        }
    }
}

/// A row of the table `drained_pods`.
#[derive(Clone, Debug)]
pub struct DrainedPod {
    pub pod: PodId,
    pub user: UserName,
    pub instance: InstanceName,
    pub container_name: String,
    pub state: DrainedState,
    /// The checkpoint or restore under way, or the last.
    pub action: Option<ActionId>,
    /// What it is to come back from. `None` = it is started plainly.
    pub checkpoint: Option<CheckpointId>,
    pub reason: Option<String>,
}

impl DrainedPod {
    /// What it is while it is stopped.
    pub fn stopped_state(&self) -> DrainedState {
        if self.checkpoint.is_some() { DrainedState::Saved } else { DrainedState::Stopped }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct NewDrain {
    /// Why, in words that members are told.
    pub reason: String,
    pub forced: bool,
    pub shutdown: bool,
}

/// How far a drain is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrainStatus {
    /// `None` = none is in force and none has left anything.
    pub state: Option<DrainState>,
    pub by: Option<String>,
    pub since: Option<String>,
    pub reason: Option<String>,
    pub forced: bool,
    pub shutdown: bool,
    pub pods: Vec<DrainedView>,
}

/// One pod in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrainedView {
    pub user: UserName,
    pub instance: InstanceName,
    pub name: String,
    pub state: DrainedState,
    pub checkpoint: Option<CheckpointId>,
    /// While it is saved or brought back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why it could not be saved, or did not come back.
    pub reason: Option<String>,
}
