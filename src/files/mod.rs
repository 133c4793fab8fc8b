//! Files of members: a directory each, read and written through URLs that are signed for one file, one method and a
//! limited time.
//!
//! - [`path`]: names of files; [`link`]: signed URLs
//! - [`directory`]: the disk. Every step below a user's directory goes through `openat2` with `RESOLVE_BENEATH` and
//!   `RESOLVE_NO_SYMLINKS`, so nothing outside of it can be reached
//! - [`upload`]: writes: first into a partial file that can be resumed, which gets its name when it is complete and
//!   synced
//! - [`remote`]: the same in the remote store, through URLs that it signs
//!
//! A directory belongs to an account, not to a name: the files of a deleted account are removed, and a new account of
//! that name does not get them. All files count against the limits of `[files]`; partial files count too and are
//! removed after a day.

mod directory;
mod link;
mod path;
mod remote;
mod upload;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use self::{directory::Directory, link::Signer};
pub use self::{
    link::{Link, Verb},
    path::{FilePath, FilePathError},
    upload::{Begin, OnlyIf, Upload},
};
use crate::{
    account::{AccountError, Accounts},
    config::LiveConfig,
    db::{Db, DbError, NewEvent},
    host::blocking::off_thread,
    model::{
        names::UserName,
        quantities::ByteSize,
        user::{Actor, Caller},
    },
    objects::{LiveStorage, ObjectError},
};

/// How long a partial file is kept that nobody resumes.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Interval between cleanups.
const UPKEEP: Duration = Duration::from_secs(60);

/// One of this number of cleanups includes the remote store.
const REMOTE_UPKEEP: u64 = 60;

/// The directory of partial files, beside the users' directories.
const PARTIAL: &str = ".partial";

/// The owner of files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub user: UserName,
    /// The account's id, never reused.
    pub account: i64,
}

impl Owner {
    fn directory_name(&self) -> String {
        format!("{}.{}", self.user, self.account)
    }
}

/// Why an operation on files failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum FileError {
    #[error("there is no file {0}")]
    #[strum(serialize = "file_not_found")]
    NotFound(String),
    #[error("there is no folder {0}")]
    #[strum(serialize = "directory_not_found")]
    NoDirectory(String),
    #[error("{0} does not meet the request's If-Match or If-None-Match; read its current ETag and try again")]
    #[strum(serialize = "precondition_failed")]
    Precondition(String),
    #[error("{0} is not a file that can be read or replaced; choose another name")]
    NotAFile(String),
    #[error("{0} is a folder that is not empty; delete what is in it first")]
    #[strum(serialize = "directory_not_empty")]
    NotEmpty(String),
    #[error("{0} leads through a symbolic link, which is not followed")]
    Symlink(String),
    #[error("this URL is invalid, has expired or is for another method; request a new one")]
    #[strum(serialize = "invalid_signed_url")]
    BadLink,
    #[error("only admins may name another user")]
    AdminsOnly,
    #[error("{0} is being written by another request; try again when that has ended")]
    #[strum(serialize = "file_busy")]
    Busy(String),
    #[error(
        "{path} has {have} bytes so far, and this part begins at {asked}; resume at {have}, or send the whole file"
    )]
    #[strum(serialize = "upload_offset")]
    Offset { path: String, have: u64, asked: u64 },
    #[error("the file was announced with {said} bytes, and with this part it would have {found}")]
    #[strum(serialize = "upload_total")]
    Total { said: u64, found: u64 },
    #[error("{found} of the announced {said} bytes arrived; resume at {found}")]
    #[strum(serialize = "upload_cut")]
    Cut { said: u64, found: u64 },
    #[error("the bytes came too slowly; resume at {found}")]
    #[strum(serialize = "slow_body")]
    Slow { found: u64 },
    #[error("a file may have at most {limit}, and this one has more")]
    #[strum(serialize = "file_too_large")]
    TooLarge { limit: ByteSize },
    #[error("your files use {used} bytes of at most {limit}; delete some with DELETE /v2/files/…")]
    #[strum(serialize = "files_size_limit")]
    OverLimit { limit: ByteSize, used: u64 },
    #[error("you have reached your limit of {limit} files; delete some with DELETE /v2/files/…")]
    #[strum(serialize = "files_count_limit")]
    TooMany { limit: u64 },
    #[error("the disk for files has less than the {keep_free} that must be kept free; ask an admin")]
    #[strum(serialize = "files_disk_full")]
    DiskFull { keep_free: ByteSize },
    #[error(transparent)]
    #[strum(transparent)]
    Remote(#[from] ObjectError),
    #[error(transparent)]
    #[strum(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
    #[error("cannot access the directory for files")]
    #[strum(serialize = "internal")]
    Io(#[from] io::Error),
}

impl FileError {
    /// Maps a system error for this file.
    fn of(errno: nix::Error, path: &str) -> Self {
        use nix::errno::Errno;
        match errno {
            Errno::ENOENT => Self::NotFound(path.to_owned()),
            Errno::ELOOP | Errno::EXDEV => Self::Symlink(path.to_owned()),
            Errno::ENOTDIR | Errno::EISDIR | Errno::ENXIO => Self::NotAFile(path.to_owned()),
            Errno::ENOTEMPTY | Errno::EEXIST => Self::NotEmpty(path.to_owned()),
            other => Self::Io(other.into()),
        }
    }
}

/// A file opened for reading.
pub struct Opened {
    pub file: File,
    pub size: u64,
    /// Changes whenever the bytes do.
    pub tag: String,
}

/// Bytes and files of an account, partial ones included.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    bytes: u64,
    files: u64,
}

