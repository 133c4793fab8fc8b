//! Checkpoint and restore on a real engine with a real CRIU: what is restored and how, what is refused, what a kill in
//! any phase leaves behind, how damaged checkpoints are handled.

#[path = "../common/mod.rs"]
mod common;

mod actions;
mod addresses;
mod adopted;
mod connections;
mod damage;
mod drain;
mod fallback;
mod gpus;
mod help;
mod kills;
mod life;
mod limits;
mod matrix;
mod meanwhile;
mod odd;
mod other_store;
mod refusals;
mod remote;
mod restores;
mod schedules;
mod sessions;
mod trouble;
mod v2;
