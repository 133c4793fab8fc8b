//! Checkpoints from the remote store: those whose directory here is gone or damaged, and those that this host does not
//! know.
//!
//! Objects there are treated as a stranger's: the manifest's size is limited and it is parsed strictly, and a file that
//! differs from the manifest is refused.

use std::{fs, path::PathBuf, sync::atomic::Ordering};

use fail::fail_point;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::copies::{MANIFEST_HASH, key_of, key_of_file, key_of_user};
use crate::{
    checkpoint::{
        CheckpointError, Checkpoints, Manifest, Progress, admission, may_see,
        store::{KEPT_IMAGES, MANIFEST, manifest},
    },
    criu::runc,
    db::NewEvent,
    host::{
        blocking::off_thread,
        disk::{self, DiskError},
    },
    model::{
        checkpoint::{Checkpoint, CheckpointStatus, Copy, CopyStatus, Origin},
        ids::CheckpointId,
        names::{UserName, container_name},
        user::{Actor, Caller},
        view::checkpoint::{CheckpointView, CopyView, RemoteCheckpoint, RemoteContent},
    },
    objects::{Expected, ObjectError, Storage, Transfer},
};

/// Checkpoints of one response, the newest.
const MOST_LISTED: usize = 500;

/// Manifests read at a time.
const READERS: usize = 8;

/// The suffix of a file that is being downloaded.
const UNDER_WAY: &str = ".fetching";

impl Checkpoints {
    /// What the remote store has of the caller's, or, for admins, of another user's; newest first.
    pub async fn list_remote(
        &self,
        caller: &Caller,
        user: Option<UserName>,
    ) -> Result<Vec<RemoteCheckpoint>, CheckpointError> {
        let user = user.unwrap_or_else(|| caller.user.clone());
        if !may_see(caller, &user) {
            return Ok(Vec::new());
        }
        let storage = self.storage()?;
        let (directories, _) = storage.names(&key_of_user(&storage, &user)).await?;
        let mut ids: Vec<CheckpointId> = directories.iter().filter_map(|name| name.parse().ok()).collect();
        // They begin with their time.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(MOST_LISTED);
        let known: Vec<Checkpoint> = self.0.db.read(|tx| tx.list_checkpoints(None)).await?;
        let look = |id: CheckpointId| {
            let (storage, user) = (&storage, &user);
            let is_here = known.iter().any(|row| row.id == id);
            async move {
                let (content, problem) = match read_manifest(storage, user, id).await {
                    Ok(manifest) => (Some(RemoteContent::from(&manifest)), None),
                    // It is just being copied there, or deleted.
                    Err(CheckpointError::Remote(ObjectError::NotFound(_))) => return None,
                    Err(error) => (None, Some(error.to_string())),
                };
                Some(RemoteCheckpoint { id, user: user.clone(), is_here, content, problem })
            }
        };
        let looks: Vec<_> = ids.into_iter().map(look).collect();
        Ok(stream::iter(looks).buffered(READERS).filter_map(std::future::ready).collect().await)
    }

