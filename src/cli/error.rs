//! How a command ends when it does not work: a message, the exit code, and a hint where the next step is known.

use std::{io, path::PathBuf};

use super::{client::ClientError, credentials::StoreError, exit};
use crate::{
    account::{AccountError, import::ImportError},
    app::{OpenError, PurgeError},
    checkpoint::CheckpointError,
    daemon::StartError,
    db::DbError,
    pod::PodError,
};

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Purge(#[from] PurgeError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Db(#[from] DbError),
    /// Arguments that clap cannot judge.
    #[error("{message}")]
    Usage { message: String, hint: &'static str },
    #[error("Invalid argument: {0}, the format should be key:value or key=value")]
    NoSeparator(String),
    #[error("Invalid argument: {0}, only last argument can be read from stdin")]
    StdinNotLast(String),
    #[error("Path not found: {0}")]
    NoRoute(String),
    #[error("Ambiguous path: {0}")]
    AmbiguousRoute(String),
    #[error("Auto fetch not support ambiguous methods: {0}")]
    AmbiguousMethod(String),
    #[error("no SSH public key in ~/.ssh")]
    NoPublicKey,
    #[error("{0} is no SSH public key")]
    BadPublicKey(PathBuf),
    #[error("pod {instance} has no port of this host for its port {port}")]
    NoPort { instance: String, port: u16 },
    #[error("the key was not added: {0}")]
    KeyNotAdded(String),
    #[error("the connection to the pod was lost")]
    ShellLost(#[source] Option<tokio_tungstenite::tungstenite::Error>),
    #[error("nothing goes on in {0} without anybody: there is no session to come back to")]
    NoSession(String),
    #[error("more than one session goes on in {0}")]
    ManySessions(String),
    #[error("the two passwords differ")]
    PasswordsDiffer,
    #[error("the password is empty")]
    EmptyPassword,
    /// What the server says of a checkpoint or restore that failed.
    #[error("{0}")]
    Action(String),
    /// An action goes on without anybody who waits for it.
    #[error("not waited for any more; the server goes on with it")]
    StoppedWaiting(Option<String>),
    #[error("lost sight of what goes on in the background")]
    LostSight { id: String, source: ClientError },
    #[error("no daemon runs on this host")]
    NoDaemon,
    #[error("the daemon of this host does not answer")]
    SilentDaemon,
    #[error("cancelled")]
    Cancelled,
    #[error("not done: {0}")]
    NotConfirmed(String),
    #[error("cannot read {path}")]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    WriteFile { path: PathBuf, source: io::Error },
    #[error("cannot run {program}")]
    Run { program: String, source: io::Error },
    #[error("the terminal does not answer")]
    Terminal(#[source] io::Error),
    #[error("cannot read the standard input")]
    Stdin(#[source] io::Error),
    #[error("cannot write the output")]
    Stdout(#[from] io::Error),
}

impl CliError {
    pub fn usage(message: impl Into<String>, hint: &'static str) -> Self {
        Self::Usage { message: message.into(), hint }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => error.exit_code(),
            Self::Usage { .. } => exit::USAGE,
            Self::StoppedWaiting(_) => exit::INTERRUPTED,
            Self::LostSight { source, .. } => source.exit_code(),
            Self::NoDaemon | Self::SilentDaemon => exit::UNREACHABLE,
            // `pody ps | head` is no failure.
            Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
            _ => exit::FAILED,
        }
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Usage { hint, .. } => Some((*hint).to_owned()),
            Self::NoRoute(_) | Self::AmbiguousRoute(_) => Some("`pody help /` lists the routes".to_owned()),
            Self::AmbiguousMethod(_) => Some("say which: `pody get …` or `pody post …`".to_owned()),
            Self::NoPublicKey => Some("make one with `ssh-keygen -t ed25519`, or name the file".to_owned()),
            Self::BadPublicKey(_) => Some("name the file that ends in .pub".to_owned()),
            Self::NoPort { .. } => {
                Some("`pody inspect` shows which ports the pod has; is its image given port 22?".into())
            }
            Self::ManySessions(pod) => Some(format!("`pody shell {pod} --list` shows them; name one behind --attach")),
            // Whether the server had begun by then is not known.
            Self::StoppedWaiting(None) => Some("`pody actions` lists what was begun".to_owned()),
            Self::StoppedWaiting(Some(id)) | Self::LostSight { id, .. } => {
                Some(format!("`pody actions --follow {id}` waits for it again, `pody actions` lists all"))
            }
            Self::NoDaemon => Some("start it: it is what saves pods and brings them back".to_owned()),
            Self::SilentDaemon => Some("see its log; restart it if it hangs".to_owned()),
            Self::NotConfirmed(_) => Some("answer y, or add -y".to_owned()),
            _ => None,
        }
    }

    /// The message with its causes, on one line.
    pub fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            // Transparent wrappers and libraries repeat themselves.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        message
    }
}
