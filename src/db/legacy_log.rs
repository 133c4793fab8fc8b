//! The log file of a pody 0.4.1 installation, `logs/default.log.db`: one table of messages with Python's levels.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;

use super::{DbError, collect};

/// A log file. Its server may be writing to it.
pub struct OldLog(Connection);

/// One message.
#[derive(Debug, Serialize)]
pub struct OldMessage {
    /// Local time, as text.
    pub created: String,
    pub name: String,
    pub level: String,
    pub message: String,
}

impl OldLog {
    pub fn open(file: &Path) -> Result<Self, DbError> {
        Ok(Self(Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?))
    }

    /// The newest messages, newest first. `least` is the number of a level in Python: 20 is INFO, 40 ERROR.
    pub fn list(&self, least: u32, limit: u32, offset: u32) -> Result<Vec<OldMessage>, DbError> {
        let query = "SELECT created, name, levelname, message FROM log WHERE level >= ?1
                     ORDER BY created_epoch DESC, id DESC LIMIT ?2 OFFSET ?3";
        collect(&self.0, query, params![least, limit, offset], |row| {
            Ok(OldMessage { created: row.get(0)?, name: row.get(1)?, level: row.get(2)?, message: row.get(3)? })
        })
    }

    /// Keeps the newest `keep` messages and frees the space. Returns how many were removed.
    pub fn shrink(&self, keep: u64) -> Result<usize, DbError> {
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let query =
            "DELETE FROM log WHERE id NOT IN (SELECT id FROM log ORDER BY created_epoch DESC, id DESC LIMIT ?1)";
        let gone = self.0.execute(query, [keep])?;
        self.0.execute_batch("VACUUM")?;
        Ok(gone)
    }
}
