//! The task that samples usage and writes it to the database.
//!
//! It samples every `sample_seconds`, counts in memory, and writes every [`WRITE`], or when a reader asks: cursors and
//! amounts in one transaction. Amounts that a kill takes from memory are counted again from the cursors that were
//! written; so new and ended cursors are written sooner ([`WRITE_CHANGE`]).

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Usage,
    gpu_time::{GpuClock, GpuCursors},
};
use crate::{
    config::LiveConfig,
    db::{CpuCursor, Db, DbError, UsageBatch},
    engine::Engine,
    gpu::{Gpus, Snapshot},
    host::{
        cgroup::Meter,
        clock::{ClockWatch, Moment},
        process::{self, Stat},
    },
    model::{
        ids::{ContainerId, ProcessId},
        pod::State,
        time::Millis,
        usage::{Amount, GpuAmount, GpuUuid, STEPS, Subject},
    },
};

/// Interval between writes when nobody reads: one per finest bucket. A write with a hundred pods on GPUs costs more
/// than ten samples.
const WRITE: Duration = Duration::from_secs(10);

/// Interval between writes after a process appeared on a GPU or left it, or a container was started or ended: a kill
/// would lose all that is known of it. Shorter than the usual `sample_seconds`, so that the next sample is written.
const WRITE_CHANGE: Duration = Duration::from_secs(4);

/// Shortest interval between writes for readers.
const FRESH: Duration = Duration::from_secs(1);

/// Interval between reads of a cgroup's memory, milliseconds: they take the kernel longer than all the rest.
const MEMORY: i64 = 5000;

/// Interval at which old buckets are removed; also done at the start.
const PRUNE: Duration = Duration::from_secs(600);

/// Seconds. If an adopted pod has run for longer, what it used before is not counted; it may have run for months.
const ADOPTED_GRACE: f64 = 30.0;

/// What is read, and where it is written.
pub struct Sources {
    pub config: LiveConfig,
    pub db: Db,
    pub engine: Engine,
    pub gpus: Gpus,
    pub usage: Usage,
}

/// Runs for the life of the daemon.
pub async fn run(from: Sources, stop: CancellationToken) {
    let mut sampler = match Sampler::resume(&from).await {
        Ok(sampler) => sampler,
        Err(error) => {
            tracing::error!(%error, "cannot read the usage cursors; usage is counted from now on");
            Sampler::default()
        }
    };
    let mut snapshots = from.gpus.changes();
    let mut pruned: Option<Instant> = None;
    let mut written = Instant::now();
    let mut next = Instant::now();
    loop {
        let is_asked = tokio::select! {
            () = stop.cancelled() => {
                sampler.look(&from);
                let _ = sampler.write(&from).await;
                return;
            }
            Ok(()) = snapshots.changed() => {
                sampler.follow(&from.gpus.snapshot());
                continue;
            }
            () = from.usage.asked() => true,
            () = tokio::time::sleep_until(next) => {
                let seconds = from.config.get().usage.sample_seconds.max(0.5);
                next = Instant::now() + Duration::from_secs_f64(seconds);
                sampler.look(&from);
                false
            }
        };
        match is_asked {
            true if written.elapsed() < FRESH => {
                from.usage.tell();
                continue;
            }
            true => sampler.look(&from),
            false if written.elapsed() < sampler.patience() => continue,
            false => {}
        }
        if let Err(error) = sampler.write(&from).await {
            tracing::warn!(%error, "could not write usage; trying again");
        }
        written = Instant::now();
        from.usage.tell();
        if pruned.is_none_or(|at| at.elapsed() > PRUNE) {
            pruned = Some(Instant::now());
            if let Err::<_, DbError>(error) = from.db.write(|tx| tx.prune_usage(Millis::now().seconds())).await {
                tracing::warn!(%error, "could not remove old usage");
            }
        }
    }
}

#[derive(Default)]
struct Sampler {
    clock: GpuClock,
    watch: ClockWatch,
    /// CPU seconds already counted, by container.
    cpu: HashMap<String, CpuCursor>,
    meters: HashMap<ContainerId, Watched>,
    pending: Pending,
    /// Whether a cursor was added or ended since the last write.
    is_changed: bool,
}

