//! The config while the daemon runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{CheckRemote, Config, ConfigError};

/// The config in effect, replaced as a whole when the file changes.
///
/// TLS files, the listen address and `[server]` are read at start only.
#[derive(Clone)]
pub struct LiveConfig {
    path: Arc<PathBuf>,
    check_remote: CheckRemote,
    current: Arc<ArcSwap<Config>>,
}

impl LiveConfig {
    /// How often the file's modification time is checked.
    pub const POLL: Duration = Duration::from_secs(2);

    pub fn load(path: PathBuf, check_remote: CheckRemote) -> Result<Self, ConfigError> {
        let current = Arc::new(ArcSwap::from_pointee(Config::load(&path, check_remote)?));
        Ok(Self { path: Arc::new(path), check_remote, current })
    }

    pub fn get(&self) -> Arc<Config> {
        self.current.load_full()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Applies the file if it is valid; otherwise the old config stays in effect.
    pub fn reload(&self) -> Result<(), ConfigError> {
        self.current.store(Arc::new(Config::load(&self.path, self.check_remote)?));
        Ok(())
    }

    /// Reloads on every change of the file.
    pub async fn watch(self) {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let mut seen = modified(&self.path);
        loop {
            tokio::time::sleep(Self::POLL).await;
            let now = modified(&self.path);
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload() {
                Ok(()) => tracing::info!(path = %self.path.display(), "config reloaded"),
                Err(error) => tracing::error!(%error, "could not reload the config; the old one stays in effect"),
            }
        }
    }
}
