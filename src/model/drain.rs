//! The drain of a host, and the pods in it.
//!
//! A drain. Its row goes when all pods are back.
//!
//! ```text
//!            drain             nothing is left to save            undrain               all are back
//!  (no row) ───────► draining ────────────────────────► drained ─────────► undraining ───────────────► (no row)
//!                                                                              └─────► ended: some did not come back
//! ```
//!
//! Both may be asked for earlier: `drain` leads from each state to draining, `undrain` from each to undraining.
//!
//! A pod of it.
//!
//! ```text
//!  drain:    insert ───► waiting ───► saving ───► saved
//!                           │            │
//!                           ├────────────┴──────► running: it cannot be saved, and is left
//!                           └── or saving ──────► stopping ───► stopped: it cannot be saved, and force was asked for
//!
//!  undrain:  saved, stopped ───► returning ───► back
//!                                    └────────► failed
//! ```
//!
//! The other arrows begin where a kill or a request has interrupted one of these:
//!
//! - A drain that is asked for again saves each pod that runs by then, from every state but `running`, and leaves or
//!   stops it where that fails. A pod that was `returning` and does not run is `saved` or `stopped` as before.
//! - An undrain meets `saving` whose checkpoint is complete, and `stopping`: the pod returns from there, is found
//!   running (`back`), or fails.
//! - An undrain that is asked for again makes `failed` `saved` or `stopped`.
//! - Rows are removed in any state: of a pod that was never stopped, and of one that was deleted. A save that was
//!   begun before that inserts its row again.

use serde::{Deserialize, Serialize};

use super::{
    ids::{ActionId, CheckpointId, PodId},
    names::{InstanceName, UserName},
    phase::Phase,
    time::Millis,
    transitions::transitions,
    words::words,
};

words! {
    DrainState, "state of a drain" {
        Draining = "draining",
        Drained = "drained",
        Undraining = "undraining",
        /// Over, but some pods were not restored.
        Ended = "ended",
    }
}

transitions! {
    DrainState of "drain" from [Draining] {
        Draining => [Drained, Undraining],
        Drained => [Draining, Undraining],
        Undraining => [Draining, Ended],
        Ended => [Draining, Undraining],
    }
}

words! {
    DrainedState, "state of a drained pod" {
        /// Running, and waiting for its turn.
        Waiting = "waiting",
        Saving = "saving",
        /// Saved and stopped.
        Saved = "saved",
        Stopping = "stopping",
        /// Stopped without a checkpoint: it could not be saved.
        Stopped = "stopped",
        /// Left running: it could not be saved.
        Running = "running",
        Returning = "returning",
        Back = "back",
        /// Was not restored.
        Failed = "failed",
    }
}

transitions! {
    DrainedState of "drained pod" from [Waiting, Saving, Stopping, Running] {
        Waiting => [Saving, Stopping, Running],
        Saving => [Saved, Stopping, Running, Returning, Back, Failed],
        Saved => [Saving, Stopping, Running, Returning, Back, Failed],
        Stopping => [Saving, Stopped, Running, Returning, Back, Failed],
        Stopped => [Saving, Stopping, Running, Returning, Back, Failed],
        Running => [],
        Returning => [Saving, Saved, Stopping, Stopped, Running, Back, Failed],
        Back => [Saving, Stopping, Running],
        Failed => [Saving, Saved, Stopping, Stopped, Running],
    }
}

/// The row of the table `drain`.
#[derive(Clone, Debug)]
pub struct Drain {
    pub state: DrainState,
    /// Who requested it, and from where.
    pub actor: String,
    pub source: String,
    pub reason: String,
    /// Pods that cannot be saved are stopped nevertheless.
    pub forced: bool,
    /// The host goes down: the next start restores the pods.
    pub shutdown: bool,
    /// The kernel's boot id when it was requested.
    pub boot: String,
    pub begun_at: Millis,
}

impl Drain {
    /// Whether no pod may be created, started or restored.
    pub fn holds_pods(&self) -> bool {
        self.state != DrainState::Ended
    }

    /// Why not.
    pub fn refusal(&self) -> String {
        let (by, since) = (&self.actor, self.begun_at);
        match self.state {
            DrainState::Undraining => format!(
                "pods are being restored after maintenance ({}); pods can be created, started and restored again when all are back",
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
    /// The checkpoint or restore in progress, or the last one.
    pub action: Option<ActionId>,
    /// The checkpoint to restore it from. `None` = it is started without one.
    pub checkpoint: Option<CheckpointId>,
    pub reason: Option<String>,
}

impl DrainedPod {
    /// Its state while it is stopped.
    pub fn stopped_state(&self) -> DrainedState {
        if self.checkpoint.is_some() { DrainedState::Saved } else { DrainedState::Stopped }
    }
}

/// A request for a drain.
#[derive(Clone, Debug)]
pub struct NewDrain {
    /// The reason, as members see it.
    pub reason: String,
    pub forced: bool,
    pub shutdown: bool,
}

/// The progress of a drain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrainStatus {
    /// `None` = none is in force, and none has left anything.
    pub state: Option<DrainState>,
    pub by: Option<String>,
    pub since: Option<String>,
    pub reason: Option<String>,
    pub forced: bool,
    pub shutdown: bool,
    pub pods: Vec<DrainedView>,
}

/// One pod in the drain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrainedView {
    pub user: UserName,
    pub instance: InstanceName,
    pub name: String,
    pub state: DrainedState,
    pub checkpoint: Option<CheckpointId>,
    /// While it is saved or restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why it could not be saved, or was not restored.
    pub reason: Option<String>,
}
