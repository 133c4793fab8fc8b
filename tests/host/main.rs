//! Faults and kills that the daemon must survive, on a real engine with a proxy on its socket.
//!
//! Each test ends with [`help::assert_recovered`]: rows, containers, ports and events agree again.

#[path = "../common/mod.rs"]
mod common;

mod by_hand;
mod database;
mod docker_down;
mod docker_full;
mod door;
mod engine;
mod exec;
mod help;
mod image_store;
mod kills;
mod private;
mod proxy;
mod sessions;
mod without_runtime;
