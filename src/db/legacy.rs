//! The table `legacy_usage`, and reads the databases of a pody 0.4.1 installation: `users.db`, `quota.db`, `resmon.db`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    names::UserName,
    quota::{Limit, LimitValue, StoredQuota},
    time::Millis,
};

/// What one process used, as pody 0.4.1 recorded it.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyUsage {
    pub user: UserName,
    pub started_at: Millis,
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub gpus: u32,
    pub source: String,
}

/// The directory of an old installation.
pub struct OldInstallation {
    directory: PathBuf,
}

/// An account of the old installation.
pub struct OldUser {
    pub name: String,
    /// Hex of `sha256("<user>:<password>")`.
    pub credential: String,
    pub is_admin: bool,
}

/// Whether a value of the old table `quota` stands for "the default".
fn is_default(value: &LimitValue) -> bool {
    match value {
        LimitValue::Integer(number) => *number < 0,
        LimitValue::Text(text) => text.is_empty(),
    }
}

impl OldInstallation {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Whether there is anything to import.
    pub fn exists(&self) -> bool {
        self.directory.join("users.db").is_file()
    }

    /// Opens one of the databases read-only; `None` if the file is missing.
    fn open(&self, file: &str) -> Result<Option<Connection>, DbError> {
        let path = self.directory.join(file);
        if !path.is_file() {
            return Ok(None);
        }
        Ok(Some(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?))
    }

    pub fn list_users(&self) -> Result<Vec<OldUser>, DbError> {
        let Some(connection) = self.open("users.db")? else { return Ok(Vec::new()) };
        collect(&connection, "SELECT username, credential, is_admin FROM users ORDER BY id", [], |row| {
            Ok(OldUser { name: row.get(0)?, credential: row.get(1)?, is_admin: row.get(2)? })
        })
    }

    /// Quotas by user name.
    pub fn list_quotas(&self) -> Result<Vec<(String, StoredQuota)>, DbError> {
        let Some(connection) = self.open("quota.db")? else { return Ok(Vec::new()) };
        let columns =
            collect(
                &connection,
                "SELECT name FROM pragma_table_info('quota')",
                [],
                |row| Ok(row.get::<_, String>(0)?),
            )?;
        // Its limits have the same names here. It lacks the later ones, and its older editions some more.
        let limits: Vec<&Limit> =
            Limit::ALL.iter().filter(|limit| columns.iter().any(|column| column == limit.name)).collect();
        let names = limits.iter().map(|limit| format!(", {}", limit.name)).collect::<String>();
        collect(&connection, &format!("SELECT username{names} FROM quota"), [], |row| {
            let mut quota = StoredQuota::default();
            for limit in &limits {
                let value = row.get(limit.name)?;
                if !is_default(&value) {
                    limit.set(&mut quota, value).map_err(DbError::Row)?;
                }
            }
            Ok((row.get("username")?, quota))
        })
    }

    /// One row per process.
    pub fn list_usage(&self) -> Result<Vec<LegacyUsage>, DbError> {
        let Some(connection) = self.open("resmon.db")? else { return Ok(Vec::new()) };
        let query =
            "SELECT username, start_time, uptime, cputime, ngpus, boot_id, pid, container_id FROM resource_usage";
        let rows = collect(&connection, query, [], |row| {
            let user: String = row.get(0)?;
            let start: f64 = row.get(1)?;
            let Ok(user) = user.parse() else { return Ok(None) };
            Ok(Some(LegacyUsage {
                user,
                started_at: Millis((start * 1000.0) as i64),
                seconds: row.get(2)?,
                cpu_seconds: row.get(3)?,
                gpus: row.get(4)?,
                source: format!(
                    "{}/{}/{start}/{}",
                    row.get::<_, String>(5)?,
                    row.get::<_, i64>(6)?,
                    row.get::<_, String>(7)?
                ),
            }))
        })?;
        Ok(rows.into_iter().flatten().collect())
    }
}

impl Tx<'_> {
    /// Stores one row; `false` if it was imported before.
    pub fn insert_legacy_usage(&self, usage: &LegacyUsage) -> Result<bool, DbError> {
        let inserted = self.0.execute(
            "INSERT INTO legacy_usage (user, started_at, seconds, cpu_seconds, gpus, source) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
            params![usage.user.as_str(), usage.started_at, usage.seconds, usage.cpu_seconds, usage.gpus, usage.source],
        )?;
        Ok(inserted == 1)
    }

    /// Imported CPU and GPU seconds per user since `after` . A process that started earlier counts with
    /// the fraction of its life that lies inside.
    pub fn sum_legacy_usage(&self, after: Millis) -> Result<BTreeMap<UserName, (f64, f64)>, DbError> {
        let query = "SELECT user, sum(cpu_seconds * share), sum(gpus * seconds * share) FROM
                         (SELECT *, max(0.0, min(1.0, (started_at + seconds * 1000 - ?1) / max(seconds * 1000, 1))) AS share
                          FROM legacy_usage) GROUP BY user";
        let rows = collect(&self.0, query, [after], |row| Ok((parsed(row.get(0)?)?, (row.get(1)?, row.get(2)?))))?;
        Ok(rows.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        quantities::GpuSet,
        quota::{CountLimit, SizeLimit},
    };

    #[test]
    fn limits_are_taken_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let database = Connection::open(directory.path().join("quota.db")).unwrap();
        // An older edition without `tmpfs_size` and the limits on commits, and with a column that is unknown here.
        let rows = "CREATE TABLE quota (username TEXT, shm_size INTEGER, max_pods INTEGER, gpu_count INTEGER, gpus TEXT,
                        memory_limit INTEGER, storage_size INTEGER, note TEXT);
                    INSERT INTO quota VALUES ('alice', 0, 3, -1, '0,1', 1024, -1, 'x'), ('bob', -1, -1, -1, '', -1, -1, '')";
        database.execute_batch(rows).unwrap();
        let alice = StoredQuota {
            max_pods: Some(CountLimit(Some(3))),
            gpus: Some(GpuSet::Only([0, 1].into())),
            memory_limit: Some(SizeLimit(Some(1024))),
            shm_size: Some(SizeLimit(Some(0))),
            ..StoredQuota::default()
        };
        let quotas = OldInstallation::new(directory.path()).list_quotas().unwrap();
        assert_eq!(quotas, [("alice".to_owned(), alice), ("bob".to_owned(), StoredQuota::default())]);
    }
}
