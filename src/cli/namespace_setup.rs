//! `pody namespace-setup`, which CRIU starts during a restore: see `pody::criu::namespace_setup`.

use std::path::PathBuf;

use clap::Args;

use super::exit;
use crate::criu::namespace_setup;

#[derive(Debug, Args)]
pub struct NamespaceSetupArgs {
    /// The file that says what to do
    plan: PathBuf,
    /// The first process of the pod
    pid: i32,
}

impl NamespaceSetupArgs {
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