struct Inner {
    root: PathBuf,
    home: PathBuf,
    db: Db,
    config: LiveConfig,
    accounts: Accounts,
    storage: LiveStorage,
    /// This host's id, for a store that is shared with other hosts.
    host: String,
    signer: OnceLock<Signer>,
    /// Counted once per account, then updated with every change.
    used: Mutex<HashMap<Owner, Used>>,
    /// Partial files that requests are writing.
    writing: Mutex<HashSet<PathBuf>>,
}

/// All files. Cheap to clone.
#[derive(Clone)]
pub struct Files(Arc<Inner>);

impl Files {
    pub fn new(home: PathBuf, host: String, db: Db, config: LiveConfig, accounts: Accounts) -> Self {
        let root = home.join("files");
        let storage = LiveStorage::new(config.clone());
        let (signer, used, writing) = Default::default();
        Self(Arc::new(Inner { root, home, db, config, accounts, storage, host, signer, used, writing }))
    }

    /// The caller's files, or for admins another user's.
    pub async fn owner(&self, caller: &Caller, user: Option<UserName>) -> Result<Owner, FileError> {
        match user {
            Some(user) if user != caller.user && !caller.is_admin => Err(FileError::AdminsOnly),
            Some(user) => self.account(user).await,
            None => self.account(caller.user.clone()).await,
        }
    }

    async fn account(&self, user: UserName) -> Result<Owner, FileError> {
        let found = self.0.accounts.find_user(&user).await.map_err(AccountError::Remote)?;
        let account = found.ok_or_else(|| AccountError::NoUser(user.clone()))?.id;
        Ok(Owner { user, account })
    }

    /// Signs a link that permits its bearer to do `verb` with the file until the link expires.
    pub fn sign(&self, owner: &Owner, verb: Verb, path: FilePath) -> Result<Link, FileError> {
        let seconds = self.0.config.get().files.link_seconds;
        let expires = jiff::Timestamp::now().as_second() + i64::from(seconds);
        Ok(self.signer()?.sign(owner, verb, path, expires))
    }

    /// Accepts a link that is ours, for this method, not expired, and of an account that exists and is enabled.
    pub async fn admit(&self, verb: Verb, link: &Link) -> Result<Owner, FileError> {
        if link.expires <= jiff::Timestamp::now().as_second() {
            return Err(FileError::BadLink);
        }
        let found = self.0.accounts.find_user(&link.user).await.map_err(AccountError::Remote)?;
        // The same work and message for a user that does not exist.
        let (account, may) = found.map_or((-1, false), |user| (user.id, !user.disabled));
        let owner = Owner { user: link.user.clone(), account };
        if self.signer()?.is_ours(&owner, verb, link) && may { Ok(owner) } else { Err(FileError::BadLink) }
    }

