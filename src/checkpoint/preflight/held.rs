//! What a process holds that CRIU cannot save, found in /proc: by the kind of a descriptor, or by what waits in it.
//!
//! What waits only for a moment, such as a connection that a server has not accepted yet, is checked several times, so
//! that a busy program is not refused for it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::sentences::name_of;
use crate::{
    criu::network::sockets,
    host::{netlink, process},
};

/// Kinds of descriptors without a file that CRIU can save (criu/files.c), by the targets of their links.
const KNOWN: [&str; 8] =
    ["[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]", "bpf-map"];

/// Kinds of sockets that CRIU can save (criu/sockets.c, criu/sk-inet.c), by the kernel's names of their protocols.
const SOCKETS: [&str; 14] = [
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "RAW",
    "RAWv6",
    "PING",
    "PINGv6",
    "UNIX",
    "UNIX-STREAM",
    "NETLINK",
    "PACKET",
];

/// The slave sides of terminals.
const TERMINAL: &str = "/dev/pts/";

/// open(2), O_DIRECT: a pipe whose messages stay separate.
const PACKETS: u32 = 0o40000;

/// CRIU opens terminals until it has the number that it looks for, but at most this many (criu/tty.c).
const TERMINALS: u32 = 32;

/// How often transient states are checked, and the time between two checks.
const LOOKS: usize = 4;

const BETWEEN: Duration = Duration::from_millis(150);

/// What the processes of a pod hold that is known only from all of the pod.
pub struct Holdings {
    /// The file system of the pod's message queues.
    queues: Option<u64>,
    waiting: HashMap<u64, &'static str>,
    /// Terminals whose master side is saved too, and the pod's own, whose master is not.
    terminals: HashSet<u32>,
    console: Option<String>,
}

impl Holdings {
    /// `init` is the pod's first process, `saved` are all processes to be saved.
    pub fn look(init: i32, saved: &[i32]) -> Self {
        let queues = fs::metadata(format!("/proc/{init}/root/dev/mqueue")).ok().map(|directory| directory.dev());
        let root = fs::metadata(format!("/proc/{init}/root")).ok().map(|root| root.dev());
        let device = fs::metadata(format!("/proc/{init}/root/dev")).ok().map(|directory| directory.dev());
        let upper = saved.iter().flat_map(|&pid| process::descriptors(pid).map(move |held| (pid, held)));
        let upper = upper.filter(|(_, (_, target))| target.ends_with("/ptmx"));
        Self {
            queues: queues.filter(|queues| ![root, device].contains(&Some(*queues))),
            waiting: lasting(init),
            terminals: upper.filter_map(|(pid, (descriptor, _))| terminal(pid, &descriptor)).collect(),
            console: fs::read_link(format!("/proc/{init}/fd/0")).ok().map(|path| path.to_string_lossy().into_owned()),
        }
    }

    /// Why a descriptor of the process `who` cannot be saved, if so: `target` is what it links to.
    pub fn problem(&self, pid: i32, who: &str, descriptor: &str, target: &str) -> Option<String> {
        let path = PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
        if let Some(kind) = target.strip_prefix("anon_inode:") {
            return (!KNOWN.contains(&kind)).then(|| {
                let kind = kind.trim_matches(['[', ']']);
                format!("{who} holds a descriptor of kind {kind}, which cannot be saved; end it first")
            });
        }
        if target.starts_with("/secretmem") {
            return Some(format!("{who} has secret memory (memfd_secret), which cannot be saved; end it first"));
        }
        if target.starts_with("pipe:[") && flags(pid, descriptor) & PACKETS != 0 {
            return Some(format!("{who} has a pipe with packets (O_DIRECT), which cannot be saved; end it first"));
        }
        if let Some(inode) = sockets::inode(target) {
            if let Some(what) = self.waiting.get(&inode) {
                return Some(format!("{who} {what}, which cannot be saved; try again later, or end it"));
            }
            let protocol = sockets::protocol(&path)?;
            return (!SOCKETS.contains(&protocol.as_str())).then(|| match protocol.as_str() {
                "MPTCP" | "MPTCPv6" => format!(
                    "{who} has an MPTCP socket, which cannot be saved; start it with GODEBUG=multipathtcp=0 if it is written in Go, or in a newly created pod: those have no MPTCP"
                ),
                _ => format!("{who} has a {protocol} socket, which cannot be saved; end it first"),
            });
        }
        if target.ends_with("/ptmx")
            && let Some(number) = terminal(pid, descriptor)
            && number >= TERMINALS
        {
            return Some(format!(
                "{who} has terminal {number} of the pod open, and terminals above {} cannot be restored; end it, or close other terminals and open it again",
                TERMINALS - 1
            ));
        }
        if let Some(number) = target.strip_prefix(TERMINAL).and_then(|number| number.parse().ok())
            && !self.terminals.contains(&number)
            && self.console.as_deref() != Some(target)
        {
            return Some(format!(
                "{who} has the terminal of an exec from outside open ({target}), which cannot be saved; start it with `> file 2>&1 < /dev/null` or with `pody exec -d`, or end it"
            ));
        }
        let is_queue = self.queues.is_some() && fs::metadata(&path).ok().map(|file| file.dev()) == self.queues;
        is_queue
            .then(|| format!("{who} has a POSIX message queue ({target}) open, which cannot be saved; end it first"))
    }
}

