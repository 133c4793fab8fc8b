//! The sockets of a pod: which TCP connections stay inside it, which of its addresses programs are bound to, and which
//! unix sockets have their other end outside.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::CString,
    fs, io,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{errno::Errno, libc};
use serde::{Deserialize, Serialize};

use crate::host::{netlink, pidfd};

/// States of /proc/net/tcp.
const TIME_WAIT: &str = "06";

const CLOSED: &str = "07";

pub const LISTENS: &str = "0A";

/// The internet sockets of a pod, by any of its processes.
pub fn of(pid: i32) -> Sockets {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
    let own = own_addresses(&read("fib_trie"));
    let mut sockets = Sockets::default();
    let mut bound = BTreeSet::new();
    for (file, has_connections) in [("tcp", true), ("tcp6", true), ("udp", false), ("udp6", false), ("raw", false)] {
        for socket in read(file).lines().skip(1).filter_map(Socket::parse) {
            if let Address::V4(address) = socket.local
                && own.contains(&address)
                && socket.state != TIME_WAIT
            {
                bound.insert(address);
            }
            if has_connections && socket.is_connection() {
                match socket.stays_inside(&own) {
                    true => sockets.local += 1,
                    false => sockets.outside += 1,
                }
            }
        }
    }
    sockets.bound = bound.into_iter().collect();
    sockets
}

/// Whether a TCP connection of a pod has data that its other end has not received yet.
pub fn have_unsent(pid: i32) -> bool {
    ["tcp", "tcp6"].iter().any(|file| {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        table.lines().skip(1).filter_map(Socket::parse).any(|socket| socket.is_connection() && socket.unsent > 0)
    })
}

/// The addresses of a network, without the loopback's: entries `/32 host LOCAL` of /proc/net/fib_trie.
pub fn own_addresses(trie: &str) -> HashSet<Ipv4Addr> {
    let mut last = None;
    let mut own = HashSet::new();
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            own.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    own
}

/// A line of /proc/net/tcp and its like.
struct Socket<'a> {
    local: Address,
    remote: Address,
    state: &'a str,
    /// Bytes.
    unsent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    V4(Ipv4Addr),
    Loopback6,
    Other,
}

impl<'a> Socket<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_whitespace().skip(1);
        let mut address = || Some(Address::parse(fields.next()?.split(':').next()?));
        let (local, remote) = (address()?, address()?);
        let state = fields.next()?;
        let (unsent, _) = fields.next()?.split_once(':')?;
        Some(Self { local, remote, state, unsent: u32::from_str_radix(unsent, 16).ok()? })
    }

    fn is_connection(&self) -> bool {
        ![TIME_WAIT, CLOSED, LISTENS].contains(&self.state)
    }

    /// Whether both ends are programs of this network.
    fn stays_inside(&self, own: &HashSet<Ipv4Addr>) -> bool {
        match (self.local, self.remote) {
            (Address::V4(local), _) if local.is_loopback() => true,
            (Address::Loopback6, _) => true,
            (Address::V4(_), Address::V4(remote)) => own.contains(&remote),
            _ => false,
        }
    }
}

impl Address {
    /// 32-bit words in host byte order; an IPv4 address may be written as an IPv6 one.
    fn parse(hex: &str) -> Self {
        const MAPPED: &str = "0000000000000000FFFF0000";
        let v4 = match hex.len() {
            8 => Some(hex),
            _ => hex.strip_prefix(MAPPED),
        };
        match v4.and_then(|word| u32::from_str_radix(word, 16).ok()) {
            Some(word) => Self::V4(Ipv4Addr::from(word.to_ne_bytes())),
            None if hex == "00000000000000000000000001000000" => Self::Loopback6,
            None => Self::Other,
        }
    }
}

/// Who holds sockets, by inode.
#[derive(Default)]
pub struct Held {
    /// The processes to be saved, each with a descriptor of it: `/proc/PID/fd/N`.
    pub saved: HashMap<u64, PathBuf>,
    /// Those of processes that are detached before the dump.
    pub detached: HashSet<u64>,
}

/// The unix sockets of a pod whose other end is held by no program to be saved: by inode, with the path of the
/// connection where it has one.
pub struct Outside(HashMap<u64, Option<String>>);

impl Outside {
    /// `held` finds out who holds sockets at the moment.
    pub fn find(pid: i32, held: impl Fn() -> Held) -> Self {
        // First who is connected, then who holds it: what was accepted in between is seen. What was closed in between
        // is missing in the second round.
        let first = ends(pid, &held);
        let lasting = if first.is_empty() { first } else { &first & &ends(pid, &held) };
        let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let mut known = HashMap::new();
        if !lasting.is_empty() {
            known.extend(paths(&text("/proc/net/unix")));
            known.extend(paths(&text(&format!("/proc/{pid}/net/unix"))));
        }
        Self(lasting.into_iter().map(|(inode, peer)| (inode, known.get(&peer).cloned())).collect())
    }

    /// Where a descriptor leads, if it leads outside: `target` is what it links to.
    pub fn of(&self, target: &str) -> Option<&str> {
        let path = self.0.get(&inode(target)?)?;
        Some(path.as_deref().unwrap_or("without a name"))
    }
}

