//! Which checkpoints have expired. Pure: rows and rules in, ids with a reason out.
//!
//! Only complete ones count, so an old one is never deleted before a newer one is complete. Never named: one that is in
//! use or that a drained pod needs, and the newest of a stopped pod.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use crate::model::{
    checkpoint::Origin,
    ids::{CheckpointId, PodId},
    time::Millis,
};

const DAY: i64 = 86_400_000;

/// A complete checkpoint.
#[derive(Clone, Debug)]
pub struct Kept {
    pub id: CheckpointId,
    pub pod: PodId,
    pub origin: Origin,
    pub created_at: Millis,
    /// In use, or needed to restore a drained pod.
    pub is_needed: bool,
}

/// The limits of the config and the schedules. 0 = no limit.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// For each pod, of those that were not made by hand.
    pub keep_automatic: u32,
    pub keep_days: u32,
    pub keep_days_hand_made: u32,
    /// How many each schedule keeps.
    pub schedules: HashMap<PodId, u32>,
}

/// Why one is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Schedule { keep: u32 },
    Automatic { keep: u32 },
    NewerDrain,
    Age { days: u32 },
    AgeOfHandMade { days: u32 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schedule { keep } => write!(f, "the pod's schedule keeps {keep}"),
            Self::Automatic { keep } => write!(f, "keep_automatic is {keep}"),
            Self::NewerDrain => f.write_str("a newer drain has saved the pod"),
            Self::Age { days } => write!(f, "keep_days is {days}"),
            Self::AgeOfHandMade { days } => write!(f, "keep_days_hand_made is {days}"),
        }
    }
}

