//! The thread that calls NVML, and the watchdog over it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    Device, Gpus, Health, Library, Snapshot,
    attribution::{Attribution, Question},
    nvml::{self, DriverError},
};
use crate::{host::clock::Moment, model::usage::GpuUuid};

/// A call that takes longer counts as hung.
const HANG: Duration = Duration::from_secs(5);

/// Pauses before the library is reopened: each is twice the previous one, from the first to the second value.
const REOPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the thread is doing, for the watchdog.
#[derive(Default)]
struct Progress {
    /// Threads with a smaller number have been abandoned.
    generation: u64,
    /// Since when it has been waiting for NVML, and for which GPU (`None` = the library as a whole).
    waiting: Option<(Option<u32>, Instant)>,
    /// GPUs whose call never returned.
    hanging: HashSet<u32>,
}

/// Publishes snapshots until `stop` is cancelled.
pub async fn run(gpus: Gpus, stop: CancellationToken) {
    let progress: Arc<Mutex<Progress>> = Arc::default();
    start_thread(&gpus, &progress, 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                lock(&progress).generation = u64::MAX;
                gpus.0.woken.notify_all();
                return;
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let hung = {
            let mut progress = lock(&progress);
            match progress.waiting {
                Some((device, since)) if since.elapsed() > HANG => {
                    progress.waiting = None;
                    progress.generation += 1;
                    progress.hanging.extend(device);
                    Some((device, progress.generation))
                }
                _ => None,
            }
        };
        match hung {
            Some((Some(index), generation)) => {
                tracing::error!(gpu = index, "a call to NVML hangs; this GPU is unknown until it returns");
                start_thread(&gpus, &progress, generation);
            }
            Some((None, _)) => {
                // Another thread would hang as well. The stuck one continues when the driver does.
                tracing::error!("opening NVML hangs; all GPUs are unknown until it returns");
                lock(&progress).generation -= 1;
                publish_failing(&gpus, "the NVIDIA driver does not answer");
            }
            None => {}
        }
    }
}

fn lock(progress: &Mutex<Progress>) -> std::sync::MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The devices as last known, all with unknown health.
fn publish_failing(gpus: &Gpus, reason: &str) {
    let before = gpus.snapshot();
    let devices = before.devices.iter().map(|device| unknown(device, reason)).collect();
    gpus.publish(Snapshot { at: Moment::now(), library: Library::Failing { reason: reason.to_owned() }, devices });
}

fn unknown(device: &Device, reason: &str) -> Device {
    Device {
        health: Health::Unknown { reason: reason.to_owned() },
        processes: Vec::new(),
        mig: Vec::new(),
        ..device.clone()
    }
}

fn start_thread(gpus: &Gpus, progress: &Arc<Mutex<Progress>>, generation: u64) {
    let poller = Poller {
        gpus: gpus.clone(),
        progress: progress.clone(),
        generation,
        attribution: Attribution::default(),
        identities: HashMap::new(),
        last_samples: HashMap::new(),
    };
    let started = std::thread::Builder::new().name("nvml".to_owned()).spawn(move || poller.run());
    if let Err(error) = started {
        tracing::error!(%error, "could not start the thread for NVML");
    }
}

struct Poller {
    gpus: Gpus,
    progress: Arc<Mutex<Progress>>,
    generation: u64,
    attribution: Attribution,
    /// Kept from earlier reads: a lost GPU cannot report its identity.
    identities: HashMap<u32, (GpuUuid, String)>,
    last_samples: HashMap<u32, u64>,
}

/// The thread was abandoned while it waited.
struct GivenUp;

