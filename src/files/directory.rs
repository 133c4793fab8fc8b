//! A user's directory on the disk. No file is opened by an absolute path: every step starts at the directory's own
//! descriptor and is resolved by the kernel beneath it, without symbolic links.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{FileError, FilePath, Opened, Used};

/// Most entries of a listing, which bounds the response.
const MAX_LISTED: usize = 100_000;

/// Attempts to move a file into place when its directory is removed in between.
const TRIES: u32 = 10;

pub struct Directory(OwnedFd);

impl Directory {
    /// Opens the directory and creates it if it is missing.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        // The parent directory is only ours, so a symbolic link here was made by an admin and is no attack.
        if !path.is_dir() {
            if let Some(above) = path.parent() {
                super::make_private(above)?;
            }
            super::make_private(path)?;
        }
        Ok(Self(File::open(path)?.into()))
    }

    /// Opens an entry beneath, which must not be reached through a symbolic link.
    fn beneath(&self, path: &str, flags: OFlag, mode: Mode) -> Result<OwnedFd, FileError> {
        let resolve =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        openat2(&self.0, path, how).map_err(|errno| FileError::of(errno, path))
    }

    fn subdirectory(&self, path: Option<&FilePath>) -> Result<OwnedFd, FileError> {
        let path = path.map_or(".", FilePath::as_str);
        self.beneath(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())
    }

    pub fn open_file(&self, path: &FilePath) -> Result<(File, FileStat), FileError> {
        // Without O_NONBLOCK a FIFO that somebody made there would block the thread.
        let fd = self.beneath(path.as_str(), OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
        let found = fstat(&fd).map_err(|errno| FileError::of(errno, path.as_str()))?;
        if !is_file(&found) {
            return Err(FileError::NotAFile(path.to_string()));
        }
        Ok((fd.into(), found))
    }

    pub fn open_for_reading(&self, path: &FilePath) -> Result<Opened, FileError> {
        let (file, found) = self.open_file(path)?;
        let size = found.st_size.unsigned_abs();
        let tag = format!("\"{:x}-{:x}-{:x}.{:x}\"", found.st_ino, size, found.st_mtime, found.st_mtime_nsec);
        Ok(Opened { file, size, tag })
    }

    pub fn list(&self, path: Option<&FilePath>) -> Result<Vec<String>, FileError> {
        let shown = path.map_or(".", FilePath::as_str);
        let mut directory = Dir::from_fd(self.subdirectory(path)?).map_err(|errno| FileError::of(errno, shown))?;
        let mut names = Vec::new();
        for entry in directory.iter().take(MAX_LISTED) {
            let entry = entry.map_err(|errno| FileError::of(errno, shown))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type() {
                _ if name == "." || name == ".." => {}
                Some(Type::Directory) => names.push(format!("{name}/")),
                Some(Type::File) => names.push(name),
                // Neither created by us nor readable through us.
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file, whose size is returned, or an empty directory, and then the parent directories that are left
    /// empty, so that deleted files take no space at all.
    pub fn remove(&self, path: &FilePath) -> Result<Option<u64>, FileError> {
        let size = self.remove_one(path)?;
        let mut left = path.split().0;
        while let Some(directory) = left.filter(|directory| self.remove_one(directory).is_ok()) {
            left = directory.split().0;
        }
        Ok(size)
    }

    fn remove_one(&self, path: &FilePath) -> Result<Option<u64>, FileError> {
        let (above, name) = path.split();
        let above = self.subdirectory(above.as_ref())?;
        let failed = |errno| FileError::of(errno, path.as_str());
        let found = fstatat(&above, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            unlinkat(&above, name, UnlinkatFlags::RemoveDir).map_err(failed)?;
            return Ok(None);
        }
        unlinkat(&above, name, UnlinkatFlags::NoRemoveDir).map_err(failed)?;
        Ok(is_file(&found).then(|| found.st_size.unsigned_abs()))
    }

    /// Moves a complete, synced file to its name here and creates the directories. An existing file is replaced; its
    /// size is returned.
    pub fn take_in(&self, from: &impl AsFd, name: &str, path: &FilePath) -> Result<Option<u64>, FileError> {
        // Another request may remove, as empty, a directory that was created for this file.
        let mut tries = 0..TRIES;
        loop {
            match self.try_take_in(from, name, path) {
                Err(FileError::NotFound(_)) if tries.next().is_some() => {}
                done => return done,
            }
        }
    }

    fn try_take_in(&self, from: &impl AsFd, name: &str, path: &FilePath) -> Result<Option<u64>, FileError> {
        let failed = |errno| FileError::of(errno, path.as_str());
        let (above, to) = path.split();
        for step in above.iter().flat_map(FilePath::steps) {
            let (outer, name) = step.rsplit_once('/').unwrap_or((".", step));
            let outer = self.beneath(outer, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            match mkdirat(&outer, name, Mode::S_IRWXU) {
                Ok(()) => sync(&outer)?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        let above = self.subdirectory(above.as_ref())?;
        let replaced = match fstatat(&above, to, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if is_file(&found) => Some(found.st_size.unsigned_abs()),
            Ok(_) => return Err(FileError::NotAFile(path.to_string())),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        renameat(from, name, &above, to).map_err(failed)?;
        sync(&above)?;
        Ok(replaced)
    }
}

fn is_file(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// Syncs the entries of a directory to disk.
fn sync(directory: &OwnedFd) -> io::Result<()> {
    File::from(directory.try_clone()?).sync_all()
}

/// Adds the files of a directory and its subdirectories; nothing if it does not exist.
pub fn count(directory: &Path, used: &mut Used) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // The metadata of a link itself, not of its target.
        let found = entry.metadata()?;
        if found.is_dir() {
            count(&entry.path(), used)?;
        } else {
            used.bytes += found.size();
            used.files += 1;
        }
    }
    Ok(())
}
