//! The memory of this host.

use std::fs;

/// Bytes that programs can allocate without swapping, as the kernel estimates it (proc_meminfo(5)).
pub fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok().map(|kib: u64| kib << 10)
}
