//! Object storage: a directory, S3, Google Cloud Storage or Azure, by the URL of `[checkpoint.remote]`. The only place
//! that imports `object_store`.
//!
//! - [`open`]: opens a store from its URL and options, without contacting it
//! - [`transfer`]: uploads and downloads files in parts, a bounded number at a time, and hashes them on the way
//!
//! An object exists completely or not at all. A store's error text may contain the keys that we sent; they are removed
//! before the text is used.

mod open;
mod transfer;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
pub use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, signer::Signer};

pub use self::{
    open::check,
    transfer::{Expected, Transfer},
};
use crate::{
    config::{LiveConfig, RemoteConfig},
    host::blocking::off_thread,
};

/// Longest error text of a store that is kept, characters.
const MAX_WORDS: usize = 300;

/// Why an operation on the remote store failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ObjectError {
    #[error("no remote store is configured; an admin sets url in [checkpoint.remote] of config.toml")]
    #[strum(serialize = "no_remote_store")]
    None,
    #[error("[checkpoint.remote] {0}")]
    #[strum(serialize = "remote_store_config")]
    Config(String),
    #[error("the remote store has no {0}")]
    #[strum(serialize = "not_in_remote_store")]
    NotFound(String),
    #[error("the remote store failed: {0}")]
    #[strum(serialize = "remote_store_failed")]
    Failed(String),
    /// The stored object is not what was uploaded, or the local file is not what should be uploaded.
    #[error("{key}: {why}")]
    #[strum(serialize = "remote_object_changed")]
    Changed { key: String, why: String },
    #[error("{path}: {source}")]
    #[strum(serialize = "internal")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("it was cancelled")]
    Cancelled,
    #[error("the remote store cannot sign URLs; use s3://, gs:// or az:// with keys, or [files] store = \"here\"")]
    #[strum(serialize = "remote_store_cannot_sign")]
    NoSigner,
}

impl ObjectError {
    fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// An object, as listed.
#[derive(Clone, Debug)]
pub struct Listed {
    pub key: Key,
    pub size: u64,
}

/// One store. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    root: Key,
    /// For a store that is a directory.
    directory: Option<PathBuf>,
    /// The URL, which contains no secrets.
    url: String,
    /// Must never be shown.
    secrets: Arc<[String]>,
}

impl Storage {
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A key from its parts. A slash in a part does not start a new part.
    pub fn key<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Key {
        parts.into_iter().fold(self.root.clone(), |key, part| key.join(part))
    }

    pub async fn put(&self, key: &Key, bytes: Vec<u8>) -> Result<(), ObjectError> {
        self.store.put(key, PutPayload::from(bytes)).await.map_err(|error| self.told(key, error))?;
        Ok(())
    }

    /// A small object, whole; one larger than `limit` bytes is not read.
    pub async fn get(&self, key: &Key, limit: u64) -> Result<Bytes, ObjectError> {
        let found = self.store.get(key).await.map_err(|error| self.told(key, error))?;
        if found.meta.size > limit {
            let why = format!("it has {} bytes, more than the limit of {limit}", found.meta.size);
            return Err(ObjectError::Changed { key: name(key), why });
        }
        found.bytes().await.map_err(|error| self.told(key, error))
    }

    pub async fn size(&self, key: &Key) -> Result<u64, ObjectError> {
        Ok(self.store.head(key).await.map_err(|error| self.told(key, error))?.size)
    }

    /// All objects below a key.
    pub async fn list(&self, below: &Key) -> Result<Vec<Listed>, ObjectError> {
        let found = self.store.list(Some(below));
        let listed = found.map_ok(|meta| Listed { key: meta.location, size: meta.size });
        match listed.try_collect().await {
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            listed => listed.map_err(|error| self.told(below, error)),
        }
    }

    /// The names directly below a key: of prefixes, and of objects.
    pub async fn names(&self, below: &Key) -> Result<(Vec<String>, Vec<String>), ObjectError> {
        let found = match self.store.list_with_delimiter(Some(below)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok((Vec::new(), Vec::new())),
            found => found.map_err(|error| self.told(below, error))?,
        };
        let decoded = |name: &str| percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned();
        let last = |key: &Key| key.filename().map(decoded);
        let directories = found.common_prefixes.iter().filter_map(last).collect();
        let objects = found.objects.iter().filter_map(|meta| last(&meta.location)).collect();
        Ok((directories, objects))
    }

