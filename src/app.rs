//! The handles that every part gets, and the life of the daemon.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::{AccountError, Accounts},
    checkpoint::Checkpoints,
    cluster::Clusters,
    config::{self, ConfigError, LiveConfig},
    control,
    db::{Db, DbError},
    engine::Engine,
    files::Files,
    gpu::{self, Gpus},
    http::{
        router::router,
        server::{Server, ServerError},
    },
    metrics::Metrics,
    model::{names::UserName, time::now, user::Actor},
    pod::{PodError, Pods},
    registry::Registry,
    usage::{self, Usage},
};

/// Upkeep of the database: ballast, tokens that expired.
const UPKEEP: Duration = Duration::from_secs(60);

/// Time between two looks for memory that can be given back.
const TRIM: Duration = Duration::from_secs(10);

/// Work that was begun may take this long to end when the daemon stops; what is left is settled at the next start.
const LAST_WORK: Duration = Duration::from_secs(1);

/// All handles. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub config: LiveConfig,
    pub db: Db,
    pub accounts: Accounts,
    pub engine: Engine,
    pub gpus: Gpus,
    pub pods: Pods,
    pub checkpoints: Checkpoints,
    pub clusters: Clusters,
    pub files: Files,
    pub registry: Registry,
    pub usage: Usage,
    pub metrics: Metrics,
}

/// Why the daemon, or an admin command, does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("another pody serves {0} already; stop it first, or set PODY_HOME to another folder")]
    Running(PathBuf),
    #[error("cannot make the control socket {path}: {source}")]
    Control { path: PathBuf, source: std::io::Error },
    #[error("cannot listen to signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error("a worker of the daemon ended: {0}")]
    Worker(&'static str),
}

/// Where and with what to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub host: String,
    pub port: u16,
    /// `None` = `$PODY_HOME/config.toml`.
    pub config: Option<PathBuf>,
}

impl App {
    /// Opens config and database. The engine is not asked.
    pub fn open(home: &Path, config: Option<PathBuf>, engine: Engine) -> Result<Self, StartError> {
        let config = LiveConfig::load(config.unwrap_or_else(|| home.join("config.toml")))?;
        let db = Db::open(home)?;
        let accounts = Accounts::new(db.clone(), config.clone());
        let gpus = Gpus::new(config.clone(), db.clone(), engine.inventory().clone());
        let pods = Pods::new(home, db.clone(), config.clone(), engine.clone(), gpus.clone(), accounts.clone());
        let checkpoints = Checkpoints::new(
            home,
            db.clone(),
            config.clone(),
            engine.clone(),
            gpus.clone(),
            accounts.clone(),
            pods.clone(),
        );
        let clusters = Clusters::open(db.clone())?;
        let registry = Registry::new(home, db.clone(), config.clone(), checkpoints.clone());
        let files =
            Files::new(home.to_owned(), clusters.host().to_string(), db.clone(), config.clone(), accounts.clone());
        Ok(Self {
            config,
            db,
            accounts,
            engine,
            gpus,
            pods,
            checkpoints,
            clusters,
            files,
            registry,
            usage: Usage::default(),
            metrics: Metrics::default(),
        })
    }

    /// Deletes a user's pods, then the user.
    pub async fn purge_user(&self, actor: Actor, name: UserName) -> Result<Vec<String>, PurgeError> {
        let known = self.accounts.find_user(&name).await.map_err(AccountError::Remote)?;
        if known.is_none() && self.db.snapshot().pods.of_user(&name).is_empty() {
            return Err(AccountError::NoUser(name).into());
        }
        let pods = self.pods.delete_all(actor.clone(), &name).await?;
        if known.is_some() {
            self.accounts.delete_user(actor, name).await?;
        }
        Ok(pods)
    }
}

