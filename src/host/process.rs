//! Processes. A PID alone identifies nothing, since it is reused; a PID with its start time does: [`ProcessId`].

use std::{fs, io::Read, path::Path, sync::OnceLock};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

use super::cgroup;
use crate::model::ids::{ContainerId, ProcessId};

/// Longest command line that is kept, bytes.
const MAX_COMMAND: u64 = 4096;

/// What `/proc/PID/stat` contains (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub id: ProcessId,
    pub parent: i32,
    pub session: i32,
    /// Bytes.
    pub resident: u64,
}

impl Stat {
    /// `None` when there is no such process.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(pid, &read(format!("/proc/{pid}/stat"))?)
    }

    /// Parses the file's one line.
    pub fn parse(pid: i32, stat: &str) -> Option<Self> {
        // The name, in parentheses, may contain anything; what follows the last parenthesis starts with field 3.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            id: ProcessId { pid, started: field(22)? },
            parent: i32::try_from(field(4)?).ok()?,
            session: i32::try_from(field(6)?).ok()?,
            resident: field(24)? * page_size(),
        })
    }
}

/// Reads a file of /proc. A program chooses its own name and those of its sockets, as arbitrary bytes: invalid UTF-8
/// must not hide a process.
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

/// The letter of its state, as `ps` shows it.
pub fn state(pid: i32) -> Option<char> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

/// PIDs of all processes.
pub fn list() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// A process's open descriptors: number and link target.
pub fn descriptors(pid: i32) -> impl Iterator<Item = (String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
    })
}

/// Whether it has a file below this directory open, even a deleted one.
pub fn has_open_below(pid: i32, directory: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.starts_with(directory)))
}

/// The container that a process lives in; the outermost if they are nested.
pub fn container_of(pid: i32) -> Option<ContainerId> {
    find_container(&cgroup::memberships_of(pid)?)
}

/// Parses `/proc/PID/cgroup`: `/docker/ID` with cgroupfs, `/system.slice/docker-ID.scope` with systemd, on version 1
/// and 2.
fn find_container(cgroup: &str) -> Option<ContainerId> {
    cgroup::memberships(cgroup).flat_map(|line| line.path.split('/')).find_map(|part| {
        let id = part.strip_suffix(".scope").map_or(part, |scope| scope.rsplit('-').next().unwrap_or(scope));
        id.parse().ok()
    })
}

/// The PID that the process has inside its container: the innermost of its PID namespaces.
pub fn pid_inside(pid: i32) -> Option<i32> {
    let status = read(format!("/proc/{pid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

/// The words of the command line, joined by spaces. This may block for long on a process whose memory is locked: call
/// it only where that does no harm.
pub fn command_line(pid: i32) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.take(MAX_COMMAND).read_to_end(&mut bytes).ok()?;
    let words: Vec<_> = bytes.split(|&b| b == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Seconds since boot, as start times are counted.
pub fn uptime() -> f64 {
    let since_boot = since_boot();
    since_boot.tv_sec() as f64 + since_boot.tv_nsec() as f64 / 1e9
}

/// Ticks from boot to now, truncated as the kernel truncates [`ProcessId::started`].
pub fn ticks_now() -> u64 {
    let since_boot = since_boot();
    let ticks = ticks_per_second() as i64;
    (since_boot.tv_sec() * ticks + since_boot.tv_nsec() * ticks / 1_000_000_000).unsigned_abs()
}

/// The clock of the kernel's start times.
fn since_boot() -> TimeSpec {
    clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or(TimeSpec::new(0, 0))
}

/// Bytes of memory, from `/proc/PID/statm` (proc_pid_statm(5)): its second number, in pages.
pub fn parse_statm(statm: &[u8]) -> Option<u64> {
    let resident = std::str::from_utf8(statm).ok()?.split_whitespace().nth(1)?;
    Some(resident.parse::<u64>().ok()? * page_size())
}

/// Identifies the current boot: start times and PIDs mean nothing across boots.
pub fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned())
}

/// Clock ticks of start times per second.
pub fn ticks_per_second() -> f64 {
    static TICKS: OnceLock<f64> = OnceLock::new();
    *TICKS.get_or_init(|| match nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) if ticks > 0 => ticks as f64,
        _ => 100.0,
    })
}

fn page_size() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
        Ok(Some(size)) if size > 0 => size.unsigned_abs(),
        _ => 4096,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_can_be_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::read(pid).unwrap();
        assert_eq!(stat.session, nix::unistd::getsid(None).unwrap().as_raw());
        assert!(stat.id.started > 0 && stat.resident > 0);
        assert!(stat.id.started as f64 / ticks_per_second() <= uptime());
        assert!(list().contains(&pid));
        assert!(command_line(pid).is_some());
        assert_eq!(pid_inside(pid), Some(pid));
        assert!(stat.id.started <= ticks_now());
        assert!(parse_statm(&fs::read(format!("/proc/{pid}/statm")).unwrap()).unwrap() > 0);
        assert_eq!(Stat::read(-1), None);
    }

    /// prctl(2): a name is any 15 bytes.
    #[test]
    fn a_name_of_odd_bytes_hides_no_process() {
        let own = || {
            // SAFETY: the name ends with a NUL; the call returns the calling thread's number.
            let thread = unsafe {
                libc::prctl(libc::PR_SET_NAME, c"\xff) Z\n\x1b[2J".as_ptr());
                libc::gettid()
            };
            (thread, Stat::read(thread), state(thread), pid_inside(thread))
        };
        let (thread, stat, state, inside) = std::thread::spawn(own).join().unwrap();
        assert_eq!(stat.map(|stat| stat.id.pid), Some(thread));
        assert_eq!((state, inside), (Some('R'), Some(thread)));
    }

    #[test]
    fn containers_are_found_under_both_versions_and_drivers() {
        let id = "ab".repeat(32);
        let other = "cd".repeat(32);
        for cgroup in [
            format!("9:pids:/docker/{id}\n0::/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/docker/{id}/docker/{other}\n"),
        ] {
            assert_eq!(find_container(&cgroup).unwrap().as_str(), id, "{cgroup}");
        }
        for cgroup in ["0::/user.slice/user-0.slice/session-1.scope\n", "0::/\n", ""] {
            assert_eq!(find_container(cgroup), None, "{cgroup}");
        }
    }
}
