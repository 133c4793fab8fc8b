//! This host as /proc and /sys show it: processes and cgroups.

pub mod cgroup;
pub mod process;
