//! Docker: the only place that knows bollard.
//!
//! - [`inventory`]: every container and image in memory, fed by events, corrected by a relist, updated at once by our
//!   own writes. Reads answer from it and never wait for the engine.
//! - Writes go through [`Engine::call`], which gives each a deadline and ends it early when the engine stops answering,
//!   so that a hung engine is a 503 and not a hung request.
//! - [`EngineError`] is the only reader of Docker's messages: other modules match its variants.
//!
//! The engine may be down when we start and may go away at any time; [`Engine::watch`] connects again by itself.

mod addresses;
mod checkpoint;
mod container;
mod containers;
mod error;
mod exec;
mod facts;
mod images;
pub mod inventory;
mod storage;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bollard::Docker;
use tokio::sync::watch;

pub use self::{
    addresses::{AddressPool, Placeholder},
    checkpoint::{ContainerInspect, Mount},
    container::{Container, Detail, Image},
    containers::{ContainerSpec, LogOptions},
    error::{Answer, EngineError},
    exec::{ExecOutput, ExecRequest, Piece, Pipes, Terminal},
    facts::EngineFacts,
    inventory::Inventory,
    storage::ImageStore,
};

/// Deadline of a short call to the engine. Together with the cleanup after it, it stays below the 10 s within which a
/// write must be answered when the engine hangs.
pub const SHORT: Duration = Duration::from_secs(7);

/// Deadline of calls that move data (commit).
pub const LONG: Duration = Duration::from_secs(600);

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
    layers: storage::Layers,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            docker: Arc::default(),
            health: watch::Sender::new(Health::Unknown),
            inventory: Inventory::default(),
            facts: Arc::default(),
            layers: storage::Layers::default(),
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