/// Why a purge was not finished.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Runs the daemon until SIGTERM or SIGINT. Pods live on.
pub async fn serve(options: ServeOptions) -> Result<(), StartError> {
    let termination = termination().map_err(StartError::Signals)?;
    give_memory_back();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let home = config::home();
    let app = App::open(&home, options.config, Engine::default())?;
    let server = Server::bind(&options.host, options.port, &app.config.get()).await?;
    let control = control::Listener::bind(&home)?;
    if let Err(error) = app.pods.interrupt_events().await {
        // A full disk or a lock: reads work, and that is what a daemon is started for then.
        tracing::error!(%error, "events of work that a kill ended stay open");
    }

    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let (failed, mut failures) = tokio::sync::mpsc::channel::<&'static str>(4);
    // A worker that ends before it is told to ends the daemon: half a daemon is worse than a restarted one.
    let spawn = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let (stop, failed) = (stop.clone(), failed.clone());
        tracker.spawn(async move {
            let ended = tokio::spawn(work).await;
            if !stop.is_cancelled() {
                tracing::error!(worker = name, ?ended, "a worker ended");
                let _ = failed.send(name).await;
            }
        });
    };
    let until_stop = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = stop.clone();
        Box::pin(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        })
    };
    spawn("engine", Box::pin(app.engine.clone().watch(stop.clone())));
    spawn("reconcile", Box::pin(app.pods.clone().reconcile_loop(stop.clone())));
    spawn("checkpoints", Box::pin(app.checkpoints.clone().run(stop.clone())));
    spawn("schedules", until_stop(Box::pin(app.checkpoints.clone().schedule_loop())));
    spawn("drain", until_stop(Box::pin(app.checkpoints.clone().drain_loop())));
    spawn("copies", Box::pin(app.checkpoints.clone().run_copies(stop.clone())));
    spawn("gpus", Box::pin(gpu::run(app.gpus.clone(), stop.clone())));
    spawn("gpu health", Box::pin(gpu::health::run(app.gpus.clone(), stop.clone())));
    spawn("overuse", Box::pin(app.pods.clone().enforce_loop(app.gpus.clone(), stop.clone())));
    spawn("gpu access", Box::pin(app.pods.clone().watch_gpu_access(stop.clone())));
    spawn("usage", Box::pin(usage::run(app.clone(), stop.clone())));
    spawn("config", until_stop(Box::pin(app.config.clone().watch())));
    spawn("upkeep", until_stop(Box::pin(upkeep(app.db.clone()))));
    spawn("registry", until_stop(Box::pin(app.registry.clone().upkeep())));
    spawn("files", until_stop(Box::pin(app.files.clone().upkeep())));
    spawn("memory", until_stop(Box::pin(trim_memory())));
    spawn("control", until_stop(Box::pin(control.run(app.clone()))));
    announce(&server, &home);
    spawn("http", Box::pin(server.run(router(app.clone()), stop.clone())));

    let ended = tokio::select! {
        () = termination => Ok(()),
        Some(worker) = failures.recv() => Err(StartError::Worker(worker)),
    };
    tracing::info!("stopping; pods go on");
    let patience = Duration::from_secs(8) + LAST_WORK + app.checkpoints.gpu_patience();
    stop.cancel();
    tracker.close();
    let _ = tokio::time::timeout(patience, tracker.wait()).await;
    ended
}

/// A password hash takes 19 MiB for a moment. By default the allocator learns from that to keep such blocks; a fixed limit
/// above which blocks go straight back to the kernel keeps the daemon small.
fn give_memory_back() {
    const LARGE: libc::c_int = 1 << 20;
    // SAFETY: mallopt only sets a number inside the allocator; a refusal leaves the default.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Many small blocks stay with the allocator, also when all of them are free: after a rush of connections that would be for
/// good.
async fn trim_memory() {
    loop {
        tokio::time::sleep(TRIM).await;
        // SAFETY: malloc_trim only gives back pages that hold nothing.
        let _ = tokio::task::spawn_blocking(|| unsafe { libc::malloc_trim(0) }).await;
    }
}

fn announce(server: &Server, home: &Path) {
    if let Ok(address) = server.local_address() {
        tracing::info!(home = %home.display(), "serving {}://{address}", server.scheme());
        let _ = std::io::stderr().flush();
    }
}

async fn upkeep(db: Db) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let expired = db.write(|tx| tx.delete_expired_tokens(now())).await;
        if let Err::<_, DbError>(error) = expired {
            tracing::warn!(%error, "expired tokens not removed");
        }
        let refill = db.clone();
        let _ = tokio::task::spawn_blocking(move || refill.refill_ballast()).await;
    }
}

/// SIGTERM and SIGINT, caught from here on. Made before anything else is: a signal that comes while its handler is being set up
/// would be swallowed, and one before that ends the process without any farewell.
fn termination() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
