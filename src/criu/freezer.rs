//! The freezer of a container's cgroup, beside Docker, to repair what a killed CRIU leaves.
//!
//! CRIU holds all programs of a paused pod by ptrace, thaws their cgroup, and freezes it again before it detaches. A
//! killed CRIU does not, and the kernel lets its programs run at once: with TCP sockets that CRIU has put into repair
//! mode, on which each send fails, so that programs take them for broken. So CRIU is watched while it works, and its
//! programs are frozen before its end is reported to anyone.

use std::{convert::Infallible, fs, path::PathBuf};

use futures_util::future;

use crate::host::{
    cgroup::{self, Membership},
    pidfd::PidFd,
    process::{self, Stat},
};

/// Freezes the cgroup of a container that Docker takes for paused: a killed CRIU leaves it thawed, and then Docker
/// cannot unpause it.
pub fn freeze(pid: i32) {
    write(pid, "FROZEN", "1");
}

/// Thaws the cgroup of a container that Docker takes for running: someone else has unpaused it meanwhile.
pub fn thaw(pid: i32) {
    write(pid, "THAWED", "0");
}

/// Freezes the container of this process as soon as CRIU, a child of this runc, has ended. Never returns: the caller
/// waits for runc's end.
pub async fn freeze_after_criu(runc: i32, pid: i32) -> Infallible {
    // CRIU's own children are helpers, which come and go.
    let is_its = |child: &i32| Stat::read(*child).is_some_and(|stat| stat.parent == runc);
    let lives: Vec<PidFd> = process::list().into_iter().filter(is_its).filter_map(PidFd::of).collect();
    let file = files(pid);
    let ends = lives.iter().map(|life| Box::pin(life.wait()));
    if !lives.is_empty() {
        future::select_all(ends).await;
        write_into(file, "FROZEN", "1");
    }
    future::pending().await
}

fn write(pid: i32, version_1: &str, version_2: &str) {
    write_into(files(pid), version_1, version_2);
}

fn write_into(files: Vec<(PathBuf, Version)>, version_1: &str, version_2: &str) {
    for (file, version) in files {
        let value = match version {
            Version::One => version_1,
            Version::Two => version_2,
        };
        if let Err(error) = fs::write(&file, value) {
            tracing::warn!(%error, file = %file.display(), value, "could not write to the freezer of a pod");
        }
    }
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

/// The files that freeze the processes in this one's cgroup.
fn files(pid: i32) -> Vec<(PathBuf, Version)> {
    let text = cgroup::memberships_of(pid).unwrap_or_default();
    let file = |line: Membership<'_>| match line.controllers {
        "freezer" => Some((line.directory("freezer").join("freezer.state"), Version::One)),
        "" => Some((line.directory("").join("cgroup.freeze"), Version::Two)),
        _ => None,
    };
    cgroup::memberships(&text).filter_map(file).filter(|(file, _)| file.exists()).collect()
}
