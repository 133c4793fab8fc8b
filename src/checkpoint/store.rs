//! Where checkpoints lie: one folder each, named by its id.
//!
//! ```text
//! checkpoints/                     0700, root's: it holds the memory of pods
//!   .bin/                          programs for CRIU's children, see `runtime`
//!   .tmp-ID/                       being made; never anything else than garbage after a restart
//!   ID/
//!     manifest.json                written last: what it names, with size and BLAKE3, is the checkpoint
//!     checkpoint/                  CRIU's images
//!     rootfs-diff.tar              the writable layer, with whiteouts (0/0 devices) and extended attributes
//!     dump.log
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::CheckpointError;
use crate::model::ids::CheckpointId;

pub const MANIFEST: &str = "manifest.json";

pub const IMAGES: &str = "checkpoint";

pub const ROOTFS: &str = "rootfs-diff.tar";

pub const DUMP_LOG: &str = "dump.log";

/// Folders of checkpoints in the making.
const UNDER_WAY: &str = ".tmp-";

/// Folders for a restore: unpacked files, CRIU's log.
const SCRATCH: &str = ".restore-";

/// The folder of all checkpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Makes the folder where it is not there, and resolves it: links into it are followed from elsewhere.
    pub fn ensure(&self) -> Result<PathBuf, CheckpointError> {
        let made = fs::create_dir_all(&self.0)
            .and_then(|()| fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)))
            .and_then(|()| fs::canonicalize(&self.0));
        made.map_err(CheckpointError::io("making the folder", &self.0))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A complete checkpoint's folder.
    pub fn folder(&self, id: CheckpointId) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// The folder while it is being made.
    pub fn folder_under_way(&self, id: CheckpointId) -> PathBuf {
        self.0.join(format!("{UNDER_WAY}{id}"))
    }

    /// A folder for a restore, gone when that ends.
    pub fn scratch(&self, action: crate::model::ids::ActionId) -> PathBuf {
        self.0.join(format!("{SCRATCH}{action}"))
    }

    /// A new, empty folder for a checkpoint.
    pub fn begin(&self, id: CheckpointId) -> Result<PathBuf, CheckpointError> {
        let folder = self.ensure()?.join(format!("{UNDER_WAY}{id}"));
        remove(&folder)?;
        let made = fs::create_dir(&folder).and_then(|()| fs::create_dir(folder.join(IMAGES)));
        made.map_err(CheckpointError::io("making the folder", &folder))?;
        Ok(folder)
    }

    /// Gives the folder its name; it is complete from then on.
    pub fn commit(&self, id: CheckpointId) -> Result<PathBuf, CheckpointError> {
        let (from, to) = (self.folder_under_way(id), self.folder(id));
        let renamed = sync_folder(&from).and_then(|()| fs::rename(&from, &to)).and_then(|()| sync_folder(&self.0));
        renamed.map_err(CheckpointError::io("renaming", &from))?;
        Ok(to)
    }

    /// Whether a checkpoint was completed.
    pub fn is_complete(&self, id: CheckpointId) -> bool {
        self.folder(id).join(MANIFEST).is_file()
    }

    /// Removes all that there is of a checkpoint.
    pub fn remove(&self, id: CheckpointId) -> Result<(), CheckpointError> {
        remove(&self.folder_under_way(id))?;
        remove(&self.folder(id))
    }

    /// Removes what was being made, and what restores left, but for those at work.
    pub fn sweep(&self, is_at_work: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Ok(()) };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.strip_prefix(UNDER_WAY).or_else(|| name.strip_prefix(SCRATCH));
            if id.is_some_and(|id| !is_at_work(id)) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Bytes of the disk that may be written.
    pub fn free(&self) -> u64 {
        free(&self.0)
    }
}

/// Bytes that root may still write there: what is kept for it as well.
pub fn left(path: &Path) -> u64 {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(there).map_or(u64::MAX, |disk| disk.blocks_free() * disk.fragment_size())
}

/// Bytes free on the disk of a path, or of the nearest folder above it that is there.
pub fn free(path: &Path) -> u64 {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(there).map_or(0, |disk| disk.blocks_available() * disk.fragment_size())
}

/// Removes a folder with all in it. One that is not there is removed.
pub fn remove(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CheckpointError::io("removing", folder)(error)),
        _ => Ok(()),
    }
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Files below a folder, by their paths from it, in order. Folders and other things are left out.
pub fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fn walk(folder: &Path, from: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
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
    walk(folder, folder, &mut found)?;
    found.sort();
    Ok(found)
}

/// Bytes in files below a folder, as far as it can be read: it may change meanwhile.
pub fn size_of(folder: &Path) -> u64 {
    measure(folder).bytes
}

/// What lies below a folder.
#[derive(Debug, Default, PartialEq)]
pub struct Measure {
    /// In files, as far as they can be read: they may change meanwhile.
    pub bytes: u64,
    /// A path, from the folder, that is too long for the kernel to take at once: programs make those folder by folder.
    pub too_long: Option<PathBuf>,
}

/// Looks at all that lies below a folder.
pub fn measure(folder: &Path) -> Measure {
    /// The longest that the kernel takes (limits.h, PATH_MAX), less the zero behind it and the `./` that tar puts before.
    const LONGEST: usize = 4096 - 3;
    fn walk(folder: &Path, from: &Path, found: &mut Measure) {
        let below = |path: &Path| path.strip_prefix(from).unwrap_or(path).to_owned();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) => {
                found.too_long.get_or_insert_with(|| below(folder));
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
                // A sparse file takes less than its length.
                Ok(data) if data.is_file() => {
                    found.bytes += data.len().min(std::os::unix::fs::MetadataExt::blocks(&data) * 512);
                }
                _ => {}
            }
        }
    }
    let mut found = Measure::default();
    walk(folder, folder, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_complete_has_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("checkpoints"));
        let (made, left) = (CheckpointId::generate(), CheckpointId::generate());
        store.begin(left).unwrap();
        let path = store.begin(made).unwrap();
        fs::write(path.join(IMAGES).join("core-1.img"), b"core").unwrap();
        fs::write(path.join(MANIFEST), b"{}").unwrap();
        assert!(!store.is_complete(made));
        let path = store.commit(made).unwrap();
        assert!(store.is_complete(made) && !store.is_complete(left));
        assert_eq!(files_below(&path).unwrap(), [Path::new("checkpoint/core-1.img"), Path::new("manifest.json")]);
        let mode = fs::metadata(store.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        store.sweep(|_| false).unwrap();
        assert!(!store.folder_under_way(left).exists() && store.is_complete(made));
        store.remove(made).unwrap();
        assert!(!store.is_complete(made));
    }
}