    /// Registers a checkpoint that this host does not know. Its files are downloaded when it is restored.
    pub async fn take_in(
        &self,
        caller: &Caller,
        user: Option<UserName>,
        id: CheckpointId,
    ) -> Result<CheckpointView, CheckpointError> {
        let user = user.unwrap_or_else(|| caller.user.clone());
        if !may_see(caller, &user) {
            return Err(CheckpointError::NotFound(id.to_string()));
        }
        let known: Option<Checkpoint> = self.0.db.read(move |tx| tx.find_checkpoint(id)).await?;
        if let Some(known) = known {
            return match may_see(caller, &known.user) {
                true => Err(CheckpointError::Known(id)),
                false => Err(CheckpointError::NotFound(id.to_string())),
            };
        }
        let storage = self.storage()?;
        let manifest = match read_manifest(&storage, &user, id).await {
            Err(CheckpointError::Remote(ObjectError::NotFound(_))) => {
                return Err(CheckpointError::NotFound(format!("{id} of {user} in the remote store")));
            }
            read => read?,
        };
        let prefix = self.0.config.get().name_prefix.clone();
        let compression = manifest.files.values().find_map(|file| file.packed.as_ref().map(|packed| packed.by));
        let copy = Copy { status: CopyStatus::Copied, ..Copy::new(id, user.clone(), storage.url().to_owned()) };
        let remote = Some(CopyView::from(&copy));
        let row = Checkpoint {
            id,
            pod: manifest.pod,
            instance: manifest.instance.clone(),
            container_name: container_name(prefix.as_ref(), &user, &manifest.instance),
            kind: manifest.kind,
            compression: compression.unwrap_or(crate::model::checkpoint::Compression::None),
            name: None,
            reason: None,
            status: CheckpointStatus::Ready,
            size: manifest.stored_size(),
            image: manifest.image_id.clone(),
            created_at: manifest.created_at,
            origin: Origin::Hand,
            user,
        };
        let quota = self.0.accounts.quota(&row.user);
        let (written, actor) = (row.clone(), Actor::from(caller));
        self.0
            .db
            .write(move |tx| {
                // Another request may have been quicker.
                if tx.find_checkpoint(id)?.is_some() || tx.find_copy(id)?.is_some() {
                    return Err(CheckpointError::Known(id));
                }
                let held = tx.list_checkpoints(Some(&written.user))?;
                let held = held.into_iter().filter(|row| row.status != CheckpointStatus::Deleting);
                let held: Vec<u64> = held.map(|row| row.size).collect();
                admission::admit_checkpoint(&quota, &held, written.size)?;
                tx.insert_checkpoint(&written)?;
                tx.insert_copy(&copy)?;
                let object = format!("{id} of {}", written.container_name);
                tx.insert_event(&NewEvent::by(&actor).did("checkpoint.fetch", object).of(&written.user))?;
                Ok(())
            })
            .await?;
        // So that pruning keeps it, if it is here. If not, the restore reports that.
        if let Err(error) = self.0.engine.tag_image(&row.image, KEPT_IMAGES, &id.to_string()).await {
            tracing::info!(checkpoint = %id, image = row.image, %error, "the image of a registered checkpoint is not on this host");
        }
        Ok(CheckpointView { row, remote })
    }

    /// The manifest, from the remote store if the directory here has no good one.
    pub(in crate::checkpoint) async fn manifest_of(&self, row: &Checkpoint) -> Result<Manifest, CheckpointError> {
        let (directory, id) = (self.0.store.directory(row.id), row.id);
        match off_thread(move || Manifest::read(&directory, id)).await {
            Err(CheckpointError::Damaged { file, why, .. }) if self.copied(id).await? => {
                match read_manifest(&self.storage()?, &row.user, id).await {
                    Err(CheckpointError::Remote(ObjectError::NotFound(_))) => {
                        let why = format!("{why}; it is also missing in the remote store");
                        Err(CheckpointError::Damaged { id, file, why })
                    }
                    read => read,
                }
            }
            read => read,
        }
    }

