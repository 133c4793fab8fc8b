//! The life of the daemon: workers, server, signals.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::{App, OpenError},
    config,
    control::{self, ControlError},
    db::{Db, DbError},
    engine::Engine,
    gpu,
    http::{
        router::router,
        server::{Server, ServerError},
    },
    model::time::Millis,
    usage,
};

/// Interval of the database's upkeep: ballast, expired tokens.
const UPKEEP: Duration = Duration::from_secs(60);

/// Interval between returns of free memory to the kernel.
const TRIM: Duration = Duration::from_secs(10);

/// How long operations in progress may take to end when the daemon stops; the next start recovers the rest.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Why the daemon, or an admin command, does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot install signal handlers: {0}")]
    Signals(#[source] std::io::Error),
    #[error("a worker of the daemon ended unexpectedly: {0}")]
    Worker(&'static str),
}

/// Where to serve, and with which config.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub host: String,
    pub port: u16,
    /// `None` = `$PODY_HOME/config.toml`.
    pub config: Option<PathBuf>,
}

/// Runs the daemon until SIGTERM or SIGINT. Pods keep running.
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
        // A full disk or a locked database: reads still work, and they are worth starting for.
        tracing::error!(%error, "cannot close the events of killed operations");
    }

    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let (failed, mut failures) = tokio::sync::mpsc::channel::<&'static str>(4);
    // A worker that ends before the stop ends the daemon: half a daemon is worse than a restarted one.
    let spawn = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let (stop, failed) = (stop.clone(), failed.clone());
        tracker.spawn(async move {
            let ended = tokio::spawn(work).await;
            if !stop.is_cancelled() {
                tracing::error!(worker = name, ?ended, "a worker ended unexpectedly");
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
    spawn(
        "usage",
        Box::pin(usage::run(
            usage::Sources {
                config: app.config.clone(),
                db: app.db.clone(),
                engine: app.engine.clone(),
                gpus: app.gpus.clone(),
                usage: app.usage.clone(),
            },
            stop.clone(),
        )),
    );
    spawn("config", until_stop(Box::pin(app.config.clone().watch())));
    spawn("upkeep", until_stop(Box::pin(upkeep(app.db.clone()))));
    spawn("registry", until_stop(Box::pin(app.reports.clone().upkeep())));
    spawn("files", until_stop(Box::pin(app.files.clone().upkeep())));
    spawn("memory", until_stop(Box::pin(trim_memory())));
    spawn("control", until_stop(Box::pin(control.run(app.config.clone(), app.db.clone()))));
    announce(&server, &home);
    spawn("http", Box::pin(server.run(router(app.clone()), stop.clone())));

    let ended = tokio::select! {
        () = termination => Ok(()),
        Some(worker) = failures.recv() => Err(StartError::Worker(worker)),
    };
    tracing::info!("stopping; pods keep running");
    let patience = Duration::from_secs(8) + LAST_WORK + app.checkpoints.gpu_patience();
    stop.cancel();
    tracker.close();
    let _ = tokio::time::timeout(patience, tracker.wait()).await;
    ended
}

/// A password hash takes 19 MiB for a moment. By default the allocator then adapts and keeps such blocks; with a fixed
/// threshold, larger blocks go straight back to the kernel, which keeps the daemon small.
fn give_memory_back() {
    const LARGE: libc::c_int = 1 << 20;
    // SAFETY: mallopt only sets a number inside the allocator; a refusal leaves the default.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// The allocator keeps many small blocks even when all of them are free; after a burst of connections it would keep
/// them for good.
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
        let expired = db.write(|tx| tx.delete_expired_tokens(Millis::now())).await;
        if let Err::<_, DbError>(error) = expired {
            tracing::warn!(%error, "cannot delete expired tokens, will retry");
        }
        let refill = db.clone();
        let _ = tokio::task::spawn_blocking(move || refill.refill_ballast()).await;
    }
}

/// SIGTERM and SIGINT, caught from here on. Called before anything else: a signal that comes while its handler is being
/// installed would be lost, and one before that ends the process immediately.
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
