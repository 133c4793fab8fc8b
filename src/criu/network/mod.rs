//! The network of a pod that is saved, and of one that is restored.
//!
//! - [`sockets`]: what a pod has open; [`socket_names`]: the paths of unix sockets
//! - [`lock`]: no packet reaches a frozen pod; [`connections`]: what happens to TCP connections

pub mod connections;
pub mod lock;
pub mod socket_names;
pub mod sockets;
