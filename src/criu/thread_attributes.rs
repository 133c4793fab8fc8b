//! Attributes of threads that CRIU does not save and that can be set again from outside: the processors that they may
//! run on (`taskset`) and their I/O class (`ionice`). Only what differs from the pod's first process is kept.

use std::{collections::BTreeMap, fs};

use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{criu::kill, host::process, model::ids::ContainerId};

/// linux/ioprio.h: the number that follows is a thread id.
const OF_THREAD: i32 = 1;

/// Threads with the same attributes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadAttributes {
    /// As the kernel lists them: `0-3,8`.
    pub processors: String,
    /// As ioprio_get(2) returns it.
    pub disk: i32,
    /// Their ids inside the pod.
    pub threads: Vec<i32>,
}

/// Reads the attributes of a container's threads; `init` is its first process.
pub fn look(container: &ContainerId, init: i32) -> Vec<ThreadAttributes> {
    let Some(usual) = of_thread(init, init).map(|(_, kind)| kind) else { return Vec::new() };
    let mut kinds: BTreeMap<(String, i32), Vec<i32>> = BTreeMap::new();
    for (pid, thread) in threads(container) {
        if let Some((inside, kind)) = of_thread(pid, thread)
            && kind != usual
        {
            kinds.entry(kind).or_default().push(inside);
        }
    }
    let tunings = kinds.into_iter();
    tunings.map(|((processors, disk), threads)| ThreadAttributes { processors, disk, threads }).collect()
}

/// Sets them again. What this host does not have is skipped.
pub fn put_back(container: &ContainerId, tunings: &[ThreadAttributes]) {
    if tunings.is_empty() {
        return;
    }
    for (pid, thread) in threads(container) {
        let Some((inside, _)) = of_thread(pid, thread) else { continue };
        for tuning in tunings.iter().filter(|tuning| tuning.threads.contains(&inside)) {
            if let Some(set) = set_of(&tuning.processors) {
                let _ = sched_setaffinity(Pid::from_raw(thread), &set);
            }
            // SAFETY: a system call on three numbers.
            unsafe { libc::syscall(libc::SYS_ioprio_set, OF_THREAD, thread, tuning.disk) };
        }
    }
}

/// Process and thread ids on the host.
fn threads(container: &ContainerId) -> Vec<(i32, i32)> {
    let of_process = |pid: i32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        tasks.filter_map(move |task| Some((pid, task.file_name().to_str()?.parse().ok()?)))
    };
    kill::members(container).into_iter().flat_map(of_process).collect()
}

/// Its id in the pod, and its attributes.
fn of_thread(pid: i32, thread: i32) -> Option<(i32, (String, i32))> {
    let status = process::read(format!("/proc/{pid}/task/{thread}/status"))?;
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let inside = value("NSpid:")?.split_whitespace().last()?.parse().ok()?;
    let processors = value("Cpus_allowed_list:")?.to_owned();
    // SAFETY: a system call on two numbers.
    let disk = unsafe { libc::syscall(libc::SYS_ioprio_get, OF_THREAD, thread) };
    Some((inside, (processors, i32::try_from(disk).ok()?)))
}

fn set_of(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for processor in first.parse::<usize>().ok()?..=last.parse().ok()? {
            set.set(processor).ok()?;
        }
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_parsed() {
        let set = set_of("0-2,5").unwrap();
        let found: Vec<usize> = (0..8).filter(|&at| set.is_set(at).unwrap()).collect();
        assert_eq!(found, [0, 1, 2, 5]);
        assert!(set_of("").is_none() && set_of("x-3").is_none());
    }
}
