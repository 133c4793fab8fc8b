//! This host as the kernel shows it: processes, memory, cgroups, sockets, bridges, who may open a device, and what time it is.

pub mod bridge;
pub mod cgroup;
pub mod clock;
pub mod device;
pub mod disk;
pub mod life;
pub mod memory;
pub mod netlink;
pub mod parallel;
pub mod process;
