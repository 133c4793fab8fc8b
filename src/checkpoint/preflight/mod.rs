//! What can be checked before a pod is touched: what cannot be saved and its remedy, what would be lost, the expected
//! size, and how long the pod would be frozen. [`held`] and [`watches`] read what processes hold and watch;
//! [`sentences`] words the findings.

mod held;
mod sentences;
mod watches;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use self::{
    held::{DeletedDirectories, Holdings},
    sentences::{condensed, name_of, plain},
    watches::Watched,
};
use crate::{
    config::{CheckpointConfig, GpuCheckpoints},
    criu::{
        kill,
        network::{
            socket_names,
            sockets::{self, Held, Outside, Sockets},
        },
        runc::Load,
    },
    engine::{ContainerInspect, Mount},
    host::{cgroup, disk, process},
    model::{
        checkpoint::Kind,
        ids::ContainerId,
        names::clipped,
        pod::Init,
        view::checkpoint::{ProcessVerdict, Saved},
    },
};

/// Expected bytes per second of a dump before one was measured on this host.
pub const EXPECTED_RATE: u64 = 400 << 20;

/// What CRIU writes for a process besides its memory, bytes.
const PER_PROCESS: u64 = 256 << 10;

/// The link target of an inotify descriptor.
const INOTIFY: &str = "anon_inode:inotify";

/// The prefix of NVIDIA's device files.
const GPU_DEVICES: &str = "/dev/nvidia";

/// The bit of CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;

/// What the check of a pod finds.
#[derive(Debug, Default)]
pub struct Findings {
    pub problems: Vec<String>,
    pub losses: Vec<String>,
    pub processes: Vec<ProcessVerdict>,
    pub memory: u64,
    pub files: u64,
    pub sockets: Sockets,
    /// Unix sockets with another name than the one they were bound under, by inode.
    pub socket_names: BTreeMap<u64, String>,
    /// Processes on GPUs, where these may be saved.
    pub gpu_holders: Vec<Holder>,
    /// Bytes that they have there.
    pub gpu_memory: u64,
    /// Threads of all processes.
    pub threads: u64,
}

impl Findings {
    /// Shortened, and without control characters that a program may have put into its name.
    fn told(mut self) -> Self {
        for process in &mut self.processes {
            process.name = plain(&process.name);
            process.notes = condensed(std::mem::take(&mut process.notes));
        }
        self.problems = condensed(self.problems);
        self.losses = condensed(self.losses);
        self
    }

    pub fn load(&self) -> Load {
        Load { bytes: self.memory + self.gpu_memory, processes: self.processes.len() as u64, threads: self.threads }
    }
}

/// A process that would be saved and holds a GPU.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The PIDs on the host and inside the pod.
    pub pid: i32,
    pub inside: i32,
    pub name: String,
    /// The GPU device that it has open, if any.
    pub device: Option<String>,
}

/// Neither the engine nor containerd tells where the pod's files lie.
pub const NO_LAYER: &str = "where its files lie is unknown: Docker here keeps them neither in overlay2 nor, as `ctr snapshots` shows, in \
                            overlays of containerd";

/// Checks the container and its processes. Reads /proc only; takes time proportional to the number of its files.
/// `on_gpus` are processes that the driver reports.
pub fn look(
    container: &ContainerId,
    inspect: &ContainerInspect,
    kind: Kind,
    config: &CheckpointConfig,
    on_gpus: &[i32],
) -> Findings {
    look_closely(container, inspect, kind, config, on_gpus).told()
}

