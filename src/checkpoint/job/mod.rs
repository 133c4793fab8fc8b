//! The jobs: a checkpoint or a restore in progress, phase by phase, and recovery after a kill.
//!
//! - [`checkpoint`]: the phases of a checkpoint; [`dump`]: one of them
//! - [`restore`]: the phases of a restore; [`address`]: the pod's original address, from the engine again;
//!   [`hold_traffic`]: no packet reaches the pod before its sockets exist
//! - [`gpu`]: programs on GPUs, in both
//! - [`recover`]: what a kill left, and what a failure rolls back

pub mod address;
pub mod checkpoint;
pub mod dump;
pub mod gpu;
pub mod hold_traffic;
pub mod recover;
pub mod restore;
