//! The stored login: `$XDG_CONFIG_HOME/pody/credentials.json`, 0600 in a directory of 0700, written by `pody login`.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// A token and its server. Not `Debug`, so that it is never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredLogin {
    pub server: String,
    pub user: String,
    pub token: String,
    /// The server's id of the token, with which it is revoked.
    pub token_id: i64,
}

/// Why the stored login cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("neither $XDG_CONFIG_HOME nor $HOME is set")]
    NoHome,
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot parse {path}; log in again with `pody login`")]
    Parse { path: PathBuf, source: serde_json::Error },
}

fn path() -> Result<PathBuf, StoreError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    Ok(config.ok_or(StoreError::NoHome)?.join("pody").join("credentials.json"))
}

/// The stored login, if there is one.
pub fn load() -> Result<Option<StoredLogin>, StoreError> {
    // Without a home nothing is stored; the identity may still come from the environment.
    let Ok(path) = path() else { return Ok(None) };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| StoreError::Parse { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

/// Replaces the stored login atomically: written to a new file, then renamed.
pub fn save(login: &StoredLogin) -> Result<(), StoreError> {
    let path = path()?;
    let write = || {
        let directory = path.parent().unwrap_or(&path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(login)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|source| StoreError::Io { path: path.clone(), source })
}

/// Deletes the stored login.
pub fn remove() -> Result<(), StoreError> {
    let path = path()?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source: error }),
        _ => Ok(()),
    }
}
