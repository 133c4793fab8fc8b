//! The table `checkpoints`.

use rusqlite::{Row, params};

use super::{
    DbError, Tx, collect, parsed,
    states::{ensure_initial, sources},
};
use crate::model::{
    checkpoint::{Checkpoint, CheckpointStatus},
    ids::CheckpointId,
    names::UserName,
};

const COLUMNS: &str =
    "id, user, pod, instance, container_name, kind, compression, name, reason, status, size, image, created_at,
    origin";

fn read(row: &Row) -> Result<Checkpoint, DbError> {
    Ok(Checkpoint {
        id: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        pod: parsed(row.get(2)?)?,
        instance: parsed(row.get(3)?)?,
        container_name: row.get(4)?,
        kind: parsed(row.get(5)?)?,
        compression: parsed(row.get(6)?)?,
        name: row.get::<_, Option<String>>(7)?.map(parsed).transpose()?,
        reason: row.get(8)?,
        status: parsed(row.get(9)?)?,
        size: row.get::<_, i64>(10)?.unsigned_abs(),
        image: row.get(11)?,
        created_at: row.get(12)?,
        origin: parsed(row.get(13)?)?,
    })
}

impl Tx<'_> {
    pub fn insert_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), DbError> {
        ensure_initial(&checkpoint.id.to_string(), checkpoint.status)?;
        self.0.execute(
            &format!(
                "INSERT INTO checkpoints ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
            ),
            params![
                checkpoint.id.to_string(),
                checkpoint.user.as_str(),
                checkpoint.pod.to_string(),
                checkpoint.instance.as_str(),
                checkpoint.container_name,
                checkpoint.kind.as_str(),
                checkpoint.compression.as_str(),
                checkpoint.name.as_ref().map(|name| name.as_str()),
                checkpoint.reason,
                checkpoint.status.as_str(),
                i64::try_from(checkpoint.size).unwrap_or(i64::MAX),
                checkpoint.image,
                checkpoint.created_at,
                checkpoint.origin.as_str(),
            ],
        )?;
        Ok(())
    }

    pub fn find_checkpoint(&self, id: CheckpointId) -> Result<Option<Checkpoint>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM checkpoints WHERE id = ?1");
        Ok(collect(&self.0, &query, [id.to_string()], read)?.pop())
    }

    /// One user's, or everybody's, newest first.
    pub fn list_checkpoints(&self, user: Option<&UserName>) -> Result<Vec<Checkpoint>, DbError> {
        let query = format!(
            "SELECT {COLUMNS} FROM checkpoints WHERE ?1 IS NULL OR user = ?1 ORDER BY created_at DESC, id DESC"
        );
        collect(&self.0, &query, [user.map(UserName::as_str)], read)
    }

    pub fn list_checkpoints_being(&self, status: CheckpointStatus) -> Result<Vec<Checkpoint>, DbError> {
        collect(&self.0, &format!("SELECT {COLUMNS} FROM checkpoints WHERE status = ?1"), [status.as_str()], read)
    }

    /// Updates the status and the size. A checkpoint that is marked for deletion stays so, even if work on it was under
    /// way: [`DbError::Transition`].
    pub fn update_checkpoint(&self, id: CheckpointId, status: CheckpointStatus, size: u64) -> Result<(), DbError> {
        let id = id.to_string();
        let updated = self.0.execute(
            &format!("UPDATE checkpoints SET status = ?2, size = ?3 WHERE id = ?1 AND status IN ({})", sources(status)),
            params![id, status.as_str(), i64::try_from(size).unwrap_or(i64::MAX)],
        )?;
        self.ensure_updated(updated, "SELECT status FROM checkpoints WHERE id = ?1", &id, status)
    }

    /// Marks all of one user's for deletion, also those that are being made.
    pub fn delete_checkpoints_later(&self, user: &UserName) -> Result<(), DbError> {
        for row in self.list_checkpoints(Some(user))? {
            self.update_checkpoint(row.id, CheckpointStatus::Deleting, row.size)?;
        }
        Ok(())
    }

    pub fn delete_checkpoint(&self, id: CheckpointId) -> Result<(), DbError> {
        self.0.execute("DELETE FROM checkpoints WHERE id = ?1", [id.to_string()])?;
        Ok(())
    }
}
