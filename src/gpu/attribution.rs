//! From a host PID to container, pod and user.
//!
//! What does not change in a process's life (its container, its PID inside, its command line) is found out once and kept
//! under (PID, start time). Each poll only asks whether that process still lives, through a file that was opened when it was
//! first seen: once the process is gone the file says so, whoever has its PID now.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{GpuProcess, Owner, nvml::RawProcess};
use crate::{
    db::Snapshot as Rows,
    engine::Inventory,
    host::process::{self, ProcessId, Stat},
    ids::ContainerId,
};

/// A new process's command line is waited for this long in all; one that is slower shows later.
const COMMAND_WAIT: Duration = Duration::from_millis(50);
/// Command lines being read at a time: a process can make its reader wait for ever.
const MAX_READERS: usize = 16;

/// A process that was looked at.
struct Known {
    id: ProcessId,
    /// `/proc/PID/stat`, open.
    stat: File,
    container: Option<ContainerId>,
    pid_inside: Option<i32>,
    command: Arc<OnceLock<Option<Arc<str>>>>,
}

/// Remembers processes from poll to poll.
#[derive(Default)]
pub struct Attribution {
    known: HashMap<i32, Known>,
    readers: Arc<AtomicUsize>,
}

impl Attribution {
    /// The processes of one GPU, named. Those that ended meanwhile are left out.
    pub fn name(
        &mut self,
        raw: impl IntoIterator<Item = (i32, RawProcess)>,
        rows: &Rows,
        inventory: &Inventory,
    ) -> Vec<GpuProcess> {
        let uptime = process::uptime();
        let patience = Instant::now() + COMMAND_WAIT;
        raw.into_iter().filter_map(|(pid, raw)| self.name_one(pid, raw, rows, inventory, uptime, patience)).collect()
    }

    fn name_one(
        &mut self,
        pid: i32,
        raw: RawProcess,
        rows: &Rows,
        inventory: &Inventory,
        uptime: f64,
        patience: Instant,
    ) -> Option<GpuProcess> {
        let resident = match self.known.get(&pid).and_then(Known::resident) {
            Some(resident) => resident,
            None => {
                let known = self.meet(pid)?;
                let resident = known.resident()?;
                self.known.insert(pid, known);
                resident
            }
        };
        let known = self.known.get(&pid)?;
        while known.command.get().is_none() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(GpuProcess {
            id: known.id,
            owner: owner(known.container.as_ref(), rows, inventory),
            pid_inside: known.pid_inside,
            command: known.command.get().cloned().flatten(),
            uptime: (uptime - known.id.started as f64 / process::ticks_per_second()).max(0.0),
            resident,
            gpu_memory: raw.memory,
            utilization: raw.utilization,
            kinds: raw.kinds,
            gpu_instance: raw.gpu_instance,
        })
    }

    /// Forgets processes that are gone.
    pub fn forget_ended(&mut self) {
        self.known.retain(|_, known| known.resident().is_some());
    }

    /// Finds out what stays. The start time is read again after the cgroup: both are then of one process.
    fn meet(&self, pid: i32) -> Option<Known> {
        let stat = File::open(format!("/proc/{pid}/stat")).ok()?;
        let id = Stat::read(pid)?.id;
        let container = process::container_of(pid);
        let pid_inside = process::pid_inside(pid);
        if Stat::read(pid)?.id != id {
            return None;
        }
        Some(Known { id, stat, container, pid_inside, command: self.read_command(id) })
    }

    /// Reads the command line beside the poll.
    fn read_command(&self, id: ProcessId) -> Arc<OnceLock<Option<Arc<str>>>> {
        let slot: Arc<OnceLock<Option<Arc<str>>>> = Arc::default();
        if self.readers.fetch_add(1, Ordering::Relaxed) >= MAX_READERS {
            self.readers.fetch_sub(1, Ordering::Relaxed);
            let _ = slot.set(None);
            return slot;
        }
        let (filled, readers) = (slot.clone(), self.readers.clone());
        let reader = std::thread::Builder::new().name("command line".to_owned()).spawn(move || {
            let command = process::command_line(id.pid).map(Arc::from);
            // It may be another's by now.
            let same = Stat::read(id.pid).is_some_and(|stat| stat.id == id);
            let _ = filled.set(command.filter(|_| same));
            readers.fetch_sub(1, Ordering::Relaxed);
        });
        if reader.is_err() {
            self.readers.fetch_sub(1, Ordering::Relaxed);
            let _ = slot.set(None);
        }
        slot
    }
}

impl Known {
    /// Bytes of memory, `None` once the process is gone.
    fn resident(&self) -> Option<u64> {
        let mut buffer = [0; 1024];
        let length = self.stat.read_at(&mut buffer, 0).ok()?;
        Stat::parse(self.id.pid, std::str::from_utf8(&buffer[..length]).ok()?).map(|stat| stat.resident)
    }
}

fn owner(container: Option<&ContainerId>, rows: &Rows, inventory: &Inventory) -> Owner {
    let Some(id) = container else { return Owner::Host };
    match rows.pods.in_container(id) {
        Some(pod) => {
            Owner::Pod { pod: pod.id, user: pod.user.clone(), name: pod.container_name.clone(), container: id.clone() }
        }
        None => {
            let name = inventory.get(id).map_or_else(|| id.short().to_owned(), |container| container.name.clone());
            Owner::Container { name }
        }
    }
}
