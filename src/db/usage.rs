//! The tables `usage_subjects`, `usage`, `gpu_usage`, and the cursors from which they are counted.

use std::collections::HashMap;

use rusqlite::{Row, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    buckets::spread,
    usage::{Amount, GpuAmount, GpuCursor, GpuUuid, STEPS, Subject},
};

/// The position up to which a container's CPU time is counted.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuCursor {
    pub container: String,
    /// One run of the container: each counts from zero.
    pub run: String,
    pub cpu_seconds: f64,
    /// Milliseconds since 1970.
    pub at: i64,
}

/// What one step of the sampler writes, with the cursors up to which it was counted.
#[derive(Debug)]
pub struct UsageBatch {
    /// From, to (milliseconds), owner, amount.
    pub pods: Vec<(i64, i64, Subject, Amount)>,
    pub gpus: Vec<(i64, i64, GpuUuid, GpuAmount)>,
    pub cpu: Vec<CpuCursor>,
    pub cursors: Vec<(String, GpuCursor)>,
    pub last_gpu_snapshot: Option<i64>,
}

/// A bucket of a subject.
#[derive(Clone, Debug)]
pub struct UsageRow {
    /// Unix seconds.
    pub at: i64,
    pub subject: Subject,
    pub amount: Amount,
}

/// A bucket of a GPU.
#[derive(Clone, Debug)]
pub struct GpuUsageRow {
    /// Unix seconds.
    pub at: i64,
    pub gpu: GpuUuid,
    pub amount: GpuAmount,
}

fn read_row(row: &Row) -> Result<UsageRow, DbError> {
    let gpu: String = row.get(3)?;
    Ok(UsageRow {
        at: row.get(0)?,
        subject: Subject {
            user: parsed(row.get(1)?)?,
            pod: row.get(2)?,
            gpu: (!gpu.is_empty()).then_some(GpuUuid(gpu)),
        },
        amount: Amount {
            cpu_seconds: row.get(4)?,
            memory_byte_seconds: row.get(5)?,
            gpu_active_seconds: row.get(6)?,
            gpu_held_seconds: row.get(7)?,
            gpu_memory_byte_seconds: row.get(8)?,
            gpu_joules: row.get(9)?,
        },
    })
}

