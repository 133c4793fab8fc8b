//! The table `tokens`. The token itself is never stored, only its SHA-256.

use rusqlite::{Connection, Row, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    names::UserName,
    time::Millis,
    user::{Token, TokenHash},
};

fn read(row: &Row) -> Result<Token, DbError> {
    Ok(Token {
        id: row.get(0)?,
        user: parsed(row.get(1)?)?,
        name: row.get(2)?,
        hash: TokenHash(row.get(3)?),
        created_at: row.get(4)?,
        expires_at: row.get(5)?,
    })
}

pub fn list(connection: &Connection) -> Result<Vec<Token>, DbError> {
    collect(connection, "SELECT id, user, name, sha256, created_at, expires_at FROM tokens ORDER BY id", [], read)
}

impl Tx<'_> {
    /// Stores a token and returns its id.
    pub fn insert_token(
        &self,
        user: &UserName,
        name: &str,
        hash: TokenHash,
        created_at: Millis,
        expires_at: Millis,
    ) -> Result<i64, DbError> {
        self.0.execute(
            "INSERT INTO tokens (user, name, sha256, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![user.as_str(), name, hash.0, created_at, expires_at],
        )?;
        Ok(self.0.last_insert_rowid())
    }

    pub fn find_token(&self, hash: TokenHash) -> Result<Option<Token>, DbError> {
        let query = "SELECT id, user, name, sha256, created_at, expires_at FROM tokens WHERE sha256 = ?1";
        Ok(collect(&self.0, query, [hash.0], read)?.pop())
    }

    /// Removes all tokens of the user; returns how many there were.
    pub fn delete_tokens(&self, user: &UserName) -> Result<usize, DbError> {
        Ok(self.0.execute("DELETE FROM tokens WHERE user = ?1", [user.as_str()])?)
    }

    /// Removes one of the user's tokens; `false` if there is none with that id.
    pub fn delete_token(&self, user: &UserName, id: i64) -> Result<bool, DbError> {
        Ok(self.0.execute("DELETE FROM tokens WHERE user = ?1 AND id = ?2", params![user.as_str(), id])? == 1)
    }

    /// Removes tokens that expired before `time`.
    pub fn delete_expired_tokens(&self, time: Millis) -> Result<usize, DbError> {
        Ok(self.0.execute("DELETE FROM tokens WHERE expires_at < ?1", [time])?)
    }
}
