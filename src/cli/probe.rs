//! `pody probe-device`, which the daemon starts: whether a container may open a device.

use std::path::PathBuf;

use clap::Args;

use crate::{host::device, model::ids::ContainerId};

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The container
    container: ContainerId,
    /// A process of the container
    pid: i32,
    /// The device file
    device: PathBuf,
}

impl ProbeArgs {
    pub fn run(self) -> u8 {
        device::look(&self.container, self.pid, &self.device).exit_code()
    }
}
