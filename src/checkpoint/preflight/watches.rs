//! Files that programs watch by inotify. The kernel shows their device and inode, not their name; CRIU must find a
//! name. On volumes and tmpfs it opens the inode itself. On the pod's own file system, an overlay, that does not work:
//! it searches the directories of `watch_paths`, and so does this, before anything is touched.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::host::mountinfo::{self, Mount};

/// Directories that CRIU always searches (criu/irmap.c, `hints`).
const ALWAYS: [&str; 6] = [
    "/etc",
    "/var/spool",
    "/var/log",
    "/usr/share/dbus-1/system-services",
    "/var/lib/polkit-1/localauthority",
    "/usr/share/polkit-1/actions",
];
/// After this many files the search is left to CRIU.
const MOST: usize = 1_000_000;

/// A watched file: the kernel's number of its file system, and its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watched {
    device: u64,
    inode: u64,
}

/// What an inotify descriptor watches, by its lines in /proc/PID/fdinfo: `inotify wd:1 ino:9e0733 sdev:3e mask:…`, in
/// hex.
pub fn watched(fdinfo: &str) -> Vec<Watched> {
    let lines = fdinfo.lines().filter(|line| line.starts_with("inotify "));
    let watches = lines.filter_map(|line| {
        let value = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
            u64::from_str_radix(word, 16).ok()
        };
        Some(Watched { device: value("sdev:")?, inode: value("ino:")? })
    });
    watches.collect()
}

/// The watched files that CRIU would not find. `pid` is the pod's first process.
pub fn not_found(pid: i32, watched: HashSet<Watched>, watch_paths: &[PathBuf]) -> HashSet<Watched> {
    let mountinfo = mountinfo::read(pid).unwrap_or_default();
    let openable = openable(&mountinfo, |target| fs::metadata(inside(pid, target)).is_ok_and(|data| data.is_dir()));
    let mut sought: HashSet<Watched> =
        watched.into_iter().filter(|watched| !openable.contains(&watched.device)).collect();
    let mut directories: Vec<PathBuf> =
        watch_paths.iter().map(PathBuf::as_path).chain(ALWAYS.map(Path::new)).map(|path| inside(pid, path)).collect();
    if let Ok(root) = fs::metadata(inside(pid, Path::new("/"))) {
        sought.remove(&watched_by(&root));
    }
    let mut looked_at = 0;
    while let Some(path) = directories.pop()
        && !sought.is_empty()
    {
        looked_at += 1;
        if looked_at > MOST {
            return HashSet::new();
        }
        let Ok(data) = fs::symlink_metadata(&path) else { continue };
        sought.remove(&watched_by(&data));
        if data.is_dir() {
            directories.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    sought
}

fn inside(pid: i32, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

fn watched_by(data: &fs::Metadata) -> Watched {
    let device = data.dev();
    Watched { device: mountinfo::device_number(nix::libc::major(device), nix::libc::minor(device)), inode: data.ino() }
}

/// The file systems whose files can be opened by their inode: all but overlays and /proc, where a directory of them is
/// mounted.
fn openable(mountinfo: &str, is_directory: impl Fn(&Path) -> bool) -> HashSet<u64> {
    let is_openable = |mount: &Mount<'_>| !["overlay", "proc"].contains(&mount.kind) && is_directory(&mount.path());
    mountinfo::parse(mountinfo).filter(is_openable).map(|mount| mount.device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read_from_fdinfo() {
        let fdinfo = "pos:\t0\nflags:\t02000000\ninotify wd:2 ino:9e0733 sdev:3e mask:100 ignored_mask:0 fhandle-bytes:8\n\
                      inotify wd:1 ino:2 sdev:fe00000 mask:2\n";
        assert_eq!(
            watched(fdinfo),
            [Watched { device: 0x3e, inode: 0x9e0733 }, Watched { device: 254 << 20, inode: 2 }]
        );
    }

    #[test]
    fn files_of_volumes_are_opened_by_their_inode_and_those_of_the_overlay_are_not() {
        let mounts = "111 62 0:50 / / rw,relatime master:3 - overlay overlay rw\n\
                      127 113 0:58 / /dev/shm rw,nosuid - tmpfs shm rw\n\
                      128 111 254:0 /a/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda rw\n\
                      129 111 254:1 /data /data rw - ext4 /dev/vdb rw\n";
        let found = openable(mounts, |target| target != Path::new("/etc/resolv.conf"));
        assert_eq!(found, HashSet::from([58, (254 << 20) + 1]));
    }
}
