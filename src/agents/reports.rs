//! Checkpoints and restores that agents report, in addition to this host's own.
//!
//! An agent of another host may register its own checkpoints here: it creates one without files, adds information, and
//! marks it as uploaded. This host never restores from those, only from its own. An agent may also attach details to
//! our checkpoints and actions (information, a reason, a pod's spec); they are shown and change nothing.
//!
//! The one exception is deprecating: a deprecated checkpoint can no longer be restored and is deleted after
//! `[checkpoint] deprecated_seconds`, never while something reads it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    config::LiveConfig,
    db::{Db, DbError, NewEvent, Outcome, Tx},
    model::{
        action::Action,
        agent::{ToldAction, ToldCheckpoint, ToldStatus},
        checkpoint::{Checkpoint, CheckpointFilter, CheckpointStatus},
        ids::{ActionId, CheckpointId},
        names::UserName,
        time::now,
        user::{Actor, Caller},
    },
};

/// Limits on the reports of one user's agents.
const MAX_CHECKPOINTS: u64 = 1000;

const MAX_JSON: usize = 64 << 10;

const MAX_BYTES: u64 = 16 << 20;

const MAX_TEXT: usize = 4096;

/// Interval between deletions of deprecated checkpoints.
const UPKEEP: Duration = Duration::from_secs(5);

/// A checkpoint of ours, of an agent, or ours with the details that an agent reported.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: CheckpointId,
    pub ours: Option<Checkpoint>,
    pub told: Option<ToldCheckpoint>,
}

/// Information about a checkpoint.
#[derive(Clone, Debug)]
pub struct Info {
    pub gpu: String,
    pub platform: String,
    pub info: Option<Value>,
}

/// Why a report was not stored.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("a report may have at most {MAX_JSON} bytes of JSON and texts of {MAX_TEXT} bytes, this one has more")]
    TooLarge,
    #[error("{0} must not contain control characters; leave them out")]
    Control(&'static str),
    #[error(
        "the agents of one user may report {MAX_CHECKPOINTS} checkpoints in {MAX_BYTES} bytes; yours have reported {checkpoints} in {bytes}; deprecate some"
    )]
    TooMany { checkpoints: u64, bytes: u64 },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// All reports of agents. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    db: Db,
    config: LiveConfig,
    checkpoints: Checkpoints,
    /// The directory of our checkpoints.
    store: PathBuf,
}

impl Registry {
    pub fn new(home: &Path, db: Db, config: LiveConfig, checkpoints: Checkpoints) -> Self {
        let store = config.get().checkpoint.directory.clone().unwrap_or_else(|| home.join("checkpoints"));
        Self { db, config, checkpoints, store }
    }

    /// The directory of all checkpoints of this host.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Where a checkpoint is: as an agent reported, or in our store.
    pub fn path(&self, entry: &Entry) -> Option<String> {
        let told = entry.told.as_ref().and_then(|told| told.restore_path.clone());
        let is_here = entry.ours.as_ref().is_some_and(|row| row.status == CheckpointStatus::Ready);
        told.or_else(|| is_here.then(|| self.store.join(entry.id.to_string()).display().to_string()))
    }

    /// Registers an agent's checkpoint without files.
    pub async fn create(&self, caller: &Caller) -> Result<CheckpointId, RegistryError> {
        let (id, caller) = (CheckpointId::generate(), caller.clone());
        self.db
            .write(move |tx| {
                let mut told = empty(id, caller.user.clone(), true);
                told.status = ToldStatus::Initializing;
                tx.upsert_told_checkpoint(&told)?;
                check_limits(tx, &told.user)?;
                record(tx, &caller, "checkpoint.tell", id, &told.user)
            })
            .await?;
        Ok(id)
    }

