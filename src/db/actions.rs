//! The table `actions`: the journal of checkpoints and restores.

use rusqlite::{Row, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    DbError, Tx, collect, parsed,
    states::{ensure_initial, sources},
};
use crate::model::{
    action::{Action, ActionFilter},
    ids::{ActionId, CheckpointId, PodId},
    names::UserName,
};

const COLUMNS: &str =
    "id, type, user, pod, container_name, checkpoint, status, phase, journal, bytes, frozen_ms, losses,
    error, event, started_at, ended_at";

fn read(row: &Row) -> Result<Action, DbError> {
    Ok(Action {
        id: parsed(row.get(0)?)?,
        kind: parsed(row.get(1)?)?,
        user: parsed(row.get(2)?)?,
        pod: parsed(row.get(3)?)?,
        container_name: row.get(4)?,
        checkpoint: parsed(row.get(5)?)?,
        status: parsed(row.get(6)?)?,
        phase: parsed(row.get(7)?)?,
        journal: from_json(row.get(8)?)?,
        bytes: row.get::<_, i64>(9)?.unsigned_abs(),
        frozen_ms: row.get::<_, Option<i64>>(10)?.map(i64::unsigned_abs),
        losses: from_json(row.get(11)?)?,
        error: row.get(12)?,
        event: row.get(13)?,
        started_at: row.get(14)?,
        ended_at: row.get(15)?,
    })
}

fn from_json<T: DeserializeOwned>(text: String) -> Result<T, DbError> {
    serde_json::from_str(&text).map_err(|e| DbError::Row(format!("an action: {e}")))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts")
}

impl Tx<'_> {
    pub fn insert_action(&self, action: &Action) -> Result<(), DbError> {
        ensure_initial(&action.id.to_string(), action.status)?;
        self.0.execute(
            &format!(
                "INSERT INTO actions ({COLUMNS})
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
            ),
            params![
                action.id.to_string(),
                action.kind.as_str(),
                action.user.as_str(),
                action.pod.to_string(),
                action.container_name,
                action.checkpoint.to_string(),
                action.status.as_str(),
                action.phase.as_str(),
                to_json(&action.journal),
                i64::try_from(action.bytes).unwrap_or(i64::MAX),
                action.frozen_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
                to_json(&action.losses),
                action.error,
                action.event,
                action.started_at,
                action.ended_at,
            ],
        )?;
        Ok(())
    }

    /// Updates the fields that change while it runs and when it ends. One that has ended does not run again.
    pub fn update_action(&self, action: &Action) -> Result<(), DbError> {
        let id = action.id.to_string();
        let updated = self.0.execute(
            &format!(
                "UPDATE actions SET status = ?2, phase = ?3, journal = ?4, bytes = ?5, frozen_ms = ?6, losses = ?7,
                     error = ?8, ended_at = ?9 WHERE id = ?1 AND status IN ({})",
                sources(action.status)
            ),
            params![
                id,
                action.status.as_str(),
                action.phase.as_str(),
                to_json(&action.journal),
                i64::try_from(action.bytes).unwrap_or(i64::MAX),
                action.frozen_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
                to_json(&action.losses),
                action.error,
                action.ended_at,
            ],
        )?;
        self.ensure_updated(updated, "SELECT status FROM actions WHERE id = ?1", &id, action.status)
    }

    pub fn find_action(&self, id: ActionId) -> Result<Option<Action>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM actions WHERE id = ?1");
        Ok(collect(&self.0, &query, [id.to_string()], read)?.pop())
    }

    /// Newest first.
    pub fn list_actions(&self, user: Option<&UserName>, filter: &ActionFilter) -> Result<Vec<Action>, DbError> {
        let query = format!(
            "SELECT {COLUMNS} FROM actions WHERE (?1 IS NULL OR user = ?1) AND (?2 IS NULL OR type = ?2)
             AND (?3 IS NULL OR pod = ?3) AND (?4 IS NULL OR checkpoint = ?4)
             AND (?6 IS NULL OR container_name = ?6) ORDER BY started_at DESC, id DESC LIMIT ?5"
        );
        let values = params![
            user.map(UserName::as_str),
            filter.kind.map(|kind| kind.as_str()),
            filter.pod.map(|pod| pod.to_string()),
            filter.checkpoint.map(|checkpoint| checkpoint.to_string()),
            filter.limit,
            filter.container_name,
        ];
        collect(&self.0, &query, values, read)
    }

    pub fn list_running_actions(&self) -> Result<Vec<Action>, DbError> {
        collect(&self.0, &format!("SELECT {COLUMNS} FROM actions WHERE status = 'running' ORDER BY id"), [], read)
    }

    /// Whether a pod is being checkpointed or restored.
    pub fn has_running_action(&self, pod: PodId) -> Result<bool, DbError> {
        let query = "SELECT 1 FROM actions WHERE status = 'running' AND pod = ?1";
        Ok(!collect(&self.0, query, [pod.to_string()], |_| Ok(()))?.is_empty())
    }

    /// Whether a checkpoint is being written or read.
    pub fn is_checkpoint_in_use(&self, id: CheckpointId) -> Result<bool, DbError> {
        let query = "SELECT 1 FROM actions WHERE status = 'running' AND checkpoint = ?1";
        Ok(!collect(&self.0, query, [id.to_string()], |_| Ok(()))?.is_empty())
    }

    /// Keeps the newest `keep` actions that have ended.
    pub fn shrink_actions(&self, keep: u32) -> Result<(), DbError> {
        self.0.execute(
            "DELETE FROM actions WHERE status != 'running'
             AND id IN (SELECT id FROM actions ORDER BY started_at DESC LIMIT -1 OFFSET ?1)",
            [keep],
        )?;
        Ok(())
    }
}
