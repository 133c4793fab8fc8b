//! The network of a pod that is saved, and of one that is brought back.
//!
//! - [`sockets`]: what a pod has open; [`socket_names`]: what unix sockets are reached by
//! - [`lock`]: no packet to a pod that stands still; [`silence`]: none to a restored one before its sockets are there
//! - [`address`]: the pod's address of then, from the engine again; [`connections`]: what becomes of TCP connections

pub mod address;
pub mod connections;
pub mod lock;
pub mod silence;
pub mod socket_names;
pub mod sockets;
