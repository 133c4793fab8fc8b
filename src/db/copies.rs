//! The table `copies`: copies of checkpoints in the remote store, on their way there, stored there, or to be deleted
//! there.

use rusqlite::{Row, params};

use super::{
    DbError, Tx, collect, parsed,
    states::{ensure_initial, sources},
};
use crate::model::{
    checkpoint::{Copy, CopyStatus},
    ids::CheckpointId,
    time::Millis,
};

const COLUMNS: &str = "checkpoint, user, store, status, attempts, error, due_at";

fn read(row: &Row) -> Result<Copy, DbError> {
    Ok(Copy {
        checkpoint: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        store: row.get(2)?,
        status: parsed(row.get(3)?)?,
        attempts: row.get(4)?,
        error: row.get(5)?,
        due_at: row.get(6)?,
    })
}

impl Tx<'_> {
    /// Inserts the copy of a checkpoint, which has none yet.
    pub fn insert_copy(&self, copy: &Copy) -> Result<(), DbError> {
        let id = copy.checkpoint.to_string();
        ensure_initial(&id, copy.status)?;
        self.0.execute(
            &format!("INSERT INTO copies ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
            params![id, copy.user.as_str(), copy.store, copy.status.as_str(), copy.attempts, copy.error, copy.due_at],
        )?;
        Ok(())
    }

    /// Records the result of an attempt. A copy that was marked for deletion meanwhile stays so:
    /// [`DbError::Transition`].
    pub fn update_copy(&self, copy: &Copy) -> Result<(), DbError> {
        let id = copy.checkpoint.to_string();
        let updated = self.0.execute(
            &format!(
                "UPDATE copies SET status = ?2, attempts = ?3, error = ?4, due_at = ?5
                 WHERE checkpoint = ?1 AND status IN ({})",
                sources(copy.status)
            ),
            params![id, copy.status.as_str(), copy.attempts, copy.error, copy.due_at],
        )?;
        self.ensure_updated(updated, "SELECT status FROM copies WHERE checkpoint = ?1", &id, copy.status)
    }

    pub fn find_copy(&self, checkpoint: CheckpointId) -> Result<Option<Copy>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM copies WHERE checkpoint = ?1");
        Ok(collect(&self.0, &query, [checkpoint.to_string()], read)?.pop())
    }

    pub fn list_copies(&self) -> Result<Vec<Copy>, DbError> {
        collect(&self.0, &format!("SELECT {COLUMNS} FROM copies ORDER BY due_at, checkpoint"), [], read)
    }

    /// Copies that are due now, the longest waiting first.
    pub fn list_due_copies(&self) -> Result<Vec<Copy>, DbError> {
        let query = format!(
            "SELECT {COLUMNS} FROM copies WHERE status != 'copied' AND due_at <= ?1 ORDER BY due_at, checkpoint"
        );
        collect(&self.0, &query, [Millis::now()], read)
    }

    pub fn list_copies_being(&self, status: CopyStatus) -> Result<Vec<Copy>, DbError> {
        collect(&self.0, &format!("SELECT {COLUMNS} FROM copies WHERE status = ?1"), [status.as_str()], read)
    }

    /// Marks the copy of a deleted checkpoint for deletion, if it has one.
    pub fn delete_copy_later(&self, checkpoint: CheckpointId) -> Result<(), DbError> {
        let Some(copy) = self.find_copy(checkpoint)? else { return Ok(()) };
        self.update_copy(&Copy {
            status: CopyStatus::Deleting,
            attempts: 0,
            error: None,
            due_at: Millis::default(),
            ..copy
        })
    }

    pub fn forget_copy(&self, checkpoint: CheckpointId) -> Result<(), DbError> {
        self.0.execute("DELETE FROM copies WHERE checkpoint = ?1", [checkpoint.to_string()])?;
        Ok(())
    }
}
