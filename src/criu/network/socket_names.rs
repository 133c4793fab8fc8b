//! Unix sockets whose name in the file system is not the one they were bound under: bound under a temporary name, then
//! linked or renamed to the one that is known, as supervisord does. CRIU binds the first name again and removes it, so
//! the dump's images get the current name ([`crate::criu::patches`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::{errno::Errno, libc};

use super::sockets;
use crate::host::{pidfd, process};

/// The longest name that a socket can be bound under, bytes: `sun_path` (unix(7)) less the terminating zero.
pub const LONGEST: usize = 107;
/// linux/un.h: opens the file that a socket is bound to.
const SIOCUNIXFILE: libc::c_ulong = 0x89E0;

/// Identifies a file whatever its name: device and inode.
type FileId = (u64, u64);

/// The current names, by the inode of the socket, as the pod sees them. `pids` are the processes of the pod. A name is
/// searched in the directory of the first name; what is not there, in the writable layer if that is given, which takes
/// time proportional to its number of files.
pub fn current(init: i32, upper: Option<&Path>, pids: &[i32]) -> BTreeMap<u64, String> {
    let table = process::read(format!("/proc/{init}/net/unix")).unwrap_or_default();
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let is_gone = |path: &str| fs::symlink_metadata(inside(Path::new(path))).is_err();
    // Most have the name that they were bound under: then no file needs to be checked.
    let gone: HashMap<u64, &str> = bound(&table).filter(|(_, path)| is_gone(path)).collect();
    if gone.is_empty() {
        return BTreeMap::new();
    }
    let held = pids.iter().flat_map(|&pid| process::descriptors(pid).map(move |held| (pid, held)));
    let files = held.filter_map(|(pid, (number, target))| {
        let inode = sockets::inode(&target).filter(|inode| gone.contains_key(inode))?;
        let socket = pidfd::descriptor(pid, number.parse().ok()?).ok()?;
        Some((inode, id_of(&file_of(&socket).ok()?.metadata().ok()?)))
    });
    let mut files: HashMap<u64, FileId> = files.collect();
    let mut found = BTreeMap::new();
    let mut look_among = |names: Vec<PathBuf>| {
        let named =
            names.into_iter().filter_map(|name| Some((id_of(&fs::symlink_metadata(inside(&name)).ok()?), name)));
        let named: HashMap<FileId, PathBuf> = named.collect();
        files.retain(|&inode, file| {
            let name = named.get(file).and_then(|name| name.to_str());
            found.extend(name.map(|name| (inode, name.to_owned())));
            name.is_none()
        });
        files.is_empty()
    };
    let directories: HashSet<&Path> = gone.values().filter_map(|path| Path::new(path).parent()).collect();
    let beside = directories.into_iter().flat_map(|directory| sockets_in(directory, &inside(directory)));
    if !look_among(beside.collect())
        && let Some(upper) = upper
    {
        let mut names = Vec::new();
        sockets_below(upper, &mut names);
        look_among(names);
    }
    found
}

/// The sentences for those that cannot get their name again.
pub fn losses(current: &BTreeMap<u64, String>) -> Vec<String> {
    let told = |name: &String| {
        format!(
            "the socket {name} was renamed after it was bound, and no socket can be bound under a name longer than {LONGEST} bytes; after a restore its program is not reachable there: restart that program"
        )
    };
    current.values().filter(|name| name.len() > LONGEST).map(told).collect()
}

/// Inodes of sockets, and the absolute paths that they were bound under: the last two columns, where both exist.
fn bound(table: &str) -> impl Iterator<Item = (u64, &str)> {
    table.lines().skip(1).filter_map(|line| {
        let at = line.find(" /")?;
        Some((line[..at].rsplit(' ').next()?.parse().ok()?, &line[at + 1..]))
    })
}

/// The file that a socket is bound to, which may have no name any more.
fn file_of(socket: &OwnedFd) -> Result<File, Errno> {
    // SAFETY: the call takes two numbers and touches no memory.
    let file = Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE) })?;
    // SAFETY: the kernel has just created it for this caller, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(file) })
}

fn id_of(file: &fs::Metadata) -> FileId {
    (file.dev(), file.ino())
}

/// Sockets in a writable layer, named as in the pod.
fn sockets_below(upper: &Path, found: &mut Vec<PathBuf>) {
    let mut left = vec![upper.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_socket() => {
                    let path = entry.path();
                    found.push(Path::new("/").join(path.strip_prefix(upper).unwrap_or(&path)));
                }
                _ => {}
            }
        }
    }
}

/// Sockets in a directory of the pod; `there` is its path on the host.
fn sockets_in(directory: &Path, there: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(there).into_iter().flatten().filter_map(Result::ok);
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    sockets.map(|entry| directory.join(entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_kernels_table_lists_bound_names() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 101 /root/a b.sock\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 102\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 103 @/abstract\n";
        assert_eq!(bound(table).collect::<Vec<_>>(), [(101, "/root/a b.sock")]);
    }

    #[test]
    fn the_current_name_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str| directory.path().join(name);
        let bind = |name: &str| UnixListener::bind(of(name)).unwrap();
        let (linked, renamed, plain, gone) = (bind("first"), bind("second"), bind("plain"), bind("gone"));
        fs::hard_link(of("first"), of("linked")).unwrap();
        fs::remove_file(of("first")).unwrap();
        fs::rename(of("second"), of("renamed")).unwrap();
        fs::remove_file(of("gone")).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let found = current(me, None, &[me]);
        let name = |socket: &UnixListener| {
            let target = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            found.get(&sockets::inode(target.to_str().unwrap()).unwrap()).cloned()
        };
        let expected = |what: &str| Some(of(what).to_str().unwrap().to_owned());
        assert_eq!((name(&linked), name(&renamed)), (expected("linked"), expected("renamed")));
        assert_eq!((name(&plain), name(&gone)), (None, None));
    }

    #[test]
    fn only_names_that_are_too_long_are_reported() {
        let long = format!("/{}", "x".repeat(LONGEST));
        let current = BTreeMap::from([(1, long.clone()), (2, long[..LONGEST].to_owned())]);
        let told = losses(&current);
        assert!(told.len() == 1 && told[0].contains(&long) && told[0].contains("107 bytes"), "{told:?}");
    }
}
