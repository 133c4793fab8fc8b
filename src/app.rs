//! The handles that handlers and admin commands get.

use std::path::{Path, PathBuf};

use crate::{
    account::{AccountError, Accounts},
    agents::{Clusters, reports::Reports},
    checkpoint::Checkpoints,
    config::{ConfigError, LiveConfig},
    db::{Db, DbError},
    engine::Engine,
    files::Files,
    gpu::Gpus,
    metrics::Metrics,
    model::{names::UserName, user::Actor},
    objects,
    pod::{PodError, Pods},
    usage::Usage,
};

/// Why config or database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Db(#[from] DbError),
}

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
    pub reports: Reports,
    pub usage: Usage,
    pub metrics: Metrics,
}

impl App {
    /// Opens config and database. Does not call the engine.
    pub fn open(home: &Path, config: Option<PathBuf>, engine: Engine) -> Result<Self, OpenError> {
        let config = LiveConfig::load(config.unwrap_or_else(|| home.join("config.toml")), objects::check)?;
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
        let reports = Reports::new(home, db.clone(), config.clone(), checkpoints.clone());
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
            reports,
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

/// Why a purge failed.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Pod(#[from] PodError),
}
