//! What CRIU mounts and creates on the host for a restore, and leaves there when it is killed; CRIU calls the
//! directories *yards*.
//!
//! In one of them, in the engine's directory for the container, all cgroups of the host are mounted. The engine would
//! walk through them when it removes its directory.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use nix::mount::{MntFlags, umount2};

use crate::{
    host::{mountinfo, process},
    model::ids::ContainerId,
};

/// criu/cgroup.c
const CGROUPS: &str = ".criu.cgyard.";

/// criu/mount.c, below /tmp.
const MOUNTS: &str = ".criu.mntns.";

/// A mount yard that is this old and mounted nowhere is abandoned.
const OLD: Duration = Duration::from_secs(600);

/// Unmounts the cgroups in the engine's directory for this container.
pub fn unmount(container: &ContainerId) {
    let mounts = mountinfo::read("self").unwrap_or_default();
    for yard in of_container(&mounts, container) {
        // With all that is mounted below it.
        if let Err(error) = umount2(&yard, MntFlags::MNT_DETACH) {
            tracing::warn!(%error, yard = %yard.display(), "could not unmount cgroups that CRIU mounted");
            continue;
        }
        // Only if it is empty. The engine renames a directory that it removes, with a dot, and does not try again.
        let _ = fs::remove_dir(&yard);
        if let Some(directory) = yard.parent()
            && directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
        {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn of_container(mounts: &str, container: &ContainerId) -> Vec<PathBuf> {
    let discarded = format!(".{}", container.as_str());
    let is_its = |path: &Path| {
        let is_yard = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CGROUPS));
        let mut parts = path.components();
        is_yard
            && parts.any(|part| {
                matches!(part, Component::Normal(name) if name == container.as_str() || name == discarded.as_str())
            })
    };
    mountinfo::parse(mounts).map(|mount| mount.path()).filter(|path| is_its(path)).collect()
}

/// Removes directories that are empty, old, and belong to no restore in progress, of any daemon.
pub fn sweep() {
    let is_old = |entry: &fs::DirEntry| {
        let changed = entry.metadata().and_then(|data| data.modified()).ok();
        changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > OLD)
    };
    let is_one = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(MOUNTS) && is_old(entry);
    let found: Vec<PathBuf> = fs::read_dir("/tmp")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(is_one)
        .map(|entry| entry.path())
        .collect();
    if found.is_empty() {
        return;
    }
    // A directory that is mounted in a pod is in use though the host sees it empty.
    let is_used = process::list().into_iter().any(|pid| mountinfo::read(pid).is_ok_and(|text| text.contains(MOUNTS)));
    for directory in found.iter().filter(|_| !is_used) {
        let _ = fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_yard_of_a_container_is_found_before_and_after_the_engine_discards_it() {
        let (ours, other) = ("a".repeat(64), "b".repeat(64));
        let line = |path: &str| format!("169 42 0:109 / /var/lib/docker/moby/{path} rw,relatime - tmpfs none rw\n");
        let mounts = [
            line(&format!("{ours}/.criu.cgyard.c8CHLl")),
            line(&format!(".{ours}/.criu.cgyard.R3b0xT")),
            line(&format!(".{ours}/.criu.cgyard.R3b0xT/memory")),
            line(&format!("{ours}/rootfs")),
            line(&format!(".{other}/.criu.cgyard.KU3gC0")),
        ];
        let found = of_container(&mounts.concat(), &ours.parse().unwrap());
        let path = |path: String| Path::new("/var/lib/docker/moby").join(path);
        assert_eq!(found, [path(format!("{ours}/.criu.cgyard.c8CHLl")), path(format!(".{ours}/.criu.cgyard.R3b0xT"))]);
    }
}
