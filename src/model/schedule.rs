//! Schedules: `every 6h keep 4`.

use std::{fmt, str::FromStr};

use super::{
    ids::{ActionId, CheckpointId, PodId},
    names::{UserName, clipped_word},
    time::Millis,
    time::{UNITS, unit_seconds},
};

/// Longest time between two checkpoints, seconds: a year.
pub const LONGEST: i64 = 366 * 86_400;

/// Most checkpoints that a schedule keeps.
pub const MOST: u32 = 100;

/// Time between two checkpoints: seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub i64);

/// Why a text is not an interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an interval; write a whole number with m, h, d or w, at most a year, for example 6h")]
pub struct IntervalError(String);

/// How many checkpoints are kept, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep(pub u32);

/// Why a text is not such a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of checkpoints to keep; write one from 1 to {MOST}, for example 4")]
pub struct KeepError(String);

/// A whole schedule in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub every: Interval,
    pub keep: Keep,
}

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("a schedule has the form \"every INTERVAL keep COUNT\", for example \"every 6h keep 4\"; this is {0:?}")]
    Form(String),
    #[error(transparent)]
    Interval(#[from] IntervalError),
    #[error(transparent)]
    Keep(#[from] KeepError),
}

impl Interval {
    pub fn seconds(self) -> i64 {
        self.0
    }
}

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(s: &str) -> Result<Self, IntervalError> {
        let error = || IntervalError(clipped_word(s));
        let (number, unit) = s.split_at(s.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?);
        let mut letters = unit.chars();
        let unit = match (letters.next(), letters.next()) {
            // A year at most: days and weeks say it.
            (Some('y' | 'Y'), _) => None,
            (Some(unit), None) => unit_seconds(unit),
            (None, _) | (Some(_), Some(_)) => None,
        };
        let unit = unit.ok_or_else(error)?;
        let seconds = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        seconds.filter(|seconds| (1..=LONGEST).contains(seconds)).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Interval {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = UNITS.into_iter().filter(|(unit, _)| *unit != 'y');
        let (unit, size) = units.into_iter().find(|(_, size)| self.0 % size == 0).unwrap_or(('s', 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(s: &str) -> Result<Self, KeepError> {
        let number = s.parse::<u32>().ok().filter(|number| (1..=MOST).contains(number));
        number.map(Self).ok_or_else(|| KeepError(clipped_word(s)))
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
            _ => Err(RuleError::Form(clipped_word(s))),
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
    /// Milliseconds since 1970, like the other times.
    pub next_at: Millis,
    /// When the last checkpoint began.
    pub last_at: Option<Millis>,
    pub last_checkpoint: Option<CheckpointId>,
    /// Why no checkpoint was made the last time.
    pub last_error: Option<String>,
    /// The action in progress.
    pub action: Option<ActionId>,
    /// Which checkpoints are deleted once its checkpoint is complete, because of the quota.
    pub replaces: Vec<CheckpointId>,
}

impl Schedule {
    pub fn rule(&self) -> Rule {
        Rule { every: Interval(self.every), keep: Keep(self.keep) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bad_schedule_is_refused_with_an_example() {
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
            "every 1y keep 4",
            "every 6hh keep 4",
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
    }
}
