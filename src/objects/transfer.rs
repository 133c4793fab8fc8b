//! Uploads and downloads of files. Each part in memory holds a permit while it is read, hashed and sent, so the number
//! of permits bounds memory and connections, whatever the number of files in transfer.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use object_store::{ObjectStoreExt, PutPayload};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Key, ObjectError, Storage, name};
use crate::host::blocking::off_thread;

/// Bytes of one part; stores require at least 5 MiB.
const PART: u64 = 8 << 20;
/// Most parts of one object; stores allow 10,000.
const MAX_PARTS: u64 = 9_000;

/// The size and hash that a file must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub size: u64,
    pub blake3: &'a str,
}

/// Limits and progress of a transfer.
pub struct Transfer<'a> {
    /// Parts in memory at a time, of all files together.
    pub permits: &'a Semaphore,
    pub cancel: &'a CancellationToken,
    /// Called with the bytes done.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Storage {
    /// Uploads a file. The upload is aborted if the file is not as expected.
    pub async fn put_file(
        &self,
        key: &Key,
        from: &Path,
        expected: Expected<'_>,
        transfer: &Transfer<'_>,
    ) -> Result<(), ObjectError> {
        let part = PART.max(expected.size.div_ceil(MAX_PARTS));
        if expected.size <= part {
            let _permit = permit(transfer).await?;
            let source = Source::open(from).await?;
            let (source, bytes) = source.read(part + 1).await?;
            source.check(key, expected)?;
            let length = bytes.len() as u64;
            self.put(key, bytes).await?;
            (transfer.progress)(length);
            return Ok(());
        }
        let mut upload = self.store.put_multipart(key).await.map_err(|error| self.told(key, error))?;
        let mut source = Source::open(from).await?;
        let sent = async {
            let mut parts = FuturesUnordered::new();
            loop {
                let permit = tokio::select! {
                    permit = permit(transfer) => permit?,
                    // A part that has been sent returns its permit.
                    Some(done) = parts.next(), if !parts.is_empty() => {
                        let () = done?;
                        continue;
                    }
                };
                let (read, bytes) = source.read(part).await?;
                source = read;
                if bytes.is_empty() {
                    break;
                }
                let length = bytes.len() as u64;
                let sending = upload.put_part(PutPayload::from(bytes));
                parts.push(async move {
                    let _permit = permit;
                    sending.await.map_err(|error| self.told(key, error))?;
                    (transfer.progress)(length);
                    Ok::<_, ObjectError>(())
                });
            }
            while let Some(done) = parts.next().await {
                let () = done?;
            }
            source.check(key, expected)
        };
        let sent = sent.await;
        if let Err(error) = sent {
            let _ = upload.abort().await;
            return Err(error);
        }
        upload.complete().await.map_err(|error| self.told(key, error))?;
        Ok(())
    }

    /// Downloads an object into a file and syncs it to disk. The file is valid only if this succeeds.
    pub async fn get_file(
        &self,
        key: &Key,
        to: &Path,
        expected: Expected<'_>,
        transfer: &Transfer<'_>,
    ) -> Result<(), ObjectError> {
        let changed = |why: String| ObjectError::Changed { key: name(key), why };
        let size = self.size(key).await?;
        if size != expected.size {
            return Err(changed(format!("expected {} bytes, found {size}", expected.size)));
        }
        let mut sink = Sink::create(to).await?;
        let starts = (0..size).step_by(usize::try_from(PART).unwrap_or(usize::MAX));
        let fetch = |start: u64| async move {
            let permit = permit(transfer).await?;
            let range = start..(start + PART).min(size);
            let length = range.end - range.start;
            let bytes = self.store.get_range(key, range).await.map_err(|error| self.told(key, error))?;
            match bytes.len() as u64 == length {
                true => Ok((permit, bytes)),
                false => Err(changed(format!("received {} of {length} bytes of a part", bytes.len()))),
            }
        };
        // In order: each part that is awaited already holds its permit, so this cannot deadlock.
        let mut parts = futures_util::stream::iter(starts).map(fetch).buffered(self.width(transfer));
        while let Some(part) = parts.next().await {
            let (_permit, bytes) = part?;
            let length = bytes.len() as u64;
            sink = sink.write(bytes).await?;
            (transfer.progress)(length);
        }
        match sink.finish().await? == expected.blake3 {
            true => Ok(()),
            false => Err(changed("its content changed".to_owned())),
        }
    }

    /// Parts of one file that are requested at a time. Permits limit them further.
    fn width(&self, transfer: &Transfer<'_>) -> usize {
        transfer.permits.available_permits().clamp(1, 16)
    }
}

async fn permit<'a>(transfer: &Transfer<'a>) -> Result<tokio::sync::SemaphorePermit<'a>, ObjectError> {
    tokio::select! {
        biased;
        () = transfer.cancel.cancelled() => Err(ObjectError::Cancelled),
        permit = transfer.permits.acquire() => permit.map_err(|_| ObjectError::Cancelled),
    }
}

