//! The directory that Docker starts a container from, with the small images as copies and the large ones as symbolic
//! links. containerd copies such a directory twice, and copies links as links. They are relative, with more `..` than
//! any directory is deep, because CRIU follows them when the root is already the pod's.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{error::CriuError, gzip, runc};
use crate::{
    host::{
        disk::{self, DiskError},
        process,
    },
    model::ids::ActionId,
};

/// The prefix of the file that identifies the directory of one restore.
pub const NONCE: &str = "pody-nonce-";

/// More than any directory is deep: `..` of the root is the root.
const UP: usize = 32;

/// Prefixes of the images that are large, and are linked.
const LARGE: [&str; 2] = ["pages-", "tmpfs-"];

/// Makes the directory. `files` are names in the checkpoint and where to read each from; CRIU gets those in `emptied`
/// without content.
pub fn make(
    start_directory: &Path,
    files: &[(PathBuf, PathBuf)],
    emptied: &HashSet<&Path>,
    action: ActionId,
) -> Result<(), CriuError> {
    let made = || {
        fs::create_dir_all(start_directory)?;
        for (name, source) in files {
            let is_emptied = emptied.contains(name.as_path());
            let Ok(name) = name.strip_prefix(runc::IMAGES) else { continue };
            let to = start_directory.join(name);
            if is_emptied {
                fs::write(to, gzip::empty_archive())?;
            } else if LARGE.iter().any(|large| name.to_string_lossy().starts_with(large)) {
                let source = fs::canonicalize(source)?;
                let from_root = source.strip_prefix("/").unwrap_or(&source);
                symlink(Path::new(&"../".repeat(UP)).join(from_root), to)?;
            } else {
                fs::copy(source, to)?;
            }
        }
        // Two starts from the same bytes collide in containerd.
        let content: [u8; 16] = rand::random();
        fs::write(start_directory.join(nonce(action)), hex::encode(content))
    };
    Ok(made().map_err(DiskError::io("making", start_directory))?)
}

/// A file in the directory that Docker starts from, by which the engine's copies of it are found.
pub fn nonce(action: ActionId) -> String {
    format!("{NONCE}{action}")
}

/// Removes the copies that containerd makes of a checkpoint for each start and leaves behind. Only those with our file
/// in them.
pub fn remove_engine_copies(action: ActionId) {
    let nonce = nonce(action);
    let mut directories = vec![PathBuf::from("/tmp")];
    for pid in process::list() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() != "containerd" {
            continue;
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        directories.extend(variables.filter_map(|variable| {
            let value = variable.strip_prefix("XDG_RUNTIME_DIR=").or_else(|| variable.strip_prefix("TMPDIR="))?;
            Some(PathBuf::from(value))
        }));
    }
    directories.sort();
    directories.dedup();
    for entry in directories.iter().flat_map(fs::read_dir).flatten().filter_map(Result::ok) {
        let is_copy = entry.file_name().to_string_lossy().starts_with("ctrd-checkpoint");
        if is_copy
            && entry.path().join(&nonce).is_file()
            && let Err(error) = disk::remove(&entry.path())
        {
            tracing::warn!(%error, "could not remove a copy that the engine left");
        }
    }
}
