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
    db::{Db, DbError, NewEvent, Tx},
    model::{
        agent::{ReportedAction, ReportedCheckpoint, ReportedStatus},
        checkpoint::{Checkpoint, CheckpointFilter, CheckpointStatus},
        ids::{ActionId, CheckpointId},
        names::UserName,
        time::Millis,
        user::{Actor, Caller},
        view::{action::ActionView, checkpoint::CheckpointView},
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
    pub ours: Option<CheckpointView>,
    pub reported: Option<ReportedCheckpoint>,
}

/// Information about a checkpoint.
#[derive(Clone, Debug)]
pub struct Info {
    pub gpu: String,
    pub platform: String,
    pub info: Option<Value>,
}

/// Why a report was not stored.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ReportError {
    #[error("a report may have at most {MAX_JSON} bytes of JSON and texts of {MAX_TEXT} bytes, this one has more")]
    #[strum(serialize = "report_too_large")]
    TooLarge,
    #[error("{0} must not contain control characters; leave them out")]
    #[strum(serialize = "control_characters")]
    Control(&'static str),
    #[error(
        "the agents of one user may report {MAX_CHECKPOINTS} checkpoints in {MAX_BYTES} bytes; yours have reported {checkpoints} in {bytes}; deprecate some"
    )]
    #[strum(serialize = "too_many_reports")]
    TooMany { checkpoints: u64, bytes: u64 },
    #[error(transparent)]
    #[strum(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
}

/// All reports of agents. Cheap to clone.
#[derive(Clone)]
pub struct Reports {
    db: Db,
    config: LiveConfig,
    checkpoints: Checkpoints,
    /// The directory of our checkpoints.
    store: PathBuf,
}

