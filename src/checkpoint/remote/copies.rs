//! Copies of checkpoints in the remote store: made, and deleted, in the background.
//!
//! ```text
//! pody/checkpoints/USER/ID/
//!     files/checkpoint/pages-1.img     each file of the checkpoint, as the manifest names it
//!     manifest.b3                      the manifest's BLAKE3
//!     manifest.json                    last: with it the copy is complete
//! ```
//!
//! The table `copies` is the journal; what leads from one state to another: [`crate::model::checkpoint`].
//!
//! | state | what is done | after a kill |
//! | --- | --- | --- |
//! | queued, failed | started when due; each failure doubles the pause | the same |
//! | copying | files that do not exist there yet, then the manifest | started again: what is complete there stays |
//! | copied | the local directory is removed, if `keep_local` is false | the same |
//! | deleting | the manifest, then the rest; the row last | the same |

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fail::fail_point;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::copying::{Begun, UnderWay};
use crate::{
    checkpoint::{CheckpointError, Checkpoints, Manifest, store::MANIFEST},
    config::{CopyWhich, RemoteConfig},
    db::DbError,
    host::{blocking::off_thread, disk},
    model::{
        checkpoint::{Checkpoint, CheckpointStatus, Copy, CopyStatus},
        ids::CheckpointId,
        names::UserName,
        time::Millis,
    },
    objects::{Expected, Key, ObjectError, Storage, Transfer},
};

/// Interval between two checks for what is due, and for local directories that are no longer wanted.
const INTERVAL: Duration = Duration::from_secs(1);

const DIRECTORIES_INTERVAL: Duration = Duration::from_secs(60);

/// The pause after the first failure, and the longest one, milliseconds.
const FIRST_PAUSE: i64 = 2_000;

const LONGEST_PAUSE: i64 = 600_000;

/// The prefix of all our objects in the store.
const DIRECTORY: &str = "checkpoints";

const FILES: &str = "files";

pub(in crate::checkpoint) const MANIFEST_HASH: &str = "manifest.b3";

/// The key of a checkpoint in the store.
pub(in crate::checkpoint) fn key_of<'a>(
    storage: &Storage,
    user: &'a UserName,
    id: &'a str,
    rest: impl IntoIterator<Item = &'a str>,
) -> Key {
    storage.key([DIRECTORY, user.as_str(), id].into_iter().chain(rest))
}

pub(in crate::checkpoint) fn key_of_user(storage: &Storage, user: &UserName) -> Key {
    storage.key([DIRECTORY, user.as_str()])
}

/// The key of a checkpoint's file in the store.
pub(in crate::checkpoint) fn key_of_file(storage: &Storage, user: &UserName, id: &str, path: &std::path::Path) -> Key {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    key_of(storage, user, id, [FILES].into_iter().chain(parts.iter().map(String::as_str)))
}

impl Checkpoints {
    pub(in crate::checkpoint) fn storage(&self) -> Result<Storage, CheckpointError> {
        Ok(self.0.copies.storage()?)
    }

    /// The row for a checkpoint's copy, `None` if it gets no copy.
    pub(in crate::checkpoint) fn copy_for(
        &self,
        asked: bool,
        id: CheckpointId,
        user: &UserName,
    ) -> Result<Option<Copy>, CheckpointError> {
        let RemoteConfig { url, copy, .. } = &self.0.config.get().checkpoint.remote;
        if asked && url.is_empty() {
            return Err(ObjectError::None.into());
        }
        let wanted = asked || *copy == CopyWhich::All && !url.is_empty();
        Ok(wanted.then(|| Copy::new(id, user.clone(), url.clone())))
    }

    /// Whether there is a complete copy to download from.
    pub(in crate::checkpoint) async fn copied(&self, id: CheckpointId) -> Result<bool, CheckpointError> {
        let copy: Option<Copy> = self.0.db.read(move |tx| tx.find_copy(id)).await?;
        Ok(copy.is_some_and(|copy| copy.status == CopyStatus::Copied))
    }