    /// Downloads what is missing or damaged here, and the manifest last.
    pub(in crate::checkpoint) async fn fetch(
        &self,
        manifest: &Manifest,
        live: &Progress,
    ) -> Result<(), CheckpointError> {
        // One at a time: two restores of one checkpoint need its files once.
        let _turn = self.0.fetches.lock().await;
        let storage = self.storage()?;
        let store = self.0.store.clone();
        let directory = off_thread(move || store.ensure()).await?.join(manifest.id.to_string());
        let (streams, keep_free) = {
            let config = self.0.config.get();
            (config.checkpoint.streams(), config.checkpoint.keep_free.0)
        };
        let (missing, free) = {
            let (manifest, directory) = (manifest.clone(), directory.clone());
            off_thread(move || (manifest.damaged_files(&directory, streams), disk::free(&directory))).await
        };
        let needed: u64 = missing.iter().map(|(_, size, _)| size).sum();
        let free = free.saturating_sub(keep_free);
        if needed > free {
            return Err(CheckpointError::Space { path: directory, needed, free });
        }
        tracing::info!(checkpoint = %manifest.id, files = missing.len(), bytes = needed, "downloaded from the remote store");
        live.bytes.store(0, Ordering::Relaxed);
        let above = missing.iter().filter_map(|(path, ..)| Some(directory.join(path).parent()?.to_owned()));
        let needed: Vec<PathBuf> = above.chain([directory.clone()]).collect();
        off_thread(move || {
            let make = |directory: &PathBuf| {
                fs::create_dir_all(directory).map_err(DiskError::io("making the directory", directory))
            };
            needed.iter().try_for_each(make)
        })
        .await?;
        let (permits, cancel) = (Semaphore::new(streams), CancellationToken::new());
        let progress = |bytes: u64| {
            live.bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        let transfer = Transfer { permits: &permits, cancel: &cancel, progress: &progress };
        let fetch = |(path, size, blake3): &(PathBuf, u64, String)| {
            let (storage, transfer) = (&storage, &transfer);
            let key = key_of_file(storage, &manifest.user, &manifest.id.to_string(), path);
            let (path, size, blake3, to) = (path.clone(), *size, blake3.clone(), directory.join(path));
            async move {
                let mut under_way = to.clone().into_os_string();
                under_way.push(UNDER_WAY);
                let under_way = PathBuf::from(under_way);
                let got = storage.get_file(&key, &under_way, Expected { size, blake3: &blake3 }, transfer).await;
                let why = match got {
                    Ok(()) => {
                        let rename = off_thread(move || {
                            fs::rename(&under_way, &to).map_err(DiskError::io("renaming", under_way))
                        });
                        return Ok(rename.await?);
                    }
                    Err(ObjectError::NotFound(_)) => "it is also missing in the remote store".to_owned(),
                    Err(ObjectError::Changed { why, .. }) => format!("in its copy in the remote store: {why}"),
                    Err(error) => return Err(CheckpointError::from(error)),
                };
                let _ = off_thread(move || fs::remove_file(&under_way)).await;
                let path = path.strip_prefix(runc::IMAGES).unwrap_or(&path).display().to_string();
                Err(CheckpointError::Damaged { id: manifest.id, file: path, why })
            }
        };
        let files: Vec<_> = missing.iter().map(fetch).collect();
        stream::iter(files).buffer_unordered(streams).try_collect::<()>().await?;
        fail_point!("fetch-manifest", |_| Err(CheckpointError::Interrupted("downloaded the checkpoint")));
        let manifest = manifest.clone();
        off_thread(move || {
            let images = directory.join(runc::IMAGES);
            if images.is_dir() {
                disk::sync_directory(&images).map_err(DiskError::io("syncing", &images))?;
            }
            manifest.write(&directory)
        })
        .await
    }
}

/// The manifest of a copy, with its hash verified, parsed as strictly as a stranger's.
async fn read_manifest(storage: &Storage, user: &UserName, id: CheckpointId) -> Result<Manifest, CheckpointError> {
    let damaged = |why: String| CheckpointError::Damaged {
        id,
        file: MANIFEST.to_owned(),
        why: format!("in its copy in the remote store: {why}"),
    };
    let name = id.to_string();
    let text = match storage.get(&key_of(storage, user, &name, [MANIFEST]), manifest::MAX_SIZE).await {
        Err(ObjectError::Changed { why, .. }) => return Err(damaged(why)),
        got => got?,
    };
    let hash = match storage.get(&key_of(storage, user, &name, [MANIFEST_HASH]), 64).await {
        Err(ObjectError::NotFound(_)) => return Err(damaged(format!("{MANIFEST_HASH} is missing"))),
        Err(ObjectError::Changed { why, .. }) => return Err(damaged(why)),
        got => got?,
    };
    if blake3::hash(&text).to_hex().as_bytes() != &hash[..] {
        return Err(damaged("its content changed".to_owned()));
    }
    let manifest = Manifest::parse(&text, id).map_err(damaged)?;
    match manifest.user == *user {
        true => Ok(manifest),
        false => Err(damaged(format!("it belongs to {}", manifest.user))),
    }
}

impl From<&Manifest> for RemoteContent {
    fn from(manifest: &Manifest) -> Self {
        Self {
            instance: manifest.instance.clone(),
            kind: manifest.kind,
            size: manifest.stored_size(),
            created_at: manifest.created_at,
        }
    }
}
