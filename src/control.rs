//! `$PODY_HOME/pody.sock`: how admin commands, which write to the database themselves, notify a running daemon.
//!
//! The protocol is one word: the daemon answers each connection with `ok` after it has reloaded config and database.
//! The socket's lock also keeps a second daemon out of the same directory.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::UnixListener};

use crate::{config::LiveConfig, db::Db};

/// How long an admin command waits for the daemon to reload.
const DEADLINE: Duration = Duration::from_secs(5);

fn path(home: &Path) -> PathBuf {
    home.join("pody.sock")
}

/// Why the daemon does not get its control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("another pody serves {0} already; stop it first, or set PODY_HOME to another directory")]
    Running(PathBuf),
    #[error("cannot create the control socket {path}: {source}")]
    Socket { path: PathBuf, source: std::io::Error },
}

/// The daemon's side of the socket.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Held while the daemon lives; the kernel drops it with the process, however that ends.
    _lock: nix::fcntl::Flock<fs::File>,
}

impl Listener {
    /// Locks the directory; fails if another daemon has it.
    pub fn bind(home: &Path) -> Result<Self, ControlError> {
        let path = path(home);
        let error = |source: std::io::Error| ControlError::Socket { path: path.clone(), source };
        let file =
            fs::OpenOptions::new().create(true).append(true).mode(0o600).open(home.join("pody.lock")).map_err(error)?;
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|_| ControlError::Running(home.to_owned()))?;
        // The socket of a killed daemon: nobody else can use it, we hold the lock.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(error)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(error)?;
        Ok(Self { listener, path, _lock: lock })
    }

    /// Answers admin commands in an endless loop.
    pub async fn run(self, config: LiveConfig, db: Db) {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else { continue };
            if let Err(error) = config.reload() {
                tracing::error!(%error, "cannot reload the config, the old one stays in force");
            }
            let db = db.clone();
            let refreshed = tokio::task::spawn_blocking(move || db.refresh()).await;
            let word = if matches!(refreshed, Ok(Ok(()))) { "ok\n" } else { "failed\n" };
            let _ = stream.write_all(word.as_bytes()).await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The outcome of an admin command's notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyOutcome {
    /// The daemon has read the change.
    Yes,
    /// No daemon is running; it will read the change when it starts.
    NotRunning,
    /// A daemon is running and did not answer.
    Silent,
}

/// Notifies a running daemon of a change in the database, and waits until it has read it.
pub fn notify_daemon(home: &Path) -> NotifyOutcome {
    let Ok(mut stream) = UnixStream::connect(path(home)) else { return NotifyOutcome::NotRunning };
    let mut word = String::new();
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let _ = stream.flush();
    match stream.read_to_string(&mut word) {
        Ok(_) if word == "ok\n" => NotifyOutcome::Yes,
        _ => NotifyOutcome::Silent,
    }
}

/// PID of the running daemon; `None` if none runs.
pub async fn daemon_pid(home: &Path) -> Option<i32> {
    tokio::net::UnixStream::connect(path(home)).await.ok()?.peer_cred().ok()?.pid()
}
