//! From a host PID to container, pod and user.
//!
//! What does not change in a process's life (its container, its PID inside, its command line) is found out once and kept
//! under (PID, start time). Each poll only asks whether that process still lives, through a file that was opened when it was
//! first seen: once the process is gone the file says so, whoever has its PID now.
//!
//! A process that was started after the driver was asked cannot be the one that it told of: it has the PID of one that ended
//! in between. It is left out of this poll; if it is on the GPU, the next one shows it. What is known of a process is final
//! only once it is older than [`SETTLING`]: a container's processes are born outside of it, and become what they are to be.

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

/// By this age, seconds, a process is in its container and runs its program: the runtime sees to that before anything of the
/// container's runs.
const SETTLING: f64 = 2.0;

/// A process that was looked at.
struct Known {
    id: ProcessId,
    /// `/proc/PID/statm`, open: a fifth of the cost of `stat`, of which there may be a thousand a second.
    statm: File,
    /// The last poll that found it alive, and its memory then, bytes.
    polled: u64,
    resident: u64,
    /// What was found out holds for its life.
    is_settled: bool,
    container: Option<ContainerId>,
    pid_inside: Option<i32>,
    command: Arc<OnceLock<Option<Arc<str>>>>,
}

/// Remembers processes from poll to poll.
#[derive(Default)]
pub struct Attribution {
    known: HashMap<i32, Known>,
    readers: Arc<AtomicUsize>,
    /// Counts the polls.
    poll: u64,
}

impl Attribution {
    /// The processes of one GPU, named. Those that ended meanwhile are left out. `listed_at` is when the driver was asked, in
    /// ticks since boot.
    pub fn name(
        &mut self,
        raw: impl IntoIterator<Item = (i32, RawProcess)>,
        listed_at: u64,
        rows: &Rows,
        inventory: &Inventory,
    ) -> Vec<GpuProcess> {
        let uptime = process::uptime();
        let patience = Instant::now() + COMMAND_WAIT;
        let mut named = Vec::new();
        for (pid, raw) in raw {
            let Some(known) = self.find(pid, listed_at) else { continue };
            while known.command.get().is_none() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
            named.push(GpuProcess {
                id: known.id,
                owner: owner(known.container.as_ref(), rows, inventory),
                pid_inside: known.pid_inside,
                command: known.command.get().cloned().flatten(),
                uptime: (uptime - known.id.started as f64 / process::ticks_per_second()).max(0.0),
                resident: known.resident,
                gpu_memory: raw.memory,
                utilization: raw.utilization,
                kinds: raw.kinds,
                gpu_instance: raw.gpu_instance,
            });
        }
        named
    }

    /// The process that had this PID when the driver was asked, if it still lives.
    fn find(&mut self, pid: i32, listed_at: u64) -> Option<&Known> {
        let poll = self.poll;
        // On several GPUs it is asked for once.
        let still_known = |known: &mut Known| known.polled == poll || known.is_settled && known.look(poll);
        if !self.known.get_mut(&pid).is_some_and(still_known) {
            self.known.remove(&pid);
            let mut known = self.meet(pid, listed_at)?;
            if !known.look(poll) {
                return None;
            }
            self.known.insert(pid, known);
        }
        self.known.get(&pid)
    }

    /// Ends a poll of all GPUs: processes that are on none of them are forgotten.
    pub fn end_poll(&mut self) {
        let poll = self.poll;
        self.known.retain(|_, known| known.polled == poll);
        self.poll += 1;
    }

    /// Finds out what stays. The start time is read again after the cgroup: both are then of one process.
    fn meet(&self, pid: i32, listed_at: u64) -> Option<Known> {
        let statm = File::open(format!("/proc/{pid}/statm")).ok()?;
        let id = Stat::read(pid)?.id;
        if id.started >= listed_at {
            return None;
        }
        let container = process::container_of(pid);
        let pid_inside = process::pid_inside(pid);
        if Stat::read(pid)?.id != id {
            return None;
        }
        let age = listed_at.saturating_sub(id.started) as f64 / process::ticks_per_second();
        let is_settled = age >= SETTLING;
        let command = self.read_command(id);
        Some(Known { id, statm, polled: 0, resident: 0, is_settled, container, pid_inside, command })
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
    /// Whether it lives, in this poll.
    fn look(&mut self, poll: u64) -> bool {
        let mut buffer = [0; 128];
        // Gone, whoever has its PID now: the file is of this process.
        let Ok(length) = self.statm.read_at(&mut buffer, 0) else { return false };
        let Some(resident) = process::parse_statm(&buffer[..length]) else { return false };
        (self.polled, self.resident) = (poll, resident);
        true
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
