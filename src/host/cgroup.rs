//! A container's cgroup, version 1 or 2, under either cgroup driver: found through its first process, read from files.
//! The engine's own statistics take a second; this takes microseconds. [`Meter`] is for repeated reads.

use std::{
    collections::HashMap,
    fs,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const ROOT: &str = "/sys/fs/cgroup";

/// The directories of a process's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1 { cpu: PathBuf, memory: PathBuf, pids: PathBuf, disk: Option<PathBuf> },
    V2(PathBuf),
}

/// What a cgroup has used so far, and is using now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the cgroup was created.
    pub cpu_seconds: f64,
    /// Without reclaimable file cache.
    pub memory_bytes: u64,
    pub pids: u64,
    /// `None` where the kernel does not count it.
    pub disk: Option<Disk>,
}

/// Bytes read from and written to disks since the cgroup was created. Version 1 cannot attribute buffered writes, and
/// does not count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub read: u64,
    pub written: u64,
}

impl Cgroup {
    /// The cgroup of a process; `None` if the process is gone.
    pub fn of_process(pid: i32) -> Option<Self> {
        if pid <= 0 {
            return None;
        }
        Self::parse(&memberships_of(pid)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let directories = directories(text);
        let of = |controller: &str| directories.get(controller).cloned();
        match (of("cpuacct"), of("memory"), of("pids")) {
            (Some(cpu), Some(memory), Some(pids)) => Some(Self::V1 { cpu, memory, pids, disk: of("blkio") }),
            _ => of("").map(Self::V2),
        }
    }

    /// `None` if the cgroup is gone.
    pub fn read(&self) -> Option<Sample> {
        let pids = match self {
            Self::V1 { pids, .. } => pids,
            Self::V2(group) => group,
        };
        Some(Sample {
            cpu_seconds: self.parse_cpu(&fs::read_to_string(self.cpu_file()).ok()?)?,
            memory_bytes: self.memory_bytes()?,
            pids: number(&pids.join("pids.current"))?,
            disk: self.disk(),
        })
    }

    fn disk(&self) -> Option<Disk> {
        let file = match self {
            Self::V1 { disk, .. } => disk.as_ref()?.join("blkio.throttle.io_service_bytes_recursive"),
            Self::V2(group) => group.join("io.stat"),
        };
        self.parse_disk(&fs::read_to_string(file).ok()?)
    }

    /// `8:0 Read 4096` and `8:0 Write 0` on version 1, `8:0 rbytes=4096 wbytes=0 rios=1 …` on version 2, for each disk.
    /// On version 1 newer kernels (seen with 6.18) do not count unless a limit is set: no disks at all does not mean
    /// zero there.
    fn parse_disk(&self, text: &str) -> Option<Disk> {
        let mut sum = Disk::default();
        if matches!(self, Self::V1 { .. }) && !text.contains(':') {
            return None;
        }
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match (self, words.as_slice()) {
                (Self::V1 { .. }, [_, "Read", bytes]) => sum.read += bytes.parse::<u64>().unwrap_or(0),
                (Self::V1 { .. }, [_, "Write", bytes]) => sum.written += bytes.parse::<u64>().unwrap_or(0),
                (Self::V1 { .. }, _) => {}
                (Self::V2(_), words) => {
                    let of = |key: &str| words.iter().find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
                    sum.read += of("rbytes=").unwrap_or(0);
                    sum.written += of("wbytes=").unwrap_or(0);
                }
            }
        }
        Some(sum)
    }

    fn cpu_file(&self) -> PathBuf {
        match self {
            Self::V1 { cpu, .. } => cpu.join("cpuacct.usage"),
            Self::V2(group) => group.join("cpu.stat"),
        }
    }

    /// Seconds.
    fn parse_cpu(&self, text: &str) -> Option<f64> {
        match self {
            Self::V1 { .. } => Some(text.trim().parse::<u64>().ok()? as f64 / 1e9),
            Self::V2(_) => Some(field(text, "usage_usec")? as f64 / 1e6),
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        let (group, usage, cache) = match self {
            Self::V1 { memory, .. } => (memory, "memory.usage_in_bytes", "total_inactive_file"),
            Self::V2(group) => (group, "memory.current", "inactive_file"),
        };
        let used = number(&group.join(usage))?;
        let stat = fs::read_to_string(group.join("memory.stat")).ok();
        Some(used.saturating_sub(stat.and_then(|stat| field(&stat, cache)).unwrap_or(0)))
    }
}

/// A cgroup whose files were found, and opened where that saves time.
pub struct Meter {
    group: Cgroup,
    cpu: File,
}

impl Meter {
    /// `None` if the process is gone.
    pub fn of_process(pid: i32) -> Option<Self> {
        let group = Cgroup::of_process(pid)?;
        let cpu = File::open(group.cpu_file()).ok()?;
        Some(Self { group, cpu })
    }

    /// Since the cgroup was created; `None` if it is gone.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let mut buffer = [0; 1024];
        let length = self.cpu.read_at(&mut buffer, 0).ok()?;
        self.group.parse_cpu(std::str::from_utf8(&buffer[..length]).ok()?)
    }

    /// Without reclaimable file cache; `None` if the cgroup is gone.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.group.memory_bytes()
    }
}

