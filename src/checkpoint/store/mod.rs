//! The directories of checkpoints, one each, named by its id.
//!
//! ```text
//! checkpoints/                     0700, root's: it holds the memory of pods
//!   .bin/                          programs for CRIU's children, see `criu::runc`
//!   .tmp-ID/                       in the making; garbage after a restart
//!   ID/
//!     manifest.json                written last: what it names, with size and BLAKE3, is the checkpoint
//!     checkpoint/                  CRIU's images
//!     rootfs-diff.tar              the writable layer, with whiteouts (0/0 devices) and extended attributes
//!     dump.log
//! ```

pub mod archive;
pub mod compress;
pub mod hashing;
pub mod manifest;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::CheckpointError;
use crate::{
    criu::runc::IMAGES,
    host::disk::{DiskError, free, remove, sync_directory},
    model::ids::CheckpointId,
};

/// The repository of the tags that protect images from pruning.
pub const KEPT_IMAGES: &str = "pody-keep";

pub const MANIFEST: &str = "manifest.json";

pub const ROOTFS: &str = "rootfs-diff.tar";

/// Prefix of checkpoints in the making.
const UNDER_WAY: &str = ".tmp-";

/// Prefix of a restore's directories: unpacked files, CRIU's log.
const SCRATCH: &str = ".restore-";

/// The directory of all checkpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Creates the directory if it is missing, and resolves it: links into it are followed from elsewhere.
    pub fn ensure(&self) -> Result<PathBuf, CheckpointError> {
        let made = fs::create_dir_all(&self.0)
            .and_then(|()| fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)))
            .and_then(|()| fs::canonicalize(&self.0));
        Ok(made.map_err(DiskError::io("making the directory", &self.0))?)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A complete checkpoint's directory.
    pub fn directory(&self, id: CheckpointId) -> PathBuf {
        self.0.join(id.to_string())
    }

    /// The directory of one in the making.
    pub fn directory_under_way(&self, id: CheckpointId) -> PathBuf {
        self.0.join(format!("{UNDER_WAY}{id}"))
    }

    /// A directory for a restore, removed when that ends.
    pub fn scratch(&self, action: crate::model::ids::ActionId) -> PathBuf {
        self.0.join(format!("{SCRATCH}{action}"))
    }

    /// A new, empty directory for a checkpoint.
    pub fn begin(&self, id: CheckpointId) -> Result<PathBuf, CheckpointError> {
        let directory = self.ensure()?.join(format!("{UNDER_WAY}{id}"));
        remove(&directory)?;
        let made = fs::create_dir(&directory).and_then(|()| fs::create_dir(directory.join(IMAGES)));
        made.map_err(DiskError::io("making the directory", &directory))?;
        Ok(directory)
    }

    /// Gives the directory its final name; the checkpoint is complete from then on.
    pub fn commit(&self, id: CheckpointId) -> Result<PathBuf, CheckpointError> {
        let (from, to) = (self.directory_under_way(id), self.directory(id));
        let renamed =
            sync_directory(&from).and_then(|()| fs::rename(&from, &to)).and_then(|()| sync_directory(&self.0));
        renamed.map_err(DiskError::io("renaming", &from))?;
        Ok(to)
    }

    /// Whether a checkpoint was completed.
    pub fn is_complete(&self, id: CheckpointId) -> bool {
        self.directory(id).join(MANIFEST).is_file()
    }

    /// Removes everything of a checkpoint.
    pub fn remove(&self, id: CheckpointId) -> Result<(), CheckpointError> {
        remove(&self.directory_under_way(id))?;
        Ok(remove(&self.directory(id))?)
    }

    /// Removes what was being made, and what restores left, except those in progress.
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

    /// Bytes that may still be written to the disk.
    pub fn free(&self) -> u64 {
        free(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::files_below;

    #[test]
    fn only_a_complete_checkpoint_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("checkpoints"));
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
        assert!(!store.directory_under_way(left).exists() && store.is_complete(made));
        store.remove(made).unwrap();
        assert!(!store.is_complete(made));
    }
}
