//! Checkpoint and restore on a real engine with a real CRIU: what comes back and how, what is refused, what a kill in any
//! phase leaves, what damaged checkpoints get.

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod drain;
mod help;
mod kills;
mod life;
mod matrix;
mod refusals;
mod schedules;
mod remote;
mod sessions;
mod trouble;
mod v2;