/// The cgroup whose device rules apply to a process; `None` if the process is gone.
pub fn of_devices(pid: i32) -> Option<PathBuf> {
    directory_of(pid, "devices")
}

/// The cgroup to which a process's memory is charged; `None` if the process is gone.
pub fn of_memory(pid: i32) -> Option<PathBuf> {
    directory_of(pid, "memory")
}

fn directory_of(pid: i32, controller: &str) -> Option<PathBuf> {
    let text = memberships_of(pid)?;
    let directories = directories(&text);
    directories.get(controller).or_else(|| directories.get("")).cloned()
}

/// The directory of each controller; version 2 is under the empty name.
fn directories(text: &str) -> HashMap<&str, PathBuf> {
    let of_each = memberships(text).flat_map(|line| line.controllers.split(',').map(move |one| (one, line)));
    of_each.map(|(controller, line)| (controller, line.directory(controller))).collect()
}

/// `/proc/PID/cgroup`; `None` if the process is gone. Odd bytes in a path are replaced: they must not hide a process.
pub fn memberships_of(pid: i32) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cgroup")).ok()?).into_owned())
}

/// The lines of `/proc/PID/cgroup`; one of another form is left out.
pub fn memberships(text: &str) -> impl Iterator<Item = Membership<'_>> {
    text.lines().filter_map(Membership::parse)
}

/// A line of `/proc/PID/cgroup` (cgroups(7)): the cgroup of a process in one hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership<'a> {
    /// `0` on version 2.
    pub hierarchy: &'a str,
    /// With commas between them, and empty on version 2.
    pub controllers: &'a str,
    pub path: &'a str,
}

impl<'a> Membership<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        Some(Self { hierarchy: parts.next()?, controllers: parts.next()?, path: parts.next()? })
    }

    /// Version 2 has the empty controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|one| one == controller)
    }

    /// Where its files are, below the mount of this controller; the empty one is version 2's.
    pub fn directory(&self, controller: &str) -> PathBuf {
        Path::new(ROOT).join(controller).join(self.path.trim_start_matches('/'))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(key, _)| *key == name)?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_under_both_versions_and_drivers() {
        let v1 = "9:pids:/docker/ab\n8:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/docker/ab\n";
        assert_eq!(
            Cgroup::parse(v1),
            Some(Cgroup::V1 {
                cpu: "/sys/fs/cgroup/cpuacct/docker/ab".into(),
                memory: "/sys/fs/cgroup/memory/docker/ab".into(),
                pids: "/sys/fs/cgroup/pids/docker/ab".into(),
                disk: None,
            })
        );
        let v2 = "0::/system.slice/docker-ab.scope\n";
        assert_eq!(Cgroup::parse(v2), Some(Cgroup::V2("/sys/fs/cgroup/system.slice/docker-ab.scope".into())));
        assert_eq!(Cgroup::of_process(0), None);
    }

    #[test]
    fn each_line_is_a_membership() {
        let text = "3:cpu,cpuacct:/docker/a:b\n1:name=systemd:/x\n0::/y\nodd\n4:memory\n\n";
        let lines: Vec<Membership> = memberships(text).collect();
        assert_eq!(lines[0], Membership { hierarchy: "3", controllers: "cpu,cpuacct", path: "/docker/a:b" });
        assert!(lines[0].has("cpuacct") && !lines[0].has("") && !lines[0].has("cpu,cpuacct"));
        assert_eq!(lines[0].directory("cpu"), Path::new("/sys/fs/cgroup/cpu/docker/a:b"));
        assert!(lines[1].has("name=systemd") && !lines[1].has("systemd"));
        assert!(lines[2].has("") && !lines[2].has("memory") && lines[2].hierarchy == "0");
        assert_eq!(lines[2].directory(""), Path::new("/sys/fs/cgroup/y"));
        assert_eq!(lines.len(), 3);
        let up = Membership { hierarchy: "0", controllers: "", path: "//y" };
        assert_eq!(up.directory(""), Path::new("/sys/fs/cgroup/y"), "never outside of it");
    }

    fn v1() -> Cgroup {
        Cgroup::V1 { cpu: PathBuf::new(), memory: PathBuf::new(), pids: PathBuf::new(), disk: None }
    }

    #[test]
    fn disk_bytes_are_parsed_under_both_versions() {
        let old = "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 512\n8:0 Total 4608\n8:16 Read 1\n8:16 Write 2\nTotal 4611\n";
        let new =
            "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=9 dios=1\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n7:0\n";
        let sum = Some(Disk { read: 4097, written: 514 });
        assert_eq!((v1().parse_disk(old), Cgroup::V2(PathBuf::new()).parse_disk(new)), (sum, sum));
        assert_eq!(v1().parse_disk("Total 0\n"), None);
        assert_eq!(Cgroup::V2(PathBuf::new()).parse_disk(""), Some(Disk::default()));
    }

    #[test]
    fn cpu_time_is_parsed_under_both_versions() {
        let v1 = v1();
        assert_eq!(v1.parse_cpu("1500000000\n"), Some(1.5));
        assert_eq!(Cgroup::V2(PathBuf::new()).parse_cpu("usage_usec 2500000\nuser_usec 1\n"), Some(2.5));
        assert_eq!(v1.parse_cpu(""), None);
    }
}
