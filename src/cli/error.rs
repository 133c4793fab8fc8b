//! How a command fails: a message, an exit code, and a hint where the next step is known.

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

/// Why a command failed.
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
    /// Arguments that clap cannot check.
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
    #[error("a word of the command contains a NUL byte")]
    Quote(#[from] shlex::QuoteError),
    #[error("no SSH public key in ~/.ssh")]
    NoPublicKey,
    #[error("{0} is not an SSH public key")]
    BadPublicKey(PathBuf),
    #[error("pod {instance} has no host port for its port {port}")]
    NoPort { instance: String, port: u16 },
    #[error("the key was not added: {0}")]
    KeyNotAdded(String),
    #[error("the connection to the pod was lost")]
    ShellLost(#[source] Option<tokio_tungstenite::tungstenite::Error>),
    #[error("no detached session is running in {0}")]
    NoSession(String),
    #[error("more than one detached session is running in {0}")]
    ManySessions(String),
    #[error("the two passwords differ")]
    PasswordsDiffer,
    #[error("the password is empty")]
    EmptyPassword,
    /// `pody login` with a name or password that the server rejects.
    #[error("{0}")]
    LoginRejected(ClientError),
    /// What the server says about a checkpoint or restore that failed.
    #[error("{0}")]
    Action(String),
    /// Ctrl-C while waiting for an action; with its id, if it is known.
    #[error("stopped waiting; the server continues the work")]
    StoppedWaiting(Option<String>),
    #[error("lost the connection to the background action")]
    LostAction { id: String, source: ClientError },
    #[error("no daemon is running on this host")]
    NoDaemon,
    #[error("the daemon of this host does not respond")]
    SilentDaemon,
    #[error("cancelled")]
    Cancelled,
    #[error("not confirmed: {0}")]
    NotConfirmed(String),
    #[error("cannot read {path}")]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    WriteFile { path: PathBuf, source: io::Error },
    #[error("cannot run {program}")]
    Run { program: String, source: io::Error },
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot read standard input")]
    Stdin(#[source] io::Error),
    #[error("cannot write to standard output")]
    Stdout(#[from] io::Error),
}

impl CliError {
    pub fn usage(message: impl Into<String>, hint: &'static str) -> Self {
        Self::Usage { message: message.into(), hint }
    }

    /// Names every error, so that a new one does not compile until it has a code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) | Self::LoginRejected(error) | Self::LostAction { source: error, .. } => {
                error.exit_code()
            }
            Self::Usage { .. } => exit::USAGE,
            Self::StoppedWaiting(_) => exit::INTERRUPTED,
            Self::NoDaemon | Self::SilentDaemon => exit::UNREACHABLE,
            // `pody ps | head` is not a failure.
            Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
            Self::Store(_)
            | Self::Open(_)
            | Self::Start(_)
            | Self::Account(_)
            | Self::Purge(_)
            | Self::Pod(_)
            | Self::Checkpoint(_)
            | Self::Import(_)
            | Self::Db(_)
            | Self::NoSeparator(_)
            | Self::StdinNotLast(_)
            | Self::NoRoute(_)
            | Self::AmbiguousRoute(_)
            | Self::AmbiguousMethod(_)
            | Self::Quote(_)
            | Self::NoPublicKey
            | Self::BadPublicKey(_)
            | Self::NoPort { .. }
            | Self::KeyNotAdded(_)
            | Self::ShellLost(_)
            | Self::NoSession(_)
            | Self::ManySessions(_)
            | Self::PasswordsDiffer
            | Self::EmptyPassword
            | Self::Action(_)
            | Self::Cancelled
            | Self::NotConfirmed(_)
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::Run { .. }
            | Self::Terminal(_)
            | Self::Stdin(_)
            | Self::Stdout(_) => exit::FAILED,
        }
    }

    /// What the server calls the error, where it comes from one that gives codes.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Client(error) | Self::LoginRejected(error) | Self::LostAction { source: error, .. } => error.code(),
            Self::Usage { .. }
            | Self::StoppedWaiting(_)
            | Self::NoDaemon
            | Self::SilentDaemon
            | Self::Store(_)
            | Self::Open(_)
            | Self::Start(_)
            | Self::Account(_)
            | Self::Purge(_)
            | Self::Pod(_)
            | Self::Checkpoint(_)
            | Self::Import(_)
            | Self::Db(_)
            | Self::NoSeparator(_)
            | Self::StdinNotLast(_)
            | Self::NoRoute(_)
            | Self::AmbiguousRoute(_)
            | Self::AmbiguousMethod(_)
            | Self::Quote(_)
            | Self::NoPublicKey
            | Self::BadPublicKey(_)
            | Self::NoPort { .. }
            | Self::KeyNotAdded(_)
            | Self::ShellLost(_)
            | Self::NoSession(_)
            | Self::ManySessions(_)
            | Self::PasswordsDiffer
            | Self::EmptyPassword
            | Self::Action(_)
            | Self::Cancelled
            | Self::NotConfirmed(_)
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::Run { .. }
            | Self::Terminal(_)
            | Self::Stdin(_)
            | Self::Stdout(_) => None,
        }
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Usage { hint, .. } => Some((*hint).to_owned()),
            Self::NoRoute(_) | Self::AmbiguousRoute(_) => Some("`pody help /` lists the routes".to_owned()),
            Self::AmbiguousMethod(_) => Some("say which: `pody get …` or `pody post …`".to_owned()),
            Self::NoPublicKey => Some("create one with `ssh-keygen -t ed25519`, or name the file".to_owned()),
            Self::BadPublicKey(_) => Some("name the file that ends in .pub".to_owned()),
            Self::NoPort { instance, .. } => Some(format!(
                "is it running, and does its image expose that port? `pody inspect {instance}` shows status and ports"
            )),
            Self::NoSession(pod) => Some(format!("`pody shell {pod}` opens a new one")),
            Self::ManySessions(pod) => {
                Some(format!("`pody shell {pod} --list` shows them; add the id of one to --attach"))
            }
            Self::LoginRejected(_) => {
                Some("check the name and the password; an admin can set a new one with `pody user update`".to_owned())
            }
            // Without an id, whether the server had begun is not known.
            Self::StoppedWaiting(None) => Some("`pody actions` lists what was started".to_owned()),
            Self::StoppedWaiting(Some(id)) | Self::LostAction { id, .. } => {
                Some(format!("`pody actions --follow {id}` waits for it again, `pody actions` lists all"))
            }
            Self::NoDaemon => Some("start it, it saves and restores the pods: `pody serve`".to_owned()),
            Self::SilentDaemon => Some("see its log; restart it if it hangs".to_owned()),
            Self::NotConfirmed(_) => Some("answer y, or add --yes".to_owned()),
            Self::Store(_)
            | Self::Open(_)
            | Self::Start(_)
            | Self::Account(_)
            | Self::Purge(_)
            | Self::Pod(_)
            | Self::Checkpoint(_)
            | Self::Import(_)
            | Self::Db(_)
            | Self::NoSeparator(_)
            | Self::StdinNotLast(_)
            | Self::Quote(_)
            | Self::KeyNotAdded(_)
            | Self::ShellLost(_)
            | Self::PasswordsDiffer
            | Self::EmptyPassword
            | Self::Action(_)
            | Self::Cancelled
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::Run { .. }
            | Self::Terminal(_)
            | Self::Stdin(_)
            | Self::Stdout(_) => None,
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