fn look_closely(
    container: &ContainerId,
    inspect: &ContainerInspect,
    kind: Kind,
    config: &CheckpointConfig,
    on_gpus: &[i32],
) -> Findings {
    let mut found = Findings::default();
    if kind.has_files() {
        match &inspect.upper {
            Some(upper) => {
                let disk::Measure { bytes, too_long } = disk::measure(upper);
                found.files = bytes;
                found.problems.extend(too_long.map(|path| {
                    format!(
                        "it has a path longer than 4096 bytes, which cannot be unpacked again: /{}; remove or shorten it, or use --kind simple",
                        clipped(&path.to_string_lossy())
                    )
                }));
            }
            None => found.problems.push(format!("{NO_LAYER}; use --kind simple")),
        }
    }
    if !kind.has_processes() || inspect.pid == 0 {
        return found;
    }
    for obstacle in &inspect.obstacles {
        found
            .problems
            .push(format!("it was created with {obstacle}, which cannot be restored; create it again with pody"));
    }
    for Mount { source, is_bind } in &inspect.mounts {
        if *is_bind && fs::symlink_metadata(source).is_ok_and(|source| source.is_symlink()) {
            found.problems.push(format!(
                "its mount of {source} is a symbolic link, which cannot be restored; create it again with the resolved path"
            ));
        }
    }
    look_at_processes(container, inspect.pid, config, on_gpus, &mut found);
    found.memory = memory_of(inspect.pid) + PER_PROCESS * found.processes.len() as u64;
    found.problems.extend(held::queues(inspect.pid));
    let igmp = fs::read_to_string(format!("/proc/{}/net/igmp", inspect.pid)).unwrap_or_default();
    for group in held::multicast(&igmp) {
        found.losses.push(format!(
            "a program has joined the multicast group {group}; after a restore it must join again to receive from it"
        ));
    }
    let members = kill::members(container);
    found.socket_names = socket_names::current(inspect.pid, inspect.upper.as_deref(), &members);
    found.losses.extend(socket_names::losses(&found.socket_names));
    found.sockets = sockets::of(inspect.pid);
    found.sockets.address = inspect.address.clone();
    found
}

fn look_at_processes(
    container: &ContainerId,
    init: i32,
    config: &CheckpointConfig,
    on_gpus: &[i32],
    found: &mut Findings,
) {
    let pids = kill::members(container);
    let parents = kill::parents(&pids);
    let may_exceed = has_sys_resource();
    let around = Surroundings::look(&pids, &parents, init, config);
    let mut directories = DeletedDirectories::default();
    for pid in pids {
        let name = name_of(pid);
        let Some(inside) = process::pid_inside(pid) else { continue };
        let who = format!("{name}[{inside}]");
        found.threads += fs::read_dir(format!("/proc/{pid}/task")).map_or(1, |tasks| tasks.count() as u64);
        let mut process = ProcessVerdict { pid: inside, name, saved: Saved::Yes, notes: Vec::new() };
        if !descends(pid, init, &parents) {
            // It only carries a terminal's bytes and is detached before the dump; the session is PID 1's and is saved.
            if is_carrier(pid) {
                continue;
            }
            let note = format!(
                "{who} was started by an exec from outside and is not saved; start it as a child of the pod's first process"
            );
            found.losses.push(note.clone());
            process.saved = Saved::No;
            process.notes.push(note);
            found.processes.push(process);
            continue;
        }
        if !may_exceed && let Some(what) = not_root(pid) {
            process.saved = Saved::No;
            process
                .notes
                .push(format!("{who} {what}, and saving it needs CAP_SYS_RESOURCE, which this host does not grant"));
        }
        if let Some(problem) = held::problem_of_process(pid, &who) {
            process.saved = Saved::No;
            process.notes.push(problem);
        }
        let device = look_at_files(pid, &who, config, &around, &mut process);
        for entry in links_of(pid) {
            let Ok(target) = fs::read_link(&entry) else { continue };
            if let Some(problem) = directories.problem(init, &who, &entry, &target.to_string_lossy())
                && !process.notes.contains(&problem)
            {
                process.saved = Saved::No;
                process.notes.push(problem);
            }
        }
        if device.is_some() || on_gpus.contains(&pid) {
            match config.gpu {
                GpuCheckpoints::Experimental => {
                    let name = plain(&process.name);
                    found.gpu_holders.push(Holder { pid, inside, name, device });
                }
                GpuCheckpoints::Off => {
                    let device = device.map(|device| format!(" ({device})")).unwrap_or_default();
                    process.notes.push(format!(
                        "{who} uses a GPU{device}, which cannot be saved; end it first, or save only the files with --kind rootfsonly"
                    ));
                    process.saved = Saved::No;
                }
            }
        }
        match process.saved {
            Saved::Yes => {}
            Saved::No => found.problems.extend(process.notes.iter().cloned()),
            Saved::Losses => found.losses.extend(process.notes.iter().cloned()),
        }
        found.processes.push(process);
    }
}

