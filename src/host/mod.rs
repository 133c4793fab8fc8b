//! This host as /proc, /sys and netlink show it: processes, cgroups, sockets, and who may open a device.

pub mod cgroup;
pub mod device;
pub mod netlink;
pub mod process;