impl Reports {
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
        let reported = entry.reported.as_ref().and_then(|reported| reported.restore_path.clone());
        let is_here = entry.ours.as_ref().is_some_and(|ours| ours.row.status == CheckpointStatus::Ready);
        reported.or_else(|| is_here.then(|| self.store.join(entry.id.to_string()).display().to_string()))
    }

    /// Registers an agent's checkpoint without files.
    pub async fn create(&self, caller: &Caller) -> Result<CheckpointId, ReportError> {
        let (id, actor, user) = (CheckpointId::generate(), Actor::from(caller), caller.user.clone());
        self.db
            .write(move |tx| {
                let mut reported = empty(id, user, true);
                reported.status = ReportedStatus::Initializing;
                tx.upsert_told_checkpoint(&reported)?;
                check_limits(tx, &reported.user)?;
                tx.insert_event(&NewEvent::by(&actor).did("checkpoint.tell", id).of(&reported.user))?;
                Ok::<_, ReportError>(())
            })
            .await?;
        Ok(id)
    }

    /// The caller's checkpoints, for admins everybody's; only `ids` if given. Newest first.
    pub async fn list(&self, caller: &Caller, ids: Option<Vec<CheckpointId>>) -> Result<Vec<Entry>, ReportError> {
        let filter = CheckpointFilter { all: caller.is_admin, ids: ids.clone(), ..CheckpointFilter::default() };
        let ours = self.checkpoints.list(caller, filter).await?;
        let user = (!caller.is_admin).then(|| caller.user.clone());
        let reported: Vec<ReportedCheckpoint> = self.db.read(move |tx| tx.list_told_checkpoints(user.as_ref())).await?;
        let mut reported: HashMap<CheckpointId, ReportedCheckpoint> =
            reported.into_iter().map(|reported| (reported.id, reported)).collect();
        let mut all: Vec<Entry> = ours
            .into_iter()
            .map(|ours| Entry { id: ours.row.id, reported: reported.remove(&ours.row.id), ours: Some(ours) })
            .collect();
        let is_wanted =
            |reported: &ReportedCheckpoint| reported.own && ids.as_ref().is_none_or(|ids| ids.contains(&reported.id));
        all.extend(reported.into_values().filter(is_wanted).map(|reported| Entry {
            id: reported.id,
            ours: None,
            reported: Some(reported),
        }));
        // Ids begin with their creation time.
        all.sort_by_key(|entry| std::cmp::Reverse(entry.id));
        Ok(all)
    }

    pub async fn put_info(&self, caller: &Caller, id: CheckpointId, info: Info) -> Result<(), ReportError> {
        if info.gpu.len() > MAX_TEXT || info.platform.len() > MAX_TEXT || is_too_large(info.info.as_ref()) {
            return Err(ReportError::TooLarge);
        }
        ensure_plain("gpu", &info.gpu)?;
        ensure_plain("platform", &info.platform)?;
        self.change(caller, id, "checkpoint.info", move |reported| {
            if reported.status == ReportedStatus::Initializing {
                reported.status = ReportedStatus::UpdatedInfo;
            }
            (reported.gpu, reported.platform, reported.info) = (Some(info.gpu), Some(info.platform), info.info);
        })
        .await
    }

    /// Records that an agent has uploaded its checkpoint.
    pub async fn uploaded(&self, caller: &Caller, id: CheckpointId, path: Option<String>) -> Result<(), ReportError> {
        if let Some(path) = &path {
            if path.len() > MAX_TEXT {
                return Err(ReportError::TooLarge);
            }
            ensure_plain("restore_path", path)?;
        }
        self.change(caller, id, "checkpoint.uploaded", move |reported| {
            if reported.status != ReportedStatus::Deprecated {
                reported.status = ReportedStatus::Ready;
            }
            reported.restore_path = path.filter(|path| !path.is_empty());
        })
        .await
    }

    /// Marks a checkpoint for deletion after `deprecated_seconds`.
    pub async fn deprecate(&self, caller: &Caller, id: CheckpointId) -> Result<(), ReportError> {
        self.change(caller, id, "checkpoint.deprecate", |reported| {
            reported.status = ReportedStatus::Deprecated;
            reported.deprecated_at = Some(reported.deprecated_at.unwrap_or_else(Millis::now));
        })
        .await
    }

    /// Changes the report of a checkpoint that the caller may see.
    async fn change(
        &self,
        caller: &Caller,
        id: CheckpointId,
        action: &'static str,
        how: impl FnOnce(&mut ReportedCheckpoint) + Send + 'static,
    ) -> Result<(), ReportError> {
        let caller = caller.clone();
        self.db
            .write(move |tx| {
                let not_found = || CheckpointError::NotFound(id.to_string());
                let may_see = |user: &UserName| caller.is_admin || *user == caller.user;
                let is_there = |row: &Checkpoint| row.status != CheckpointStatus::Deleting;
                let ours = tx.find_checkpoint(id)?.filter(is_there);
                let reported = tx.find_told_checkpoint(id)?;
                let mut reported = match (reported, &ours) {
                    (Some(reported), _) if reported.own || ours.is_some() => reported,
                    (_, Some(row)) => empty(id, row.user.clone(), false),
                    (_, None) => return Err(not_found().into()),
                };
                if !may_see(&reported.user) {
                    return Err(not_found().into());
                }
                how(&mut reported);
                if reported.status == ReportedStatus::Deprecated && tx.is_held_by_drain(id)? {
                    return Err(CheckpointError::HeldByDrain(id).into());
                }
                if let (Some(row), ReportedStatus::Deprecated) = (&ours, reported.status) {
                    tx.update_checkpoint(id, CheckpointStatus::Deprecated, row.size).map_err(|error| {
                        match error.is_too_late() {
                            // It is not complete.
                            true => ReportError::from(CheckpointError::NotReady { id, status: row.status }),
                            false => error.into(),
                        }
                    })?;
                }
                tx.upsert_told_checkpoint(&reported)?;
                check_limits(tx, &reported.user)?;
                tx.insert_event(&NewEvent::by(&Actor::from(&caller)).did(action, id).of(&reported.user))?;
                Ok(())
            })
            .await
    }

    /// Reports of actions, by id.
    pub async fn reported_actions(&self, caller: &Caller) -> Result<HashMap<ActionId, ReportedAction>, ReportError> {
        let user = (!caller.is_admin).then(|| caller.user.clone());
        let reported: Vec<ReportedAction> = self.db.read(move |tx| tx.list_told_actions(user.as_ref())).await?;
        Ok(reported.into_iter().map(|reported| (reported.id, reported)).collect())
    }

    /// The newest action for which an agent reported this pod.
    pub async fn action_of_told_pod(&self, caller: &Caller, pod: String) -> Result<Option<ActionId>, ReportError> {
        let user = (!caller.is_admin).then(|| caller.user.clone());
        Ok(self.db.read(move |tx| tx.find_action_of_told_pod(user.as_ref(), &pod)).await?)
    }

    /// Attaches details to an action that the caller may see.
    pub async fn tell(
        &self,
        caller: &Caller,
        id: ActionId,
        how: impl FnOnce(&mut ReportedAction) + Send + 'static,
    ) -> Result<ActionView, ReportError> {
        let action = self.checkpoints.action(caller, id).await?;
        let user = action.user.clone();
        self.db
            .write(move |tx| {
                let reported = tx.find_told_action(id)?;
                let mut reported = reported.unwrap_or_else(|| ReportedAction {
                    id,
                    user: user.clone(),
                    reason: None,
                    upload: None,
                    info: None,
                });
                how(&mut reported);
                if is_too_large(reported.upload.as_ref()) || is_too_large(reported.info.as_ref()) {
                    return Err(ReportError::TooLarge);
                }
                tx.upsert_told_action(&reported)?;
                check_limits(tx, &user)
            })
            .await?;
        Ok(action)
    }

    /// Deletes checkpoints that were deprecated long enough ago, in an endless loop.
    pub async fn upkeep(self) {
        loop {
            let keep = self.config.get().checkpoint.deprecated_seconds;
            let before = Millis::now() - i64::try_from(keep).unwrap_or(i64::MAX / 1000).saturating_mul(1000);
            if let Err(error) = self.drop_deprecated(before).await {
                tracing::warn!(%error, "cannot delete deprecated checkpoints, will retry");
            }
            tokio::time::sleep(UPKEEP).await;
        }
    }
}

impl Reports {
    async fn drop_deprecated(&self, before: Millis) -> Result<(), DbError> {
        // Usually there is nothing to delete, and no write is needed.
        if !self.db.read(move |tx| tx.has_deprecated(before)).await? {
            return Ok(());
        }
        let dropped = self.db.write(move |tx| tx.drop_deprecated(before)).await?;
        if dropped > 0 {
            tracing::info!(dropped, "deleting deprecated checkpoints");
        }
        Ok(())
    }
}

fn empty(id: CheckpointId, user: UserName, own: bool) -> ReportedCheckpoint {
    let status = ReportedStatus::Ready;
    ReportedCheckpoint {
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
pub fn ensure_plain(field: &'static str, text: &str) -> Result<(), ReportError> {
    if text.chars().any(char::is_control) { Err(ReportError::Control(field)) } else { Ok(()) }
}

/// Checked after the change, which is rolled back if it exceeds a limit.
fn check_limits(tx: &Tx, user: &UserName) -> Result<(), ReportError> {
    let (checkpoints, bytes) = tx.count_told(user)?;
    if checkpoints > MAX_CHECKPOINTS || bytes > MAX_BYTES {
        return Err(ReportError::TooMany { checkpoints, bytes });
    }
    Ok(())
}
