//! The table `commits`: image names reserved by commits in progress.

use rusqlite::params;

use super::{DbError, Tx, collect, parsed};
use crate::model::{ids::OpId, names::UserName, time::Millis};

/// A commit in progress.
pub struct Commit {
    pub image: String,
    pub user: UserName,
    pub op: OpId,
    pub event: i64,
}

impl Tx<'_> {
    /// Reserves an image name; `false` if another commit has it.
    pub fn insert_commit(&self, commit: &Commit) -> Result<bool, DbError> {
        let inserted = self.0.execute(
            "INSERT INTO commits (image, user, op, event, created_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            params![commit.image, commit.user.as_str(), commit.op.to_string(), commit.event, Millis::now()],
        )?;
        Ok(inserted == 1)
    }

    /// All commits in progress.
    pub fn list_commits(&self) -> Result<Vec<Commit>, DbError> {
        collect(&self.0, "SELECT image, user, op, event FROM commits", [], |row| {
            Ok(Commit { image: row.get(0)?, user: parsed(row.get(1)?)?, op: parsed(row.get(2)?)?, event: row.get(3)? })
        })
    }

    pub fn delete_commit(&self, image: &str) -> Result<(), DbError> {
        self.0.execute("DELETE FROM commits WHERE image = ?1", [image])?;
        Ok(())
    }
}