/// A pod's cgroup.
struct Watched {
    meter: Meter,
    /// Its first process.
    pid: i32,
    /// The first process's start, which distinguishes the runs of the container: each counts from zero.
    run: String,
    /// Its age in seconds when it was first seen here.
    age: f64,
    /// Bytes, and when they were read, milliseconds since boot.
    memory: u64,
    memory_at: i64,
}

impl Watched {
    fn open(pid: i32) -> Option<Self> {
        let first = Stat::read(pid)?;
        let meter = Meter::of_process(pid)?;
        Some(Self {
            meter,
            pid,
            run: format!("{} {}", process::boot_id(), first.id.started),
            age: process::uptime() - first.id.started as f64 / process::ticks_per_second(),
            memory: 0,
            memory_at: i64::MIN / 2,
        })
    }
}

/// Amounts that are not written yet.
#[derive(Default)]
struct Pending {
    pods: HashMap<Subject, Vec<(i64, i64, Amount)>>,
    gpus: HashMap<GpuUuid, Vec<(i64, i64, GpuAmount)>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.gpus.is_empty()
    }
}

/// Merges a span into the last one if both are in one of the finest buckets, where they would be added anyway.
fn push<T>(spans: &mut Vec<(i64, i64, T)>, begin: i64, end: i64, amount: T, add: impl FnOnce(&mut T, &T)) {
    let bucket = |time: i64| time.div_euclid(STEPS[0].seconds * 1000);
    match spans.last_mut() {
        Some((first, last, sum)) if [*first, *last, begin].iter().all(|time| bucket(*time) == bucket(end)) => {
            (*first, *last) = (begin.min(*first), end.max(*last));
            add(sum, &amount);
        }
        _ => spans.push((begin, end, amount)),
    }
}

/// The stored form of a process on a GPU: `<gpu> <boot> <pid> <start>`.
fn cursor_key(gpu: &GpuUuid, id: &ProcessId) -> String {
    format!("{} {} {} {}", gpu.0, process::boot_id(), id.pid, id.started)
}

fn parse_cursor_key(key: &str) -> Option<(GpuUuid, ProcessId)> {
    let mut parts = key.split(' ');
    let (gpu, boot) = (parts.next()?, parts.next()?);
    let id = ProcessId { pid: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? };
    // PIDs of another boot mean nothing.
    (boot == process::boot_id()).then(|| (GpuUuid(gpu.to_owned()), id))
}

impl Sampler {
    async fn resume(from: &Sources) -> Result<Self, DbError> {
        let (cpu, stored, last) = from
            .db
            .read(|tx| Ok::<_, DbError>((tx.list_cpu_cursors()?, tx.list_gpu_cursors()?, tx.last_gpu_snapshot()?)))
            .await?;
        let mut cursors = GpuCursors::new();
        for (key, cursor) in stored {
            if let Some((gpu, id)) = parse_cursor_key(&key) {
                cursors.entry(gpu).or_default().insert(id, cursor);
            }
        }
        Ok(Self { clock: GpuClock::resume(cursors, last), cpu, ..Self::default() })
    }

    /// How long pending amounts may stay unwritten.
    fn patience(&self) -> Duration {
        if self.is_changed { WRITE_CHANGE } else { WRITE }
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let used = self.clock.advance(snapshot);
        self.is_changed |= used.has_moved;
        for (begin, end, subject, amount) in used.pods {
            push(self.pending.pods.entry(subject).or_default(), begin, end, amount, Amount::add);
        }
        for (begin, end, gpu, amount) in used.gpus {
            push(self.pending.gpus.entry(gpu).or_default(), begin, end, amount, GpuAmount::add);
        }
    }

