//! A container's cgroup, version 1 or 2, under either cgroup driver: found through its first process, read from files. The
//! engine's own statistics take a second; this takes microseconds.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";

/// Where a process's group keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1 { cpu: PathBuf, memory: PathBuf, pids: PathBuf },
    V2(PathBuf),
}

/// What a group has used, and uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the group was made.
    pub cpu_seconds: f64,
    /// Without file cache that can be given up.
    pub memory_bytes: u64,
    pub pids: u64,
}

impl Cgroup {
    /// The group of a process; `None` when the process is gone.
    pub fn of_process(pid: i32) -> Option<Self> {
        if pid <= 0 {
            return None;
        }
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
    }

    /// Reads `/proc/PID/cgroup` (cgroups(7)): `ID:CONTROLLERS:PATH` per hierarchy.
    fn parse(text: &str) -> Option<Self> {
        let mut paths: HashMap<&str, &str> = HashMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            paths.extend(controllers.split(',').map(|controller| (controller, path)));
        }
        let below = |controller: &str| {
            Some(Path::new(ROOT).join(controller).join(paths.get(controller)?.trim_start_matches('/')))
        };
        match (below("cpuacct"), below("memory"), below("pids")) {
            (Some(cpu), Some(memory), Some(pids)) => Some(Self::V1 { cpu, memory, pids }),
            _ => Some(Self::V2(Path::new(ROOT).join(paths.get("")?.trim_start_matches('/')))),
        }
    }

    /// `None` when the group is gone.
    pub fn read(&self) -> Option<Sample> {
        match self {
            Self::V1 { cpu, memory, pids } => {
                let used = number(&memory.join("memory.usage_in_bytes"))?;
                Some(Sample {
                    cpu_seconds: number(&cpu.join("cpuacct.usage"))? as f64 / 1e9,
                    memory_bytes: used
                        .saturating_sub(field(&memory.join("memory.stat"), "total_inactive_file").unwrap_or(0)),
                    pids: number(&pids.join("pids.current"))?,
                })
            }
            Self::V2(group) => {
                let used = number(&group.join("memory.current"))?;
                Some(Sample {
                    cpu_seconds: field(&group.join("cpu.stat"), "usage_usec")? as f64 / 1e6,
                    memory_bytes: used.saturating_sub(field(&group.join("memory.stat"), "inactive_file").unwrap_or(0)),
                    pids: number(&group.join("pids.current"))?,
                })
            }
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name)?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_and_drivers_are_found() {
        let v1 = "9:pids:/docker/ab\n8:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/docker/ab\n";
        assert_eq!(
            Cgroup::parse(v1),
            Some(Cgroup::V1 {
                cpu: "/sys/fs/cgroup/cpuacct/docker/ab".into(),
                memory: "/sys/fs/cgroup/memory/docker/ab".into(),
                pids: "/sys/fs/cgroup/pids/docker/ab".into(),
            })
        );
        let v2 = "0::/system.slice/docker-ab.scope\n";
        assert_eq!(Cgroup::parse(v2), Some(Cgroup::V2("/sys/fs/cgroup/system.slice/docker-ab.scope".into())));
        assert_eq!(Cgroup::of_process(0), None);
    }
}
