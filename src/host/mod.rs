//! This host as /proc and /sys show it: processes, cgroups, and who may open a device.

pub mod cgroup;
pub mod device;
pub mod life;
pub mod process;
