//! The ports that attach a container's network to the bridges of the host (bridge(8)), and whether they forward
//! packets.
//!
//! A pod must receive no packets while it is being checkpointed. The kernel acknowledges data for frozen programs: the
//! sender believes that the data arrived, but the socket has been dumped already, so nobody will ever read them. A
//! disabled port drops everything, and the pod does not notice because its interfaces stay up.
//!
//! A pod that is being restored must receive none until its sockets exist: the kernel answers packets of an unknown
//! connection with a reset. The pod's port is new, and forwards from the beginning. So the bridge itself claims the
//! hardware address meanwhile, and drops packets to it.

use std::{collections::HashMap, ffi::CString, io};

use nix::libc;

use super::netlink::{self, attributes, number};

/// linux/if_link.h: `IFLA_LINK` is the other end of a veth pair, `IFLA_MASTER` the bridge, `IFLA_PROTINFO` the bridge's
/// data about its port, including the state.
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_STATE: u16 = 1;
/// `NLA_F_NESTED` of linux/netlink.h.
const NESTED: u16 = 1 << 15;
/// linux/neighbour.h
const NDA_LLADDR: u16 = 2;
/// struct ifinfomsg: family, padding, type, index, flags, change.
const IFINFOMSG: usize = 16;

/// linux/if_bridge.h, `BR_STATE_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Disabled = 0,
    Forwarding = 3,
}

/// An interface as seen in its own network namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    is_up: bool,
    /// The other end's index, in that end's own namespace.
    other: Option<u32>,
    bridge: Option<u32>,
}

/// Sets all ports of a process's network. Returns false if no ports were found: the network is the host's own, or not
/// attached to a bridge.
pub fn set_ports(pid: i32, state: State) -> io::Result<bool> {
    let ports = ports_of(pid)?;
    for &port in &ports {
        set_port(port, state)?;
    }
    Ok(!ports.is_empty())
}

/// The indices of the host's ends of the veth pairs of a process's network. Empty if any interface that is up, except
/// loopback, is not such a pair.
fn ports_of(pid: i32) -> io::Result<Vec<u32>> {
    let here = links()?;
    let inside = netlink::in_network_of(pid, links)?;
    let host_end = |(&index, link): (&u32, &Link)| {
        let other = link.other?;
        // Indices are per network namespace: both ends must name each other.
        let port = here.get(&other).filter(|port| port.bridge.is_some() && port.other == Some(index));
        port.map(|_| other)
    };
    let outward = inside.iter().filter(|&(&index, link)| link.is_up && index != netlink::LOOPBACK);
    Ok(outward.map(host_end).collect::<Option<Vec<_>>>().unwrap_or_default())
}

/// The interfaces of this thread's network by their indices.
fn links() -> io::Result<HashMap<u32, Link>> {
    let mut links = HashMap::new();
    netlink::ask(libc::NETLINK_ROUTE, libc::RTM_GETLINK, libc::NLM_F_DUMP, &ifinfomsg(libc::AF_UNSPEC, 0), |body| {
        let Some(index) = number(body, 4) else { return };
        let flags = number(body, 8).map_or(0, u32::cast_signed);
        let mut link = Link { is_up: flags & libc::IFF_UP != 0, ..Link::default() };
        for (name, value) in attributes(body.get(IFINFOMSG..).unwrap_or_default()) {
            match name {
                IFLA_LINK => link.other = number(value, 0),
                IFLA_MASTER => link.bridge = number(value, 0),
                _ => {}
            }
        }
        links.insert(index, link);
    })?;
    Ok(links)
}

fn set_port(index: u32, state: State) -> io::Result<()> {
    let mut request = ifinfomsg(libc::AF_BRIDGE, index);
    // A nested attribute of one byte and its padding.
    for half in [12, NESTED | IFLA_PROTINFO, 5, IFLA_BRPORT_STATE] {
        request.extend_from_slice(&half.to_ne_bytes());
    }
    request.extend_from_slice(&[state as u8, 0, 0, 0]);
    netlink::ask(libc::NETLINK_ROUTE, libc::RTM_SETLINK, libc::NLM_F_ACK, &request, |_| {})
}

