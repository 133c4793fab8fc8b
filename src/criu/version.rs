//! Whether this CRIU can save pods on this kernel.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{command::ask, error::CriuError};

/// From kernel 6.16 on, CRIU before [`NEEDED_THERE`] dumps no process with an INET socket.
const NEW_KERNEL: (u32, u32) = (6, 16);

const NEEDED_THERE: (u32, u32) = (4, 2);

/// Older ones abort where runc's requests and our scripts meet (`BUG at criu/action-scripts.c`, CRIU's pull request
/// 2217).
const OLDEST: (u32, u32) = (3, 19);

/// From here on CRIU supports `network-lock skip` for certain; an unknown option ends a dump.
const SKIPS_LOCK: (u32, u32) = (4, 0);

/// The kernel lets only processes without a seccomp filter suspend the filters of others, which all pods have
/// (kernel/ptrace.c).
pub const FILTERED: &str = "the daemon runs under a seccomp filter, and the kernel lets nobody save programs from there; start it without: in a systemd unit take out SystemCallFilter=, LockPersonality=, RestrictRealtime= and the other settings that systemd.exec(5) says imply one, or run install.sh again";

/// A CRIU that was found good is not checked again for this long.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// CRIU's version, if it can save pods on this kernel.
pub async fn criu_version() -> Result<String, CriuError> {
    static GOOD: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    let lock = || GOOD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((at, version)) = &*lock()
        && at.elapsed() < GOOD_FOR
    {
        return Ok(version.clone());
    }
    let text = ask("criu", &["--version"]).await.map_err(|why| {
        CriuError::Unavailable(format!(
            "CRIU does not run on this host ({why}); install CRIU 4.2 or newer, see `pody doctor`"
        ))
    })?;
    let version = text.lines().next().unwrap_or_default().trim_start_matches("Version:").trim().to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let why_not = too_old(&version, kernel.trim()).or_else(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        is_filtered(&status).then(|| FILTERED.to_owned())
    });
    if let Some(why) = why_not {
        return Err(CriuError::Unavailable(why));
    }
    ask("criu", &["check"])
        .await
        .map_err(|why| CriuError::Unavailable(format!("`criu check` fails on this host: {why}; see `pody doctor`")))?;
    *lock() = Some((Instant::now(), version.clone()));
    Ok(version)
}

/// Why this CRIU cannot save pods on this kernel, if that is so.
pub fn too_old(version: &str, kernel: &str) -> Option<String> {
    let found = numbers(version)?;
    if found < OLDEST {
        return Some(format!("CRIU {version} is too old; install CRIU 4.2 or newer"));
    }
    (numbers(kernel)? >= NEW_KERNEL && found < NEEDED_THERE)
        .then(|| format!("CRIU {version} cannot save network sockets on kernel {kernel}; install CRIU 4.2 or newer"))
}

/// Whether a process with this status is under seccomp (proc_pid_status(5)).
pub fn is_filtered(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_some_and(|mode| mode.trim() != "0")
}

/// Whether this CRIU has an option to leave the network alone.
pub fn knows_to_skip_lock(version: &str) -> bool {
    numbers(version).is_some_and(|found| found >= SKIPS_LOCK)
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    Some((parts.next()?.parse().ok()?, parts.next().and_then(|part| part.parse().ok()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_kernels_need_a_new_criu() {
        assert!(too_old("4.1.1", "6.16.0").unwrap().contains("network sockets on kernel 6.16.0"));
        assert!(too_old("3.17.1", "6.1.0-18-amd64").is_some());
        for (criu, kernel) in [("4.2", "6.18.44"), ("4.2.1", "6.18.44-fc"), ("3.19", "6.1.0-18-amd64")] {
            assert_eq!(too_old(criu, kernel), None, "{criu} on {kernel}");
        }
    }
}