/// A file that is read from the start, and its hash so far.
struct Source {
    file: File,
    path: std::path::PathBuf,
    hasher: blake3::Hasher,
    read: u64,
}

impl Source {
    async fn open(path: &Path) -> Result<Self, ObjectError> {
        let path = path.to_owned();
        off_thread(move || {
            let file = File::open(&path).map_err(ObjectError::io(&path))?;
            Ok(Self { file, path, hasher: blake3::Hasher::new(), read: 0 })
        })
        .await
    }

    /// Reads at most `most` more bytes; none at the end.
    async fn read(mut self, most: u64) -> Result<(Self, Vec<u8>), ObjectError> {
        off_thread(move || {
            let mut bytes = Vec::new();
            (&mut self.file).take(most).read_to_end(&mut bytes).map_err(ObjectError::io(&self.path))?;
            self.hasher.update_rayon(&bytes);
            self.read += bytes.len() as u64;
            Ok((self, bytes))
        })
        .await
    }

    fn check(&self, key: &Key, expected: Expected<'_>) -> Result<(), ObjectError> {
        let changed = |why| Err(ObjectError::Changed { key: name(key), why });
        if self.read != expected.size {
            return changed(format!("expected {} bytes here, found {}", expected.size, self.read));
        }
        match self.hasher.finalize().to_hex().as_str() == expected.blake3 {
            true => Ok(()),
            false => changed("its content here changed".to_owned()),
        }
    }
}

/// A file that is written from the start, and its hash so far.
struct Sink {
    file: File,
    path: std::path::PathBuf,
    hasher: blake3::Hasher,
}

impl Sink {
    async fn create(path: &Path) -> Result<Self, ObjectError> {
        let path = path.to_owned();
        off_thread(move || {
            use std::os::unix::fs::OpenOptionsExt;
            let mut options = File::options();
            let file = options.create(true).truncate(true).write(true).mode(0o600).open(&path);
            Ok(Self { file: file.map_err(ObjectError::io(&path))?, path, hasher: blake3::Hasher::new() })
        })
        .await
    }

    async fn write(mut self, bytes: Bytes) -> Result<Self, ObjectError> {
        off_thread(move || {
            self.file.write_all(&bytes).map_err(ObjectError::io(&self.path))?;
            self.hasher.update_rayon(&bytes);
            Ok(self)
        })
        .await
    }

    /// Syncs the file and returns its hash.
    async fn finish(self) -> Result<String, ObjectError> {
        off_thread(move || {
            let synced: io::Result<()> = self.file.sync_all();
            synced.map_err(ObjectError::io(&self.path))?;
            Ok(self.hasher.finalize().to_hex().to_string())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RemoteConfig;

    fn storage(directory: &Path) -> Storage {
        let url = format!("file://{}", directory.display());
        Storage::open(&RemoteConfig { url, ..RemoteConfig::default() }).unwrap()
    }

    #[tokio::test]
    async fn a_file_is_downloaded_unchanged_or_not_at_all() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let storage = storage(there.path());
        let permits = Semaphore::new(2);
        let cancel = CancellationToken::new();
        let progress = |_: u64| {};
        let transfer = Transfer { permits: &permits, cancel: &cancel, progress: &progress };
        for size in [0, 1, PART, PART + 1, 3 * PART + 12_345] {
            let content: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let blake3 = blake3::hash(&content).to_hex().to_string();
            let (from, to) = (here.path().join("from"), here.path().join("to"));
            std::fs::write(&from, &content).unwrap();
            let expected = Expected { size, blake3: &blake3 };
            let key = storage.key(["a", &format!("file-{size}")]);
            storage.put_file(&key, &from, expected, &transfer).await.unwrap();
            storage.get_file(&key, &to, expected, &transfer).await.unwrap();
            assert!(std::fs::read(&to).unwrap() == content, "{size}");

            // A file with the wrong hash is neither uploaded nor downloaded.
            let other = Expected { size, blake3: &"0".repeat(64) };
            let wrong = storage.key(["a", &format!("wrong-{size}")]);
            assert!(storage.put_file(&wrong, &from, other, &transfer).await.is_err());
            assert!(matches!(storage.size(&wrong).await, Err(ObjectError::NotFound(_))));
            let error = storage.get_file(&key, &to, other, &transfer).await.unwrap_err().to_string();
            assert!(error.ends_with("its content changed"), "{error}");
            let longer = Expected { size: size + 1, blake3: &blake3 };
            let error = storage.get_file(&key, &to, longer, &transfer).await.unwrap_err().to_string();
            assert!(error.contains(&format!("found {size}")), "{error}");
        }
        assert_eq!(permits.available_permits(), 2);
        cancel.cancel();
        let from = here.path().join("from");
        let expected = Expected { size: std::fs::metadata(&from).unwrap().len(), blake3: "" };
        let cancelled = storage.put_file(&storage.key(["b"]), &from, expected, &transfer).await;
        assert!(matches!(cancelled, Err(ObjectError::Cancelled)));
        storage.delete_all(&storage.key(["a"])).await.unwrap();
        assert!(storage.list(&storage.key([])).await.unwrap().is_empty());
    }
}