/// Records what cannot be saved. Returns the GPU device that it has open, if any.
fn look_at_files(
    pid: i32,
    who: &str,
    config: &CheckpointConfig,
    around: &Surroundings,
    process: &mut ProcessVerdict,
) -> Option<String> {
    let mut device = None;
    let directory = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
        let target = match fs::read_link(entry.path()) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => {
                process.notes.push(format!(
                    "{who} has a file open whose path is longer than 4096 bytes, which cannot be saved; close it, or end it"
                ));
                process.saved = Saved::No;
                continue;
            }
            Err(_) => continue,
        };
        let limit = config.deleted_file_limit;
        let problem = if target == "anon_inode:[io_uring]" {
            format!("{who} uses io_uring, which cannot be saved; restart it with UV_USE_IO_URING=0")
        } else if let Some(path) = around.outside.of(&target) {
            format!(
                "{who} is connected to a socket outside the pod ({path}), which cannot be saved; disconnect it first"
            )
        } else if target == INOTIFY && around.misses(pid, &entry.file_name().to_string_lossy()) {
            format!(
                "{who} watches a file outside [checkpoint] watch_paths ({}), which cannot be saved; end it, put the file on a volume, or ask an admin to add its directory",
                config.watch_paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
            )
        } else if target.starts_with(GPU_DEVICES) {
            device.get_or_insert(target);
            continue;
        } else if let Some(path) = target.strip_suffix(" (deleted)")
            && !["/memfd:", "/dev/shm/", "/SYSV", "/dev/zero"].iter().any(|start| path.starts_with(start))
            && let Ok(data) = fs::metadata(entry.path())
            && data.is_file()
            && data.nlink() == 0
            && data.len() > limit.0
        {
            let size = crate::model::quantities::ByteSize(data.len());
            format!(
                "{who} holds a deleted file of {size} open ({path}), and only up to {limit} can be saved; close it, or ask an admin to raise [checkpoint] deleted_file_limit"
            )
        } else if let Some(problem) = around.holdings.problem(pid, who, &entry.file_name().to_string_lossy(), &target) {
            problem
        } else {
            if target == "anon_inode:[eventfd]" && counts_down(pid, &entry.file_name().to_string_lossy()) {
                process.notes.push(format!(
                    "{who} has an eventfd that counts down (EFD_SEMAPHORE); after a restore one read takes the whole count"
                ));
                if process.saved == Saved::Yes {
                    process.saved = Saved::Losses;
                }
            }
            continue;
        };
        if !process.notes.contains(&problem) {
            process.notes.push(problem);
        }
        process.saved = Saved::No;
    }
    device
}

/// All links to what a process has open, its working directory and its root.
fn links_of(pid: i32) -> Vec<PathBuf> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let open = fs::read_dir(directory.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    open.chain(["cwd", "root"].map(|name| directory.join(name))).collect()
}

/// Whether it has a GPU open now.
pub fn holds_gpu(pid: i32) -> bool {
    process::descriptors(pid).any(|(_, target)| target.starts_with(GPU_DEVICES))
}

/// The processes that would be saved and have a GPU open now.
pub fn gpu_holders(container: &ContainerId, init: i32) -> Vec<Holder> {
    let pids = kill::members(container);
    let parents = kill::parents(&pids);
    let holder = |pid: i32| {
        let device =
            process::descriptors(pid).map(|(_, target)| target).find(|target| target.starts_with(GPU_DEVICES))?;
        let name = plain(&name_of(pid));
        Some(Holder { pid, inside: process::pid_inside(pid)?, name, device: Some(device) })
    };
    pids.iter().filter(|&&pid| descends(pid, init, &parents)).filter_map(|&pid| holder(pid)).collect()
}

/// What processes hold that is known only from several places.
struct Surroundings {
    outside: Outside,
    unfound: HashSet<Watched>,
    holdings: Holdings,
}

