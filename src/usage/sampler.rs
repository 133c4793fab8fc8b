//! The worker that looks and writes down.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    Amount, GpuAmount, Subject,
    gpu_time::{GpuClock, Seat, Seated},
};
use crate::{
    app::App,
    db::{CpuCursor, DbError, UsageBatch, now},
    gpu::{GpuUuid, Snapshot},
    host::{
        cgroup::Cgroup,
        process::{self, ProcessId, Stat},
    },
    ids::ContainerId,
    pod::State,
};

/// Old buckets are cleared this often.
const PRUNE: Duration = Duration::from_secs(600);
/// What a pod that was taken over used before we knew it is not counted; it may have run for months.
const ADOPTED_GRACE: f64 = 30.0;

/// Runs for the life of the daemon.
pub async fn run(app: App, stop: CancellationToken) {
    let mut sampler = match Sampler::resume(&app).await {
        Ok(sampler) => sampler,
        Err(error) => {
            tracing::error!(%error, "usage is counted from now on: the cursors cannot be read");
            Sampler::default()
        }
    };
    let mut snapshots = app.gpus.changes();
    let mut pruned = tokio::time::Instant::now();
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                let _ = sampler.step(&app).await;
                return;
            }
            Ok(()) = snapshots.changed() => {
                let snapshot = app.gpus.snapshot();
                sampler.follow(&snapshot);
            }
            () = tokio::time::sleep_until(next) => {
                if let Err(error) = sampler.step(&app).await {
                    tracing::warn!(%error, "usage not written, tried again");
                }
                let seconds = app.config.get().usage.sample_seconds.max(0.5);
                next = tokio::time::Instant::now() + Duration::from_secs_f64(seconds);
                if pruned.elapsed() > PRUNE {
                    pruned = tokio::time::Instant::now();
                    if let Err::<_, DbError>(error) = app.db.write(|tx| tx.prune_usage(now() / 1000)).await {
                        tracing::warn!(%error, "old usage not cleared");
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Sampler {
    clock: GpuClock,
    /// CPU seconds already counted, by container.
    cpu: HashMap<String, CpuCursor>,
    pending: Pending,
}

/// What was counted and is not written yet.
#[derive(Default)]
struct Pending {
    pods: BTreeMap<(i64, i64, Subject), Amount>,
    gpus: Vec<(i64, i64, GpuUuid, GpuAmount)>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.gpus.is_empty()
    }
}

/// A seat as it is stored: `<gpu> <boot> <pid> <start>`.
fn seat_key((gpu, id): &Seat) -> String {
    format!("{} {} {} {}", gpu.0, process::boot_id(), id.pid, id.started)
}

fn parse_seat(key: &str) -> Option<Seat> {
    let mut parts = key.split(' ');
    let (gpu, boot) = (parts.next()?, parts.next()?);
    let id = ProcessId { pid: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? };
    // Another boot's PIDs mean nothing.
    (boot == process::boot_id()).then(|| (GpuUuid(gpu.to_owned()), id))
}

impl Sampler {
    async fn resume(app: &App) -> Result<Self, DbError> {
        let (cpu, seats, last) = app
            .db
            .read(|tx| Ok::<_, DbError>((tx.list_cpu_cursors()?, tx.list_seats()?, tx.last_gpu_snapshot()?)))
            .await?;
        let seats = seats.into_iter().filter_map(|(key, seated)| Some((parse_seat(&key)?, seated))).collect();
        Ok(Self { clock: GpuClock::resume(seats, last), cpu, pending: Pending::default() })
    }

    fn follow(&mut self, snapshot: &Snapshot) {
        let used = self.clock.advance(snapshot);
        for (begin, end, subject, amount) in used.pods {
            self.pending.pods.entry((begin, end, subject)).or_default().add(&amount);
        }
        self.pending.gpus.extend(used.gpus);
    }

    /// Looks at the cgroups and writes down all that was counted.
    async fn step(&mut self, app: &App) -> Result<(), DbError> {
        let looked = self.look(app);
        if looked.is_empty() && self.cpu.is_empty() && self.pending.is_empty() {
            return Ok(());
        }
        let mut pods = self.pending.pods.clone();
        // The cursor of a pod that was not seen now stays: a container that is not listed yet, or stopped, is not a new one.
        let rows = app.db.snapshot();
        let live: HashSet<&str> =
            rows.pods.iter().filter_map(|pod| pod.container.as_ref()).map(ContainerId::as_str).collect();
        let mut cpu = self.cpu.clone();
        cpu.retain(|container, _| live.contains(container.as_str()));
        for (cursor, subject, begin, amount) in looked {
            pods.entry((begin, cursor.at, subject)).or_default().add(&amount);
            cpu.insert(cursor.container.clone(), cursor);
        }
        let seats: Vec<(String, Seated)> =
            self.clock.seats().iter().map(|(seat, seated)| (seat_key(seat), seated.clone())).collect();
        let batch = UsageBatch {
            pods: pods.into_iter().map(|((begin, end, subject), amount)| (begin, end, subject, amount)).collect(),
            gpus: self.pending.gpus.clone(),
            cpu: cpu.values().cloned().collect(),
            seats,
            last_gpu_snapshot: self.clock.last(),
        };
        app.db.write(move |tx| tx.write_usage(&batch)).await?;
        // Only what is written is no longer pending, and only then do the cursors move.
        self.pending = Pending::default();
        self.cpu = cpu;
        Ok(())
    }

    /// Each running pod's cursor moved to now, and what lies between.
    fn look(&self, app: &App) -> Vec<(CpuCursor, Subject, i64, Amount)> {
        let rows = app.db.snapshot();
        let mut looked = Vec::new();
        for pod in rows.pods.iter().filter(|pod| pod.state == State::Running) {
            let Some(container) = pod.container.as_ref().and_then(|id| app.engine.inventory().get(id)) else {
                continue;
            };
            let pid = container.detail.as_ref().map_or(0, |detail| detail.pid);
            // The first process's start tells one run of the container from the next: each has a cgroup of its own.
            let Some(first) = Stat::read(pid) else { continue };
            let Some(sample) = Cgroup::of_process(pid).and_then(|group| group.read()) else { continue };
            let at = now();
            let run = format!("{} {}", process::boot_id(), first.id.started);
            let age = process::uptime() - first.id.started as f64 / process::ticks_per_second();
            let known = self.cpu.get(container.id.as_str()).filter(|cursor| cursor.run == run);
            let (begin, counted) = match known {
                Some(cursor) => (cursor.at.min(at), cursor.cpu_seconds),
                // Never seen: all of it since the start of the container, unless somebody else made it long ago.
                None if pod.adopted && age > ADOPTED_GRACE => (at, sample.cpu_seconds),
                None => (at - (age * 1000.0) as i64, 0.0),
            };
            let seconds = (at - begin) as f64 / 1000.0;
            let amount = Amount {
                cpu_seconds: (sample.cpu_seconds - counted).max(0.0),
                memory_byte_seconds: sample.memory_bytes as f64 * seconds,
                ..Amount::default()
            };
            let subject = Subject { user: pod.user.clone(), pod: pod.container_name.clone(), gpu: None };
            let cursor = CpuCursor { container: container.id.to_string(), run, cpu_seconds: sample.cpu_seconds, at };
            looked.push((cursor, subject, begin, amount));
        }
        looked
    }
}
