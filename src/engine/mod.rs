//! Docker: the only place that knows bollard.
//!
//! - [`inventory`]: every container and image in memory, fed by events, corrected by a relist, updated at once by our
//!   own writes. Reads answer from it and never wait for the engine.
//! - Writes go through [`Engine::call`], which gives each a deadline and ends it early when the engine stops answering,
//!   so that a hung engine is a 503 and not a hung request.
//!
//! The engine may be down when we start and may go away at any time; [`Engine::watch`] connects again by itself.

mod addresses;
mod checkpoint;
mod container;
mod containers;
mod exec;
mod facts;
mod images;
pub mod inventory;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bollard::Docker;
use tokio::sync::watch;

pub use self::{
    addresses::{AddressPool, Placeholder},
    checkpoint::ContainerInspect,
    container::{Container, Detail, Image},
    containers::{ContainerSpec, LogOptions},
    exec::{ExecOutput, ExecRequest, Piece, Pipes, Terminal},
    facts::EngineFacts,
    inventory::Inventory,
};

/// Deadline of a short call to the engine. Together with the cleanup after it, it stays below the 10 s within which a
/// write must be answered when the engine hangs.
pub const SHORT: Duration = Duration::from_secs(7);

/// Deadline of calls that move data (commit).
pub const LONG: Duration = Duration::from_secs(600);

/// Why a call to the engine failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum EngineError {
    #[error("Docker does not answer{}", detail(.0))]
    #[strum(serialize = "docker_unavailable")]
    Unavailable(String),
    /// The deadline passed: the engine may have done the work, or may do it later.
    #[error("Docker did not finish within {} s", .0.as_secs())]
    #[strum(serialize = "docker_timed_out")]
    TimedOut(Duration),
    #[error("Docker found no such object: {0}")]
    #[strum(serialize = "docker_not_found")]
    NotFound(String),
    #[error("Docker refused: {0}")]
    #[strum(serialize = "docker_conflict")]
    Conflict(String),
    #[error("port {0} of this host is in use by another program")]
    PortTaken(u16),
    #[error("the disk that holds Docker's data is full")]
    #[strum(serialize = "docker_disk_full")]
    DiskFull,
    #[error("Docker answered {status}: {message}")]
    #[strum(serialize = "docker_failed")]
    Failed { status: u16, message: String },
    /// The connection broke or the response could not be parsed: the work may have been done.
    #[error("Docker's response was lost: {0}")]
    #[strum(serialize = "docker_response_lost")]
    AnswerLost(String),
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl EngineError {
    /// Whether the work may have been done.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::AnswerLost(_) | Self::Unavailable(_))
    }

    /// Whether the processes did not freeze in time. The runtime has resumed all of them then.
    pub fn is_not_frozen(&self) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains("unable to freeze"))
    }
}

impl From<bollard::errors::Error> for EngineError {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code, message } => from_answer(status_code, message),
            Error::RequestTimeoutError => Self::TimedOut(SHORT),
            Error::SocketNotFoundError(path) => Self::Unavailable(format!("no socket {path}")),
            Error::HyperLegacyError { err } if err.is_connect() => Self::Unavailable(root_cause(&err)),
            other => Self::AnswerLost(root_cause(&other)),
        }
    }
}

fn from_answer(status: u16, message: String) -> EngineError {
    let lower = message.to_ascii_lowercase();
    if lower.contains("no space left on device") {
        return EngineError::DiskFull;
    }
    if (lower.contains("address already in use") || lower.contains("port is already allocated"))
        && let Some(port) = taken_port(&message)
    {
        return EngineError::PortTaken(port);
    }
    match status {
        404 => EngineError::NotFound(message),
        409 => EngineError::Conflict(message),
        status => EngineError::Failed { status, message },
    }
}

