//! The only place with SQL: `$PODY_HOME/pody.db`, one file per table.
//!
//! - Writes go through [`Db::write`]: one writer at a time, one immediate transaction, WAL with `synchronous=FULL`, so
//!   an acknowledged write survives a kill at any instant. A write that cannot get the database within [`WRITE_WAIT`]
//!   fails with [`DbError::Busy`].
//! - Hot reads do not touch the database: after each commit, while the writer still holds its turn, the [`Snapshot`] of
//!   the changed tables is rebuilt. You read what you wrote, and a locked or full database does not stop a read.
//! - Other reads go through [`Db::read`] on a connection of their own.
//!
//! If the file is removed or replaced, writes are refused: they would go to a file that nothing opens again.
//!
//! With the disk full even a DELETE fails, so a ballast file is kept beside the database and removed when that happens.

mod acting;
mod actions;
mod checkpoints;
mod clusters;
mod commits;
mod copies;
mod drain;
mod events;
mod legacy;
mod legacy_log;
mod pods;
mod reports;
mod schedules;
mod schema;
mod snapshot;
mod ssh_keys;
mod states;
mod time;
mod tokens;
mod usage;
mod users;

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use self::acting::Acting;
use crate::{
    host::{blocking::off_thread, disk},
    model::authority::Lapse,
};

pub use self::{
    acting::on_behalf,
    commits::Commit,
    events::{EventFilter, EventSearch, FoundEvent, NewEvent},
    legacy::{LegacyUsage, OldInstallation},
    legacy_log::OldLog,
    snapshot::{Accounts, PodRows, Snapshot},
    usage::{CpuCursor, GpuUsageRow, UsageBatch, UsageRow},
};

/// A field of [`NewEvent`].
pub use crate::model::event::Outcome;

/// How long a write waits for its turn, and then for a lock held by another process.
const WRITE_WAIT: Duration = Duration::from_secs(3);

/// Freed when the disk is full: room for some hundred deletes.
const BALLAST_BYTES: usize = 1 << 20;

/// Why a database operation failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum DbError {
    #[error("the database is locked by another program")]
    #[strum(serialize = "database_busy")]
    Busy,
    #[error("the disk that holds the database is full")]
    #[strum(serialize = "database_disk_full")]
    Full,
    #[error("the database's file is gone or was replaced; put it back, or restart pody")]
    #[strum(serialize = "database_gone")]
    Gone,
    #[error("the database is damaged")]
    #[strum(serialize = "internal")]
    Damaged(#[source] rusqlite::Error),
    #[error("the database failed")]
    #[strum(serialize = "internal")]
    Other(#[source] rusqlite::Error),
    #[error("cannot decode a database row: {0}")]
    #[strum(serialize = "internal")]
    Row(String),
    #[error("the database has format {found}, this pody knows up to {known}; install the newer pody again")]
    #[strum(serialize = "internal")]
    Newer { found: i32, known: i32 },
    #[error("cannot open {path}")]
    #[strum(serialize = "internal")]
    Open { path: PathBuf, source: std::io::Error },
    /// The table of the states in [`crate::model`] does not have it; the row is unchanged.
    #[error("{what} {id} cannot go from {from} to {to}")]
    Transition { what: &'static str, id: String, from: String, to: &'static str },
    /// The caller of the request may not change anything any more.
    #[error(transparent)]
    #[strum(transparent)]
    Lapsed(#[from] Lapse),
    /// Nothing to update.
    #[error("{what} {id} has no row")]
    NoRow { what: &'static str, id: String },
}

impl DbError {
    /// Whether an update came too late: the row is gone, or in a state that the new one does not follow on.
    pub fn is_too_late(&self) -> bool {
        matches!(self, Self::Transition { .. } | Self::NoRow { .. })
    }
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error),
            _ => Self::Other(error),
        }
    }
}

/// An open transaction. Its methods, one file per table, are named for the question they answer.
pub struct Tx<'a>(rusqlite::Transaction<'a>);

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Device and inode of the file that is open.
    file: (u64, u64),
    /// Async writers wait here for their turn instead of blocking a thread.
    turn: tokio::sync::Semaphore,
    writer: Mutex<Writer>,
    reader: Mutex<Connection>,
    snapshot: ArcSwap<Snapshot>,
    /// Notified of each new snapshot.
    renewed: tokio::sync::watch::Sender<()>,
}

struct Writer {
    connection: Connection,
    /// Set by SQLite's update hook for the tables that the snapshot shows.
    dirty: Arc<snapshot::Dirty>,
}

impl Db {
    /// Opens the database below `home`, creating the directory, the file and the tables as needed.
    pub fn open(home: &Path) -> Result<Self, DbError> {
        let path = home.join("pody.db");
        let open_error = |source| DbError::Open { path: path.clone(), source };
        if !home.exists() {
            fs::create_dir_all(home).map_err(open_error)?;
            fs::set_permissions(home, fs::Permissions::from_mode(0o700)).map_err(open_error)?;
        }
        // SQLite gives its -wal and -shm files the mode of the database.
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(open_error)?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(open_error)?;
        let identity = file.metadata().map(|file| (file.dev(), file.ino())).map_err(open_error)?;
        drop(file);

        let mut connection = connect(&path)?;
        schema::migrate(&mut connection)?;
        let dirty = Arc::new(snapshot::Dirty::default());
        connection.update_hook(Some({
            let dirty = dirty.clone();
            move |_, _: &str, table: &str, _| dirty.mark(table)
        }))?;
        let snapshot = Snapshot::load(&connection)?;
        let reader = connect(&path)?;
        let db = Self(Arc::new(Inner {
            path,
            file: identity,
            turn: tokio::sync::Semaphore::new(1),
            writer: Mutex::new(Writer { connection, dirty }),
            reader: Mutex::new(reader),
            snapshot: ArcSwap::from_pointee(snapshot),
            renewed: tokio::sync::watch::Sender::new(()),
        }));
        db.refill_ballast();
        Ok(db)
    }