    fn signer(&self) -> Result<&Signer, FileError> {
        if let Some(signer) = self.0.signer.get() {
            return Ok(signer);
        }
        let signer = Signer::open(&self.0.home.join("files.secret"))?;
        Ok(self.0.signer.get_or_init(|| signer))
    }

    /// Names in a directory, sorted; those of directories end in `/`. `None` = the owner's whole directory.
    pub async fn list(&self, owner: Owner, path: Option<FilePath>) -> Result<Vec<String>, FileError> {
        let is_whole = path.is_none();
        let listed = match self.remote()? {
            Some(remote) => remote.list(&owner, path.as_ref()).await,
            None => self.off_thread(move |files| files.directory(&owner)?.list(path.as_ref())).await,
        };
        match listed {
            // The owner has no files yet.
            Err(FileError::NotFound(_)) if is_whole => Ok(Vec::new()),
            Err(FileError::NotFound(path) | FileError::NotAFile(path)) => Err(FileError::NoDirectory(path)),
            listed => listed,
        }
    }

    pub async fn open(&self, owner: Owner, path: FilePath) -> Result<Opened, FileError> {
        self.off_thread(move |files| files.directory(&owner)?.open_for_reading(&path)).await
    }

    /// Deletes a file or an empty directory.
    pub async fn delete(&self, actor: Actor, owner: Owner, path: FilePath) -> Result<(), FileError> {
        let event = NewEvent::by(&actor).did("file.delete", &path).of(&owner.user);
        if let Some(remote) = self.remote()? {
            remote.delete(&owner, &path).await?;
        } else {
            self.delete_here(owner, path).await?;
        }
        self.0.db.insert_event(event).await?;
        Ok(())
    }

    async fn delete_here(&self, owner: Owner, path: FilePath) -> Result<(), FileError> {
        self.off_thread(move |files| {
            files.used_by(&owner)?;
            if let Some(size) = files.directory(&owner)?.remove(&path)? {
                files.release(&owner, size, 1);
            }
            Ok(())
        })
        .await
    }

