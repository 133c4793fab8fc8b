//! From a host PID to container, pod and user.
//!
//! What does not change in a process's life (its container, its PID inside, its command line) is found out once and kept
//! under (PID, start time). Each poll only asks whether those processes still live, all of a GPU's with one call
//! ([`life`]): of one that has ended the answer is that it has, whoever has its PID now. How much of the host's memory
//! each holds is read while somebody is interested; it costs more than all the rest.
//!
//! A process that was started after the driver was asked cannot be the one that it told of: it has the PID of one that ended
//! in between. It is left out of this poll; if it is on the GPU, the next one shows it. What is known of a process is final
//! only once it is older than [`SETTLING`]: a container's processes are born outside of it, and become what they are to be.

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
        life::{self, Life},
        process::{self, Stat},
    },
    model::ids::{ContainerId, ProcessId},
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
    life: Life,
    /// The last poll that found it alive.
    polled: u64,
    /// What was found out holds for its life.
    is_settled: bool,
    container: Option<ContainerId>,
    /// Whose it is, as of these rows; while nobody has changed them it need not be looked up.
    owner: Option<(u64, Arc<Owner>)>,
    pid_inside: Option<i32>,
    command: Arc<OnceLock<Option<Arc<str>>>>,
    /// Bytes, when it was last read.
    resident: u64,
    /// `/proc/PID/statm`, open while somebody is interested.
    statm: Option<File>,
}

/// What a GPU is asked along with.
pub struct Question<'a> {
    /// When the driver was asked for the processes, in ticks since boot.
    pub listed_at: u64,
    pub rows: &'a Arc<Rows>,
    pub inventory: &'a Inventory,
    /// Somebody is interested, also in how much of the host's memory each process holds.
    pub is_watched: bool,
}

/// Remembers processes from poll to poll.
#[derive(Default)]
pub struct Attribution {
    known: HashMap<i32, Known>,
    readers: Arc<AtomicUsize>,
    /// Counts the polls.
    poll: u64,
    /// The rows that owners were last looked up in, and how many there were before.
    rows: (u64, Option<Arc<Rows>>),
}

impl Attribution {
    /// The processes of one GPU, named. Those that ended meanwhile are left out.
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

    /// Counts on when the rows are others.
    fn note_rows(&mut self, rows: &Arc<Rows>) {
        if !self.rows.1.as_ref().is_some_and(|known| Arc::ptr_eq(known, rows)) {
            self.rows = (self.rows.0 + 1, Some(rows.clone()));
        }
    }

    /// Asks which of these processes still live; of several GPUs' it is asked once.
    fn look_again<'a>(&mut self, pids: impl Iterator<Item = &'a i32>) {
        let poll = self.poll;
        let is_due = |known: &&Known| known.polled != poll && known.is_settled;
        let due: Vec<&Known> = pids.filter_map(|pid| self.known.get(pid)).filter(is_due).collect();
        let ended = life::ended(due.iter().map(|known| &known.life));
        let due: Vec<i32> = due.into_iter().map(|known| known.life.id.pid).collect();
        for (pid, ended) in due.into_iter().zip(ended) {
            match self.known.get_mut(&pid) {
                Some(known) if !ended => known.polled = poll,
                _ => drop(self.known.remove(&pid)),
            }
        }
    }

    /// The process that had this PID when the driver was asked, if it still lives.
    fn find(&mut self, pid: i32, listed_at: u64) -> Option<&mut Known> {
        if self.known.get(&pid).is_none_or(|known| known.polled != self.poll) {
            self.known.remove(&pid);
            let known = self.meet(pid, listed_at)?;
            self.known.insert(pid, known);
        }
        self.known.get_mut(&pid)
    }

    /// Ends a poll of all GPUs: processes that are on none of them are forgotten.
    pub fn end_poll(&mut self) {
        let poll = self.poll;
        self.known.retain(|_, known| known.polled == poll);
        self.poll += 1;
    }

    /// Finds out what stays. The start time is read again after the cgroup: both are then of one process.
    fn meet(&self, pid: i32, listed_at: u64) -> Option<Known> {
        let life = Life::of(pid)?;
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
        // Once in any case: who begins to be interested finds no zero.
        known.read_memory(true);
        Some(known)
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
    /// Reads how much of the host's memory it holds. It was alive a moment ago; should the PID be another's since, the next poll
    /// forgets this one.
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
        // The name of a container that is no pod can change without any row.
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
