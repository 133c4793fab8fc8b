//! The guard of the columns `state` and `status`: a row changes only along the table of its states in [`crate::model`].
//!
//! A setter is `UPDATE … WHERE id = ?1 AND state IN (sources of the new one)`, so a row that has changed since it was read
//! is not overwritten: [`DbError::Transition`], with the row as it was.

use rusqlite::{OptionalExtension, params};

use super::{DbError, Tx};
use crate::model::transitions::States;

/// The states from which `to` may be written, as an SQL list. They are words of ours, without quotes.
pub(super) fn sources(to: impl States) -> String {
    to.sources().map(|from| format!("'{}'", from.word())).collect::<Vec<_>>().join(", ")
}

/// Refuses a row that does not begin in one of the first states.
pub(super) fn ensure_initial<S: States>(id: &str, state: S) -> Result<(), DbError> {
    if S::INITIAL.contains(&state) {
        return Ok(());
    }
    Err(DbError::Transition { what: S::WHAT, id: id.to_owned(), from: "nothing".to_owned(), to: state.word() })
}

impl Tx<'_> {
    /// Checks that an update limited to [`sources`] has changed its row; `query` finds the row's state by the id.
    pub(super) fn ensure_updated<S: States>(
        &self,
        updated: usize,
        query: &str,
        id: &str,
        to: S,
    ) -> Result<(), DbError> {
        if updated > 0 {
            return Ok(());
        }
        let (what, id) = (S::WHAT, id.to_owned());
        match self.0.query_row(query, params![id], |row| row.get::<_, String>(0)).optional()? {
            Some(from) => Err(DbError::Transition { what, id, from, to: to.word() }),
            None => Err(DbError::NoRow { what, id }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use rusqlite::types::Value;

    use super::*;
    use crate::{
        db::Db,
        model::{
            action::{Action, ActionStatus, Journal},
            checkpoint::{Checkpoint, CheckpointStatus, Copy, CopyStatus},
            drain::{Drain, DrainState, DrainedPod, DrainedState},
            ids::{ActionId, CheckpointId, OpId, PodId, WorkloadId},
            pod::{Pod, State},
            time::Millis,
        },
    };

    fn in_database(test: impl FnOnce(&Tx)) {
        let home = tempfile::tempdir().unwrap();
        let db = Db::open(home.path()).unwrap();
        db.write_blocking(|tx| {
            test(tx);
            Ok::<_, DbError>(())
        })
        .unwrap();
    }

    /// The values of the only row of a table.
    fn row(tx: &Tx, table: &str) -> Vec<Value> {
        let mut statement = tx.0.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        statement.query_row([], |row| (0..columns).map(|at| row.get(at)).collect()).unwrap()
    }

    fn count(tx: &Tx, table: &str) -> i64 {
        tx.0.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    fn refused<S: States>(result: Result<(), DbError>, from: &str, to: S) {
        match result {
            Err(DbError::Transition { what, from: had, to: refused, .. }) => {
                assert_eq!((what, had.as_str(), refused), (S::WHAT, from, to.word()));
            }
            other => panic!("{} from {from} to {}: {other:?}", S::WHAT, to.word()),
        }
    }

    /// Writes each state over each other one. What the table lacks is refused, and the row stays as it was.
    fn check_updates<S: States + Debug>(tx: &Tx, table: &str, column: &str, set: impl Fn(S) -> Result<(), DbError>) {
        let found = || tx.0.query_row(&format!("SELECT {column} FROM {table}"), [], |row| row.get::<_, String>(0));
        for from in S::ALL.iter().copied() {
            for to in S::ALL.iter().copied() {
                tx.0.execute(&format!("UPDATE {table} SET {column} = ?1"), [from.word()]).unwrap();
                let before = row(tx, table);
                let result = set(to);
                if from == to || from.may_become(to) {
                    assert!(result.is_ok(), "{from:?} to {to:?}: {result:?}");
                    assert_eq!(found().unwrap(), to.word());
                } else {
                    refused(result, from.word(), to);
                    assert_eq!(row(tx, table), before, "{from:?} to {to:?}");
                }
            }
        }
        tx.0.execute(&format!("DELETE FROM {table}"), []).unwrap();
    }

    /// Inserts a row in each state. Only the first ones are allowed.
    fn check_inserts<S: States + Debug>(tx: &Tx, table: &str, insert: impl Fn(S) -> Result<(), DbError>) {
        for state in S::ALL.iter().copied() {
            let result = insert(state);
            if S::INITIAL.contains(&state) {
                assert!(result.is_ok(), "{state:?}: {result:?}");
                assert_eq!(count(tx, table), 1);
                tx.0.execute(&format!("DELETE FROM {table}"), []).unwrap();
            } else {
                refused(result, "nothing", state);
                assert_eq!(count(tx, table), 0);
            }
        }
    }

    fn has_no_row(result: Result<(), DbError>) {
        assert!(matches!(result, Err(DbError::NoRow { .. })), "{result:?}");
    }

    #[test]
    fn pods() {
        in_database(|tx| {
            let (id, workload) = (PodId::generate(), WorkloadId::generate().to_string());
            let spec =
                r#"{"image":"i","hostname":"a","binds":[],"tmpfs":[],"ports":[],"network":"","new_privileges":false}"#;
            tx.0.execute("INSERT INTO workloads VALUES (?1, 'alice', 'a', 0, NULL)", [&workload]).unwrap();
            let values = params![id.to_string(), workload, spec, OpId::generate().to_string()];
            let insert =
                "INSERT INTO pods VALUES (?1, ?2, 'alice', 'a', 'alice-a', 'running', ?3, 0, NULL, ?4, 0, NULL, 0, 0)";
            tx.0.execute(insert, values).unwrap();
            let pod = tx.find_pod(id).unwrap().unwrap();
            let with = |state| Pod { state, reason: Some("written".to_owned()), ..pod.clone() };
            check_updates::<State>(tx, "pods", "state", |state| tx.update_pod(&with(state)));
            check_inserts::<State>(tx, "pods", |state| tx.insert_pod(&with(state)));
            has_no_row(tx.update_pod(&pod));
        });
    }

    #[test]
    fn checkpoints() {
        in_database(|tx| {
            let id = CheckpointId::generate();
            let insert = "INSERT INTO checkpoints VALUES (?1, 'alice', ?2, 'a', 'alice-a', 'rootfs', 'none', NULL, NULL, 'ready', 1, 'i', 0, 'hand')";
            tx.0.execute(insert, [id.to_string(), PodId::generate().to_string()]).unwrap();
            let checkpoint = tx.find_checkpoint(id).unwrap().unwrap();
            let with = |status| Checkpoint { status, ..checkpoint.clone() };
            check_updates::<CheckpointStatus>(tx, "checkpoints", "status", |status| {
                tx.update_checkpoint(id, status, 2)
            });
            check_inserts::<CheckpointStatus>(tx, "checkpoints", |status| tx.insert_checkpoint(&with(status)));
            has_no_row(tx.update_checkpoint(id, CheckpointStatus::Ready, 2));
        });
    }

    #[test]
    fn actions() {
        in_database(|tx| {
            let id = ActionId::generate();
            let journal = serde_json::to_string(&Journal::default()).unwrap();
            let values =
                params![id.to_string(), PodId::generate().to_string(), CheckpointId::generate().to_string(), journal];
            let insert = "INSERT INTO actions VALUES (?1, 'checkpoint', 'alice', ?2, 'alice-a', ?3, 'running', 'dump', ?4, 0, NULL, '[]', NULL, 0, 0, NULL)";
            tx.0.execute(insert, values).unwrap();
            let action = tx.find_action(id).unwrap().unwrap();
            let with = |status| Action { status, bytes: 2, ..action.clone() };
            check_updates::<ActionStatus>(tx, "actions", "status", |status| tx.update_action(&with(status)));
            check_inserts::<ActionStatus>(tx, "actions", |status| tx.insert_action(&with(status)));
            has_no_row(tx.update_action(&action));
        });
    }

    #[test]
    fn copies() {
        in_database(|tx| {
            let copy = Copy::new(CheckpointId::generate(), "alice".parse().unwrap(), "file:///x".to_owned());
            let with = |status| Copy { status, attempts: 2, ..copy.clone() };
            has_no_row(tx.update_copy(&copy));
            check_inserts::<CopyStatus>(tx, "copies", |status| tx.insert_copy(&with(status)));
            tx.insert_copy(&copy).unwrap();
            check_updates::<CopyStatus>(tx, "copies", "status", |status| tx.update_copy(&with(status)));
            // From every state.
            tx.delete_copy_later(copy.checkpoint).unwrap();
            for status in CopyStatus::ALL {
                tx.0.execute("DELETE FROM copies", []).unwrap();
                tx.insert_copy(&copy).unwrap();
                tx.0.execute("UPDATE copies SET status = ?1", [status.as_str()]).unwrap();
                tx.delete_copy_later(copy.checkpoint).unwrap();
                assert_eq!(tx.find_copy(copy.checkpoint).unwrap().unwrap().status, CopyStatus::Deleting);
            }
        });
    }

    #[test]
    fn drains() {
        in_database(|tx| {
            let with = |state| Drain {
                state,
                actor: "root".to_owned(),
                source: "local".to_owned(),
                reason: "maintenance".to_owned(),
                forced: true,
                shutdown: false,
                boot: "b".to_owned(),
                begun_at: Millis(2),
            };
            check_inserts::<DrainState>(tx, "drain", |state| tx.upsert_drain(&with(state)));
            tx.upsert_drain(&Drain { begun_at: Millis(1), ..with(DrainState::Draining) }).unwrap();
            check_updates::<DrainState>(tx, "drain", "state", |state| tx.upsert_drain(&with(state)));
        });
    }

    #[test]
    fn drained_pods() {
        in_database(|tx| {
            let first = DrainedPod {
                pod: PodId::generate(),
                user: "alice".parse().unwrap(),
                instance: "a".parse().unwrap(),
                container_name: "alice-a".to_owned(),
                state: DrainedState::Waiting,
                action: None,
                checkpoint: None,
                reason: None,
            };
            let with = |state| DrainedPod { state, reason: Some("written".to_owned()), ..first.clone() };
            check_inserts::<DrainedState>(tx, "drained_pods", |state| tx.upsert_drained(&with(state)));
            tx.upsert_drained(&first).unwrap();
            check_updates::<DrainedState>(tx, "drained_pods", "state", |state| tx.upsert_drained(&with(state)));
        });
    }

    #[test]
    fn what_is_deleted_with_its_user_stays_so() {
        in_database(|tx| {
            for status in CheckpointStatus::ALL {
                let id = CheckpointId::generate();
                let insert = "INSERT INTO checkpoints VALUES (?1, 'alice', ?2, 'a', 'alice-a', 'rootfs', 'none', NULL, NULL, ?3, 1, 'i', 0, 'hand')";
                let pod = PodId::generate().to_string();
                tx.0.execute(insert, params![id.to_string(), pod, status.as_str()]).unwrap();
            }
            tx.delete_checkpoints_later(&"alice".parse().unwrap()).unwrap();
            for row in tx.list_checkpoints(None).unwrap() {
                assert_eq!((row.status, row.size), (CheckpointStatus::Deleting, 1));
                let late = tx.update_checkpoint(row.id, CheckpointStatus::Ready, 2).unwrap_err();
                assert!(late.is_too_late());
                assert_eq!(late.to_string(), format!("checkpoint {} cannot go from deleting to ready", row.id));
            }
        });
    }
}
