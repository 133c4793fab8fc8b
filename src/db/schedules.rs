//! The table `schedules`: pods with scheduled checkpoints.

use rusqlite::{Connection, Row, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{ids::PodId, schedule::Schedule};

const COLUMNS: &str = "pod, user, every, keep, next_at, last_at, last_checkpoint, last_error, action, replaces";

fn read(row: &Row) -> Result<Schedule, DbError> {
    let replaces: String = row.get(9)?;
    Ok(Schedule {
        pod: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        every: row.get(2)?,
        keep: row.get(3)?,
        next_at: row.get(4)?,
        last_at: row.get(5)?,
        last_checkpoint: row.get::<_, Option<String>>(6)?.map(parsed).transpose()?,
        last_error: row.get(7)?,
        action: row.get::<_, Option<String>>(8)?.map(parsed).transpose()?,
        replaces: serde_json::from_str(&replaces).map_err(|e| DbError::Row(format!("a schedule: {e}")))?,
    })
}

pub fn list(connection: &Connection) -> Result<Vec<Schedule>, DbError> {
    collect(connection, &format!("SELECT {COLUMNS} FROM schedules ORDER BY next_at, pod"), [], read)
}

impl Tx<'_> {
    pub fn find_schedule(&self, pod: PodId) -> Result<Option<Schedule>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM schedules WHERE pod = ?1");
        Ok(collect(&self.0, &query, [pod.to_string()], read)?.pop())
    }

    /// The one that is due next comes first.
    pub fn list_schedules(&self) -> Result<Vec<Schedule>, DbError> {
        list(&self.0)
    }

    pub fn upsert_schedule(&self, schedule: &Schedule) -> Result<(), DbError> {
        self.0.execute(
            &format!("INSERT OR REPLACE INTO schedules ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"),
            params![
                schedule.pod.to_string(),
                schedule.user.as_str(),
                schedule.every,
                schedule.keep,
                schedule.next_at,
                schedule.last_at,
                schedule.last_checkpoint.map(|id| id.to_string()),
                schedule.last_error,
                schedule.action.map(|id| id.to_string()),
                serde_json::to_string(&schedule.replaces).expect("a list of texts"),
            ],
        )?;
        Ok(())
    }

    /// Returns whether there was one.
    pub fn delete_schedule(&self, pod: PodId) -> Result<bool, DbError> {
        Ok(self.0.execute("DELETE FROM schedules WHERE pod = ?1", [pod.to_string()])? == 1)
    }
}