/// What prevents a process itself from being saved.
pub fn problem_of_process(pid: i32, who: &str) -> Option<String> {
    if let Some(tracer) = tracer(pid) {
        return Some(format!(
            "{who} is traced by {} (a debugger, or strace), and cannot be saved; end the tracer first",
            name_of(tracer)
        ));
    }
    // Its first thread has ended, and others have not.
    if process::state(pid) == Some('Z')
        && fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
    {
        return Some(format!(
            "{who} runs without its first thread, which has ended (pthread_exit), and cannot be saved; end it first"
        ));
    }
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program.to_string_lossy();
    program
        .starts_with("/memfd:")
        .then(|| format!("{who} runs a program that has no file ({program}), which cannot be saved; end it first"))
}

/// Deleted directories that processes have open or work in, by their original path: only one of each path can be
/// restored.
#[derive(Default)]
pub struct DeletedDirectories(HashMap<String, u64>);

impl DeletedDirectories {
    /// Why what a process has there cannot be restored, if so: CRIU creates the directory again under its path, and
    /// removes it. `entry` is what links to it, below /proc.
    pub fn problem(&mut self, init: i32, who: &str, entry: &Path, target: &str) -> Option<String> {
        let path = target.strip_suffix(" (deleted)")?;
        let directory = fs::metadata(entry).ok().filter(fs::Metadata::is_dir)?;
        let now = Path::new(&format!("/proc/{init}/root")).join(path.trim_start_matches('/'));
        let is_another = fs::symlink_metadata(now).is_ok()
            || *self.0.entry(path.to_owned()).or_insert(directory.ino()) != directory.ino();
        is_another.then(|| {
            format!(
                "{who} works in the deleted folder {path} or has it open, and another of that name exists, which cannot be restored; have it leave the folder (cd), or end it"
            )
        })
    }
}

/// The pod's message queues, whether a program has them open or not. CRIU saves a pod without them.
pub fn queues(init: i32) -> Vec<String> {
    let mut queues = Vec::new();
    for entry in fs::read_dir(format!("/proc/{init}/root/dev/mqueue")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        queues.push(format!(
            "the pod has a POSIX message queue (/{name}), which cannot be saved; remove it (rm /dev/mqueue/{name})"
        ));
    }
    queues
}

/// Multicast groups that programs of the pod have joined, by /proc/PID/net/igmp, without the all-hosts group.
pub fn multicast(igmp: &str) -> Vec<String> {
    let groups = igmp.lines().filter(|line| line.starts_with('\t'));
    let words = groups.filter_map(|line| u32::from_str_radix(line.split_whitespace().next()?, 16).ok());
    let groups = words.map(|word| std::net::Ipv4Addr::from(word.to_ne_bytes()));
    let mut found: Vec<String> =
        groups.filter(|group| group.octets() != [224, 0, 0, 1]).map(|g| g.to_string()).collect();
    found.sort();
    found.dedup();
    found
}

fn tracer(pid: i32) -> Option<i32> {
    let status = process::read(format!("/proc/{pid}/status"))?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
    (tracer != 0).then_some(tracer)
}

/// How a descriptor was opened, by its lines in /proc/PID/fdinfo.
fn flags(pid: i32, descriptor: &str) -> u32 {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0)
}

/// The number of the terminal whose master side a descriptor is.
fn terminal(pid: i32, descriptor: &str) -> Option<u32> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("tty-index:"))?.trim().parse().ok()
}

/// What waits in sockets at each of several checks.
fn lasting(init: i32) -> HashMap<u64, &'static str> {
    let mut lasting = waiting(init);
    for _ in 1..LOOKS {
        if lasting.is_empty() {
            break;
        }
        thread::sleep(BETWEEN);
        let now: HashSet<u64> = waiting(init).into_keys().collect();
        lasting.retain(|inode, _| now.contains(inode));
    }
    lasting
}

fn waiting(init: i32) -> HashMap<u64, &'static str> {
    let read = |file: &str| fs::read_to_string(Path::new(&format!("/proc/{init}/net")).join(file)).unwrap_or_default();
    let backlog = "has not accepted a waiting connection";
    let tcp = ["tcp", "tcp6"].map(|file| full_listeners(&read(file))).into_iter().flatten();
    let unix = netlink::in_network_of(init, netlink::full_unix_listeners).unwrap_or_default();
    let unread = unread_netlink(&read("netlink"));
    let connections = tcp.chain(unix).map(|inode| (inode, backlog));
    connections
        .chain(unread.into_iter().map(|inode| (inode, "has not read a message from the kernel (netlink)")))
        .collect()
}

/// Listeners of /proc/net/tcp with connections that nobody has accepted: their receive queue counts them.
fn full_listeners(text: &str) -> Vec<u64> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let waiting = u64::from_str_radix(fields.get(4)?.split_once(':')?.1, 16).ok()?;
        (*fields.get(3)? == sockets::LISTENS && waiting > 0).then(|| fields.get(9)?.parse().ok())?
    });
    lines.collect()
}

/// Sockets of /proc/net/netlink with messages: `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`.
fn unread_netlink(text: &str) -> Vec<u64> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let unread: u64 = fields.get(4)?.parse().ok()?;
        (unread > 0).then(|| fields.get(9)?.parse().ok())?
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_with_waiting_connections_are_found() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    0: 0100007F:23A4 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 4711 1\n\
                    1: 0100007F:23A5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1\n\
                    2: 0100007F:23A4 0100007F:D431 01 00000000:00000005 00:00000000 00000000     0        0 4713 1\n";
        assert_eq!(full_listeners(text), [4711]);
    }

    #[test]
    fn unread_kernel_messages_are_found() {
        let text = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                    0000000000000000 0   1          00000001 2048     0        0     2        0        4711\n\
                    0000000000000000 0   2          00000001 0        0        0     2        0        4712\n";
        assert_eq!(unread_netlink(text), [4711]);
    }

    #[test]
    fn groups_other_than_all_hosts_are_found() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\t\t\t\t010101EF     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(multicast(text), ["239.1.1.1"]);
    }
}
