//! The tables `drain` and `drained_pods`: maintenance of the host, and which pods it stopped.

use rusqlite::{Connection, Params, Row};

use super::{
    DbError, Tx, collect, parsed,
    states::{ensure_initial, sources},
};
use crate::model::{
    drain::{Drain, DrainedPod},
    ids::{CheckpointId, PodId},
};

const COLUMNS: &str = "state, actor, source, reason, forced, shutdown, boot, begun_at";

const POD_COLUMNS: &str = "pod, user, instance, container_name, state, action, checkpoint, reason";

fn read(row: &Row) -> Result<Drain, DbError> {
    Ok(Drain {
        state: parsed(row.get(0)?)?,
        actor: row.get(1)?,
        source: row.get(2)?,
        reason: row.get(3)?,
        forced: row.get(4)?,
        shutdown: row.get(5)?,
        boot: row.get(6)?,
        begun_at: row.get(7)?,
    })
}

fn read_pod(row: &Row) -> Result<DrainedPod, DbError> {
    Ok(DrainedPod {
        pod: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        instance: parsed(row.get(2)?)?,
        container_name: row.get(3)?,
        state: parsed(row.get(4)?)?,
        action: row.get::<_, Option<String>>(5)?.map(parsed).transpose()?,
        checkpoint: row.get::<_, Option<String>>(6)?.map(parsed).transpose()?,
        reason: row.get(7)?,
    })
}

pub fn find(connection: &Connection) -> Result<Option<Drain>, DbError> {
    Ok(collect(connection, &format!("SELECT {COLUMNS} FROM drain"), [], read)?.pop())
}

impl Tx<'_> {
    pub fn find_drain(&self) -> Result<Option<Drain>, DbError> {
        find(&self.0)
    }

    /// Inserts the drain in its first state, or updates it from a state that the new one may follow on.
    pub fn upsert_drain(&self, drain: &Drain) -> Result<(), DbError> {
        match self.update_drain(drain) {
            Err(DbError::NoRow { .. }) => self.insert_drain(drain),
            updated => updated,
        }
    }

    fn update_drain(&self, drain: &Drain) -> Result<(), DbError> {
        let updated = self.0.execute(
            &format!(
                "UPDATE drain SET state = ?1, actor = ?2, source = ?3, reason = ?4, forced = ?5, shutdown = ?6, boot = ?7,
                     begun_at = ?8 WHERE id = 1 AND state IN ({})",
                sources(drain.state)
            ),
            drain_values(drain),
        )?;
        self.ensure_updated(updated, "SELECT state FROM drain WHERE id = ?1", "1", drain.state)
    }

    fn insert_drain(&self, drain: &Drain) -> Result<(), DbError> {
        ensure_initial("1", drain.state)?;
        self.0.execute(
            &format!("INSERT INTO drain (id, {COLUMNS}) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
            drain_values(drain),
        )?;
        Ok(())
    }

    /// Ends the drain and removes its pods.
    pub fn delete_drain(&self) -> Result<(), DbError> {
        self.0.execute("DELETE FROM drained_pods", [])?;
        // With a condition, since SQLite calls no update hook when a whole table is emptied.
        self.0.execute("DELETE FROM drain WHERE id = 1", [])?;
        Ok(())
    }

    pub fn list_drained(&self) -> Result<Vec<DrainedPod>, DbError> {
        collect(&self.0, &format!("SELECT {POD_COLUMNS} FROM drained_pods ORDER BY container_name"), [], read_pod)
    }

    pub fn find_drained(&self, pod: PodId) -> Result<Option<DrainedPod>, DbError> {
        let query = format!("SELECT {POD_COLUMNS} FROM drained_pods WHERE pod = ?1");
        Ok(collect(&self.0, &query, [pod.to_string()], read_pod)?.pop())
    }

    /// Inserts the pod in one of its first states, or updates it from a state that the new one may follow on.
    pub fn upsert_drained(&self, pod: &DrainedPod) -> Result<(), DbError> {
        match self.update_drained(pod) {
            Err(DbError::NoRow { .. }) => self.insert_drained(pod),
            updated => updated,
        }
    }

    fn update_drained(&self, pod: &DrainedPod) -> Result<(), DbError> {
        let updated = self.0.execute(
            &format!(
                "UPDATE drained_pods SET user = ?2, instance = ?3, container_name = ?4, state = ?5, action = ?6,
                     checkpoint = ?7, reason = ?8 WHERE pod = ?1 AND state IN ({})",
                sources(pod.state)
            ),
            drained_values(pod),
        )?;
        let id = pod.pod.to_string();
        self.ensure_updated(updated, "SELECT state FROM drained_pods WHERE pod = ?1", &id, pod.state)
    }

    fn insert_drained(&self, pod: &DrainedPod) -> Result<(), DbError> {
        ensure_initial(&pod.pod.to_string(), pod.state)?;
        self.0.execute(
            &format!("INSERT INTO drained_pods ({POD_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
            drained_values(pod),
        )?;
        Ok(())
    }

    pub fn delete_drained(&self, pod: PodId) -> Result<(), DbError> {
        self.0.execute("DELETE FROM drained_pods WHERE pod = ?1", [pod.to_string()])?;
        Ok(())
    }

    /// Whether a drained pod is still to be restored from this checkpoint. If the restore failed, its owner may delete
    /// it.
    pub fn is_held_by_drain(&self, checkpoint: CheckpointId) -> Result<bool, DbError> {
        let query = "SELECT 1 FROM drained_pods WHERE checkpoint = ?1 AND state IN ('saving', 'saved', 'returning')";
        Ok(!collect(&self.0, query, [checkpoint.to_string()], |_| Ok(()))?.is_empty())
    }
}

/// The values of [`COLUMNS`].
fn drain_values(drain: &Drain) -> impl Params {
    (
        drain.state.as_str(),
        drain.actor.clone(),
        drain.source.clone(),
        drain.reason.clone(),
        drain.forced,
        drain.shutdown,
        drain.boot.clone(),
        drain.begun_at,
    )
}

/// The values of [`POD_COLUMNS`].
fn drained_values(pod: &DrainedPod) -> impl Params {
    (
        pod.pod.to_string(),
        pod.user.to_string(),
        pod.instance.to_string(),
        pod.container_name.clone(),
        pod.state.as_str(),
        pod.action.map(|id| id.to_string()),
        pod.checkpoint.map(|id| id.to_string()),
        pod.reason.clone(),
    )
}