/// The port in "Bind for 0.0.0.0:20001 failed: port is already allocated" and "listen tcp4 0.0.0.0:20001: bind: address
/// already in use".
fn taken_port(message: &str) -> Option<u16> {
    let mut found = None;
    for (at, _) in message.match_indices(':') {
        let digits: String = message[at + 1..].chars().take_while(char::is_ascii_digit).collect();
        let ends = message[at + 1 + digits.len()..].chars().next();
        if let Ok(port @ 1..) = digits.parse::<u16>()
            && matches!(ends, Some(':' | ' ') | None)
        {
            found = Some(port);
        }
    }
    found
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Whether the engine answers, as last seen by [`Engine::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    Up,
    Down(String),
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Absent until the engine first answers: only then is the API version negotiated.
    docker: Arc<ArcSwapOption<Docker>>,
    health: watch::Sender<Health>,
    inventory: Inventory,
    /// Valid for as long as the engine that reported them runs.
    facts: Arc<ArcSwapOption<EngineFacts>>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            docker: Arc::default(),
            health: watch::Sender::new(Health::Unknown),
            inventory: Inventory::default(),
            facts: Arc::default(),
        }
    }
}

impl Engine {
    /// Connects once, for one-shot commands. The daemon uses [`Self::watch`].
    pub async fn connect() -> Result<Self, EngineError> {
        let engine = Self::default();
        engine.ensure_connected().await?;
        Ok(engine)
    }

    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Connects if not yet connected, and negotiates an API version.
    async fn ensure_connected(&self) -> Result<Arc<Docker>, EngineError> {
        if let Some(docker) = self.docker.load_full() {
            return Ok(docker);
        }
        let docker = Docker::connect_with_defaults()?.with_timeout(LONG);
        let negotiated = tokio::time::timeout(Duration::from_secs(3), docker.negotiate_version()).await;
        let docker =
            Arc::new(negotiated.map_err(|_| EngineError::Unavailable("it does not report its version".to_owned()))??);
        self.docker.store(Some(docker.clone()));
        Ok(docker)
    }

    fn docker(&self) -> Result<Arc<Docker>, EngineError> {
        match (&*self.health.borrow(), self.docker.load_full()) {
            (Health::Down(why), _) => Err(EngineError::Unavailable(why.clone())),
            (_, Some(docker)) => Ok(docker),
            (_, None) => Err(EngineError::Unavailable("not connected yet".to_owned())),
        }
    }

    /// Fails while the engine is known to be down, so that no work is begun that could not be finished.
    pub fn ensure_up(&self) -> Result<(), EngineError> {
        self.docker().map(drop)
    }

    /// Runs one call with a deadline, and ends it early when the engine goes down.
    async fn call<T, F>(&self, deadline: Duration, call: impl FnOnce(Arc<Docker>) -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let mut health = self.health.subscribe();
        tokio::select! {
            answer = self.call_patiently(deadline, call) => answer,
            down = health.wait_for(|health| matches!(health, Health::Down(_))) => match down.as_deref() {
                Ok(Health::Down(why)) => Err(EngineError::Unavailable(why.clone())),
                _ => Err(EngineError::Unavailable(String::new())),
            },
        }
    }

    /// The same for long work, without ending it when the engine seems down: an engine so busy that it does not answer
    /// other calls for a while, such as right after a reboot, still finishes the work; and if the engine dies, the call
    /// breaks off by itself.
    async fn call_patiently<T, F>(
        &self,
        deadline: Duration,
        call: impl FnOnce(Arc<Docker>) -> F,
    ) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let answer = tokio::time::timeout(deadline, call(self.docker()?)).await;
        answer.map_err(|_| EngineError::TimedOut(deadline))?.map_err(EngineError::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_ports_name_the_port() {
        for (message, port) in [
            (
                "driver failed programming external connectivity on endpoint a-b (c2f): Bind for 0.0.0.0:20001 failed: port is already allocated",
                20001,
            ),
            (
                "driver failed: Error starting userland proxy: listen tcp4 0.0.0.0:20002: bind: address already in use",
                20002,
            ),
            ("listen tcp4 [::]:20003: bind: address already in use", 20003),
        ] {
            assert!(
                matches!(from_answer(500, message.to_owned()), EngineError::PortTaken(found) if found == port),
                "{message}"
            );
        }
        assert!(matches!(from_answer(500, "write /x: no space left on device".into()), EngineError::DiskFull));
        assert!(matches!(from_answer(404, String::new()), EngineError::NotFound(_)));
    }
}
