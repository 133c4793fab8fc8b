//! This host as the kernel shows it: processes, memory, cgroups, sockets, bridges, device access, and the time.

pub mod blocking;
pub mod bridge;
pub mod cgroup;
pub mod clock;
pub mod device;
pub mod disk;
pub mod memory;
pub mod mountinfo;
pub mod netlink;
pub mod parallel;
pub mod pidfd;
pub mod process;
