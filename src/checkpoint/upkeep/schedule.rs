//! Schedules: `every 6h keep 4`, one per pod, set by its owner. The words and rows; [`super::scheduler`] acts on them.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{
    account::{Actor, Caller},
    checkpoint::{
        CheckpointError, Checkpoints, note, tell,
        types::{as_time, as_time_if_any},
    },
    db::{Outcome, now},
    ids::{ActionId, CheckpointId, PodId},
    names::{InstanceName, PodRef, UserName},
};

/// Longest time between two checkpoints, seconds: a year.
const LONGEST: i64 = 366 * 86_400;
/// Most checkpoints that a schedule keeps.
const MOST: u32 = 100;
/// A checkpoint is made up to this part of the interval early, so that pods whose schedules were set together drift apart.
const JITTER: i64 = 10;

/// Time between two checkpoints: seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(i64);

/// Why a text is no interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interval; write a whole number with m, h, d or w, at most a year, for example 6h")]
pub struct IntervalError(String);

/// How many checkpoints stay, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(u32);

/// Why a text is no such number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no number of checkpoints to keep; write one from 1 to {MOST}, for example 4")]
pub struct KeepError(String);

/// A whole schedule in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub every: Interval,
    pub keep: Keep,
}

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("a schedule reads \"every INTERVAL keep COUNT\", for example \"every 6h keep 4\"; this reads {0:?}")]
    Form(String),
    #[error(transparent)]
    Interval(#[from] IntervalError),
    #[error(transparent)]
    Keep(#[from] KeepError),
}

fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}

