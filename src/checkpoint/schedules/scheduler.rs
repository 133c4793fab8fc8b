//! Acts on schedules, one pod at a time, and deletes expired checkpoints.
//!
//! A checkpoint that is begun is recorded in the schedule's row, with the next time, in the transaction that records
//! its action. So a kill neither loses a checkpoint nor makes it twice, and what was missed while pody was down is made
//! once.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fail::fail_point;

use super::retention::{self, Kept, Reason, Rules};
use crate::{
    checkpoint::{CheckpointError, Checkpoints, caller_for},
    db::{DbError, NewEvent, Outcome, Tx},
    engine::{EngineError, Health},
    model::{
        action::{Action, ActionStatus},
        checkpoint::{Checkpoint, CheckpointStatus, Kind, LeaveRunning, NewCheckpoint, Origin},
        ids::{CheckpointId, PodId},
        names::PodRef,
        schedule::Schedule,
        time::Millis,
        user::Actor,
    },
    pod::PodError,
};

/// Interval between two checks for what is due.
const INTERVAL: Duration = Duration::from_secs(1);

/// Steps between two retention passes.
const EXPIRY: u32 = 10;

impl Checkpoints {
    /// Runs for the life of the daemon.
    pub async fn schedule_loop(self) {
        for look in 0u32.. {
            tokio::time::sleep(INTERVAL).await;
            if self.0.engine.health() != Health::Up || self.0.engine.inventory().age().is_none() {
                continue;
            }
            if let Err(error) = self.schedule_step().await {
                tracing::warn!(%error, "could not run the schedules, retrying");
            }
            if look.is_multiple_of(EXPIRY)
                && let Err(error) = self.expire().await
            {
                tracing::warn!(%error, "could not delete old checkpoints, retrying");
            }
        }
    }

