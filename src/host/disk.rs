//! Disks: free space; directories measured, removed and synced.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, RenameFlags, openat, renameat2},
    sys::{
        stat::Mode,
        statvfs::{FsFlags, statvfs},
    },
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::model::quantities::ByteSize;

/// Why something on a disk failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum DiskError {
    #[error(
        "the disk is full: {path} has {} left; delete checkpoints with `pody checkpoint rm ID`, or free space there",
        ByteSize(*.free)
    )]
    #[strum(serialize = "disk_full")]
    Full { path: PathBuf, free: u64 },
    #[error("{0} is on a disk that is mounted read-only; an admin has to check that disk and mount it writable")]
    #[strum(serialize = "disk_read_only")]
    ReadOnly(PathBuf),
    #[error("{what} {path} failed: {source}")]
    #[strum(serialize = "disk_failed")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl DiskError {
    /// An input or output error with what was done to which file.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full { free: left(&path), path },
            Some(libc::EROFS) => Self::ReadOnly(path),
            _ => Self::Io { what, path, source },
        }
    }
}

/// Bytes that root may still write there, including the space reserved for root.
pub fn left(path: &Path) -> u64 {
    let there = existing(path).unwrap_or(Path::new("/"));
    statvfs(there).map_or(u64::MAX, |disk| disk.blocks_free() * disk.fragment_size())
}

/// Bytes free on the disk of a path, or of the nearest existing directory above it.
pub fn free(path: &Path) -> u64 {
    available(existing(path).unwrap_or(Path::new("/"))).unwrap_or(0)
}

/// Bytes free on the disk of a path that is there; `None` where the system does not say.
pub fn available(path: &Path) -> Option<u64> {
    statvfs(path).map(|disk| disk.blocks_available() * disk.fragment_size()).ok()
}

/// Whether no program in it can be run; `None` where the system does not say.
pub fn is_noexec(path: &Path) -> Option<bool> {
    statvfs(path).map(|disk| disk.flags().contains(FsFlags::ST_NOEXEC)).ok()
}

/// The path, or the nearest directory above it that is there.
pub fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

/// Removes a directory with everything in it, or a file. Succeeds if it does not exist. A member may have made it as
/// deep as the disk allows: directories are moved up into the top one before they are emptied, so that neither the stack
/// nor the open files nor the length of a path grow with the depth. No link is followed.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    let failed = |error: io::Error| DiskError::io("removing", path)(error);
    let top = match open_directory(None, path) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => return fs::remove_file(path).map_err(failed),
        Err(error) => return Err(failed(error.into())),
    };
    empty(&top).map_err(|error| failed(error.into()))?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// A directory, by its name in another one; not what a link with that name leads to.
fn open_directory(parent: Option<&OwnedFd>, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match parent {
        Some(parent) => openat(parent, name, flags, Mode::empty()),
        None => nix::fcntl::open(name, flags, Mode::empty()),
    }
}

/// Empties a directory. Those in it are emptied one after the other, and what they contain is moved up.
fn empty(top: &OwnedFd) -> Result<(), Errno> {
    let (mut moved, mut left) = (0_u64, names(top)?);
    while let Some(name) = left.pop() {
        let inner = match open_directory(Some(top), &name) {
            Ok(inner) => inner,
            Err(Errno::ENOENT) => continue,
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                unlink(top, &name, UnlinkatFlags::NoRemoveDir)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        for child in names(&inner)? {
            match unlink(&inner, &child, UnlinkatFlags::NoRemoveDir) {
                Ok(()) => {}
                Err(Errno::EISDIR | Errno::EPERM) => loop {
                    moved += 1;
                    let to = PathBuf::from(format!(".removed-{moved}"));
                    match renameat2(&inner, &child, top, &to, RenameFlags::RENAME_NOREPLACE) {
                        Ok(()) => {
                            left.push(to);
                            break;
                        }
                        Err(Errno::EEXIST) => {}
                        Err(Errno::ENOENT) => break,
                        Err(error) => return Err(error),
                    }
                },
                Err(error) => return Err(error),
            }
        }
        unlink(top, &name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// What is already gone is removed.
fn unlink(parent: &OwnedFd, name: &Path, flags: UnlinkatFlags) -> Result<(), Errno> {
    match unlinkat(parent, name, flags) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The entries of a directory.
fn names(directory: &OwnedFd) -> Result<Vec<PathBuf>, Errno> {
    let mut entries = Dir::openat(directory, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let names = entries.iter().map(|entry| Ok(PathBuf::from(OsStr::from_bytes(entry?.file_name().to_bytes()))));
    names.filter(|name| !matches!(name, Ok(name) if name == Path::new(".") || name == Path::new(".."))).collect()
}

pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Files below a directory, by their paths from it, in order. Other entries are left out.
pub fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path().strip_prefix(directory).unwrap_or(&entry.path()).to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes in files below a directory, as far as it can be read: it may change meanwhile.
pub fn size_of(directory: &Path) -> u64 {
    measure(directory).bytes
}

/// The content below a directory.
#[derive(Debug, Default, PartialEq)]
pub struct Measure {
    /// In files, as far as they can be read: they may change meanwhile.
    pub bytes: u64,
    /// A path, from the directory, that is too long for one system call: programs create such paths directory by
    /// directory.
    pub too_long: Option<PathBuf>,
}

/// Reads everything below a directory.
pub fn measure(directory: &Path) -> Measure {
    /// The longest path that the kernel accepts (limits.h, PATH_MAX), less the terminating zero and the `./` that tar
    /// puts before it.
    const LONGEST: usize = 4096 - 3;
    let below = |path: &Path| path.strip_prefix(directory).unwrap_or(path).to_owned();
    let (mut found, mut left) = (Measure::default(), vec![directory.to_owned()]);
    while let Some(next) = left.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => {
                found.too_long.get_or_insert_with(|| below(&next));
                continue;
            }
            Err(_) => continue,
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path.as_os_str().len() > LONGEST && below(&path).as_os_str().len() > LONGEST {
                found.too_long.get_or_insert_with(|| below(&path));
            }
            match entry.metadata() {
                Ok(data) if data.is_dir() => left.push(path),
                // A sparse file takes less space than its length.
                Ok(data) if data.is_file() => {
                    found.bytes += data.len().min(std::os::unix::fs::MetadataExt::blocks(&data) * 512);
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_removed_and_nothing_that_its_links_lead_to() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, outside) = (folder.path().join("tree"), folder.path().join("outside"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join(".removed-1/.removed-2")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        remove(&tree).unwrap();

        symlink(&outside, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(fs::symlink_metadata(&tree).is_err() && outside.join("kept").exists(), "the link itself goes");
    }

    /// Deeper than the stack of a thread and the longest path.
    #[test]
    fn a_tree_of_any_depth_is_measured_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut inner = open_directory(None, &tree).unwrap();
        for _ in 0..60_000 {
            nix::sys::stat::mkdirat(&inner, "a", Mode::S_IRWXU).unwrap();
            inner = open_directory(Some(&inner), Path::new("a")).unwrap();
        }
        drop(inner);
        assert!(measure(&tree).too_long.is_some());
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