impl Interval {
    pub fn seconds(self) -> i64 {
        self.0
    }
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(s: &str) -> Result<Self, IntervalError> {
        let error = || IntervalError(clipped(s));
        let (number, unit) = s.split_at(s.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?);
        let unit = match unit.to_ascii_lowercase().as_str() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(error()),
        };
        let seconds = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        seconds.filter(|seconds| (1..=LONGEST).contains(seconds)).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Interval {
    /// In the largest unit that goes into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(7 * 86_400, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
        let (size, unit) = units.into_iter().find(|(size, _)| self.0 % size == 0).unwrap_or((1, 's'));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(s: &str) -> Result<Self, KeepError> {
        let number = s.parse::<u32>().ok().filter(|number| (1..=MOST).contains(number));
        number.map(Self).ok_or_else(|| KeepError(clipped(s)))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(s: &str) -> Result<Self, RuleError> {
        let words: Vec<&str> = s.split_whitespace().collect();
        match words[..] {
            [every, interval, keep, count]
                if every.eq_ignore_ascii_case("every") && keep.eq_ignore_ascii_case("keep") =>
            {
                Ok(Self { every: interval.parse()?, keep: count.parse()? })
            }
            _ => Err(RuleError::Form(clipped(s))),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {} keep {}", self.every, self.keep)
    }
}

/// A row of the table `schedules`.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub pod: PodId,
    pub user: UserName,
    /// Seconds.
    pub every: i64,
    pub keep: u32,
    /// Milliseconds since 1970, as the other times.
    pub next_at: i64,
    /// The last checkpoint's begin.
    pub last_at: Option<i64>,
    pub last_checkpoint: Option<CheckpointId>,
    /// Why there was none the last time.
    pub last_error: Option<String>,
    /// The action under way.
    pub action: Option<ActionId>,
    /// What goes for its checkpoint once that is complete, because of the quota.
    pub replaces: Vec<CheckpointId>,
}

impl Schedule {
    pub fn rule(&self) -> Rule {
        Rule { every: Interval(self.every), keep: Keep(self.keep) }
    }

    /// The time after this one, which passes now. Whatever was missed until now is not made up for.
    pub(in crate::checkpoint) fn advance(&mut self, now: i64) {
        let interval = self.every.saturating_mul(1000);
        self.next_at = now + interval - rand::random_range(0..=interval / JITTER);
    }
}

/// A schedule as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduleView {
    /// `every 6h keep 4`
    pub rule: String,
    pub every_seconds: i64,
    pub keep: u32,
    #[serde(serialize_with = "as_time")]
    pub next_at: i64,
    #[serde(serialize_with = "as_time_if_any")]
    pub last_at: Option<i64>,
    pub last_checkpoint: Option<CheckpointId>,
    pub last_error: Option<String>,
}

impl From<&Schedule> for ScheduleView {
    fn from(schedule: &Schedule) -> Self {
        Self {
            rule: schedule.rule().to_string(),
            every_seconds: schedule.every,
            keep: schedule.keep,
            next_at: schedule.next_at,
            last_at: schedule.last_at,
            last_checkpoint: schedule.last_checkpoint,
            last_error: schedule.last_error.clone(),
        }
    }
}

/// A schedule with its pod.
#[derive(Clone, Debug, Serialize)]
pub struct PodSchedule {
    pub user: UserName,
    pub instance: InstanceName,
    #[serde(flatten)]
    pub schedule: ScheduleView,
}

impl Checkpoints {
    /// Has a pod saved again and again. One that it had is replaced.
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
                // What is under way for the one of before ends as it was begun.
                let before = tx.find_schedule(row.id)?;
                let mut schedule = Schedule {
                    pod: row.id,
                    user: row.user.clone(),
                    every: rule.every.0,
                    keep: rule.keep.0,
                    next_at: 0,
                    last_at: before.as_ref().and_then(|before| before.last_at),
                    last_checkpoint: before.as_ref().and_then(|before| before.last_checkpoint),
                    last_error: None,
                    action: before.as_ref().and_then(|before| before.action),
                    replaces: before.map(|before| before.replaces).unwrap_or_default(),
                };
                schedule.advance(now());
                tx.upsert_schedule(&schedule)?;
                let (object, user, rule) = (row.container_name.clone(), Some(&row.user), rule.to_string());
                tell(tx, &actor, "schedule.set", object, user, Outcome::Ok, Some(&rule))?;
                Ok::<_, CheckpointError>(schedule)
            })
            .await?;
        Ok(PodSchedule {
            user: pod.user.clone(),
            instance: pod.instance.clone(),
            schedule: ScheduleView::from(&schedule),
        })
    }

    /// Ends a pod's schedule. What it has saved stays.
    pub async fn end_schedule(&self, caller: &Caller, wanted: &PodRef) -> Result<(), CheckpointError> {
        let pod = self.0.pods.find(caller, wanted)?;
        let actor = Actor::from(caller);
        self.0
            .db
            .write(move |tx| {
                if !tx.delete_schedule(pod.id)? {
                    return Err(CheckpointError::NoSchedule(pod.container_name.clone()));
                }
                note(tx, &actor, "schedule.end", pod.container_name.clone(), &pod.user, Outcome::Ok)?;
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

    /// One user's, or everybody's, by the pods' names.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_schedule_is_told_with_an_example() {
        for (text, rule) in [("every 6h keep 4", "every 6h keep 4"), (" Every  120m KEEP 100 ", "every 2h keep 100")] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), rule);
        }
        let bad = [
            "",
            "6h",
            "every 6h",
            "every 6 keep 4",
            "every h keep 4",
            "every 0h keep 4",
            "every -6h keep 4",
            "every 1.5h keep 4",
            "every 6h keep 0",
            "every 6h keep 101",
            "every 6h keep",
            "every 6h keep 4 more",
            "each 6h keep 4",
            "every 400d keep 4",
            "every 99999999999999999999h keep 4",
            "every 6é keep 4",
        ];
        for text in bad {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains("for example"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn rules_read_back(seconds in 1..=LONGEST, keep in 1..=MOST) {
            let rule = Rule { every: Interval(seconds), keep: Keep(keep) };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}", number in "[0-9]{0,25}[a-zA-Zé]{0,2}") {
            let _ = text.parse::<Rule>();
            let _ = format!("every {number} keep {number}").parse::<Rule>();
            let _ = (number.parse::<Interval>(), number.parse::<Keep>());
        }

        /// At the latest when it was promised, once however much was missed, and not much too early.
        #[test]
        fn the_next_time_is_within_the_interval(every in 1..=LONGEST, late in 0..10 * LONGEST) {
            let mut schedule = Schedule {
                pod: PodId::generate(), user: "alice".parse().unwrap(), every, keep: 1, next_at: 0, last_at: None,
                last_checkpoint: None, last_error: None, action: None, replaces: Vec::new(),
            };
            let now = late * 1000;
            schedule.advance(now);
            prop_assert!(schedule.next_at <= now + every * 1000);
            prop_assert!(schedule.next_at >= now + every * 900);
        }
    }
}
