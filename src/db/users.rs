//! The tables `users` and `quotas`.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    names::UserName,
    quantities::GpuSet,
    quota::{CpuLimit, Limit, StoredQuota},
    time::now,
    user::User,
};

const COLUMNS: &str = "id, name, password, is_admin, disabled, created_at";

fn read(row: &Row) -> Result<User, DbError> {
    Ok(User {
        id: row.get(0)?,
        name: parsed(row.get(1)?)?,
        password: row.get(2)?,
        is_admin: row.get(3)?,
        disabled: row.get(4)?,
        created_at: row.get(5)?,
    })
}

pub fn list(connection: &Connection) -> Result<Vec<User>, DbError> {
    collect(connection, &format!("SELECT {COLUMNS} FROM users ORDER BY id"), [], read)
}

fn read_quota(row: &Row) -> Result<(UserName, StoredQuota), DbError> {
    let limit = |at: usize| row.get::<_, Option<i64>>(at).map(|value| value.map(Limit::from_i64));
    let quota = StoredQuota {
        max_pods: limit(1)?,
        gpu_count: limit(2)?,
        gpus: row.get::<_, Option<String>>(3)?.map(parsed::<GpuSet>).transpose()?,
        memory_limit: limit(4)?,
        storage_size: limit(5)?,
        shm_size: limit(6)?,
        tmpfs_size: limit(7)?,
        commit_count: limit(8)?,
        commit_size_limit: limit(9)?,
        cpu_limit: row.get::<_, Option<i64>>(10)?.map(|milli| CpuLimit(u64::try_from(milli).ok())),
        pids_limit: limit(11)?,
        total_memory: limit(12)?,
        checkpoint_count: limit(13)?,
        checkpoint_size: limit(14)?,
    };
    Ok((parsed(row.get(0)?)?, quota))
}

pub fn list_quotas(connection: &Connection) -> Result<Vec<(UserName, StoredQuota)>, DbError> {
    let query =
        "SELECT user, max_pods, gpu_count, gpus, memory_limit, storage_size, shm_size, tmpfs_size, commit_count,
                        commit_size_limit, cpu_limit, pids_limit, total_memory, checkpoint_count, checkpoint_size FROM quotas";
    collect(connection, query, [], read_quota)
}

impl Tx<'_> {
    pub fn list_users(&self) -> Result<Vec<User>, DbError> {
        list(&self.0)
    }

    pub fn find_user(&self, name: &UserName) -> Result<Option<User>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM users WHERE name = ?1");
        Ok(collect(&self.0, &query, [name.as_str()], read)?.pop())
    }

    /// Adds a user; `false` if the name exists.
    pub fn insert_user(&self, name: &UserName, password: &str, is_admin: bool) -> Result<bool, DbError> {
        let inserted = self.0.execute(
            "INSERT INTO users (name, password, is_admin, created_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            params![name.as_str(), password, is_admin, now()],
        )?;
        Ok(inserted == 1)
    }

    /// Updates the row of `user` by its name.
    pub fn update_user(&self, user: &User) -> Result<(), DbError> {
        self.0.execute(
            "UPDATE users SET password = ?2, is_admin = ?3, disabled = ?4 WHERE name = ?1",
            params![user.name.as_str(), user.password, user.is_admin, user.disabled],
        )?;
        Ok(())
    }

    /// Deletes the account and everything that only it could use. Usage, events and pods are kept.
    pub fn delete_user(&self, name: &UserName) -> Result<(), DbError> {
        for table in ["tokens", "ssh_keys", "quotas", "clusters", "told_checkpoints", "told_actions"] {
            self.0.execute(&format!("DELETE FROM {table} WHERE user = ?1"), [name.as_str()])?;
        }
        // Checkpoints of their pods' memory must not pass to another user who gets the same name.
        self.delete_checkpoints_later(name)?;
        self.0.execute("DELETE FROM actions WHERE user = ?1 AND status != 'running'", [name.as_str()])?;
        self.0.execute("DELETE FROM users WHERE name = ?1", [name.as_str()])?;
        Ok(())
    }

    /// The number of admins that can sign in.
    pub fn count_admins(&self) -> Result<u64, DbError> {
        let query = "SELECT count(*) FROM users WHERE is_admin AND NOT disabled";
        Ok(self.0.query_row(query, [], |row| row.get::<_, i64>(0))?.unsigned_abs())
    }

    pub fn find_quota(&self, user: &UserName) -> Result<StoredQuota, DbError> {
        let all = list_quotas(&self.0)?;
        Ok(all.into_iter().find(|(name, _)| name == user).map(|(_, quota)| quota).unwrap_or_default())
    }

    pub fn upsert_quota(&self, user: &UserName, quota: &StoredQuota) -> Result<(), DbError> {
        let limit = |limit: Option<Limit>| limit.map(Limit::as_i64);
        self.0.execute(
            "INSERT OR REPLACE INTO quotas (user, max_pods, gpu_count, gpus, memory_limit, storage_size, shm_size, tmpfs_size,
                 commit_count, commit_size_limit, cpu_limit, pids_limit, total_memory, checkpoint_count, checkpoint_size)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                user.as_str(),
                limit(quota.max_pods),
                limit(quota.gpu_count),
                quota.gpus.as_ref().map(GpuSet::to_string),
                limit(quota.memory_limit),
                limit(quota.storage_size),
                limit(quota.shm_size),
                limit(quota.tmpfs_size),
                limit(quota.commit_count),
                limit(quota.commit_size_limit),
                quota.cpu_limit.map(|cpu| cpu.0.map_or(-1, |milli| milli as i64)),
                limit(quota.pids_limit),
                limit(quota.total_memory),
                limit(quota.checkpoint_count),
                limit(quota.checkpoint_size),
            ],
        )?;
        Ok(())
    }

    /// Deletes a user's own limits; `false` if there were none.
    pub fn delete_quota(&self, user: &UserName) -> Result<bool, DbError> {
        Ok(self.0.execute("DELETE FROM quotas WHERE user = ?1", [user.as_str()])? == 1)
    }

    /// Whether nothing was ever stored here, as in a newly created database.
    pub fn is_empty(&self) -> Result<bool, DbError> {
        let row = self.0.query_row("SELECT 1 FROM users UNION ALL SELECT 1 FROM events LIMIT 1", [], |_| Ok(()));
        Ok(row.optional()?.is_none())
    }
}