impl Tx<'_> {
    /// Adds a batch to the buckets of every step and moves the cursors, all in this transaction.
    pub fn write_usage(&self, batch: &UsageBatch) -> Result<(), DbError> {
        let mut pods: HashMap<(i64, i64, i64), Amount> = HashMap::new();
        for (begin, end, subject, amount) in &batch.pods {
            let subject = self.ensure_subject(subject)?;
            for step in &STEPS {
                for (at, share) in spread(*begin, *end, step.seconds) {
                    pods.entry((step.seconds, at, subject)).or_default().add(&amount.scaled(share));
                }
            }
        }
        let mut add = self.0.prepare_cached(
            "INSERT INTO usage (step, at, subject, cpu_seconds, memory_byte_seconds, gpu_active_seconds, gpu_held_seconds,
                 gpu_memory_byte_seconds, gpu_joules) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT DO UPDATE SET cpu_seconds = cpu_seconds + excluded.cpu_seconds,
                 memory_byte_seconds = memory_byte_seconds + excluded.memory_byte_seconds,
                 gpu_active_seconds = gpu_active_seconds + excluded.gpu_active_seconds,
                 gpu_held_seconds = gpu_held_seconds + excluded.gpu_held_seconds,
                 gpu_memory_byte_seconds = gpu_memory_byte_seconds + excluded.gpu_memory_byte_seconds,
                 gpu_joules = gpu_joules + excluded.gpu_joules",
        )?;
        // In table order, so that each row is next to the previous one.
        let mut pods: Vec<_> = pods.into_iter().collect();
        pods.sort_unstable_by_key(|(key, _)| *key);
        for ((step, at, subject), a) in pods {
            add.execute(params![
                step,
                at,
                subject,
                a.cpu_seconds,
                a.memory_byte_seconds,
                a.gpu_active_seconds,
                a.gpu_held_seconds,
                a.gpu_memory_byte_seconds,
                a.gpu_joules
            ])?;
        }
        let mut gpus: HashMap<(i64, i64, &str), GpuAmount> = HashMap::new();
        for (begin, end, gpu, amount) in &batch.gpus {
            for step in &STEPS {
                for (at, share) in spread(*begin, *end, step.seconds) {
                    gpus.entry((step.seconds, at, gpu.0.as_str())).or_default().add(&amount.scaled(share));
                }
            }
        }
        let mut add = self.0.prepare_cached(
            "INSERT INTO gpu_usage (step, at, gpu, known_seconds, free_seconds, busy_seconds, memory_byte_seconds, joules)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET known_seconds = known_seconds + excluded.known_seconds,
                 free_seconds = free_seconds + excluded.free_seconds, busy_seconds = busy_seconds + excluded.busy_seconds,
                 memory_byte_seconds = memory_byte_seconds + excluded.memory_byte_seconds, joules = joules + excluded.joules",
        )?;
        for ((step, at, gpu), a) in gpus {
            add.execute(params![
                step,
                at,
                gpu,
                a.known_seconds,
                a.free_seconds,
                a.busy_seconds,
                a.memory_byte_seconds,
                a.joules
            ])?;
        }
        self.write_cursors(batch)
    }

    fn write_cursors(&self, batch: &UsageBatch) -> Result<(), DbError> {
        self.0.execute("DELETE FROM cpu_cursors", [])?;
        let mut add = self
            .0
            .prepare_cached("INSERT INTO cpu_cursors (container, run, cpu_seconds, at) VALUES (?1, ?2, ?3, ?4)")?;
        for cursor in &batch.cpu {
            add.execute(params![cursor.container, cursor.run, cursor.cpu_seconds, cursor.at])?;
        }
        self.0.execute("DELETE FROM gpu_seats", [])?;
        let mut add = self
            .0
            .prepare_cached("INSERT INTO gpu_seats (seat, user, pod, counted, active) VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (key, cursor) in &batch.cursors {
            add.execute(params![key, cursor.user.as_str(), cursor.pod, cursor.counted, cursor.active])?;
        }
        if let Some(at) = batch.last_gpu_snapshot {
            self.0.execute("INSERT OR REPLACE INTO gpu_snapshots (id, at) VALUES (1, ?1)", [at])?;
        }
        Ok(())
    }

    fn ensure_subject(&self, subject: &Subject) -> Result<i64, DbError> {
        let gpu = subject.gpu.as_ref().map_or("", |gpu| gpu.0.as_str());
        let key = params![subject.user.as_str(), subject.pod, gpu];
        let query = "SELECT id FROM usage_subjects WHERE user = ?1 AND pod = ?2 AND gpu = ?3";
        if let Some(id) = collect(&self.0, query, key, |row| Ok(row.get(0)?))?.pop() {
            return Ok(id);
        }
        self.0.prepare_cached("INSERT INTO usage_subjects (user, pod, gpu) VALUES (?1, ?2, ?3)")?.execute(key)?;
        Ok(self.0.last_insert_rowid())
    }

    /// By container id.
    pub fn list_cpu_cursors(&self) -> Result<HashMap<String, CpuCursor>, DbError> {
        let rows = collect(&self.0, "SELECT container, run, cpu_seconds, at FROM cpu_cursors", [], |row| {
            Ok(CpuCursor { container: row.get(0)?, run: row.get(1)?, cpu_seconds: row.get(2)?, at: row.get(3)? })
        })?;
        Ok(rows.into_iter().map(|cursor| (cursor.container.clone(), cursor)).collect())
    }

    pub fn list_gpu_cursors(&self) -> Result<Vec<(String, GpuCursor)>, DbError> {
        collect(&self.0, "SELECT seat, user, pod, counted, active FROM gpu_seats", [], |row| {
            Ok((
                row.get(0)?,
                GpuCursor { user: parsed(row.get(1)?)?, pod: row.get(2)?, counted: row.get(3)?, active: row.get(4)? },
            ))
        })
    }

    pub fn last_gpu_snapshot(&self) -> Result<Option<i64>, DbError> {
        Ok(collect(&self.0, "SELECT at FROM gpu_snapshots", [], |row| Ok(row.get(0)?))?.pop())
    }

    /// Buckets of a step that end after `from` and begin before `to` (Unix seconds), oldest first. With `step` 3600 and
    /// `from` 0 this includes the sums of everything older than all buckets, at 0.
    pub fn list_usage(&self, step: i64, from: i64, to: i64) -> Result<Vec<UsageRow>, DbError> {
        let query = "SELECT at, user, pod, gpu, cpu_seconds, memory_byte_seconds, gpu_active_seconds, gpu_held_seconds,
                            gpu_memory_byte_seconds, gpu_joules
                     FROM usage JOIN usage_subjects ON usage_subjects.id = subject
                     WHERE step = ?1 AND at > ?2 - ?1 AND at < ?3 OR ?2 = 0 AND step = 0 ORDER BY at";
        collect(&self.0, query, params![step, from, to], read_row)
    }

    pub fn list_gpu_usage(&self, step: i64, from: i64, to: i64) -> Result<Vec<GpuUsageRow>, DbError> {
        let query =
            "SELECT at, gpu, known_seconds, free_seconds, busy_seconds, memory_byte_seconds, joules FROM gpu_usage
                     WHERE step = ?1 AND at > ?2 - ?1 AND at < ?3 ORDER BY at";
        collect(&self.0, query, params![step, from, to], |row| {
            Ok(GpuUsageRow {
                at: row.get(0)?,
                gpu: GpuUuid(row.get(1)?),
                amount: GpuAmount {
                    known_seconds: row.get(2)?,
                    free_seconds: row.get(3)?,
                    busy_seconds: row.get(4)?,
                    memory_byte_seconds: row.get(5)?,
                    joules: row.get(6)?,
                },
            })
        })
    }

    /// Removes buckets that are older than their step's retention. Of the coarsest step the sums are kept, as step 0,
    /// per user and GPU: keeping them per pod would grow without bound.
    pub fn prune_usage(&self, now_seconds: i64) -> Result<(), DbError> {
        let coarsest = &STEPS[STEPS.len() - 1];
        let old = params![coarsest.seconds, now_seconds - coarsest.kept];
        self.0.execute(
            "INSERT OR IGNORE INTO usage_subjects (user, pod, gpu) SELECT DISTINCT user, '', gpu
             FROM usage JOIN usage_subjects ON usage_subjects.id = subject WHERE step = ?1 AND at < ?2",
            old,
        )?;
        let summed = self.0.execute(
            "INSERT INTO usage (step, at, subject, cpu_seconds, memory_byte_seconds, gpu_active_seconds, gpu_held_seconds,
                 gpu_memory_byte_seconds, gpu_joules)
             SELECT 0, 0, whole.id, sum(cpu_seconds), sum(memory_byte_seconds), sum(gpu_active_seconds), sum(gpu_held_seconds),
                 sum(gpu_memory_byte_seconds), sum(gpu_joules)
             FROM usage JOIN usage_subjects AS part ON part.id = subject
                 JOIN usage_subjects AS whole ON whole.user = part.user AND whole.pod = '' AND whole.gpu = part.gpu
             WHERE step = ?1 AND at < ?2 GROUP BY whole.id
             ON CONFLICT DO UPDATE SET cpu_seconds = cpu_seconds + excluded.cpu_seconds,
                 memory_byte_seconds = memory_byte_seconds + excluded.memory_byte_seconds,
                 gpu_active_seconds = gpu_active_seconds + excluded.gpu_active_seconds,
                 gpu_held_seconds = gpu_held_seconds + excluded.gpu_held_seconds,
                 gpu_memory_byte_seconds = gpu_memory_byte_seconds + excluded.gpu_memory_byte_seconds,
                 gpu_joules = gpu_joules + excluded.gpu_joules",
            old,
        )?;
        for step in &STEPS {
            for table in ["usage", "gpu_usage"] {
                let query = format!("DELETE FROM {table} WHERE step = ?1 AND at < ?2");
                self.0.execute(&query, params![step.seconds, now_seconds - step.kept])?;
            }
        }
        if summed > 0 {
            // This scans every row, so it is done only when a subject may have lost its last row.
            self.0.execute("DELETE FROM usage_subjects WHERE id NOT IN (SELECT subject FROM usage)", [])?;
        }
        Ok(())
    }
}