/// Those to delete now; `stopped` are the existing pods that do not run.
pub fn expired(held: &[Kept], stopped: &HashSet<PodId>, rules: &Rules, now: Millis) -> Vec<(CheckpointId, Reason)> {
    let mut newest_first: Vec<&Kept> = held.iter().collect();
    newest_first.sort_by_key(|row| (std::cmp::Reverse(row.created_at), std::cmp::Reverse(row.id)));
    // How many newer ones the pod has, in all and by origin.
    let mut newer: HashMap<PodId, u32> = HashMap::new();
    let mut newer_of: HashMap<(PodId, Origin), u32> = HashMap::new();
    let mut expired = Vec::new();
    for row in newest_first {
        let all = newer.entry(row.pod).or_default();
        let is_last = *all == 0 && stopped.contains(&row.pod);
        *all += 1;
        let same = *newer_of.entry((row.pod, row.origin)).and_modify(|count| *count += 1).or_insert(1) - 1;
        let other = if row.origin == Origin::Schedule { Origin::Drain } else { Origin::Schedule };
        let automatic = same + newer_of.get(&(row.pod, other)).copied().unwrap_or(0);
        if row.is_needed || is_last {
            continue;
        }
        let is_older = |days: u32| days > 0 && now.since(row.created_at) > i64::from(days) * DAY;
        let reason = match row.origin {
            Origin::Hand => {
                let days = rules.keep_days_hand_made;
                is_older(days).then_some(Reason::AgeOfHandMade { days })
            }
            Origin::Schedule | Origin::Drain => {
                let schedule = rules.schedules.get(&row.pod).copied();
                let (keep, days) = (rules.keep_automatic, rules.keep_days);
                match row.origin {
                    Origin::Schedule => schedule.filter(|keep| same >= *keep).map(|keep| Reason::Schedule { keep }),
                    _ => (same > 0).then_some(Reason::NewerDrain),
                }
                .or((keep > 0 && automatic >= keep).then_some(Reason::Automatic { keep }))
                .or(is_older(days).then_some(Reason::Age { days }))
            }
        };
        expired.extend(reason.map(|reason| (row.id, reason)));
    }
    expired
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(pod: PodId, origin: Origin, age_days: i64) -> Kept {
        Kept { id: CheckpointId::generate(), pod, origin, created_at: Millis(-age_days * DAY), is_needed: false }
    }

    fn reasons(rows: &[Kept], stopped: &[PodId], rules: &Rules) -> Vec<Option<Reason>> {
        let gone: HashMap<_, _> =
            expired(rows, &stopped.iter().copied().collect(), rules, Millis(0)).into_iter().collect();
        rows.iter().map(|row| gone.get(&row.id).copied()).collect()
    }

    #[test]
    fn a_schedule_keeps_its_newest_and_nobody_elses() {
        let (pod, other) = (PodId::generate(), PodId::generate());
        let rules = Rules { schedules: HashMap::from([(pod, 2)]), ..Rules::default() };
        use Origin::{Drain, Hand, Schedule};
        let rows = [
            held(pod, Schedule, 1),
            held(pod, Hand, 2),
            held(pod, Drain, 3),
            held(pod, Schedule, 4),
            held(pod, Schedule, 5),
            held(pod, Drain, 6),
            held(pod, Hand, 7),
            held(other, Schedule, 8),
            held(other, Schedule, 9),
        ];
        let (keeps, drain) = (Some(Reason::Schedule { keep: 2 }), Some(Reason::NewerDrain));
        assert_eq!(reasons(&rows, &[], &rules), [None, None, None, None, keeps, drain, None, None, None]);
    }

    #[test]
    fn old_ones_are_deleted_but_the_last_of_a_stopped_pod() {
        let pod = PodId::generate();
        let rules = Rules { keep_days: 10, ..Rules::default() };
        let age = Some(Reason::Age { days: 10 });
        let rows = [held(pod, Origin::Schedule, 20), held(pod, Origin::Schedule, 30), held(pod, Origin::Hand, 40)];
        assert_eq!(reasons(&rows, &[], &rules), [age, age, None]);
        assert_eq!(reasons(&rows, &[pod], &rules), [None, age, None]);
        let rules = Rules { keep_days_hand_made: 10, ..Rules::default() };
        let rows = [held(pod, Origin::Hand, 10), held(pod, Origin::Hand, 11)];
        assert_eq!(reasons(&rows, &[], &rules), [None, Some(Reason::AgeOfHandMade { days: 10 })]);
    }

    fn rows() -> impl Strategy<Value = (Vec<Kept>, HashSet<PodId>, Rules)> {
        let pods: Vec<PodId> = (0..3).map(|_| PodId::generate()).collect();
        let row = {
            let pods = pods.clone();
            (0usize..3, 0usize..3, 0i64..60, any::<bool>()).prop_map(move |(pod, origin, days, is_needed)| Kept {
                is_needed,
                ..held(pods[pod], Origin::ALL[origin], days)
            })
        };
        let rules = (0u32..4, 0u32..40, 0u32..40, prop::collection::vec(prop::option::of(1u32..4), 3));
        (prop::collection::vec(row, 0..25), prop::collection::vec(any::<bool>(), 3), rules).prop_map(
            move |(rows, stopped, (keep_automatic, keep_days, keep_days_hand_made, keeps))| {
                let stopped = pods.iter().zip(stopped).filter(|(_, is)| *is).map(|(pod, _)| *pod).collect();
                let schedules = pods.iter().zip(keeps).filter_map(|(pod, keep)| Some((*pod, keep?))).collect();
                (rows, stopped, Rules { keep_automatic, keep_days, keep_days_hand_made, schedules })
            },
        )
    }

    proptest! {
        #[test]
        fn needed_ones_stay_and_surplus_is_deleted((rows, stopped, rules) in rows()) {
            let gone: HashSet<CheckpointId> =
                expired(&rows, &stopped, &rules, Millis(0)).into_iter().map(|(id, _)| id).collect();
            for row in &rows {
                prop_assert!(!(row.is_needed && gone.contains(&row.id)), "a needed one is deleted");
                if row.origin == Origin::Hand && rules.keep_days_hand_made == 0 {
                    prop_assert!(!gone.contains(&row.id), "a hand-made one is deleted");
                }
            }
            for row in &rows {
                let of_pod: Vec<&Kept> = rows.iter().filter(|other| other.pod == row.pod).collect();
                let left = of_pod.iter().filter(|other| !gone.contains(&other.id)).count();
                if stopped.contains(&row.pod) {
                    prop_assert!(left > 0, "a stopped pod has nothing to be restored from");
                }
                let automatic = of_pod.iter().filter(|other| {
                    other.origin != Origin::Hand && !other.is_needed && !gone.contains(&other.id)
                });
                // The newest of a stopped pod may be one more.
                if rules.keep_automatic > 0 {
                    prop_assert!(automatic.count() <= rules.keep_automatic as usize + 1);
                }
            }
            // A second pass deletes nothing more.
            let rest: Vec<Kept> = rows.into_iter().filter(|row| !gone.contains(&row.id)).collect();
            prop_assert!(expired(&rest, &stopped, &rules, Millis(0)).is_empty());
        }
    }
}
