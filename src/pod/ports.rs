//! Which ports of the host a pod gets.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
};

use rand::seq::SliceRandom;

use super::PodError;
use crate::model::{pod::PublishedPort, quantities::PortRanges};

/// Picks a random free host port for each port of the container, so that a port that was just freed is rarely reused
/// next. `taken` are those of pods and of other containers; ports that any program listens on are excluded too.
pub fn choose(ranges: &PortRanges, taken: &HashSet<u16>, wanted: &[u16]) -> Result<Vec<PublishedPort>, PodError> {
    let mut candidates: Vec<u16> =
        ranges.iter().filter(|port| !taken.contains(port)).collect::<HashSet<_>>().into_iter().collect();
    candidates.shuffle(&mut rand::rng());
    let mut free = candidates.into_iter().filter(|&port| is_free(port));
    let mut chosen = Vec::new();
    for &container in wanted {
        match free.next() {
            Some(host) => chosen.push(PublishedPort { host, container }),
            None => return Err(PodError::NoPort { needed: wanted.len(), free: chosen.len(), all: ranges.count() }),
        }
    }
    Ok(chosen)
}

/// Whether no program listens on the port. One may a moment later: then the start fails and another port is chosen.
fn is_free(port: u16) -> bool {
    let taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    // On a host without IPv6 the second bind fails for another reason, which does not mean "taken".
    !TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err_and(taken)
        && !TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_err_and(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_and_listened_ports_are_left_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = listener.local_addr().unwrap().port();
        let ranges: PortRanges = format!("{held},{}", held - 1).parse().unwrap();
        let error = choose(&ranges, &HashSet::from([held - 1]), &[22]).unwrap_err();
        assert!(matches!(error, PodError::NoPort { needed: 1, free: 0, all: 2 }), "{error}");
    }

    #[test]
    fn no_port_is_given_twice() {
        let ranges: PortRanges = "40000-40100,40050-40060".parse().unwrap();
        let ports = choose(&ranges, &HashSet::new(), &[22, 80, 443, 8000]).unwrap();
        assert_eq!(ports.iter().map(|p| p.host).collect::<HashSet<_>>().len(), 4);
    }
}
