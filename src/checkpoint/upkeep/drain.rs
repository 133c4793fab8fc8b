//! Maintenance of the host: every pod that runs is saved and stopped, and brought back afterwards.
//!
//! A request only writes a row; [`super::drainer`] does the work, so a daemon that is killed goes on where it was, and so does
//! one after a reboot.
//!
//! ```text
//!            drain              all settled                 undrain               all back
//!  (no row) ───────► draining ─────────────► drained ─────────────► undraining ───────────► (no row)
//!                       ▲  └──── undrain ──────────────────────────────▲ │ └──► ended: some did not come back
//!                       └─────────────── drain ──────────────────────────┘        └── undrain: tried again
//! ```
//!
//! While there is a row that is not `ended`, no pod is created, started or restored: each of these looks at the row in the
//! transaction that writes it down.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    account::Actor,
    checkpoint::{
        ActionStatus, CheckpointError, Checkpoints, Phase, note_of_host,
        types::{UnknownWord, words},
    },
    db::{Outcome, now, rfc3339},
    host::process,
    ids::{ActionId, CheckpointId, PodId},
    names::{InstanceName, UserName},
};
/// Longest reason that is shown, characters.
const LONGEST_REASON: usize = 200;

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
    pub(in crate::checkpoint) fn stopped_state(&self) -> DrainedState {
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
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
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

impl Checkpoints {
    /// Asks for a drain. Asked again, it saves what has come to run since, and tries again what could not be saved.
    pub async fn drain(&self, actor: Actor, new: NewDrain) -> Result<DrainStatus, CheckpointError> {
        let reason = new.reason.trim().to_owned();
        if reason.is_empty() || reason.chars().count() > LONGEST_REASON || reason.chars().any(char::is_control) {
            return Err(CheckpointError::Reason { longest: LONGEST_REASON });
        }
        let boot = process::boot_id().to_owned();
        self.0
            .db
            .write(move |tx| {
                let before = tx.find_drain()?;
                // A shutdown does not make an admin's maintenance end with the next start.
                let is_kept = |drain: &Drain| {
                    matches!(drain.state, DrainState::Draining | DrainState::Drained) && !drain.shutdown
                };
                if new.shutdown && before.as_ref().is_some_and(is_kept) {
                    return Ok(());
                }
                let goes_on = before.as_ref().filter(|drain| drain.holds_pods());
                let drain = Drain {
                    state: DrainState::Draining,
                    actor: actor.name.clone(),
                    source: actor.source.clone(),
                    forced: new.forced || goes_on.is_some_and(|drain| drain.forced),
                    shutdown: new.shutdown,
                    boot,
                    begun_at: goes_on.map_or_else(now, |drain| drain.begun_at),
                    reason,
                };
                for row in tx.list_drained()? {
                    if matches!(row.state, DrainedState::Running | DrainedState::Back | DrainedState::Waiting) {
                        tx.delete_drained(row.pod)?;
                    }
                }
                tx.upsert_drain(&drain)?;
                note_of_host(tx, &actor, "host.drain", Outcome::Ok, &drain.reason)?;
                Ok::<_, CheckpointError>(())
            })
            .await?;
        self.drain_status().await
    }

    /// Has the pods brought back that a drain has stopped. Asked again, it tries again those that did not come back.
    pub async fn undrain(&self, actor: Actor) -> Result<DrainStatus, CheckpointError> {
        self.0
            .db
            .write(move |tx| {
                let Some(drain) = tx.find_drain()?.filter(|drain| drain.state != DrainState::Undraining) else {
                    return Ok(());
                };
                for mut row in tx.list_drained()? {
                    match row.state {
                        DrainedState::Waiting | DrainedState::Running | DrainedState::Back => {
                            tx.delete_drained(row.pod)?;
                        }
                        DrainedState::Failed => {
                            row.state = row.stopped_state();
                            row.reason = None;
                            tx.upsert_drained(&row)?;
                        }
                        DrainedState::Saving
                        | DrainedState::Saved
                        | DrainedState::Stopping
                        | DrainedState::Stopped
                        | DrainedState::Returning => {}
                    }
                }
                tx.upsert_drain(&Drain { state: DrainState::Undraining, ..drain.clone() })?;
                note_of_host(tx, &actor, "host.undrain", Outcome::Ok, &drain.reason)?;
                Ok::<_, CheckpointError>(())
            })
            .await?;
        self.drain_status().await
    }

    /// How far it is.
    pub async fn drain_status(&self) -> Result<DrainStatus, CheckpointError> {
        self.0
            .db
            .read(|tx| {
                let drain = tx.find_drain()?;
                let mut pods = Vec::new();
                for row in tx.list_drained()? {
                    let action = row.action.map(|id| tx.find_action(id)).transpose()?.flatten();
                    let phase = action.filter(|action| action.status == ActionStatus::Running);
                    pods.push(DrainedView {
                        user: row.user,
                        instance: row.instance,
                        name: row.container_name,
                        state: row.state,
                        checkpoint: row.checkpoint,
                        phase: phase.map(|action| action.phase),
                        reason: row.reason,
                    });
                }
                Ok(DrainStatus {
                    state: drain.as_ref().map(|drain| drain.state),
                    forced: drain.as_ref().is_some_and(|drain| drain.forced),
                    shutdown: drain.as_ref().is_some_and(|drain| drain.shutdown),
                    since: drain.as_ref().map(|drain| rfc3339(drain.begun_at)),
                    reason: drain.as_ref().map(|drain| drain.reason.clone()),
                    by: drain.map(|drain| drain.actor),
                    pods,
                })
            })
            .await
    }
}