impl Poller {
    fn run(mut self) {
        let mut pause = REOPEN.0;
        loop {
            let path = self.gpus.0.config.get().gpu.nvml_library.clone();
            let Ok(opened) = self.ask(None, || nvml::Library::open(path.as_deref())) else { return };
            match opened {
                Ok(library) => {
                    let Ok(trouble) = self.poll_while_good(&library, &mut pause) else { return };
                    tracing::warn!(%trouble, "reopening NVML");
                    // Dropping the library calls the driver too.
                    if self.ask(None, || drop(library)).is_err() {
                        return;
                    }
                }
                Err(DriverError::Absent) => {
                    self.gpus.publish(Snapshot { at: Moment::now(), library: Library::Absent, devices: Vec::new() });
                }
                Err(trouble) => publish_failing(&self.gpus, &trouble.to_string()),
            }
            if !self.sleep(pause) {
                return;
            }
            pause = (pause * 2).min(REOPEN.1);
        }
    }

    /// Polls until the library must be reopened.
    fn poll_while_good(&mut self, library: &nvml::Library, pause: &mut Duration) -> Result<DriverError, GivenUp> {
        loop {
            let count = match self.ask(None, || library.count())? {
                Ok(count) => count,
                Err(trouble) => {
                    publish_failing(&self.gpus, &trouble.to_string());
                    return Ok(trouble);
                }
            };
            let mut reopen = None;
            let mut devices = Vec::new();
            for index in 0..count {
                devices.push(match self.read(library, index)? {
                    Ok(device) => device,
                    Err(trouble) => {
                        let (uuid, name) = self
                            .identities
                            .get(&index)
                            .cloned()
                            .unwrap_or((GpuUuid(format!("gpu-{index}")), String::new()));
                        let health = Health::Unknown { reason: trouble.to_string() };
                        reopen = Some(trouble).filter(DriverError::needs_reopening).or(reopen);
                        Device { index, uuid, name, health, processes: Vec::new(), mig: Vec::new() }
                    }
                });
            }
            self.attribution.end_poll();
            self.gpus.publish(Snapshot {
                at: Moment::now(),
                library: Library::Working { driver: library.driver.clone() },
                devices,
            });
            if let Some(trouble) = reopen {
                return Ok(trouble);
            }
            *pause = REOPEN.0;
            if !self.sleep(self.gpus.interval()) {
                return Err(GivenUp);
            }
        }
    }

    fn read(&mut self, library: &nvml::Library, index: u32) -> Result<Result<Device, DriverError>, GivenUp> {
        if lock(&self.progress).hanging.contains(&index) {
            return Ok(Err(DriverError::Hangs));
        }
        let last_sample = self.last_samples.get(&index).copied().unwrap_or(0);
        let raw = self.ask(Some(index), || Ok((library.identify(index)?, library.read(index, last_sample)?)))?;
        Ok(raw.map(|((uuid, name), raw)| {
            self.identities.insert(index, (uuid.clone(), name.clone()));
            self.last_samples.insert(index, raw.last_sample);
            let question = Question {
                listed_at: raw.listed_at,
                rows: &self.gpus.0.db.snapshot(),
                inventory: &self.gpus.0.inventory,
                is_watched: self.gpus.is_watched(),
            };
            let processes = self.attribution.name(raw.processes, &question);
            Device { index, uuid, name, health: Health::Known(raw.reading), processes, mig: raw.mig }
        }))
    }

    /// Calls NVML under the watchdog.
    fn ask<T>(&self, device: Option<u32>, question: impl FnOnce() -> T) -> Result<T, GivenUp> {
        {
            let mut progress = lock(&self.progress);
            if progress.generation != self.generation {
                return Err(GivenUp);
            }
            progress.waiting = Some((device, Instant::now()));
        }
        let answer = question();
        let mut progress = lock(&self.progress);
        if progress.generation == self.generation {
            progress.waiting = None;
            return Ok(answer);
        }
        // The call returned after all: the current thread may read this GPU again.
        if let Some(index) = device {
            progress.hanging.remove(&index);
        }
        Err(GivenUp)
    }

    /// Sleeps until the next poll is due or a client begins to watch. `false` when the thread must exit.
    fn sleep(&self, interval: Duration) -> bool {
        let asleep = self.gpus.0.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.gpus.0.woken.wait_timeout(asleep, interval);
        lock(&self.progress).generation == self.generation
    }
}
