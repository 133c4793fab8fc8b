//! A state machine as a table: which states a row may begin in, and which may follow on which.
//!
//! The setters in `src/db/` hold the tables. A row may always be written once more in the state that it has.

/// The states of one kind of row.
pub trait States: Copy + PartialEq + 'static {
    /// What the row is, in messages.
    const WHAT: &'static str;

    const ALL: &'static [Self];

    /// The states in which a row may be inserted.
    const INITIAL: &'static [Self];

    /// The states that may follow on this one.
    fn next(self) -> &'static [Self];

    /// The word in the database.
    fn word(self) -> &'static str;

    /// Whether the table has this transition.
    fn may_become(self, next: Self) -> bool {
        self.next().contains(&next)
    }

    /// The states that a row may have when this one is written: this one, and those that it may follow on.
    fn sources(self) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |from| *from == self || from.may_become(self))
    }
}

/// The table of an enum of [`super::words`]: `State of "pod" from [Creating] { Creating => [Deleted], Deleted => [] }`. It
/// does not compile without a line for each state.
macro_rules! transitions {
    ($name:ident of $what:literal from [$($first:ident),+] { $($from:ident => [$($to:ident),*]),* $(,)? }) => {
        impl $crate::model::transitions::States for $name {
            const WHAT: &'static str = $what;

            const ALL: &'static [Self] = $name::ALL;

            const INITIAL: &'static [Self] = &[$(Self::$first),+];

            fn next(self) -> &'static [Self] {
                match self {
                    $(Self::$from => &[$(Self::$to),*]),*
                }
            }

            fn word(self) -> &'static str {
                self.as_str()
            }
        }
    };
}
pub(crate) use transitions;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        action::ActionStatus,
        checkpoint::{CheckpointStatus, CopyStatus},
        drain::{DrainState, DrainedState},
        pod::State,
    };

    /// All pairs that are allowed, one line for each first state, after the states in which a row begins.
    fn table<S: States>() -> Vec<String> {
        let words = |states: Vec<S>| states.into_iter().map(S::word).collect::<Vec<_>>().join(" ");
        let first = S::ALL.iter().copied().filter(|state| S::INITIAL.contains(state)).collect();
        let row = |from: S| {
            let next = S::ALL.iter().copied().filter(|next| from.may_become(*next)).collect();
            format!("{}: {}", from.word(), words(next))
        };
        [words(first)].into_iter().chain(S::ALL.iter().copied().map(row)).collect()
    }

    #[test]
    fn pods() {
        let rows = [
            "creating running",
            "creating: running deleting",
            "running: deleting deleted",
            "deleting: deleted failed",
            "deleted: ",
            "failed: ",
        ];
        assert_eq!(table::<State>(), rows);
    }

    #[test]
    fn checkpoints() {
        let rows = [
            "creating ready",
            "creating: ready deleting",
            "ready: deprecated deleting",
            "deprecated: deleting",
            "deleting: ",
        ];
        assert_eq!(table::<CheckpointStatus>(), rows);
    }

    #[test]
    fn actions() {
        assert_eq!(table::<ActionStatus>(), ["running", "running: done error", "done: ", "error: "]);
    }

    #[test]
    fn copies() {
        let rows = [
            "queued copied",
            "queued: copying failed deleting",
            "copying: copied failed deleting",
            "copied: queued deleting",
            "failed: copying deleting",
            "deleting: ",
        ];
        assert_eq!(table::<CopyStatus>(), rows);
    }

    #[test]
    fn drains() {
        let rows = [
            "draining",
            "draining: drained undraining",
            "drained: draining undraining",
            "undraining: draining ended",
            "ended: draining undraining",
        ];
        assert_eq!(table::<DrainState>(), rows);
    }

    #[test]
    fn drained_pods() {
        let rows = [
            "waiting saving stopping running",
            "waiting: saving stopping running",
            "saving: saved stopping running returning back failed",
            "saved: saving stopping running returning back failed",
            "stopping: saving stopped running returning back failed",
            "stopped: saving stopping running returning back failed",
            "running: ",
            "returning: saving saved stopping stopped running back failed",
            "back: saving stopping running",
            "failed: saving saved stopping stopped running",
        ];
        assert_eq!(table::<DrainedState>(), rows);
    }

    #[test]
    fn a_row_may_be_written_again_in_its_state() {
        fn check<S: States>() {
            for state in S::ALL.iter().copied() {
                assert!(!state.may_become(state) && state.sources().any(|from| from == state), "{}", state.word());
            }
        }
        check::<State>();
        check::<CheckpointStatus>();
        check::<ActionStatus>();
        check::<CopyStatus>();
        check::<DrainState>();
        check::<DrainedState>();
    }
}