    /// Moves the cursor of each running pod to now, and counts the difference.
    fn look(&mut self, from: &Sources) {
        let now = Moment::now();
        let set_by = self.watch.set_by(now);
        if set_by != 0 {
            tracing::warn!(seconds = set_by / 1000, "the clock was set; usage continues from the new time");
            self.cpu.values_mut().for_each(|cursor| cursor.at += set_by);
        }
        let rows = from.db.snapshot();
        let mut seen = 0;
        for pod in rows.pods.iter().filter(|pod| pod.state == State::Running) {
            let Some(container) = pod.container.as_ref().and_then(|id| from.engine.inventory().get(id)) else {
                continue;
            };
            let pid = container.detail.as_ref().map_or(0, |detail| detail.pid);
            if self.meters.get(&container.id).is_none_or(|watched| watched.pid != pid) {
                self.is_changed |= self.meters.remove(&container.id).is_some();
                let Some(watched) = Watched::open(pid) else { continue };
                self.meters.insert(container.id.clone(), watched);
            }
            let Some(watched) = self.meters.get_mut(&container.id) else { continue };
            let Some(cpu_seconds) = watched.meter.cpu_seconds() else {
                // That run has ended.
                self.meters.remove(&container.id);
                self.is_changed = true;
                continue;
            };
            seen += 1;
            let Moment { wall: at, steady } = now;
            if steady - watched.memory_at >= MEMORY {
                watched.memory = watched.meter.memory_bytes().unwrap_or(watched.memory);
                watched.memory_at = steady;
            }
            let known = self.cpu.get_mut(container.id.as_str()).filter(|cursor| cursor.run == watched.run);
            let (begin, counted) = match &known {
                Some(cursor) => (cursor.at.min(at), cursor.cpu_seconds),
                // Never seen: count everything since the container's start, unless it was adopted long after it.
                None if pod.adopted && watched.age > ADOPTED_GRACE => (at, cpu_seconds),
                None => (at - (watched.age * 1000.0) as i64, 0.0),
            };
            let amount = Amount {
                cpu_seconds: (cpu_seconds - counted).max(0.0),
                memory_byte_seconds: watched.memory as f64 * (at - begin) as f64 / 1000.0,
                ..Amount::default()
            };
            let subject = Subject { user: pod.user.clone(), pod: pod.container_name.clone(), gpu: None };
            push(self.pending.pods.entry(subject).or_default(), begin, at, amount, Amount::add);
            match known {
                Some(cursor) => (cursor.cpu_seconds, cursor.at) = (cpu_seconds, at),
                None => {
                    let (container, run) = (container.id.to_string(), watched.run.clone());
                    self.cpu.insert(container.clone(), CpuCursor { container, run, cpu_seconds, at });
                    self.is_changed = true;
                }
            }
        }
        // A pod that is being deleted is no longer seen.
        self.is_changed |= seen < self.meters.len();
    }

    /// Writes all pending amounts together with their cursors.
    async fn write(&mut self, from: &Sources) -> Result<(), DbError> {
        if self.cpu.is_empty() && self.pending.is_empty() {
            return Ok(());
        }
        // A cursor is kept even if its pod was not seen now: a container that is not listed yet, or stopped, is not a
        // new one.
        let rows = from.db.snapshot();
        let live: HashSet<&str> =
            rows.pods.iter().filter_map(|pod| pod.container.as_ref()).map(ContainerId::as_str).collect();
        self.cpu.retain(|container, _| live.contains(container.as_str()));
        self.meters.retain(|container, _| live.contains(container.as_str()));
        let pods = self.pending.pods.iter().flat_map(|(subject, spans)| {
            spans.iter().map(move |(begin, end, amount)| (*begin, *end, subject.clone(), *amount))
        });
        let gpus = self.pending.gpus.iter().flat_map(|(gpu, spans)| {
            spans.iter().map(move |(begin, end, amount)| (*begin, *end, gpu.clone(), *amount))
        });
        let cursors =
            self.clock.cursors().iter().flat_map(|(gpu, cursors)| {
                cursors.iter().map(move |(id, cursor)| (cursor_key(gpu, id), cursor.clone()))
            });
        let batch = UsageBatch {
            pods: pods.collect(),
            gpus: gpus.collect(),
            cpu: self.cpu.values().cloned().collect(),
            cursors: cursors.collect(),
            last_gpu_snapshot: self.clock.last(),
        };
        from.db.write(move |tx| tx.write_usage(&batch)).await?;
        // Cleared only after a successful write.
        self.pending = Pending::default();
        self.is_changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_one_bucket_are_merged_and_others_are_not() {
        let mut spans = Vec::new();
        for (begin, end) in [(0, 2_000), (2_000, 9_999), (9_999, 10_001), (10_001, 12_000), (11_000, 13_000)] {
            push(&mut spans, begin, end, 1.0, |sum: &mut f64, more| *sum += more);
        }
        assert_eq!(spans, [(0, 9_999, 2.0), (9_999, 10_001, 1.0), (10_001, 13_000, 2.0)]);
    }
}
