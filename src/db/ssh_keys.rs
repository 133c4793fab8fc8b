//! The table `ssh_keys`.

use rusqlite::{Row, params};

use super::{DbError, Tx, collect};
use crate::model::{
    names::UserName,
    time::Millis,
    user::{PublicKey, SshKey},
};

fn read(row: &Row) -> Result<SshKey, DbError> {
    Ok(SshKey {
        id: row.get(0)?,
        key: PublicKey { key_type: row.get(1)?, body: row.get(2)?, comment: row.get(3)? },
        created_at: row.get(4)?,
    })
}

impl Tx<'_> {
    pub fn list_ssh_keys(&self, user: &UserName) -> Result<Vec<SshKey>, DbError> {
        let query = "SELECT id, key_type, body, comment, created_at FROM ssh_keys WHERE user = ?1 ORDER BY id";
        collect(&self.0, query, [user.as_str()], read)
    }

    /// Stores a key; an existing key gets the new comment.
    pub fn upsert_ssh_key(&self, user: &UserName, key: &PublicKey, at: Millis) -> Result<SshKey, DbError> {
        let id = self.0.query_row(
            "INSERT INTO ssh_keys (user, key_type, body, comment, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user, body) DO UPDATE SET comment = excluded.comment RETURNING id",
            params![user.as_str(), key.key_type, key.body, key.comment, at],
            |row| row.get(0),
        )?;
        Ok(SshKey { id, key: key.clone(), created_at: at })
    }

    /// Removes one of the user's keys; `false` if there is none with that id.
    pub fn delete_ssh_key(&self, user: &UserName, id: i64) -> Result<bool, DbError> {
        Ok(self.0.execute("DELETE FROM ssh_keys WHERE user = ?1 AND id = ?2", params![user.as_str(), id])? == 1)
    }
}
