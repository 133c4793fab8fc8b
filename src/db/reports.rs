//! The tables `told_checkpoints` and `told_actions`: what agents report about checkpoints, restores and their pods.

use rusqlite::{Row, params};
use serde_json::Value;

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    agent::{ReportedAction, ReportedCheckpoint},
    checkpoint::CheckpointStatus,
    ids::{ActionId, CheckpointId},
    names::UserName,
    time::Millis,
};

const CHECKPOINT: &str = "id, user, own, status, gpu, platform, info, restore_path, deprecated_at";

fn read(row: &Row) -> Result<ReportedCheckpoint, DbError> {
    Ok(ReportedCheckpoint {
        id: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        own: row.get(2)?,
        status: parsed(row.get(3)?)?,
        gpu: row.get(4)?,
        platform: row.get(5)?,
        info: row.get::<_, Option<String>>(6)?.map(json).transpose()?,
        restore_path: row.get(7)?,
        deprecated_at: row.get(8)?,
    })
}

fn read_action(row: &Row) -> Result<ReportedAction, DbError> {
    Ok(ReportedAction {
        id: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        reason: row.get(2)?,
        upload: row.get::<_, Option<String>>(3)?.map(json).transpose()?,
        info: row.get::<_, Option<String>>(4)?.map(json).transpose()?,
    })
}

fn json(text: String) -> Result<Value, DbError> {
    serde_json::from_str(&text).map_err(|error| DbError::Row(format!("JSON from an agent: {error}")))
}

fn text(value: Option<&Value>) -> Option<String> {
    value.map(Value::to_string)
}

impl Tx<'_> {
    pub fn find_told_checkpoint(&self, id: CheckpointId) -> Result<Option<ReportedCheckpoint>, DbError> {
        let query = format!("SELECT {CHECKPOINT} FROM told_checkpoints WHERE id = ?1");
        Ok(collect(&self.0, &query, [id.to_string()], read)?.pop())
    }

    /// One user's, or everybody's, newest first.
    pub fn list_told_checkpoints(&self, user: Option<&UserName>) -> Result<Vec<ReportedCheckpoint>, DbError> {
        let query = format!("SELECT {CHECKPOINT} FROM told_checkpoints WHERE ?1 IS NULL OR user = ?1 ORDER BY id DESC");
        collect(&self.0, &query, [user.map(UserName::as_str)], read)
    }

    pub fn upsert_told_checkpoint(&self, reported: &ReportedCheckpoint) -> Result<(), DbError> {
        self.0.execute(
            &format!(
                "INSERT OR REPLACE INTO told_checkpoints ({CHECKPOINT}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
            ),
            params![
                reported.id.to_string(),
                reported.user.as_str(),
                reported.own,
                reported.status.as_str(),
                reported.gpu,
                reported.platform,
                text(reported.info.as_ref()),
                reported.restore_path,
                reported.deprecated_at,
            ],
        )?;
        Ok(())
    }

    pub fn list_told_actions(&self, user: Option<&UserName>) -> Result<Vec<ReportedAction>, DbError> {
        let query = "SELECT id, user, reason, upload, info FROM told_actions WHERE ?1 IS NULL OR user = ?1";
        collect(&self.0, query, [user.map(UserName::as_str)], read_action)
    }

    pub fn find_told_action(&self, id: ActionId) -> Result<Option<ReportedAction>, DbError> {
        let query = "SELECT id, user, reason, upload, info FROM told_actions WHERE id = ?1";
        Ok(collect(&self.0, query, [id.to_string()], read_action)?.pop())
    }

    /// The newest of one user's actions, or of everybody's, whose report names this pod.
    pub fn find_action_of_told_pod(&self, user: Option<&UserName>, pod: &str) -> Result<Option<ActionId>, DbError> {
        let query = "SELECT told.id FROM told_actions AS told JOIN actions USING (id)
             WHERE (?1 IS NULL OR told.user = ?1) AND told.upload ->> '$.pod_id' = ?2
             ORDER BY actions.started_at DESC, told.id DESC LIMIT 1";
        let read = |row: &Row| parsed(row.get(0)?);
        Ok(collect(&self.0, query, params![user.map(UserName::as_str), pod], read)?.pop())
    }

    pub fn upsert_told_action(&self, reported: &ReportedAction) -> Result<(), DbError> {
        self.0.execute(
            "INSERT OR REPLACE INTO told_actions (id, user, reason, upload, info) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                reported.id.to_string(),
                reported.user.as_str(),
                reported.reason,
                text(reported.upload.as_ref()),
                text(reported.info.as_ref()),
            ],
        )?;
        Ok(())
    }

    /// The number of a user's checkpoints that exist only in agents' reports, and the bytes of all their agents'
    /// reports.
    pub fn count_told(&self, user: &UserName) -> Result<(u64, u64), DbError> {
        let query = "SELECT (SELECT count(*) FROM told_checkpoints WHERE user = ?1 AND own),
                (SELECT coalesce(sum(length(CAST(info AS BLOB))), 0) FROM told_checkpoints WHERE user = ?1)
                + (SELECT coalesce(sum(coalesce(length(CAST(upload AS BLOB)), 0) + coalesce(length(CAST(info AS BLOB)), 0)), 0)
                   FROM told_actions WHERE user = ?1)";
        let unsigned = |n: i64| n.unsigned_abs();
        Ok(self.0.query_row(query, [user.as_str()], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))?)
    }

    /// Whether [`Self::drop_deprecated`] would find anything.
    pub fn has_deprecated(&self, before: Millis) -> Result<bool, DbError> {
        let query = "SELECT EXISTS (SELECT 1 FROM told_checkpoints WHERE deprecated_at <= ?1)
                OR EXISTS (SELECT 1 FROM told_checkpoints WHERE NOT own AND id NOT IN (SELECT id FROM checkpoints))
                OR EXISTS (SELECT 1 FROM told_actions WHERE id NOT IN (SELECT id FROM actions))";
        Ok(self.0.query_row(query, [before], |row| row.get(0))?)
    }

    /// Marks checkpoints that were deprecated long enough ago for deletion, unless a restore reads them, and deletes
    /// reports about nothing that still exists.
    pub fn drop_deprecated(&self, before: Millis) -> Result<usize, DbError> {
        let query = "SELECT id, size FROM checkpoints WHERE status = 'deprecated'
             AND id IN (SELECT id FROM told_checkpoints WHERE deprecated_at <= ?1)
             AND id NOT IN (SELECT checkpoint FROM actions WHERE status = 'running')";
        let read = |row: &Row| Ok((parsed(row.get(0)?)?, row.get::<_, i64>(1)?.unsigned_abs()));
        let due: Vec<(CheckpointId, u64)> = collect(&self.0, query, [before], read)?;
        for (id, size) in &due {
            self.update_checkpoint(*id, CheckpointStatus::Deleting, *size)?;
        }
        let own = self.0.execute("DELETE FROM told_checkpoints WHERE own AND deprecated_at <= ?1", [before])?;
        self.0.execute("DELETE FROM told_checkpoints WHERE NOT own AND id NOT IN (SELECT id FROM checkpoints)", [])?;
        self.0.execute("DELETE FROM told_actions WHERE id NOT IN (SELECT id FROM actions)", [])?;
        Ok(due.len() + own)
    }
}