    /// Makes what is due, one after the other.
    async fn schedule_step(&self) -> Result<(), CheckpointError> {
        let rows = self.0.db.snapshot();
        let mut schedules: Vec<Schedule> = rows.upkeep.schedules.values().cloned().collect();
        schedules.sort_by_key(|schedule| (schedule.next_at, schedule.pod));
        for schedule in schedules {
            let pod = schedule.pod;
            if rows.pods.get(pod).is_none() {
                // The pod was deleted; one restored later under its name is another pod.
                self.0.db.write(move |tx| tx.delete_schedule(pod)).await?;
            } else if schedule.action.is_some() {
                self.finish_scheduled(pod).await?;
            } else if schedule.next_at > Millis::now() + schedule.every.saturating_mul(1000) {
                // The clock was set back.
                self.change_schedule(pod, |schedule| schedule.advance(Millis::now())).await?;
            } else if schedule.next_at <= Millis::now() && !self.is_drained() {
                self.save_scheduled(schedule).await?;
            }
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.0.db.snapshot().upkeep.drain.as_ref().is_some_and(|drain| drain.holds_pods())
    }

    async fn save_scheduled(&self, schedule: Schedule) -> Result<(), CheckpointError> {
        let Some(pod) = self.0.db.snapshot().pods.get(schedule.pod).cloned() else { return Ok(()) };
        let new = NewCheckpoint {
            kind: Kind::Rootfs,
            leave_running: LeaveRunning::Yes,
            compression: self.0.config.get().checkpoint.compression,
            name: None,
            reason: Some(schedule.rule().to_string()),
            origin: Origin::Schedule,
            remote: false,
            streams: None,
        };
        let wanted = PodRef { prefix: None, user: Some(pod.user.clone()), instance: pod.instance.clone() };
        match self.begin_by(Actor::daemon(), &caller_for(&pod.user), &wanted, new).await {
            Ok(_) => {
                fail_point!("schedule-begun", |_| Ok(()));
                self.finish_scheduled(pod.id).await
            }
            // It is made as soon as the engine, or the database, responds again.
            Err(error @ (CheckpointError::Db(_) | CheckpointError::Engine(EngineError::Unavailable(_)))) => Err(error),
            Err(
                error @ (CheckpointError::NotRunning { .. }
                | CheckpointError::InProgress { .. }
                | CheckpointError::Pod(PodError::Busy { .. } | PodError::NotFound(_))),
            ) => self.report_none(pod.id, "schedule.skip", Outcome::Ok, format!("skipped: {error}")).await,
            Err(error) => self.report_none(pod.id, "schedule.fail", Outcome::Failed, error.to_string()).await,
        }
    }

    /// None was begun: the next one is due after the interval. The same reason is not reported twice in a row.
    async fn report_none(
        &self,
        pod: PodId,
        action: &'static str,
        outcome: Outcome,
        why: String,
    ) -> Result<(), CheckpointError> {
        let name = self.0.db.snapshot().pods.get(pod).map(|pod| pod.container_name.clone()).unwrap_or_default();
        tracing::info!(pod = name, why, "no scheduled checkpoint was made");
        self.0
            .db
            .write(move |tx| {
                let Some(mut schedule) = tx.find_schedule(pod)? else { return Ok(()) };
                if schedule.last_error.as_ref() != Some(&why) {
                    let event = NewEvent::by(&Actor::daemon()).did(action, name).of(&schedule.user);
                    tx.insert_event(&event.outcome(outcome).detail(why.clone()))?;
                }
                schedule.last_error = Some(why);
                schedule.advance(Millis::now());
                tx.upsert_schedule(&schedule)
            })
            .await
            .map_err(|error: DbError| error.into())
    }

    /// Waits for the end of the checkpoint in progress. Only then are those deleted that it replaces.
    async fn finish_scheduled(&self, pod: PodId) -> Result<(), CheckpointError> {
        let schedule: Option<Schedule> = self.0.db.read(move |tx| tx.find_schedule(pod)).await?;
        let Some((schedule, id)) = schedule.and_then(|schedule| Some((schedule.clone(), schedule.action?))) else {
            return Ok(());
        };
        let action: Option<Action> = self.wait_end(id).await?;
        fail_point!("schedule-saved", |_| Ok(()));
        self.0
            .db
            .write(move |tx| {
                let Some(mut row) = tx.find_schedule(pod)? else { return Ok(()) };
                let replaced = std::mem::take(&mut row.replaces);
                row.action = None;
                match action {
                    Some(action) if action.status == ActionStatus::Done => {
                        for id in replaced {
                            let why = format!("the quota was full: replaced by {}", action.checkpoint);
                            expire_one(tx, id, &why)?;
                        }
                        row.last_checkpoint = Some(action.checkpoint);
                        row.last_error = None;
                    }
                    Some(action) => row.last_error = action.error,
                    None => row.last_error = Some("the outcome of the last checkpoint is unknown".to_owned()),
                }
                tx.upsert_schedule(&row)
            })
            .await
            .map_err(|error: DbError| CheckpointError::from(error))?;
        tracing::debug!(%pod, rule = %schedule.rule(), "a scheduled checkpoint has ended");
        self.expire().await
    }

    async fn change_schedule(
        &self,
        pod: PodId,
        change: impl FnOnce(&mut Schedule) + Send + 'static,
    ) -> Result<(), CheckpointError> {
        let changed = self.0.db.write(move |tx| {
            let Some(mut schedule) = tx.find_schedule(pod)? else { return Ok(()) };
            change(&mut schedule);
            tx.upsert_schedule(&schedule)
        });
        changed.await.map_err(|error: DbError| error.into())
    }

    /// Marks those for deletion that the rules of [`crate::checkpoint::schedules::retention`] name.
    async fn expire(&self) -> Result<(), CheckpointError> {
        let rows = self.0.db.snapshot();
        let config = self.0.config.get();
        let rules = Rules {
            keep_automatic: config.checkpoint.keep_automatic,
            keep_days: config.checkpoint.keep_days,
            keep_days_hand_made: config.checkpoint.keep_days_hand_made,
            schedules: rows
                .upkeep
                .schedules
                .iter()
                .map(|(pod, schedule)| (*pod, schedule.keep))
                .collect::<HashMap<_, _>>(),
        };
        // A pod that is about to be started counts as stopped: that only keeps more.
        let stopped: HashSet<PodId> =
            rows.pods.iter().filter(|pod| !self.0.pods.is_up(pod)).map(|pod| pod.id).collect();
        let look = {
            let (rules, stopped) = (rules.clone(), stopped.clone());
            move |tx: &Tx| due(tx, &rules, &stopped)
        };
        // Mostly there is nothing to delete, and then no write is made.
        if self.0.db.read(look.clone()).await?.is_empty() {
            return Ok(());
        }
        fail_point!("checkpoint-expire", |_| Ok(()));
        self.0
            .db
            .write(move |tx| {
                for (id, reason) in look(tx)? {
                    expire_one(tx, id, &reason.to_string())?;
                }
                Ok::<_, DbError>(())
            })
            .await?;
        self.remove_deleted().await
    }
}

/// What expires now.
fn due(tx: &Tx, rules: &Rules, stopped: &HashSet<PodId>) -> Result<Vec<(CheckpointId, Reason)>, DbError> {
    let rows = tx.list_checkpoints(None)?.into_iter().filter(|row| row.status == CheckpointStatus::Ready);
    let mut held: Vec<Kept> = rows
        .map(|row| Kept { id: row.id, pod: row.pod, origin: row.origin, created_at: row.created_at, is_needed: false })
        .collect();
    // Only those that would be deleted need this check.
    let now = Millis::now();
    let first: HashSet<CheckpointId> =
        retention::expired(&held, stopped, rules, now).into_iter().map(|(id, _)| id).collect();
    if first.is_empty() {
        return Ok(Vec::new());
    }
    for row in held.iter_mut().filter(|row| first.contains(&row.id)) {
        row.is_needed = is_needed(tx, row.id)?;
    }
    Ok(retention::expired(&held, stopped, rules, now))
}

/// Whether something reads it, or a drained pod needs it.
pub(in crate::checkpoint) fn is_needed(tx: &Tx, id: CheckpointId) -> Result<bool, DbError> {
    Ok(tx.is_checkpoint_in_use(id)? || tx.is_held_by_drain(id)?)
}

/// Marks one for deletion, with its event, unless it is needed by now.
fn expire_one(tx: &Tx, id: CheckpointId, why: &str) -> Result<(), DbError> {
    let row: Option<Checkpoint> = tx.find_checkpoint(id)?;
    let Some(row) = row.filter(|row| row.status == CheckpointStatus::Ready) else { return Ok(()) };
    if is_needed(tx, id)? {
        return Ok(());
    }
    tx.update_checkpoint(id, CheckpointStatus::Deleting, row.size)?;
    let object = format!("{id} of {}", row.container_name);
    let event = NewEvent::by(&Actor::daemon()).did("checkpoint.expire", object).of(&row.user);
    tx.insert_event(&event.detail(why.to_owned()))?;
    Ok(())
}
