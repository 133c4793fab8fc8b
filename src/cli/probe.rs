//! `pody probe-device`, which the daemon starts and people do not: whether a container may open a device.

use std::path::PathBuf;

use clap::Args;

use crate::{host::device, model::ids::ContainerId};

#[derive(Debug, Args)]
pub struct ProbeArgs {
    container: ContainerId,
    /// A process of it
    pid: i32,
    device: PathBuf,
}

impl ProbeArgs {
    pub fn run(self) -> u8 {
        device::look(&self.container, self.pid, &self.device).exit_code()
    }
}