    /// Deletes one object. Succeeds if there is none.
    pub async fn delete(&self, key: &Key) -> Result<(), ObjectError> {
        match self.store.delete(key).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => deleted.map_err(|error| self.told(key, error)),
        }
    }

    /// Deletes everything below a key, including what unfinished uploads left there.
    pub async fn delete_all(&self, below: &Key) -> Result<(), ObjectError> {
        let keys: Vec<_> = self.list(below).await?.into_iter().map(|listed| Ok(listed.key)).collect();
        let mut deleted = self.store.delete_stream(futures_util::stream::iter(keys).boxed());
        while let Some(one) = deleted.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.told(below, error)),
            }
        }
        let Some(directory) = self.path_of(below) else { return Ok(()) };
        match tokio::fs::remove_dir_all(&directory).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ObjectError::io(&directory)(error)),
            _ => Ok(()),
        }
    }

    /// Removes what uploads left there when they were killed. In stores that are not a directory, a lifecycle rule of
    /// the bucket does this.
    pub async fn drop_unfinished(&self, below: &Key) -> Result<(), ObjectError> {
        let Some(directory) = self.path_of(below) else { return Ok(()) };
        let is_unfinished = |path: &std::path::Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.rsplit_once('#').is_some_and(|(_, number)| number.parse::<u64>().is_ok())
        };
        let work = move || -> Result<(), ObjectError> {
            let mut directories = vec![directory];
            while let Some(directory) = directories.pop() {
                for entry in std::fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
                    let path = entry.path();
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        directories.push(path);
                    } else if is_unfinished(&path) {
                        std::fs::remove_file(&path).map_err(ObjectError::io(&path))?;
                    }
                }
            }
            Ok(())
        };
        off_thread(work).await
    }

    /// A URL with which anyone can apply `method` to one object for a while.
    pub async fn sign(&self, method: reqwest::Method, key: &Key, time: Duration) -> Result<String, ObjectError> {
        let signer = self.signer.as_ref().ok_or(ObjectError::NoSigner)?;
        let url = signer.signed_url(method, key, time).await.map_err(|error| self.told(key, error))?;
        Ok(url.into())
    }

    fn path_of(&self, key: &Key) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(key.as_ref()))
    }

    /// Converts an error of the store, without secrets.
    fn told(&self, key: &Key, error: object_store::Error) -> ObjectError {
        match error {
            object_store::Error::NotFound { .. } => ObjectError::NotFound(name(key)),
            error => ObjectError::Failed(words(&error.to_string(), &self.secrets)),
        }
    }
}

/// The last two parts of a key, which identify it well enough.
fn name(key: &Key) -> String {
    let parts: Vec<String> = key.parts().map(|part| part.as_ref().to_owned()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// One line without secrets: neither those in the config, nor the signature of a URL.
fn words(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret.as_str(), "…");
    }
    let mut words = String::new();
    for word in text.split_whitespace() {
        let word = match word.split_once('?') {
            Some((address, _)) if word.contains("://") => format!("{address}?…"),
            _ => word.to_owned(),
        };
        words.push_str(if words.is_empty() { "" } else { " " });
        words.push_str(&word);
    }
    words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}

/// The store of the current config, opened once.
#[derive(Clone)]
pub struct LiveStorage {
    config: LiveConfig,
    opened: Arc<Mutex<Option<(RemoteConfig, Storage)>>>,
}

impl LiveStorage {
    pub fn new(config: LiveConfig) -> Self {
        Self { config, opened: Arc::default() }
    }

    pub fn get(&self) -> Result<Storage, ObjectError> {
        let wanted = self.config.get().checkpoint.remote.clone();
        if wanted.url.is_empty() {
            return Err(ObjectError::None);
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((config, storage)) = &*opened
            && *config == wanted
        {
            return Ok(storage.clone());
        }
        let storage = Storage::open(&wanted)?;
        *opened = Some((wanted, storage.clone()));
        Ok(storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_contain_no_secrets() {
        let secrets = ["s3cr3t/key".to_owned()];
        let text = "PUT https://lab.blob.core.windows.net/c/x?sig=abc&se=1 said\n  s3cr3t/key is wrong";
        assert_eq!(words(text, &secrets), "PUT https://lab.blob.core.windows.net/c/x?… said … is wrong");
        assert_eq!(words(&"x".repeat(1000), &[]).len(), MAX_WORDS);
    }
}