/// Pairs of a socket to be saved and an other end that is not.
fn ends(pid: i32, held: &impl Fn() -> Held) -> HashSet<(u64, u64)> {
    let sockets = netlink::in_network_of(pid, netlink::unix_sockets).unwrap_or_else(|error| {
        tracing::warn!(%error, "could not read the unix sockets of a pod");
        HashMap::new()
    });
    let held = held();
    // A peer of 0 waits to be accepted, or is closed: both can be saved.
    let is_outside = |peer: u64| peer != 0 && !held.saved.contains_key(&peer) && !held.detached.contains(&peer);
    let pairs = sockets.iter().map(|(inode, peer)| (*inode, *peer));
    let outside = pairs.filter(|(inode, peer)| held.saved.contains_key(inode) && is_outside(*peer));
    // One that was connected from another network belongs to that network, and CRIU does not find it.
    let foreign = held.saved.iter().filter(|(inode, descriptor)| !sockets.contains_key(inode) && is_unix(descriptor));
    outside.chain(foreign.map(|(inode, _)| (*inode, *inode))).collect()
}

/// Whether a descriptor is a unix socket.
fn is_unix(descriptor: &Path) -> bool {
    protocol(descriptor).is_some_and(|name| name.starts_with("UNIX"))
}

/// The protocol of a socket descriptor. The kernel shows it as an extended attribute (net/socket.c).
pub fn protocol(descriptor: &Path) -> Option<String> {
    let path = CString::new(descriptor.as_os_str().as_bytes()).ok()?;
    let mut name = [0u8; 32];
    // SAFETY: two strings that end with a zero, and a buffer of the length that is given.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let name = name.get(..usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// Takes TCP sockets out of repair mode, in which a killed CRIU leaves them: nothing can be received on one then.
pub fn end_repair(pids: &[i32]) {
    for &pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let is_tcp = protocol(&entry.path()).is_some_and(|name| name.starts_with("TCP"));
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // One that is closed by now needs nothing.
            if let (true, Some(number)) = (is_tcp, number)
                && let Ok(socket) = pidfd::descriptor(pid, number)
                && let Err(error) = leave_repair(&socket)
            {
                tracing::warn!(pid, number, %error, "a connection may be left on which nothing can be received");
            }
        }
    }
}

fn leave_repair(socket: &OwnedFd) -> io::Result<()> {
    /// linux/tcp.h: without a window probe.
    static OFF: i32 = -1;
    const LENGTH: libc::socklen_t = 4;
    let (mut value, mut length) = (0i32, LENGTH);
    let (into, room) = ((&raw mut value).cast(), &raw mut length);
    // SAFETY: the kernel writes as many bytes as the value has.
    Errno::result(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, into, room) })?;
    if value == 0 {
        return Ok(());
    }
    let from = (&raw const OFF).cast();
    // SAFETY: the kernel reads as many bytes as the value has.
    Errno::result(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, from, LENGTH) })?;
    Ok(())
}

/// The inode of a descriptor that links to `socket:[123]`.
pub fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Paths by inode, of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`.
fn paths(text: &str) -> HashMap<u64, String> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(6);
        Some((fields.next()?.parse().ok()?, fields.next()?.to_owned()))
    });
    lines.collect()
}

/// TCP connections that were open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sockets {
    /// Between programs of the pod.
    pub local: u32,
    /// With others.
    pub outside: u32,
    /// The pod's address at the checkpoint.
    pub address: Option<String>,
    /// The pod's own addresses that sockets are bound to, without the loopback's.
    #[serde(default)]
    pub bound: Vec<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_classified_by_their_ends() {
        let own = HashSet::from([Ipv4Addr::new(172, 17, 0, 2)]);
        let socket = |local: &str, remote: &str, state: &str| {
            let line = format!("  0: {local}:1F90 {remote}:0016 {state} 00000000:00000000 00");
            let socket = Socket::parse(&line).unwrap();
            socket.is_connection().then(|| socket.stays_inside(&own))
        };
        assert_eq!(socket("0100007F", "0100007F", "01"), Some(true));
        assert_eq!(socket("020011AC", "010011AC", "01"), Some(false));
        assert_eq!(socket("020011AC", "020011AC", "01"), Some(true), "over the pod's own address");
        assert_eq!(socket("0100007F", "00000000", "0A"), None);
        assert_eq!(socket("00000000000000000000000001000000", "00000000000000000000000001000000", "08"), Some(true));
        assert_eq!(socket("0000000000000000FFFF00000100007F", "0000000000000000FFFF00000100007F", "01"), Some(true));
        assert_eq!(socket("0000000000000000FFFF0000020011AC", "0000000000000000FFFF0000010011AC", "01"), Some(false));
    }

    #[test]
    fn own_addresses_are_those_of_the_host_that_are_local() {
        let trie = "Main:\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n  +-- 0.0.0.0/0 3 0 5\n        \
                    |-- 127.0.0.1\n           /32 host LOCAL\n        |-- 172.17.0.0\n           /16 link UNICAST\n        \
                    |-- 172.17.0.3\n           /32 host LOCAL\n        |-- 172.17.255.255\n           /32 link BROADCAST\n";
        assert_eq!(own_addresses(trie), HashSet::from([Ipv4Addr::new(172, 17, 0, 3)]));
    }

    #[test]
    fn paths_of_unix_sockets_are_found_by_inode() {
        let text = "Num RefCount Protocol Flags Type St Inode Path\n\
                    ffff: 00000003 00000000 00000000 0001 03 4711 /run/docker.sock\nffff: 00000003 00000000 00000000 0001 03 4712\n";
        assert_eq!(paths(text), HashMap::from([(4711, "/run/docker.sock".to_owned())]));
    }
}
