//! The first process of every new pod: our own small init program (`init/`), which is embedded in this binary.
//!
//! Each version has a file of its own, `$PODY_HOME/init/<hash>/pody-init`, which is bind-mounted read-only into pods
//! and never changed or removed: a pod that is restored from a checkpoint maps the very same file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{PodError, images::AllowedImage};
use crate::model::pod::Init;

/// Built by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pody-init"));

/// The directory of the program for pods. Cheap to clone.
#[derive(Clone)]
pub struct InitStore {
    home: PathBuf,
    /// The file, once its content was verified.
    checked: Arc<OnceLock<PathBuf>>,
}

impl InitStore {
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_owned(), checked: Arc::default() }
    }

    /// The first process of a pod of this image; `None` where the image names no program.
    pub fn for_image(&self, image: &AllowedImage) -> Result<Option<Init>, PodError> {
        if image.entrypoint.is_empty() && image.command.is_empty() {
            return Ok(None);
        }
        Ok(Some(Init {
            program: self.program()?,
            entrypoint: image.entrypoint.clone(),
            command: image.command.clone(),
            io_uring: image.io_uring || image.new_privileges,
        }))
    }

    /// The same program on this host, for a pod that was saved on another host or under another `$PODY_HOME`. The
    /// name of its directory identifies it.
    pub fn same_here(&self, then: &Path) -> Result<PathBuf, PodError> {
        let directory = self.home.join("init");
        let found = || {
            let hash = then.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            if hash == blake3::hash(PROGRAM).to_hex().as_str() {
                return self.file();
            }
            let is_hash = hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit());
            let path = directory.join(&hash).join("pody-init");
            if is_hash && blake3::hash(&fs::read(&path).unwrap_or_default()).to_hex().as_str() == hash {
                return fs::canonicalize(path);
            }
            Err(io::Error::other(
                "the pod was saved by another version of pody, whose init program is not on this host; restore it with that version",
            ))
        };
        found().map_err(|source| PodError::Init { path: directory.clone(), source })
    }

    /// [`Self::file`], or an error with the next step.
    pub fn program(&self) -> Result<PathBuf, PodError> {
        self.file().map_err(|source| PodError::Init { path: self.home.join("init"), source })
    }

    /// The file, written if it is missing. No part of its path is a symbolic link: a bind mount whose source is one
    /// can be checkpointed but not restored.
    fn file(&self) -> io::Result<PathBuf> {
        if let Some(path) = self.checked.get().filter(|path| path.exists()) {
            return Ok(path.clone());
        }
        let directory = self.home.join("init").join(blake3::hash(PROGRAM).to_hex().as_str());
        let path = directory.join("pody-init");
        if fs::read(&path).ok().as_deref() != Some(PROGRAM) {
            if path.exists() {
                return Err(io::Error::other(format!("{} was modified; remove its directory", path.display())));
            }
            write(&directory, &path)?;
        }
        let path = fs::canonicalize(path)?;
        Ok(self.checked.get_or_init(|| path).clone())
    }
}

/// Writes all of it or nothing, and syncs it to disk.
fn write(directory: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let unfinished = directory.join(format!(".new-{:016x}", rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o755).open(&unfinished)?;
        file.write_all(PROGRAM)?;
        // Independent of our umask.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        // The directory entries too.
        [directory, directory.parent().unwrap_or(directory)]
            .into_iter()
            .try_for_each(|directory| File::open(directory)?.sync_all())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_program_is_written_once_and_never_changed() {
        let home = tempfile::tempdir().unwrap();
        let link = home.path().join("link");
        symlink(home.path(), &link).unwrap();
        let path = InitStore::new(&link).program().unwrap();
        assert!(path.starts_with(home.path().canonicalize().unwrap()) && path.ends_with("pody-init"), "{path:?}");
        let first = fs::metadata(&path).unwrap();
        assert_eq!((first.permissions().mode() & 0o7777, first.len()), (0o755, PROGRAM.len() as u64));
        assert_eq!(InitStore::new(home.path()).program().unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());

        // A modified file is reported, not replaced: running pods map it.
        fs::write(&path, "other").unwrap();
        let error = InitStore::new(home.path()).program().unwrap_err().to_string();
        assert!(error.contains("was modified"), "{error}");
        // Removed by hand, it is written again.
        fs::remove_dir_all(home.path().join("init")).unwrap();
        assert_eq!(InitStore::new(home.path()).program().unwrap(), path);

        // Saved on another host: the same program is found here by its content, not by its path.
        let store = InitStore::new(home.path());
        let hash = path.parent().unwrap().file_name().unwrap();
        assert_eq!(store.same_here(&Path::new("/var/lib/elsewhere/init").join(hash).join("pody-init")).unwrap(), path);
        for other in ["/bin/sh", "/x/init/../../etc/pody-init", &format!("/x/init/{}/pody-init", "0".repeat(64))] {
            assert!(store.same_here(Path::new(other)).is_err(), "{other}");
        }
    }
}