    /// The caller's checkpoints, for admins everybody's; only `ids` if given. Newest first.
    pub async fn list(&self, caller: &Caller, ids: Option<Vec<CheckpointId>>) -> Result<Vec<Entry>, RegistryError> {
        let filter = CheckpointFilter { all: caller.is_admin, ids: ids.clone(), ..CheckpointFilter::default() };
        let ours = self.checkpoints.list(caller, filter).await?;
        let user = (!caller.is_admin).then(|| caller.user.clone());
        let told: Vec<ToldCheckpoint> = self.db.read(move |tx| tx.list_told_checkpoints(user.as_ref())).await?;
        let mut told: HashMap<CheckpointId, ToldCheckpoint> = told.into_iter().map(|told| (told.id, told)).collect();
        let mut all: Vec<Entry> =
            ours.into_iter().map(|row| Entry { id: row.id, told: told.remove(&row.id), ours: Some(row) }).collect();
        let is_wanted = |told: &ToldCheckpoint| told.own && ids.as_ref().is_none_or(|ids| ids.contains(&told.id));
        all.extend(told.into_values().filter(is_wanted).map(|told| Entry {
            id: told.id,
            ours: None,
            told: Some(told),
        }));
        // Ids begin with their creation time.
        all.sort_by_key(|entry| std::cmp::Reverse(entry.id));
        Ok(all)
    }

    pub async fn put_info(&self, caller: &Caller, id: CheckpointId, info: Info) -> Result<(), RegistryError> {
        if info.gpu.len() > MAX_TEXT || info.platform.len() > MAX_TEXT || is_too_large(info.info.as_ref()) {
            return Err(RegistryError::TooLarge);
        }
        ensure_plain("gpu", &info.gpu)?;
        ensure_plain("platform", &info.platform)?;
        self.change(caller, id, "checkpoint.info", move |told| {
            if told.status == ToldStatus::Initializing {
                told.status = ToldStatus::UpdatedInfo;
            }
            (told.gpu, told.platform, told.info) = (Some(info.gpu), Some(info.platform), info.info);
        })
        .await
    }

    /// Records that an agent has uploaded its checkpoint.
    pub async fn uploaded(&self, caller: &Caller, id: CheckpointId, path: Option<String>) -> Result<(), RegistryError> {
        if let Some(path) = &path {
            if path.len() > MAX_TEXT {
                return Err(RegistryError::TooLarge);
            }
            ensure_plain("restore_path", path)?;
        }
        self.change(caller, id, "checkpoint.uploaded", move |told| {
            if told.status != ToldStatus::Deprecated {
                told.status = ToldStatus::Ready;
            }
            told.restore_path = path.filter(|path| !path.is_empty());
        })
        .await
    }

    /// Marks a checkpoint for deletion after `deprecated_seconds`.
    pub async fn deprecate(&self, caller: &Caller, id: CheckpointId) -> Result<(), RegistryError> {
        self.change(caller, id, "checkpoint.deprecate", |told| {
            told.status = ToldStatus::Deprecated;
            told.deprecated_at = Some(told.deprecated_at.unwrap_or_else(now));
        })
        .await
    }

    /// Changes the report of a checkpoint that the caller may see.
    async fn change(
        &self,
        caller: &Caller,
        id: CheckpointId,
        action: &'static str,
        how: impl FnOnce(&mut ToldCheckpoint) + Send + 'static,
    ) -> Result<(), RegistryError> {
        let caller = caller.clone();
        self.db
            .write(move |tx| {
                let not_found = || CheckpointError::NotFound(id.to_string());
                let may_see = |user: &UserName| caller.is_admin || *user == caller.user;
                let is_there = |row: &Checkpoint| row.status != CheckpointStatus::Deleting;
                let ours = tx.find_checkpoint(id)?.filter(is_there);
                let told = tx.find_told_checkpoint(id)?;
                let mut told = match (told, &ours) {
                    (Some(told), _) if told.own || ours.is_some() => told,
                    (_, Some(row)) => empty(id, row.user.clone(), false),
                    (_, None) => return Err(not_found().into()),
                };
                if !may_see(&told.user) {
                    return Err(not_found().into());
                }
                how(&mut told);
                if told.status == ToldStatus::Deprecated && tx.is_held_by_drain(id)? {
                    return Err(CheckpointError::HeldByDrain(id).into());
                }
                if let (Some(row), ToldStatus::Deprecated) = (&ours, told.status)
                    && !tx.deprecate_checkpoint(id)?
                {
                    return Err(CheckpointError::NotReady { id, status: row.status }.into());
                }
                tx.upsert_told_checkpoint(&told)?;
                check_limits(tx, &told.user)?;
                record(tx, &caller, action, id, &told.user)
            })
            .await
    }