    /// Bytes of an incomplete file that have arrived so far.
    pub async fn received(&self, owner: Owner, path: FilePath) -> Result<u64, FileError> {
        self.off_thread(move |files| match fs::symlink_metadata(files.partial(&owner, &path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            found => Ok(found?.len()),
        })
        .await
    }

    /// Begins or resumes writing a file.
    pub async fn begin(&self, actor: Actor, owner: Owner, path: FilePath, begin: Begin) -> Result<Upload, FileError> {
        self.off_thread(move |files| Upload::begin(files, actor, owner, path, begin)).await
    }

    /// Removes files that are no longer needed, in an endless loop.
    pub async fn upkeep(self) {
        for turn in 0u64.. {
            if let Err(error) = self.drop_leftovers().await {
                tracing::warn!(%error, "cannot remove leftover files, will retry");
            }
            if turn.is_multiple_of(REMOTE_UPKEEP)
                && let Err(error) = self.drop_remote_leftovers().await
            {
                tracing::warn!(%error, "cannot remove leftover remote files, will retry");
            }
            tokio::time::sleep(UPKEEP).await;
        }
    }

    async fn drop_leftovers(&self) -> Result<(), FileError> {
        // With a remote provider an account may only appear to be gone.
        let is_local = !self.0.config.get().remote_user_profile.provider.enabled;
        let accounts = self.0.db.snapshot().accounts.clone();
        self.off_thread(move |files| {
            files.drop_old_partials()?;
            for entry in files.subdirectories("")? {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some(owner) = parse_directory_name(&name) else { continue };
                let is_there = accounts.users.get(&owner.user).is_some_and(|user| user.id == owner.account);
                if is_local && !is_there {
                    tracing::info!(directory = name, "removing the files of an account that is gone");
                    fs::remove_dir_all(entry.path())?;
                    let _ = fs::remove_dir_all(files.0.root.join(PARTIAL).join(&name));
                    files.used().remove(&owner);
                }
            }
            Ok(())
        })
        .await
    }

    async fn drop_remote_leftovers(&self) -> Result<(), FileError> {
        let is_local = !self.0.config.get().remote_user_profile.provider.enabled;
        let Some(remote) = self.remote()?.filter(|_| is_local) else { return Ok(()) };
        let accounts = self.0.db.snapshot().accounts.clone();
        let is_there = |owner: &Owner| accounts.users.get(&owner.user).is_some_and(|user| user.id == owner.account);
        remote.drop_leftovers(is_there).await
    }

    fn drop_old_partials(&self) -> Result<(), FileError> {
        for directory in self.subdirectories(PARTIAL)? {
            let owner = parse_directory_name(&directory.file_name().to_string_lossy());
            for entry in fs::read_dir(directory.path())? {
                let entry = entry?;
                let found = entry.metadata()?;
                let age = found.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                // Held during the decision, so that no request resumes the file meanwhile.
                let writing = self.writing();
                if age.is_some_and(|age| age > PARTIAL_KEPT) && !writing.contains(&entry.path()) {
                    fs::remove_file(entry.path())?;
                    if let Some(owner) = &owner {
                        self.release(owner, found.len(), 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Directories below the root; none if there is no root.
    fn subdirectories(&self, path: &str) -> Result<Vec<fs::DirEntry>, FileError> {
        match fs::read_dir(self.0.root.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(entries) => {
                let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
                Ok(entries.filter_map(Result::ok).filter(is_directory).collect())
            }
        }
    }

    fn directory(&self, owner: &Owner) -> Result<Directory, FileError> {
        Directory::open(&self.0.root.join(owner.directory_name()))
    }

    /// The directory for partial files of an account.
    fn partials(&self, owner: &Owner) -> PathBuf {
        self.0.root.join(PARTIAL).join(owner.directory_name())
    }

    fn partial(&self, owner: &Owner, path: &FilePath) -> PathBuf {
        self.partials(owner).join(blake3::hash(path.as_str().as_bytes()).to_hex().as_str())
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Owner, Used>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Usage of an account, counted on the disk the first time.
    fn used_by(&self, owner: &Owner) -> Result<Used, FileError> {
        let mut all = self.used();
        if let Some(used) = all.get(owner) {
            return Ok(*used);
        }
        let mut used = Used::default();
        for directory in [self.0.root.join(owner.directory_name()), self.partials(owner)] {
            directory::count(&directory, &mut used)?;
        }
        all.insert(owner.clone(), used);
        Ok(used)
    }

    /// Reserves space for more bytes and files if all of it is within the limits.
    fn reserve(&self, owner: &Owner, bytes: u64, files: u64) -> Result<(), FileError> {
        self.used_by(owner)?;
        let config = &self.0.config.get().files;
        let mut all = self.used();
        let used = all.entry(owner.clone()).or_default();
        if used.bytes.saturating_add(bytes) > config.user_limit.0 {
            return Err(FileError::OverLimit { limit: config.user_limit, used: used.bytes });
        }
        if files > 0 && used.files + files > config.max_files {
            return Err(FileError::TooMany { limit: config.max_files });
        }
        used.bytes += bytes;
        used.files += files;
        Ok(())
    }

    fn release(&self, owner: &Owner, bytes: u64, files: u64) {
        if let Some(used) = self.used().get_mut(owner) {
            used.bytes = used.bytes.saturating_sub(bytes);
            used.files = used.files.saturating_sub(files);
        }
    }

    /// Disks may be slow: never block a thread of the runtime.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let files = self.clone();
        off_thread(move || work(&files)).await
    }
}

/// Parses an [`Owner::directory_name`].
fn parse_directory_name(name: &str) -> Option<Owner> {
    let (user, account) = name.rsplit_once('.')?;
    Some(Owner { user: user.parse().ok()?, account: account.parse().ok()? })
}

/// Creates a directory that only we may enter, with its parents.
fn make_private(path: &std::path::Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
