//! `pody settle-in`, which CRIU starts in a restore and people do not: see `pody::checkpoint::settle_in`.

use std::path::PathBuf;

use clap::Args;

use super::exit;
use crate::criu::namespace_setup;

#[derive(Debug, Args)]
pub struct SettleInArgs {
    /// What is to be done
    plan: PathBuf,
    /// The first process of the pod
    pid: i32,
}

impl SettleInArgs {
    pub fn run(self) -> u8 {
        match namespace_setup::set_up(&self.plan, self.pid) {
            Ok(()) => exit::OK,
            Err(failure) => {
                // The daemon reads it back: CRIU hands nothing on but the exit status.
                eprintln!("{}", serde_json::to_string(&failure).expect("a kind and a text"));
                exit::FAILED
            }
        }
    }
}