    /// Runs for the life of the daemon. What is in progress when it stops is started again at the next start.
    pub async fn run_copies(self, stop: CancellationToken) {
        let mut looked = None::<std::time::Instant>;
        loop {
            if let Err(error) = self.begin_due_copies(&stop).await {
                tracing::warn!(%error, "could not start copies, retrying");
            }
            if looked.is_none_or(|at| at.elapsed() > DIRECTORIES_INTERVAL) {
                looked = Some(std::time::Instant::now());
                if let Err(error) = self.drop_local_directories().await {
                    tracing::warn!(%error, "could not remove local directories of copied checkpoints, retrying");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.copies.wait_due() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn begin_due_copies(&self, stop: &CancellationToken) -> Result<(), CheckpointError> {
        let due: Vec<Copy> = self.0.db.read(|tx| tx.list_due_copies()).await?;
        let most = self.0.config.get().checkpoint.remote.parallelism;
        for copy in due {
            let at_work = match self.0.copies.begin(copy.checkpoint, most, stop) {
                Begun::Now(at_work) => at_work,
                Begun::Before => continue,
                Begun::TooMany => break,
            };
            let ctx = self.clone();
            tokio::spawn(async move { ctx.work_on(copy, &at_work.under_way).await });
        }
        Ok(())
    }

    async fn work_on(&self, copy: Copy, under_way: &UnderWay) {
        let (id, deletes) = (copy.checkpoint, copy.status == CopyStatus::Deleting);
        let done = match deletes {
            true => self.delete_copy(&copy).await,
            false => self.copy(&copy, under_way).await,
        };
        let written = match done {
            Ok(()) if deletes => self.0.db.write(move |tx| tx.forget_copy(id)).await,
            Ok(()) => {
                tracing::info!(checkpoint = %id, store = copy.store, "copied");
                let copied = Copy { status: CopyStatus::Copied, error: None, ..copy };
                self.write_attempt(copied).await
            }
            Err(CheckpointError::Remote(ObjectError::Cancelled)) => return,
            Err(error) => {
                tracing::warn!(checkpoint = %id, %error, deletes, "the copy of a checkpoint failed, will retry");
                self.write_attempt(copy.failed(&error)).await
            }
        };
        if let Err::<(), DbError>(error) = written {
            tracing::warn!(checkpoint = %id, %error, "could not record the outcome of a copy; it is determined again");
        } else if !deletes && let Err(error) = self.drop_local_directory(id).await {
            tracing::warn!(checkpoint = %id, %error, "could not remove its local directory, will retry");
        }
    }

    /// Records the result of an attempt. A copy that was marked for deletion meanwhile stays so.
    async fn write_attempt(&self, copy: Copy) -> Result<(), DbError> {
        match self.0.db.write(move |tx| tx.update_copy(&copy)).await {
            Err(error) if DbError::is_too_late(&error) => Ok(()),
            written => written,
        }
    }

    /// The store that a copy was begun in, if that is the current one.
    fn storage_of(&self, copy: &Copy) -> Result<Storage, CheckpointError> {
        let storage = self.storage()?;
        match storage.url() == copy.store {
            true => Ok(storage),
            false => {
                Err(ObjectError::Config(format!("url was {} when the copy was made; this copy needs it", copy.store))
                    .into())
            }
        }
    }

    async fn copy(&self, copy: &Copy, under_way: &UnderWay) -> Result<(), CheckpointError> {
        let (id, user) = (copy.checkpoint, &copy.user);
        let row: Option<Checkpoint> = self.0.db.read(move |tx| tx.find_checkpoint(id)).await?;
        let is_whole = |row: &Checkpoint| matches!(row.status, CheckpointStatus::Ready | CheckpointStatus::Deprecated);
        if !row.as_ref().is_some_and(is_whole) {
            // The checkpoint is being deleted, and the copy with it.
            return Err(ObjectError::Cancelled.into());
        }
        let begun = Copy { status: CopyStatus::Copying, ..copy.clone() };
        match self.0.db.write(move |tx| tx.update_copy(&begun)).await {
            // It was marked for deletion since it was found due.
            Err(error) if DbError::is_too_late(&error) => return Err(ObjectError::Cancelled.into()),
            written => written?,
        }
        let storage = self.storage_of(copy)?;
        let directory = self.0.store.directory(id);
        let manifest = {
            let directory = directory.clone();
            off_thread(move || Manifest::read(&directory, id)).await?
        };
        let name = id.to_string();
        let below = key_of(&storage, user, &name, []);
        storage.drop_unfinished(&below).await?;
        let there: HashMap<String, u64> =
            storage.list(&below).await?.into_iter().map(|listed| (listed.key.to_string(), listed.size)).collect();
        let streams = self.0.config.get().checkpoint.streams();
        let permits = Semaphore::new(streams);
        under_way.expect(manifest.stored_size());
        let progress = |bytes: u64| under_way.add(bytes);
        let transfer = Transfer { permits: &permits, cancel: &under_way.cancel, progress: &progress };
        let files = manifest.stored().map(|(path, size, blake3)| {
            let key = key_of_file(&storage, user, &name, path);
            let (storage, transfer, from) = (&storage, &transfer, directory.join(path));
            // Content under an id never changes, and an object is complete or absent.
            let is_there = there.get(key.as_ref()) == Some(&size);
            async move {
                if is_there {
                    under_way.add(size);
                    return Ok(());
                }
                fail_point!("copy-file", |_| Err(ObjectError::Cancelled));
                storage.put_file(&key, &from, Expected { size, blake3 }, transfer).await
            }
        });
        let files: Vec<_> = files.collect();
        stream::iter(files).buffer_unordered(streams).try_collect::<()>().await?;
        fail_point!("copy-manifest", |_| Err(CheckpointError::Interrupted("copied the checkpoint")));
        let text = manifest.text().map_err(|error| ObjectError::Failed(error.to_string()))?;
        let hash = blake3::hash(&text).to_hex().to_string();
        storage.put(&key_of(&storage, user, &name, [MANIFEST_HASH]), hash.into_bytes()).await?;
        storage.put(&key_of(&storage, user, &name, [MANIFEST]), text).await?;
        Ok(())
    }

    async fn delete_copy(&self, copy: &Copy) -> Result<(), CheckpointError> {
        fail_point!("copy-delete", |_| Err(CheckpointError::Interrupted("deleted the copy")));
        let storage = self.storage_of(copy)?;
        let name = copy.checkpoint.to_string();
        // Without its manifest it is no copy any more, should the rest take longer.
        storage.delete(&key_of(&storage, &copy.user, &name, [MANIFEST])).await?;
        Ok(storage.delete_all(&key_of(&storage, &copy.user, &name, [])).await?)
    }

    /// Removes the local directories of copied checkpoints that are not to be kept here.
    async fn drop_local_directories(&self) -> Result<(), CheckpointError> {
        let copied: Vec<Copy> = self.0.db.read(|tx| tx.list_copies_being(CopyStatus::Copied)).await?;
        for copy in copied {
            self.drop_local_directory(copy.checkpoint).await?;
        }
        Ok(())
    }

    /// The same for one, unless it is in use. A restore that begins meanwhile downloads what it lacks.
    pub(in crate::checkpoint) async fn drop_local_directory(&self, id: CheckpointId) -> Result<(), CheckpointError> {
        let directory = self.0.store.directory(id);
        if self.0.config.get().checkpoint.remote.keep_local || !directory.exists() {
            return Ok(());
        }
        let copy: Option<Copy> = self.0.db.read(move |tx| tx.find_copy(id)).await?;
        let Some(copy) = copy.filter(|copy| copy.status == CopyStatus::Copied) else { return Ok(()) };
        if self.0.db.read(move |tx| tx.is_checkpoint_in_use(id)).await? {
            return Ok(());
        }
        let manifest = {
            let directory = directory.clone();
            off_thread(move || Manifest::read(&directory, id)).await?
        };
        // What will exist only there must exist there.
        let storage = self.storage_of(&copy)?;
        let name = id.to_string();
        let listed = storage.list(&key_of(&storage, &copy.user, &name, [])).await?;
        let there: HashSet<(String, u64)> =
            listed.into_iter().map(|listed| (listed.key.to_string(), listed.size)).collect();
        let is_there = |(path, size, _): (&std::path::Path, u64, &str)| {
            there.contains(&(key_of_file(&storage, &copy.user, &name, path).to_string(), size))
        };
        let manifest_size = manifest.text().map_or(0, |text| text.len() as u64);
        let has_manifest =
            there.contains(&(key_of(&storage, &copy.user, &name, [MANIFEST]).to_string(), manifest_size));
        if !has_manifest || !manifest.stored().all(is_there) {
            tracing::warn!(checkpoint = %id, "its copy is no longer complete; copying again");
            let again = Copy { status: CopyStatus::Queued, due_at: Millis::default(), ..copy };
            return Ok(self.write_attempt(again).await?);
        }
        tracing::info!(checkpoint = %id, "removed from this host; its copy is complete");
        Ok(off_thread(move || disk::remove(&directory)).await?)
    }
}

impl Copy {
    fn failed(mut self, error: &CheckpointError) -> Self {
        if self.status != CopyStatus::Deleting {
            self.status = CopyStatus::Failed;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(20)).min(LONGEST_PAUSE);
        self.attempts += 1;
        self.error = Some(error.to_string());
        self.due_at = Millis::now() + pause;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let mut copy = Copy::new(CheckpointId::generate(), "alice".parse().unwrap(), "file:///x".to_owned());
        let error = CheckpointError::NothingNamed;
        let mut before = 0;
        for attempt in 0..40 {
            copy = copy.failed(&error);
            let pause = copy.due_at.since(Millis::now());
            assert!(pause <= LONGEST_PAUSE && (pause + 500 >= before), "{attempt}: {pause} after {before}");
            before = pause;
        }
        assert!(before > LONGEST_PAUSE - 1_000);
        assert!(copy.words().starts_with("failed: name the pod"), "{}", copy.words());
        // What is to be deleted stays so.
        copy.status = CopyStatus::Deleting;
        assert_eq!(copy.failed(&error).words(), "deleting");
    }
}
