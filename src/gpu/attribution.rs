//! Maps a host PID to its container, pod and user.
//!
//! What does not change during a process's life (its container, its PID inside, its command line) is determined once
//! and cached under (PID, start time). Each poll only checks whether those processes are still alive, with one call for
//! all of a GPU's ([`crate::host::pidfd`]); a process that has exited is never confused with one that reuses its PID. How much host
//! memory each holds is read only while a client is watching; it costs more than all the rest.
//!
//! A process that started after the driver was asked cannot be the one that the driver listed: it reuses the PID of one
//! that exited in between. It is left out of this poll; if it is on the GPU, the next poll shows it. What is known of a
//! process is final only once it is older than [`SETTLING`]: a container's processes start outside of it, and move in
//! before they run its program.

use std::{
    collections::{BTreeMap, HashMap},
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
    host::{
        pidfd::{self, PidFd},
        process::{self, Stat},
    },
    model::ids::{ContainerId, ProcessId},
};

/// Total time to wait for the command lines of new processes; slower ones appear in a later poll.
const COMMAND_WAIT: Duration = Duration::from_millis(50);

/// Command lines being read at a time: a process can block its reader forever.
const MAX_READERS: usize = 16;

/// From this age (seconds) on, a process is in its container and runs its program: the runtime ensures this before
/// anything in the container runs.
const SETTLING: f64 = 2.0;

/// What is known of a process.
struct Known {
    life: PidFd,
    /// The last poll that found it alive.
    polled: u64,
    /// Whether what was found is final.
    is_settled: bool,
    container: Option<ContainerId>,
    /// The owner, as of this version of the rows; it need not be looked up again until they change.
    owner: Option<(u64, Arc<Owner>)>,
    pid_inside: Option<i32>,
    command: Arc<OnceLock<Option<Arc<str>>>>,
    /// Bytes, when it was last read.
    resident: u64,
    /// `/proc/PID/statm`, open while a client is watching.
    statm: Option<File>,
}

/// The context of one GPU's process list.
pub struct Question<'a> {
    /// When the driver was asked for its processes, in ticks since boot.
    pub listed_at: u64,
    pub rows: &'a Arc<Rows>,
    pub inventory: &'a Inventory,
    /// Whether a client is watching, so that each process's host memory is read.
    pub is_watched: bool,
}

/// Remembers processes from poll to poll.
#[derive(Default)]
pub struct Attribution {
    known: HashMap<i32, Known>,
    readers: Arc<AtomicUsize>,
    /// Counts the polls.
    poll: u64,
    /// Version of the rows in which owners were last looked up, and the rows.
    rows: (u64, Option<Arc<Rows>>),
}

impl Attribution {
    /// The processes of one GPU with their owners. Those that have exited meanwhile are left out.
    pub fn name(&mut self, raw: BTreeMap<i32, RawProcess>, question: &Question) -> Vec<GpuProcess> {
        let uptime = process::uptime();
        let patience = Instant::now() + COMMAND_WAIT;
        self.note_rows(question.rows);
        let rows = self.rows.0;
        self.look_again(raw.keys());
        let mut named = Vec::with_capacity(raw.len());
        for (pid, raw) in raw {
            let Some(known) = self.find(pid, question.listed_at) else { continue };
            while known.command.get().is_none() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
            known.read_memory(question.is_watched);
            let id = known.life.id;
            named.push(GpuProcess {
                id,
                owner: known.owner(rows, question),
                pid_inside: known.pid_inside,
                command: known.command.get().cloned().flatten(),
                uptime: (uptime - id.started as f64 / process::ticks_per_second()).max(0.0),
                resident: known.resident,
                gpu_memory: raw.memory,
                utilization: raw.utilization,
                kinds: raw.kinds,
                gpu_instance: raw.gpu_instance,
            });
        }
        named
    }

    /// Increments the version when the rows have changed.
    fn note_rows(&mut self, rows: &Arc<Rows>) {
        if !self.rows.1.as_ref().is_some_and(|known| Arc::ptr_eq(known, rows)) {
            self.rows = (self.rows.0 + 1, Some(rows.clone()));
        }
    }