/// Makes a bridge claim a hardware address and drop packets to it, or stop doing so.
pub fn claim(bridge: &str, address: [u8; 6], is_claimed: bool) -> io::Result<()> {
    let name = CString::new(bridge)?;
    // SAFETY: the name ends with a NUL, and is only read.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // struct ndmsg: family, padding, index, state, flags, type; then the address and its padding
    let mut request = vec![u8::try_from(libc::AF_BRIDGE).unwrap_or(7), 0, 0, 0];
    request.extend_from_slice(&index.to_ne_bytes());
    request.extend_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    request.extend_from_slice(&[libc::NTF_SELF, 0]);
    for half in [10, NDA_LLADDR] {
        request.extend_from_slice(&half.to_ne_bytes());
    }
    request.extend_from_slice(&address);
    request.extend_from_slice(&[0, 0]);
    let (kind, flags, done_already) = match is_claimed {
        true => (libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_EXCL, libc::EEXIST),
        false => (libc::RTM_DELNEIGH, 0, libc::ENOENT),
    };
    match netlink::ask(libc::NETLINK_ROUTE, kind, libc::NLM_F_ACK | flags, &request, |_| {}) {
        Err(error) if error.raw_os_error() == Some(done_already) => Ok(()),
        other => other,
    }
}

fn ifinfomsg(family: i32, index: u32) -> Vec<u8> {
    let mut message = vec![0; IFINFOMSG];
    message[0] = u8::try_from(family).unwrap_or(0);
    message[4..8].copy_from_slice(&index.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::UdpSocket,
        process::{Command, Stdio},
        thread,
        time::Duration,
    };

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn run(line: &str) {
        let mut words = line.split_whitespace();
        let done = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(done.success(), "{line}");
    }

    /// A bridge in a network namespace of our own, and a process in another one attached to it. Needs root, as the
    /// daemon does.
    #[test]
    fn a_disabled_port_forwards_nothing() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let outside = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut sleep = Command::new("unshare");
            let mut pod = sleep.args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
            let pid = pod.id();
            let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
            while fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|network| network == own) {
                thread::sleep(Duration::from_millis(5));
            }
            let inside = format!("nsenter --net --target {pid}");
            let pid = i32::try_from(pid).unwrap();
            assert!(!set_ports(pid, State::Disabled).unwrap(), "it is attached to no bridge");
            for line in [
                "ip link add bridge0 type bridge",
                "ip addr add 192.0.2.1/24 dev bridge0",
                "ip link set bridge0 up",
                &format!("ip link add port0 type veth peer name eth0 netns {pid}"),
                "ip link set port0 master bridge0 up",
                &format!("{inside} ip addr add 192.0.2.2/24 dev eth0"),
                &format!("{inside} ip link set eth0 up"),
            ] {
                run(line);
            }
            let from = UdpSocket::bind("192.0.2.1:0").unwrap();
            let to = netlink::in_network_of(pid, || UdpSocket::bind("192.0.2.2:9")).unwrap();
            to.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut number = 0u8;
            // An earlier datagram may arrive late.
            let mut arrives = || {
                number += 1;
                from.send_to(&[number], "192.0.2.2:9").unwrap();
                let mut got = [0];
                while to.recv(&mut got).is_ok() {
                    if got == [number] {
                        return true;
                    }
                }
                false
            };
            assert!((0..10).any(|_| arrives()), "before");
            assert!(set_ports(pid, State::Disabled).unwrap());
            assert!(!arrives());
            assert!(set_ports(pid, State::Forwarding).unwrap());
            assert!((0..10).any(|_| arrives()), "afterwards");

            let shown = fs::read_to_string("/proc/thread-self/net/arp").unwrap();
            let line = shown.lines().find(|line| line.starts_with("192.0.2.2 ")).unwrap();
            let text = line.split_whitespace().nth(3).unwrap();
            let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            let address: [u8; 6] = bytes.try_into().unwrap();
            // The port is as new: the bridge has learned nothing about it.
            run("ip link set port0 down");
            for is_claimed in [true, true] {
                claim("bridge0", address, is_claimed).unwrap();
            }
            run("ip link set port0 up");
            run(&format!("ip neigh replace 192.0.2.2 lladdr {text} dev bridge0"));
            assert!(!arrives());
            for is_claimed in [false, false] {
                claim("bridge0", address, is_claimed).unwrap();
            }
            assert!((0..10).any(|_| arrives()), "released");
            pod.kill().unwrap();
            pod.wait().unwrap();
        });
        outside.join().unwrap();
    }
}