    /// The state of the tables as of the last commit.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Changes with each new [`Self::snapshot`].
    pub fn renewals(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.renewed.subscribe()
    }

    fn renew(&self, snapshot: Snapshot) {
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.renewed.send_replace(());
    }

    /// Runs `work` in one immediate transaction and commits it unless it fails. In the work of a request, the first of
    /// them fails with [`DbError::Lapsed`] if its caller may not act any more.
    pub async fn write<T, E>(&self, work: impl FnOnce(&Tx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let turn = tokio::time::timeout(WRITE_WAIT, self.0.turn.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(DbError::Busy.into()) };
        let db = self.clone();
        let Some(acting) = Acting::current() else { return off_thread(move || db.write_blocking(work)).await };
        let checked = {
            let acting = acting.clone();
            move |tx: &Tx| {
                acting.check(tx)?;
                work(tx)
            }
        };
        let result = off_thread(move || db.write_blocking(checked)).await;
        if result.is_ok() {
            acting.begun();
        }
        result
    }

    /// [`Self::write`] for callers that have no runtime, such as the admin commands.
    pub fn write_blocking<T, E>(&self, work: impl FnOnce(&Tx) -> Result<T, E>) -> Result<T, E>
    where
        E: From<DbError>,
    {
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.ensure_in_place()?;
        let result = transact(&mut writer.connection, work);
        match &result {
            Ok(_) => self.refresh_changed(&writer)?,
            // What a rolled back transaction touched has not changed.
            Err(_) => writer.dirty.clear(),
        }
        result
    }

    /// Fails when the file that is open is not the one that the next start would open.
    pub fn ensure_in_place(&self) -> Result<(), DbError> {
        let found = fs::metadata(&self.0.path).map(|file| (file.dev(), file.ino()));
        if found.is_ok_and(|found| found == self.0.file) { Ok(()) } else { Err(DbError::Gone) }
    }

    /// Runs `work` on a connection of its own, concurrently with the writer.
    pub async fn read<T, E>(&self, work: impl FnOnce(&Tx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let db = self.clone();
        off_thread(move || db.read_blocking(work)).await
    }

    /// [`Self::read`] for callers that have no runtime.
    pub fn read_blocking<T, E>(&self, work: impl FnOnce(&Tx) -> Result<T, E>) -> Result<T, E>
    where
        E: From<DbError>,
    {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = reader.transaction_with_behavior(TransactionBehavior::Deferred).map_err(DbError::from)?;
        work(&Tx(tx))
    }

    /// Rebuilds the whole snapshot after another process has changed the database.
    pub fn refresh(&self) -> Result<(), DbError> {
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.renew(Snapshot::load(&writer.connection)?);
        Ok(())
    }

    fn refresh_changed(&self, writer: &Writer) -> Result<(), DbError> {
        if let Some(changed) = writer.dirty.take() {
            let next = self.snapshot().reload(&writer.connection, changed)?;
            self.renew(next);
        }
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.0.path.with_extension("ballast")
    }

    /// Removes the ballast so that deletes find room; returns whether there was any.
    pub fn drop_ballast(&self) -> bool {
        fs::remove_file(self.ballast()).is_ok()
    }

    /// Restores the ballast if it is missing and there is room. Called periodically.
    pub fn refill_ballast(&self) {
        let path = self.ballast();
        if fs::metadata(&path).is_ok_and(|m| m.len() == BALLAST_BYTES as u64) {
            return;
        }
        // Only a disk with room to spare: refilling must not be what fills it.
        let free = disk::available(path.parent().unwrap_or(Path::new("/"))).unwrap_or(0);
        if free <= 32 * BALLAST_BYTES as u64 {
            return;
        }
        let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        if let Err(error) = file.and_then(|mut file| std::io::Write::write_all(&mut file, &[0x5a; BALLAST_BYTES])) {
            tracing::warn!(%error, "could not write the ballast file of the database");
        }
    }
}

fn transact<T, E: From<DbError>>(connection: &mut Connection, work: impl FnOnce(&Tx) -> Result<T, E>) -> Result<T, E> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(DbError::from)?;
    let tx = Tx(tx);
    let value = work(&tx)?;
    tx.0.commit().map_err(DbError::from)?;
    Ok(value)
}

fn connect(path: &Path) -> Result<Connection, DbError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(WRITE_WAIT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// The parsed form of a text column.
fn parsed<T: std::str::FromStr>(text: String) -> Result<T, DbError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| DbError::Row(format!("{text:?}: {e}")))
}

/// Runs `query` and decodes each row.
fn collect<T>(
    connection: &Connection,
    query: &str,
    params: impl rusqlite::Params,
    mut read: impl FnMut(&rusqlite::Row) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}
