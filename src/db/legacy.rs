//! The table `legacy_usage`, and reads the databases of a pody 0.4.1 installation: `users.db`, `quota.db`, `resmon.db`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    names::UserName,
    quota::{Limit, StoredQuota},
};

/// What one process used, as pody 0.4.1 recorded it.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyUsage {
    pub user: UserName,
    /// Milliseconds since 1970.
    pub started_at: i64,
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

    /// Quotas by user name. There, -1 and the empty text mean "the default".
    pub fn list_quotas(&self) -> Result<Vec<(String, StoredQuota)>, DbError> {
        let Some(connection) = self.open("quota.db")? else { return Ok(Vec::new()) };
        let columns =
            collect(
                &connection,
                "SELECT name FROM pragma_table_info('quota')",
                [],
                |row| Ok(row.get::<_, String>(0)?),
            )?;
        // Older editions lack some of the columns.
        let column = |name: &str, missing: &str| {
            if columns.iter().any(|c| c == name) { name.to_owned() } else { missing.to_owned() }
        };
        let query = format!(
            "SELECT username, max_pods, gpu_count, {}, memory_limit, storage_size, {}, {}, {}, {} FROM quota",
            column("gpus", "''"),
            column("shm_size", "-1"),
            column("tmpfs_size", "-1"),
            column("commit_count", "-1"),
            column("commit_size_limit", "-1"),
        );
        collect(&connection, &query, [], |row| {
            let limit = |at: usize| row.get::<_, i64>(at).map(|n| u64::try_from(n).ok().map(|n| Limit(Some(n))));
            let gpus: String = row.get(3)?;
            let quota = StoredQuota {
                max_pods: limit(1)?,
                gpu_count: limit(2)?,
                gpus: if gpus.is_empty() { None } else { Some(parsed(gpus)?) },
                memory_limit: limit(4)?,
                storage_size: limit(5)?,
                shm_size: limit(6)?,
                tmpfs_size: limit(7)?,
                commit_count: limit(8)?,
                commit_size_limit: limit(9)?,
                ..StoredQuota::default()
            };
            Ok((row.get(0)?, quota))
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
                started_at: (start * 1000.0) as i64,
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

    /// Imported CPU and GPU seconds per user since `after` (milliseconds). A process that started earlier counts with
    /// the fraction of its life that lies inside.
    pub fn sum_legacy_usage(&self, after: i64) -> Result<BTreeMap<UserName, (f64, f64)>, DbError> {
        let query = "SELECT user, sum(cpu_seconds * share), sum(gpus * seconds * share) FROM
                         (SELECT *, max(0.0, min(1.0, (started_at + seconds * 1000 - ?1) / max(seconds * 1000, 1))) AS share
                          FROM legacy_usage) GROUP BY user";
        let rows = collect(&self.0, query, [after], |row| Ok((parsed(row.get(0)?)?, (row.get(1)?, row.get(2)?))))?;
        Ok(rows.into_iter().collect())
    }
}
