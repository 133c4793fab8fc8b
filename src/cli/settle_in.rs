//! `pody settle-in`, which CRIU starts during a restore: see `pody::checkpoint::settle_in`.

use std::path::PathBuf;

use clap::Args;

use super::exit;
use crate::checkpoint::settle_in;

#[derive(Debug, Args)]
pub struct SettleInArgs {
    /// The file that says what to do
    plan: PathBuf,
    /// The first process of the pod
    pid: i32,
}

impl SettleInArgs {
    pub fn run(self) -> u8 {
        match settle_in::settle_in(&self.plan, self.pid) {
            Ok(()) => exit::OK,
            Err(why) => {
                eprintln!("{why}");
                exit::FAILED
            }
        }
    }
}