    /// Checks which of these processes are still alive; once per poll, even if a process is on several GPUs.
    fn look_again<'a>(&mut self, pids: impl Iterator<Item = &'a i32>) {
        let poll = self.poll;
        let is_due = |known: &&Known| known.polled != poll && known.is_settled;
        let due: Vec<&Known> = pids.filter_map(|pid| self.known.get(pid)).filter(is_due).collect();
        let ended = pidfd::ended(due.iter().map(|known| &known.life));
        let due: Vec<i32> = due.into_iter().map(|known| known.life.id.pid).collect();
        for (pid, ended) in due.into_iter().zip(ended) {
            match self.known.get_mut(&pid) {
                Some(known) if !ended => known.polled = poll,
                _ => drop(self.known.remove(&pid)),
            }
        }
    }

    /// The process that had this PID when the driver was asked, if it is still alive.
    fn find(&mut self, pid: i32, listed_at: u64) -> Option<&mut Known> {
        if self.known.get(&pid).is_none_or(|known| known.polled != self.poll) {
            self.known.remove(&pid);
            let known = self.meet(pid, listed_at)?;
            self.known.insert(pid, known);
        }
        self.known.get_mut(&pid)
    }

    /// Ends a poll of all GPUs, and forgets processes that are on none of them.
    pub fn end_poll(&mut self) {
        let poll = self.poll;
        self.known.retain(|_, known| known.polled == poll);
        self.poll += 1;
    }

    /// Determines what does not change. The start time is read again after the cgroup, which proves that both are of
    /// one process.
    fn meet(&self, pid: i32, listed_at: u64) -> Option<Known> {
        let life = PidFd::of(pid)?;
        let id = life.id;
        if id.started >= listed_at {
            return None;
        }
        let statm = File::open(format!("/proc/{pid}/statm")).ok();
        let container = process::container_of(pid);
        let pid_inside = process::pid_inside(pid);
        if Stat::read(pid)?.id != id {
            return None;
        }
        let age = listed_at.saturating_sub(id.started) as f64 / process::ticks_per_second();
        let is_settled = age >= SETTLING;
        let command = self.read_command(id);
        let mut known = Known {
            life,
            polled: self.poll,
            is_settled,
            container,
            owner: None,
            pid_inside,
            command,
            resident: 0,
            statm,
        };
        // Read once in any case, so that a client that begins to watch does not see zero.
        known.read_memory(true);
        Some(known)
    }

    /// Reads the command line in the background.
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
            // The PID may have been reused by now.
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
    /// Reads how much host memory it holds. It was alive a moment ago; if its PID has been reused since, the next poll
    /// drops this entry.
    fn read_memory(&mut self, is_watched: bool) {
        if !is_watched {
            self.statm = None;
            return;
        }
        if self.statm.is_none() {
            self.statm = File::open(format!("/proc/{}/statm", self.life.id.pid)).ok();
        }
        let mut buffer = [0; 128];
        let length = self.statm.as_ref().and_then(|statm| statm.read_at(&mut buffer, 0).ok());
        if let Some(resident) = length.and_then(|length| process::parse_statm(&buffer[..length])) {
            self.resident = resident;
        }
    }

    fn owner(&mut self, rows: u64, question: &Question) -> Arc<Owner> {
        if let Some((of, owner)) = &self.owner
            && *of == rows
        {
            return owner.clone();
        }
        let owner = Arc::new(owner(self.container.as_ref(), question));
        // The name of a container that is not a pod can change without any row changing.
        self.owner = match *owner {
            Owner::Pod { .. } | Owner::Host => Some((rows, owner.clone())),
            Owner::Container { .. } => None,
        };
        owner
    }
}

fn owner(container: Option<&ContainerId>, question: &Question) -> Owner {
    let Some(id) = container else { return Owner::Host };
    match question.rows.pods.in_container(id) {
        Some(pod) => {
            Owner::Pod { pod: pod.id, user: pod.user.clone(), name: pod.container_name.clone(), container: id.clone() }
        }
        None => {
            let container = question.inventory.get(id);
            let name = container.map_or_else(|| id.short().to_owned(), |container| container.name.clone());
            Owner::Container { name }
        }
    }
}
