//! Files of members in the remote store, with `[files] store = "remote"`: it signs the URLs, and the bytes go directly
//! between it and the client.
//!
//! They are below `files/HOST/USER.ACCOUNT/`, so that two hosts with one store share nothing. We cannot limit the bytes
//! that are sent to a store through a URL: the limits of `[files]` are checked when a URL to write is requested.

use std::time::Duration;

use super::{FileError, FilePath, Files, Owner, Verb, parse_directory_name};
use crate::{
    config::FileStore,
    objects::{Key, ObjectError, Storage},
};

const DIRECTORY: &str = "files";

impl Files {
    /// The store of members' files; `None` when they are on this host.
    pub fn remote(&self) -> Result<Option<Remote<'_>>, FileError> {
        match self.0.config.get().files.store {
            FileStore::Here => Ok(None),
            FileStore::Remote => Ok(Some(Remote { files: self, storage: self.0.storage.get()? })),
        }
    }
}

/// Members' files in the remote store.
pub struct Remote<'a> {
    files: &'a Files,
    storage: Storage,
}

impl Remote<'_> {
    fn key(&self, owner: &Owner, path: Option<&FilePath>) -> Key {
        let name = owner.directory_name();
        let parts = path.iter().flat_map(|path| path.as_str().split('/'));
        self.storage.key([DIRECTORY, &self.files.0.host, &name].into_iter().chain(parts))
    }

    /// A URL with which anybody may read or write one file until it expires.
    pub async fn sign(&self, owner: &Owner, verb: Verb, path: &FilePath) -> Result<String, FileError> {
        let config = self.files.0.config.get();
        let key = self.key(owner, Some(path));
        let method = match verb {
            Verb::Get => {
                self.storage.size(&key).await.map_err(not_found(path))?;
                reqwest::Method::GET
            }
            Verb::Put => {
                self.check_limits(owner, &key).await?;
                reqwest::Method::PUT
            }
        };
        let time = Duration::from_secs(u64::from(config.files.link_seconds));
        Ok(self.storage.sign(method, &key, time).await?)
    }

    async fn check_limits(&self, owner: &Owner, key: &Key) -> Result<(), FileError> {
        let config = self.files.0.config.get();
        let listed = self.storage.list(&self.key(owner, None)).await?;
        let used = listed.iter().map(|object| object.size).fold(0, u64::saturating_add);
        if used >= config.files.user_limit.0 {
            return Err(FileError::OverLimit { limit: config.files.user_limit, used });
        }
        let is_new = !listed.iter().any(|object| object.key == *key);
        match is_new && listed.len() as u64 >= config.files.max_files {
            true => Err(FileError::TooMany { limit: config.files.max_files }),
            false => Ok(()),
        }
    }

    /// Names in a directory, sorted; those of directories end in `/`.
    pub async fn list(&self, owner: &Owner, path: Option<&FilePath>) -> Result<Vec<String>, FileError> {
        let (directories, mut names) = self.storage.names(&self.key(owner, path)).await?;
        names.extend(directories.into_iter().map(|name| format!("{name}/")));
        names.sort();
        match (names.is_empty(), path) {
            // A store has no directories: an empty one does not exist.
            (true, Some(path)) => Err(FileError::NotFound(path.to_string())),
            _ => Ok(names),
        }
    }

    pub async fn delete(&self, owner: &Owner, path: &FilePath) -> Result<(), FileError> {
        let key = self.key(owner, Some(path));
        self.storage.size(&key).await.map_err(not_found(path))?;
        Ok(self.storage.delete(&key).await?)
    }

    /// Removes the files of deleted accounts.
    pub(super) async fn drop_leftovers(&self, is_there: impl Fn(&Owner) -> bool) -> Result<(), FileError> {
        let host = self.storage.key([DIRECTORY, &self.files.0.host]);
        let (directories, _) = self.storage.names(&host).await?;
        for owner in directories.iter().filter_map(|name| parse_directory_name(name)) {
            if !is_there(&owner) {
                tracing::info!(
                    directory = owner.directory_name(),
                    "removing the remote files of an account that is gone"
                );
                self.storage.delete_all(&self.key(&owner, None)).await?;
            }
        }
        Ok(())
    }
}

fn not_found(path: &FilePath) -> impl Fn(ObjectError) -> FileError {
    let path = path.to_string();
    move |error| match error {
        ObjectError::NotFound(_) => FileError::NotFound(path.clone()),
        error => error.into(),
    }
}
