//! What happens to TCP connections in a restore, and which addresses the pod gets for that: decided from the manifest
//! alone.

use std::net::Ipv4Addr;

use super::sockets::Sockets;
use crate::model::checkpoint::Connections;

/// What happens to TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    /// They continue: the pod has its original address, or they do not leave it.
    Established,
    /// Those between programs of the pod continue, the others are found closed.
    CloseOutside,
    /// Programs find all of them closed.
    Close,
}

impl Tcp {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established | Self::CloseOutside => "tcp-established",
            Self::Close => "tcp-close",
        }
    }
}

/// Which addresses the pod's network has when its sockets are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPolicy {
    /// The original one from the engine, as others know it. Other addresses that its sockets were bound to exist only
    /// inside the pod.
    Original,
    /// Whatever the engine assigns. The addresses that its sockets were bound to exist only inside the pod.
    New,
}

/// One way to restore the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub tcp: Tcp,
    pub addresses: AddressPolicy,
}

impl Way {
    /// What to try first, and then, in this order.
    pub fn choices(sockets: &Sockets, in_place: bool, wanted: Option<Connections>) -> (Self, &'static [Self]) {
        const fn way(tcp: Tcp, addresses: AddressPolicy) -> Way {
            Way { tcp, addresses }
        }
        const AGAIN: Way = way(Tcp::Established, AddressPolicy::Original);
        const INSIDE: Way = way(Tcp::Established, AddressPolicy::New);
        const CLOSED_AGAIN: Way = way(Tcp::Close, AddressPolicy::Original);
        const CLOSED: Way = way(Tcp::Close, AddressPolicy::New);
        const CUT_OFF: Way = way(Tcp::CloseOutside, AddressPolicy::New);
        // Only one pod can have the address, and others may know it.
        let again = in_place && sockets.need_their_address();
        match (wanted, sockets.outside, in_place) {
            (Some(Connections::Close), ..) if again => (CLOSED_AGAIN, &[CLOSED]),
            (Some(Connections::Close), ..) => (CLOSED, &[]),
            (Some(Connections::Keep), 0, _) if again => (AGAIN, &[INSIDE]),
            (Some(Connections::Keep), 0, _) => (INSIDE, &[]),
            (Some(Connections::Keep), ..) => (AGAIN, &[]),
            (None, 0, _) if again => (AGAIN, &[INSIDE, CLOSED]),
            (None, 0, _) => (INSIDE, &[CLOSED]),
            // Where the pod lacks its original address, a connection with others must not look alive.
            (None, _, true) => (AGAIN, &[CUT_OFF, CLOSED]),
            // Two pods with one connection would fight over it.
            (None, _, false) => (CUT_OFF, &[CLOSED]),
        }
    }
}

impl Sockets {
    /// The address that the engine had assigned to the pod.
    pub fn original_address(&self) -> Option<Ipv4Addr> {
        self.address.as_ref()?.parse().ok()
    }

    /// Whether others are connected with the pod, or reach a program of it, by its original address.
    pub fn need_their_address(&self) -> bool {
        self.original_address().is_some_and(|address| self.bound.contains(&address))
    }

    /// All addresses that its programs may know the pod by, without the loopback's.
    pub fn own_addresses(&self) -> Vec<Ipv4Addr> {
        self.bound.iter().copied().chain(self.original_address()).collect()
    }

    /// Those that no engine assigns to the pod: of earlier lives, or all.
    pub fn addresses_to_add(&self, addresses: AddressPolicy) -> Vec<Ipv4Addr> {
        let from_engine = match addresses {
            AddressPolicy::Original => self.original_address(),
            AddressPolicy::New => None,
        };
        self.bound.iter().copied().filter(|address| Some(*address) != from_engine).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(local: u32, outside: u32, bound: &[u8]) -> Sockets {
        let bound = bound.iter().map(|last| Ipv4Addr::new(172, 17, 0, *last)).collect();
        Sockets { local, outside, address: Some("172.17.0.2".to_owned()), bound }
    }

    #[test]
    fn a_clone_does_not_take_the_connections_of_another() {
        let [inside, cut_off, closed] =
            [Tcp::Established, Tcp::CloseOutside, Tcp::Close].map(|tcp| Way { tcp, addresses: AddressPolicy::New });
        assert_eq!(Way::choices(&sockets(3, 0, &[2]), false, None), (inside, [closed].as_slice()));
        assert_eq!(Way::choices(&sockets(3, 1, &[2]), false, None), (cut_off, [closed].as_slice()));
        assert_eq!(Way::choices(&sockets(3, 0, &[2]), false, Some(Connections::Close)), (closed, [].as_slice()));
    }

    #[test]
    fn a_connection_with_others_continues_with_the_original_address_alone() {
        for (outside, wanted) in [(1, None), (2, Some(Connections::Keep))] {
            let (first, others) = Way::choices(&sockets(3, outside, &[2]), true, wanted);
            for way in [&first].into_iter().chain(others) {
                assert!(way.tcp != Tcp::Established || way.addresses == AddressPolicy::Original, "{way:?}");
            }
        }
        // What is bound to it is reached by others again.
        assert_eq!(Way::choices(&sockets(0, 0, &[2]), true, None).0.addresses, AddressPolicy::Original);
        // Nobody needs it, or it was an address of an earlier life.
        assert_eq!(Way::choices(&sockets(3, 0, &[]), true, None).0.addresses, AddressPolicy::New);
        assert_eq!(Way::choices(&sockets(3, 0, &[7]), true, None).0.addresses, AddressPolicy::New);
    }

    #[test]
    fn addresses_of_earlier_lives_are_added_and_the_engines_own_is_not() {
        let of = |addresses| sockets(1, 1, &[2, 7]).addresses_to_add(addresses);
        assert_eq!(of(AddressPolicy::Original), [Ipv4Addr::new(172, 17, 0, 7)]);
        assert_eq!(of(AddressPolicy::New), [Ipv4Addr::new(172, 17, 0, 2), Ipv4Addr::new(172, 17, 0, 7)]);
    }
}
