//! The tables `users` and `quotas`.

use std::iter;

use rusqlite::{
    Connection, OptionalExtension, Row, ToSql, params, params_from_iter,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    names::UserName,
    quota::{Limit, LimitValue, StoredQuota},
    time::Millis,
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

impl ToSql for LimitValue {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Integer(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}

impl FromSql for LimitValue {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Integer(number) => Ok(Self::Integer(number)),
            ValueRef::Text(_) => value.as_str().map(|text| Self::Text(text.to_owned())),
            ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Err(FromSqlError::InvalidType),
        }
    }
}

/// The columns of `quotas`: the user, and one per limit.
fn quota_columns() -> Vec<&'static str> {
    iter::once("user").chain(Limit::ALL.iter().map(|limit| limit.name)).collect()
}

fn read_quota(row: &Row) -> Result<(UserName, StoredQuota), DbError> {
    let mut quota = StoredQuota::default();
    for limit in Limit::ALL {
        if let Some(value) = row.get::<_, Option<LimitValue>>(limit.name)? {
            limit.set(&mut quota, value).map_err(DbError::Row)?;
        }
    }
    Ok((parsed(row.get("user")?)?, quota))
}

pub fn list_quotas(connection: &Connection) -> Result<Vec<(UserName, StoredQuota)>, DbError> {
    let query = format!("SELECT {} FROM quotas", quota_columns().join(", "));
    collect(connection, &query, [], read_quota)
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
            params![name.as_str(), password, is_admin, Millis::now()],
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
        let columns = quota_columns();
        let places = vec!["?"; columns.len()].join(", ");
        let query = format!("INSERT OR REPLACE INTO quotas ({}) VALUES ({places})", columns.join(", "));
        let user = user.as_str();
        let limits: Vec<Option<LimitValue>> = Limit::ALL.iter().map(|limit| limit.get(quota)).collect();
        let values = iter::once(&user as &dyn ToSql).chain(limits.iter().map(|limit| limit as &dyn ToSql));
        self.0.execute(&query, params_from_iter(values))?;
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