impl Surroundings {
    fn look(pids: &[i32], parents: &HashMap<i32, i32>, init: i32, config: &CheckpointConfig) -> Self {
        let is_saved = |pid: i32| descends(pid, init, parents);
        let held = || {
            let mut held = Held::default();
            for &pid in pids {
                let path = |descriptor: &str| PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
                let sockets = process::descriptors(pid)
                    .filter_map(|(descriptor, target)| Some((sockets::inode(&target)?, path(&descriptor))));
                if is_saved(pid) {
                    held.saved.extend(sockets);
                } else if is_carrier(pid) {
                    held.detached.extend(sockets.map(|(inode, _)| inode));
                }
            }
            held
        };
        let watches = |pid: i32| process::descriptors(pid).filter(|(_, target)| target == INOTIFY);
        let saved: Vec<i32> = pids.iter().copied().filter(|&pid| is_saved(pid)).collect();
        let watched =
            saved.iter().flat_map(|&pid| watches(pid).flat_map(move |(descriptor, _)| watches_of(pid, &descriptor)));
        Self {
            outside: Outside::find(init, held),
            unfound: watches::not_found(init, watched.collect(), &config.watch_paths),
            holdings: Holdings::look(init, &saved),
        }
    }

    /// Whether CRIU would not find all that an inotify descriptor watches.
    fn misses(&self, pid: i32, descriptor: &str) -> bool {
        !self.unfound.is_empty() && watches_of(pid, descriptor).iter().any(|watched| self.unfound.contains(watched))
    }
}

fn watches_of(pid: i32, descriptor: &str) -> Vec<Watched> {
    watches::watched(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default())
}

fn is_carrier(pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split(|&byte| byte == 0);
    words.next() == Some(Init::INSIDE.as_bytes()) && words.next() == Some(b"attach")
}

/// Whether an eventfd is a semaphore; newer kernels show it.
fn counts_down(pid: i32, descriptor: &str) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("eventfd-semaphore:")).is_some_and(|flag| flag.trim() == "1")
}

/// Whether a process is the pod's first or descends from it. What an exec started has a parent outside.
fn descends(pid: i32, init: i32, parents: &HashMap<i32, i32>) -> bool {
    let mut at = pid;
    // At most as many steps as there are processes: a cycle means that a PID was reused meanwhile.
    for _ in 0..=parents.len() {
        if at == init {
            return true;
        }
        match parents.get(&at) {
            Some(&parent) => at = parent,
            None => return false,
        }
    }
    false
}

/// In what a process differs from root, as the kernel compares them (kernel/sys.c, check_prlimit_permission).
fn not_root(pid: i32) -> Option<&'static str> {
    let status = process::read(format!("/proc/{pid}/status"))?;
    // Real, effective, saved; the fourth does not count there.
    let is_root = |name: &str| {
        let ids = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        ids.split_whitespace().take(3).all(|id| id == "0")
    };
    match (is_root("Uid:"), is_root("Gid:")) {
        (false, _) => Some("runs as a normal user"),
        (true, false) => Some("runs with a group other than root"),
        (true, true) => None,
    }
}

fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(effective.trim(), 16).is_ok_and(|set| set >> SYS_RESOURCE & 1 == 1)
}

/// Bytes of memory that an image will hold: private pages and tmpfs, not the page cache.
fn memory_of(pid: i32) -> u64 {
    let groups = cgroup::memberships_of(pid).unwrap_or_default();
    let file = cgroup::memberships(&groups).find_map(|line| {
        let controller = ["", "memory"].into_iter().find(|controller| line.has(controller))?;
        Some(line.directory(controller).join("memory.stat")).filter(|file| file.is_file())
    });
    let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
    // Version 1 reports totals with the groups below under total_…
    let private = value("total_rss").or(value("anon")).unwrap_or(0);
    private + value("total_shmem").or(value("shmem")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_exec_started_has_its_parent_outside() {
        // 10 is the first process, 11 and 12 come from it, 21 from an exec that is 20.
        let parents = HashMap::from([(10, 1), (11, 10), (12, 11), (20, 1), (21, 20)]);
        let saved: Vec<i32> = [10, 11, 12, 20, 21].into_iter().filter(|&pid| descends(pid, 10, &parents)).collect();
        assert_eq!(saved, [10, 11, 12]);
    }
}
