//! Schedules: `every 6h keep 4`, one per pod, set by its owner. The words and rows; [`scheduler`] acts on them.

pub mod retention;
pub mod scheduler;

use super::{CheckpointError, Checkpoints};
use crate::{
    db::NewEvent,
    model::{
        names::{PodRef, UserName},
        schedule::{Interval, LONGEST, Rule, Schedule},
        time::Millis,
        user::{Actor, Caller},
        view::schedule::{PodSchedule, ScheduleView},
    },
};

/// A checkpoint is made up to this fraction of the interval early, so that pods whose schedules were set together drift
/// apart.
const JITTER: i64 = 10;

impl Checkpoints {
    /// Has a pod saved at an interval. Replaces the schedule that it had.
    pub async fn set_schedule(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        rule: Rule,
    ) -> Result<PodSchedule, CheckpointError> {
        let shortest = self.0.config.get().checkpoint.schedule_minimum_seconds;
        if rule.every.0.unsigned_abs() < shortest {
            let shortest = Interval(i64::try_from(shortest).unwrap_or(LONGEST));
            return Err(CheckpointError::TooOften { asked: rule.every, shortest });
        }
        let pod = self.0.pods.find(caller, wanted)?;
        let actor = Actor::from(caller);
        let row = pod.clone();
        let schedule = self
            .0
            .db
            .write(move |tx| {
                // What is in progress for the previous schedule ends as it was begun.
                let before = tx.find_schedule(row.id)?;
                let mut schedule = Schedule {
                    pod: row.id,
                    user: row.user.clone(),
                    every: rule.every.0,
                    keep: rule.keep.0,
                    next_at: Millis::default(),
                    last_at: before.as_ref().and_then(|before| before.last_at),
                    last_checkpoint: before.as_ref().and_then(|before| before.last_checkpoint),
                    last_error: None,
                    action: before.as_ref().and_then(|before| before.action),
                    replaces: before.map(|before| before.replaces).unwrap_or_default(),
                };
                schedule.advance(Millis::now());
                tx.upsert_schedule(&schedule)?;
                let event = NewEvent::by(&actor).did("schedule.set", &row.container_name).of(&row.user);
                tx.insert_event(&event.detail(rule.to_string()))?;
                Ok::<_, CheckpointError>(schedule)
            })
            .await?;
        Ok(PodSchedule {
            user: pod.user.clone(),
            instance: pod.instance.clone(),
            schedule: ScheduleView::from(&schedule),
        })
    }

    /// Ends a pod's schedule. Its checkpoints stay.
    pub async fn end_schedule(&self, caller: &Caller, wanted: &PodRef) -> Result<(), CheckpointError> {
        let pod = self.0.pods.find(caller, wanted)?;
        let actor = Actor::from(caller);
        self.0
            .db
            .write(move |tx| {
                if !tx.delete_schedule(pod.id)? {
                    return Err(CheckpointError::NoSchedule(pod.container_name.clone()));
                }
                tx.insert_event(&NewEvent::by(&actor).did("schedule.end", &pod.container_name).of(&pod.user))?;
                Ok(())
            })
            .await
    }

    pub fn find_schedule(&self, caller: &Caller, wanted: &PodRef) -> Result<PodSchedule, CheckpointError> {
        let pod = self.0.pods.find(caller, wanted)?;
        let rows = self.0.db.snapshot();
        let schedule = rows.upkeep.schedules.get(&pod.id);
        let schedule = schedule.ok_or_else(|| CheckpointError::NoSchedule(pod.container_name.clone()))?;
        Ok(PodSchedule { user: pod.user.clone(), instance: pod.instance.clone(), schedule: schedule.into() })
    }

    /// One user's, or everybody's, by pod name.
    pub fn list_schedules(&self, user: Option<&UserName>) -> Vec<PodSchedule> {
        let rows = self.0.db.snapshot();
        let wanted = rows.pods.iter().filter(|pod| user.is_none_or(|user| *user == pod.user));
        let with_schedule = wanted.filter_map(|pod| {
            let schedule = rows.upkeep.schedules.get(&pod.id)?.into();
            Some(PodSchedule { user: pod.user.clone(), instance: pod.instance.clone(), schedule })
        });
        with_schedule.collect()
    }
}

impl Schedule {
    /// Moves to the next time after `now`. Missed times are not made up for.
    pub(in crate::checkpoint) fn advance(&mut self, now: Millis) {
        let interval = self.every.saturating_mul(1000);
        self.next_at = now + interval - rand::random_range(0..=interval / JITTER);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{ids::PodId, schedule::LONGEST};

    proptest! {
        /// At the latest when promised, once however much was missed, and not much too early.
        #[test]
        fn the_next_time_is_within_the_interval(every in 1..=LONGEST, late in 0..10 * LONGEST) {
            let mut schedule = Schedule {
                pod: PodId::generate(), user: "alice".parse().unwrap(), every, keep: 1, next_at: Millis(0), last_at: None,
                last_checkpoint: None, last_error: None, action: None, replaces: Vec::new(),
            };
            let now = Millis::from_seconds(late);
            schedule.advance(now);
            prop_assert!(schedule.next_at <= now + every * 1000);
            prop_assert!(schedule.next_at >= now + every * 900);
        }
    }
}