    /// Reports of actions, by id.
    pub async fn told_of_actions(&self, caller: &Caller) -> Result<HashMap<ActionId, ToldAction>, RegistryError> {
        let user = (!caller.is_admin).then(|| caller.user.clone());
        let told: Vec<ToldAction> = self.db.read(move |tx| tx.list_told_actions(user.as_ref())).await?;
        Ok(told.into_iter().map(|told| (told.id, told)).collect())
    }

    /// The newest action for which an agent reported this pod.
    pub async fn action_of_told_pod(&self, caller: &Caller, pod: String) -> Result<Option<ActionId>, RegistryError> {
        let user = (!caller.is_admin).then(|| caller.user.clone());
        Ok(self.db.read(move |tx| tx.find_action_of_told_pod(user.as_ref(), &pod)).await?)
    }

    /// Attaches details to an action that the caller may see.
    pub async fn tell(
        &self,
        caller: &Caller,
        id: ActionId,
        how: impl FnOnce(&mut ToldAction) + Send + 'static,
    ) -> Result<Action, RegistryError> {
        let action = self.checkpoints.action(caller, id).await?;
        let user = action.user.clone();
        self.db
            .write(move |tx| {
                let told = tx.find_told_action(id)?;
                let mut told = told.unwrap_or_else(|| ToldAction {
                    id,
                    user: user.clone(),
                    reason: None,
                    upload: None,
                    info: None,
                });
                how(&mut told);
                if is_too_large(told.upload.as_ref()) || is_too_large(told.info.as_ref()) {
                    return Err(RegistryError::TooLarge);
                }
                tx.upsert_told_action(&told)?;
                check_limits(tx, &user)
            })
            .await?;
        Ok(action)
    }

    /// Deletes checkpoints that were deprecated long enough ago, in an endless loop.
    pub async fn upkeep(self) {
        loop {
            let keep = self.config.get().checkpoint.deprecated_seconds;
            let before = now() - i64::try_from(keep).unwrap_or(i64::MAX / 1000).saturating_mul(1000);
            if let Err(error) = self.drop_deprecated(before).await {
                tracing::warn!(%error, "cannot delete deprecated checkpoints, will retry");
            }
            tokio::time::sleep(UPKEEP).await;
        }
    }
}

impl Registry {
    async fn drop_deprecated(&self, before: i64) -> Result<(), DbError> {
        // Usually there is nothing to delete, and no write is needed.
        if !self.db.read(move |tx| tx.is_told_to_drop(before)).await? {
            return Ok(());
        }
        let dropped = self.db.write(move |tx| tx.drop_deprecated(before)).await?;
        if dropped > 0 {
            tracing::info!(dropped, "deleting deprecated checkpoints");
        }
        Ok(())
    }
}

fn empty(id: CheckpointId, user: UserName, own: bool) -> ToldCheckpoint {
    let status = ToldStatus::Ready;
    ToldCheckpoint {
        id,
        user,
        own,
        status,
        gpu: None,
        platform: None,
        info: None,
        restore_path: None,
        deprecated_at: None,
    }
}

fn is_too_large(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.to_string().len() > MAX_JSON)
}

/// For texts that are shown on one line or are names.
pub fn ensure_plain(field: &'static str, text: &str) -> Result<(), RegistryError> {
    if text.chars().any(char::is_control) { Err(RegistryError::Control(field)) } else { Ok(()) }
}

/// Checked after the change, which is rolled back if it exceeds a limit.
fn check_limits(tx: &Tx, user: &UserName) -> Result<(), RegistryError> {
    let (checkpoints, bytes) = tx.count_told(user)?;
    if checkpoints > MAX_CHECKPOINTS || bytes > MAX_BYTES {
        return Err(RegistryError::TooMany { checkpoints, bytes });
    }
    Ok(())
}

fn record(
    tx: &Tx,
    caller: &Caller,
    action: &'static str,
    id: CheckpointId,
    user: &UserName,
) -> Result<(), RegistryError> {
    let Actor { name: actor, source } = Actor::from(caller);
    let (object, user, outcome) = (id.to_string(), Some(user.clone()), Outcome::Ok);
    tx.insert_event(&NewEvent { actor, source, action, object, user, outcome, detail: None })?;
    Ok(())
}
