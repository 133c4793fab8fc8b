//! Maintenance of the host: every running pod is saved and stopped, and restored afterwards.
//!
//! A request only writes a row; [`drainer`] does the work, so a killed daemon resumes where it was, and so does one
//! after a reboot.
//!
//! The states of a drain and of a pod in it, and what leads from one to another: [`crate::model::drain`].
//!
//! While a row exists that is not `ended`, no pod is created, started or restored: each of these operations checks the
//! row in the transaction that records it.

pub mod drainer;

use super::{CheckpointError, Checkpoints};
use crate::{
    db::NewEvent,
    host::process,
    model::{
        action::ActionStatus,
        drain::{Drain, DrainState, DrainStatus, DrainedState, DrainedView, NewDrain},
        time::Millis,
        user::Actor,
    },
};

/// Longest reason that is shown, characters.
const LONGEST_REASON: usize = 200;

impl Checkpoints {
    /// Requests a drain. Repeated, it saves what has started since, and retries what could not be saved.
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
                let current = before.as_ref().filter(|drain| drain.holds_pods());
                let drain = Drain {
                    state: DrainState::Draining,
                    actor: actor.name.clone(),
                    source: actor.source.clone(),
                    forced: new.forced || current.is_some_and(|drain| drain.forced),
                    shutdown: new.shutdown,
                    boot,
                    begun_at: current.map_or_else(Millis::now, |drain| drain.begun_at),
                    reason,
                };
                for row in tx.list_drained()? {
                    if matches!(row.state, DrainedState::Running | DrainedState::Back | DrainedState::Waiting) {
                        tx.delete_drained(row.pod)?;
                    }
                }
                tx.upsert_drain(&drain)?;
                tx.insert_event(&NewEvent::by(&actor).did("host.drain", "host").detail(drain.reason))?;
                Ok::<_, CheckpointError>(())
            })
            .await?;
        self.drain_status().await
    }

    /// Requests that the pods that a drain has stopped are restored. Repeated, it retries those that failed.
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
                tx.insert_event(&NewEvent::by(&actor).did("host.undrain", "host").detail(drain.reason))?;
                Ok::<_, CheckpointError>(())
            })
            .await?;
        self.drain_status().await
    }

    /// The progress of the drain.
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
                    since: drain.as_ref().map(|drain| drain.begun_at.to_string()),
                    reason: drain.as_ref().map(|drain| drain.reason.clone()),
                    by: drain.map(|drain| drain.actor),
                    pods,
                })
            })
            .await
    }
}
