//! Disks: free space; directories measured, removed and synced.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::{FsFlags, statvfs};

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

/// Removes a directory with everything in it. Succeeds if it does not exist.
pub fn remove(directory: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::io("removing", directory)(error)),
        _ => Ok(()),
    }
}

pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Files below a directory, by their paths from it, in order. Other entries are left out.
pub fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fn walk(directory: &Path, from: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                walk(&entry.path(), from, found)?;
            } else if kind.is_file() {
                found.push(entry.path().strip_prefix(from).unwrap_or(&entry.path()).to_owned());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(directory, directory, &mut found)?;
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
    fn walk(directory: &Path, from: &Path, found: &mut Measure) {
        let below = |path: &Path| path.strip_prefix(from).unwrap_or(path).to_owned();
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => {
                found.too_long.get_or_insert_with(|| below(directory));
                return;
            }
            Err(_) => return,
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path.as_os_str().len() > LONGEST && below(&path).as_os_str().len() > LONGEST {
                found.too_long.get_or_insert_with(|| below(&path));
            }
            match entry.metadata() {
                Ok(data) if data.is_dir() => walk(&path, from, found),
                // A sparse file takes less space than its length.
                Ok(data) if data.is_file() => {
                    found.bytes += data.len().min(std::os::unix::fs::MetadataExt::blocks(&data) * 512);
                }
                _ => {}
            }
        }
    }
    let mut found = Measure::default();
    walk(directory, directory, &mut found);
    found
}
