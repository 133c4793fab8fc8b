//! What is only available through netlink(7), in the network namespace of another process: which sockets its unix
//! sockets are connected to, and adding an address.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::fd::FromRawFd,
    thread,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};

/// linux/netlink.h: length, type, flags, sequence, sender.
const HEADER: usize = 16;
/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// linux/unix_diag.h: requests the peer's inode, which is returned in the second attribute.
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// The same for the queue length.
const UDIAG_SHOW_RQLEN: u32 = 16;
const UNIX_DIAG_RQLEN: u16 = 4;
/// A state of sockets (net/tcp_states.h).
const LISTENS: u8 = 10;
/// The loopback interface is the first of every network namespace.
pub(super) const LOOPBACK: u32 = 1;
/// A response holds as many messages as fit.
const ANSWER: usize = 64 << 10;

/// Runs `work` in the network namespace of a process, on a thread of its own.
pub fn in_network_of<T: Send>(pid: i32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let inside = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the pod's network namespace panicked")))
}

/// The unix sockets of this thread's network namespace by inode, each with its peer's inode; 0 if it has none, or one
/// that no program holds.
pub fn unix_sockets() -> io::Result<HashMap<u64, u64>> {
    let mut sockets = HashMap::new();
    ask_unix(u32::MAX, UDIAG_SHOW_PEER, UNIX_DIAG_PEER, |inode, peer| {
        sockets.insert(inode, peer.unwrap_or(0));
    })?;
    Ok(sockets)
}

/// Listening unix sockets of this thread's network namespace with connections that nobody has accepted yet.
pub fn full_unix_listeners() -> io::Result<Vec<u64>> {
    let mut full = Vec::new();
    ask_unix(1 << LISTENS, UDIAG_SHOW_RQLEN, UNIX_DIAG_RQLEN, |inode, waiting| {
        full.extend((waiting.unwrap_or(0) > 0).then_some(inode));
    })?;
    Ok(full)
}

/// Requests one attribute of the unix sockets in some states. Passes on the inode and the attribute.
fn ask_unix(states: u32, show: u32, wanted: u16, mut each: impl FnMut(u64, Option<u64>)) -> io::Result<()> {
    let mut request = Vec::new();
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie
    request.extend_from_slice(&[u8::try_from(libc::AF_UNIX).unwrap_or(1), 0, 0, 0]);
    for word in [states, 0, show, 0, 0] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    ask(libc::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request, |body| {
        // struct unix_diag_msg: family, type, state, padding, inode, cookie; then attributes
        let Some(inode) = number(body, 4) else { return };
        let value = attributes(body.get(16..).unwrap_or_default())
            .find_map(|(name, value)| (name == wanted).then(|| number(value, 0)).flatten());
        each(u64::from(inode), value.map(u64::from));
    })
}

/// Adds an address to the loopback interface of this thread's network namespace: its programs can use it, nothing
/// outside sees it. An existing one is left as it is.
pub fn add_own_address(address: Ipv4Addr) -> io::Result<()> {
    // Otherwise eth0 answers ARP for the addresses of all interfaces, and takes this one from its owner on the bridge.
    fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
    let mut request = vec![u8::try_from(libc::AF_INET).unwrap_or(2), 32, 0, 0];
    request.extend_from_slice(&LOOPBACK.to_ne_bytes());
    for name in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        // struct rtattr: length, name; then the value
        request.extend_from_slice(&8u16.to_ne_bytes());
        request.extend_from_slice(&name.to_ne_bytes());
        request.extend_from_slice(&address.octets());
    }
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match ask(libc::NETLINK_ROUTE, libc::RTM_NEWADDR, flags, &request, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Sends one request and passes on the body of each message of the response.
pub(super) fn ask(protocol: i32, kind: u16, flags: i32, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    // SAFETY: a call without pointers; nothing else owns the descriptor that it returns.
    let mut socket = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(socket)
    };
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend_from_slice(&u32::try_from(HEADER + request.len()).unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(0).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    socket.write_all(&message)?;
    let mut answer = vec![0; ANSWER];
    loop {
        let length = socket.read(&mut answer)?;
        let mut rest = &answer[..length];
        while rest.len() >= HEADER {
            let length = number(rest, 0).map_or(0, |length| length as usize);
            let kind = i32::from(half(rest, 4).unwrap_or(0));
            let Some(body) = rest.get(HEADER..length) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            match kind {
                libc::NLMSG_DONE => return Ok(()),
                // Error 0 is an acknowledgement.
                libc::NLMSG_ERROR => {
                    return match number(body, 0).map_or(0, u32::cast_signed) {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                _ => each(body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A sequence of struct rtattr, each aligned to four bytes.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, name) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((name, value))
    })
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd, unix::net::UnixStream};

    use super::*;

    fn inode(socket: &UnixStream) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    }

    #[test]
    fn each_socket_of_a_pair_is_the_peer_of_the_other() {
        let (one, two) = UnixStream::pair().unwrap();
        let sockets = unix_sockets().unwrap();
        assert_eq!(sockets.get(&inode(&one)), Some(&inode(&two)));
        assert_eq!(sockets.get(&inode(&two)), Some(&inode(&one)));
        drop(two);
        assert_eq!(unix_sockets().unwrap().get(&inode(&one)), Some(&0));
    }

    /// In a pod, the engine does this.
    fn bring_loopback_up() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // SAFETY: a structure of numbers, filled as netdevice(7) says.
        let done = unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
            libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
        };
        assert_eq!(done, 0);
    }

    /// Needs root, as the daemon does.
    #[test]
    fn an_address_is_added_in_its_own_network_namespace() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let address = Ipv4Addr::new(192, 0, 2, 7);
        let inside = thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            bring_loopback_up();
            assert!(std::net::TcpListener::bind((address, 0)).is_err());
            add_own_address(address).unwrap();
            add_own_address(address).unwrap();
            std::net::TcpListener::bind((address, 0)).unwrap();
        });
        inside.join().unwrap();
        assert!(std::net::TcpListener::bind((address, 0)).is_err(), "only there");
    }
}
