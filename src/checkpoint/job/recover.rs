//! Recovers actions that nothing works on: after the daemon was killed, or the engine was away.
//!
//! A checkpoint: whatever of it still runs is ended. A paused pod resumes with its network, or is ended where it was to
//! be stopped and the checkpoint is complete. A directory with its final name is a checkpoint, one without is garbage.
//!
//! A restore: a pod that lives is left alive, and the restore is done; otherwise what there is of it is ended, and
//! files and container are put back.

use std::{collections::HashSet, fs, path::PathBuf, time::Duration};

use fail::fail_point;
use tokio_util::sync::CancellationToken;

use super::hold_traffic;
use crate::{
    checkpoint::{
        CheckpointError, Checkpoints, Manifest, gpu,
        store::{
            KEPT_IMAGES,
            archive::{self, aside},
            compress,
        },
    },
    criu::{freezer, kill, leftovers, namespace_setup, network::lock, restore, runc, stopped_tasks},
    engine::{ContainerInspect, Health},
    host::{blocking::off_thread, disk},
    model::{
        action::{Action, ActionStatus},
        checkpoint::{CheckpointStatus, LeaveRunning},
        ids::{ActionId, CheckpointId, ContainerId, PodId},
        phase::{ActionKind, Phase},
        pod::{Pod, RestartRule},
    },
};

/// Interval between two checks for actions to recover.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long pods may stay frozen when the daemon stops.
const LAST_DUMPS: Duration = Duration::from_secs(4);

/// The longest extra time where GPUs are involved. systemd kills a service after 90 s.
const GPU_PATIENCE: Duration = Duration::from_secs(60);

/// How long a container may take to show its state.
const PATIENCE: Duration = Duration::from_secs(20);

impl Checkpoints {
    /// Runs for the life of the daemon.
    pub async fn run(self, stop: CancellationToken) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "could not remove leftovers of checkpoints");
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.end_frozen().await,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if self.0.engine.health() == Health::Up
                && self.0.unsettled.swap(false, std::sync::atomic::Ordering::AcqRel)
                && let Err(error) = self.settle_all().await
            {
                tracing::warn!(%error, "could not recover an action, retrying");
                self.settle_later();
            }
            if let Err(error) = self.remove_deleted().await {
                tracing::warn!(%error, "could not delete checkpoints, retrying");
            }
        }
    }

    /// The daemon stops: no pod may stay frozen until the next start. What is nearly done may finish; the rest is
    /// cancelled.
    async fn end_frozen(&self) {
        let frozen = || -> Vec<(ActionId, CheckpointId)> {
            let live = self.live();
            let frozen = live.iter().filter(|(_, live)| live.frozen_since().is_some());
            frozen.map(|(id, live)| (*id, live.checkpoint)).collect()
        };
        let begun = std::time::Instant::now();
        while !frozen().is_empty() && begun.elapsed() < LAST_DUMPS {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (action, checkpoint) in frozen() {
            let directory = self.0.store.directory_under_way(checkpoint);
            let directory = resolved(directory).await;
            let row = self.0.db.read(move |tx| tx.find_action(action)).await.ok().flatten();
            match self.paused(row.and_then(|row| row.journal.container).as_ref()).await {
                Ok(Some(container)) => kill::end_dump(action, &directory, &container).await,
                Ok(None) => kill::end_action(action, &directory).await,
                // CRIU ends by itself, and the next start does the rest.
                Err(error) => tracing::warn!(%error, "could not cancel a checkpoint"),
            }
        }
        // Its failure resumes the pod.
        while !frozen().is_empty() && begun.elapsed() < 2 * LAST_DUMPS + self.gpu_patience() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The longest extra time for the daemon's stop while memory is being copied to or from GPUs: the programs would
    /// stay frozen until the next start.
    pub fn gpu_patience(&self) -> Duration {
        let bytes = self.live().values().map(|live| live.gpu_bytes).max().unwrap_or(0);
        Duration::from_millis(gpu::copying_ms(bytes)).min(GPU_PATIENCE)
    }

    /// The container, if the engine says that it is paused.
    async fn paused(&self, container: Option<&ContainerId>) -> Result<Option<ContainerId>, CheckpointError> {
        let Some(container) = container else { return Ok(None) };
        let inspect = self.0.engine.inspect(container).await?;
        Ok(inspect.filter(|inspect| inspect.status.is_paused()).map(|_| container.clone()))
    }

    /// Completes or rolls back what a killed daemon has left of a pod, before anything new is done with it. Otherwise
    /// the new action would take the state in between for the pod's own. The pod's lock is held.
    pub(in crate::checkpoint) async fn settle_pod(&self, pod: PodId) -> Result<(), CheckpointError> {
        let mut left: Vec<Action> = self.0.db.read(|tx| tx.list_running_actions()).await?;
        left.retain(|action| action.pod == pod && !self.live().contains_key(&action.id));
        for action in left {
            self.settle(action.id).await?;
        }
        Ok(())
    }

    /// Brings an action to its end that nobody is at work on. The pod's lock is held.
    async fn settle(&self, id: ActionId) -> Result<(), CheckpointError> {
        // Read again: it may have ended, with nobody at work on it any more, since it was listed.
        let action: Option<Action> = self.0.db.read(move |tx| tx.find_action(id)).await?;
        let Some(action) = action.filter(|action| action.status == ActionStatus::Running) else { return Ok(()) };
        match action.kind {
            ActionKind::Checkpoint => self.settle_checkpoint(&action).await,
            ActionKind::Restore => self.settle_restore(&action).await,
        }
    }

    async fn settle_all(&self) -> Result<(), CheckpointError> {
        fail_point!("recover-all");
        let actions: Vec<Action> = self.0.db.read(|tx| tx.list_running_actions()).await?;
        for action in actions {
            if self.live().contains_key(&action.id) {
                continue;
            }
            let Some(_guard) = self.0.pods.try_lock(action.pod) else {
                self.settle_later();
                continue;
            };
            if let Err(error) = self.settle(action.id).await {
                tracing::warn!(action = %action.id, pod = action.container_name, %error, "could not recover an action, retrying");
                self.settle_later();
            }
        }
        Ok(())
    }

    /// Completes or rolls back a checkpoint from any phase. The pod's lock is held.
    pub(in crate::checkpoint) async fn settle_checkpoint(&self, action: &Action) -> Result<(), CheckpointError> {
        let under_way = resolved(self.0.store.directory_under_way(action.checkpoint)).await;
        // CRIU leaves programs whole when it ends by itself, but not when it is killed.
        kill::wait_ended(action.id, &under_way).await;
        // If the engine gives no answer, this is retried: CRIU must not be killed in a pod that then runs.
        match self.paused(action.journal.container.as_ref()).await? {
            Some(container) => kill::end_dump(action.id, &under_way, &container).await,
            None => kill::end_action(action.id, &under_way).await,
        }
        if let Some(container) = &action.journal.container {
            kill::end_engine_dump(container).await;
        }
        runc::drop_links(&under_way);
        fail_point!("recover-checkpoint-ended");
        let (store, id) = (self.0.store.clone(), action.checkpoint);
        let complete = off_thread(move || store.is_complete(id)).await;
        let mut action = action.clone();
        let container = action.journal.container.clone();
        let inspect = match &container {
            Some(container) => self.0.engine.inspect(container).await?,
            None => None,
        };
        let mut not_resumed = None;
        if let (Some(container), Some(inspect)) = (&container, &inspect)
            && inspect.pid != 0
        {
            let is_paused = inspect.status.is_paused();
            if is_paused && complete && action.journal.leave_running == LeaveRunning::No {
                self.0.engine.kill(container).await?;
                action.phase = Phase::Stop;
                action.journal.gpu = None;
            } else {
                // Also for a pod that someone has unpaused meanwhile.
                lock::unlock(inspect.pid).await;
                if is_paused {
                    freezer::freeze(inspect.pid);
                    let (inside, outside) = stopped_tasks::by_place(&action.journal.stopped, &under_way);
                    stopped_tasks::stop_again(&outside);
                    self.0.engine.unpause(container).await?;
                    stopped_tasks::stop_when_out(inside, &under_way).await;
                } else {
                    freezer::thaw(inspect.pid);
                    stopped_tasks::stop_again(&action.journal.stopped);
                }
            }
            let _ = self.0.engine.look(container).await;
        }
        if let (Some(container), Some(_)) = (&container, &inspect) {
            fail_point!("recover-checkpoint-gpus");
            let complaints = self.wake_gpus(&action, container).await;
            not_resumed = (!complaints.is_empty()).then(|| super::gpu::not_resumed(&complaints));
            let stopped =
                complete && self.0.engine.inspect(container).await?.is_some_and(|now| !now.status.is_running());
            if stopped && action.journal.leave_running == LeaveRunning::No {
                action.phase = Phase::Stop;
            }
            self.put_restart_rule(&action).await?;
        }
        fail_point!("recover-checkpoint-thawed");
        self.remove_orders(&action).await?;
        let id = action.checkpoint;
        if complete {
            let directory = self.0.store.directory(id);
            let size = off_thread(move || {
                let manifest = Manifest::read(&directory, id)?;
                compress::sweep(&manifest, &directory)?;
                Ok::<_, CheckpointError>(manifest.stored_size())
            })
            .await?;
            tracing::info!(pod = action.container_name, checkpoint = %id, "a complete checkpoint is kept");
            action.bytes = size;
            // A complete one counts, whatever failed after it.
            action.losses.extend(action.error.take().into_iter().chain(not_resumed));
            return self.end_saved(action, size).await;
        }
        let store = self.0.store.clone();
        off_thread(move || store.remove(id)).await?;
        self.untag_image(id).await;
        fail_point!("recover-checkpoint-removed");
        let error =
            action.error.clone().unwrap_or_else(|| CheckpointError::Interrupted(action.phase.doing()).to_string());
        let not_resumed = not_resumed.map(|not_resumed| format!("; {not_resumed}")).unwrap_or_default();
        let error = format!("{}: {error}{not_resumed}", action.phase);
        self.end_action(action, Err(error), move |tx| tx.delete_checkpoint(id)).await
    }

    /// Completes or rolls back a restore. The pod's lock is held.
    pub(in crate::checkpoint) async fn settle_restore(&self, action: &Action) -> Result<(), CheckpointError> {
        let row: Option<Pod> = {
            let pod = action.pod;
            self.0.db.read(move |tx| tx.find_pod(pod)).await?
        };
        let container = match (&action.journal.container, &row) {
            (Some(container), _) => Some(container.clone()),
            (None, Some(pod)) => self.0.pods.container_made_for(pod).await?,
            (None, None) => None,
        };
        // A start in progress at the engine is ended first: it holds the container until then.
        if let Some(container) = &container
            && kill::is_restoring(container).await
        {
            kill::end_restore(container).await;
        }
        let inspect = match &container {
            Some(container) => self.settled_inspect(container).await?,
            None => None,
        };
        let mut action = action.clone();
        let lives = inspect.as_ref().is_some_and(|inspect| inspect.status.is_running());
        let begun = matches!(action.phase, Phase::Start | Phase::GpuOn | Phase::Check | Phase::Clean);
        if let (true, true, None, Some(container)) = (lives, begun, &action.error, &container) {
            let complaints = self.wake_gpus(&action, container).await;
            action.error = (!complaints.is_empty()).then(|| complaints.join("; "));
        }
        let whole = namespace_setup::is_done(&self.0.store.scratch(action.id));
        if lives && begun && whole && action.error.is_none() {
            tracing::info!(pod = action.container_name, "completed a restore that a kill interrupted");
            if let Some(container) = container {
                action.journal.container = Some(container);
            }
            self.put_restart_rule(&action).await?;
            self.clean(&action).await?;
            if let Some(pod) = row {
                if let (true, Some(container)) = (action.journal.makes_pod, &action.journal.container) {
                    self.0.pods.finish_restored(pod.clone(), container.clone()).await?;
                }
                self.finish_replaced(&action, pod).await?;
            }
            return self.end_action(action, Ok(()), |_| Ok(())).await;
        }
        let error =
            action.error.clone().unwrap_or_else(|| CheckpointError::Interrupted(action.phase.doing()).to_string());
        let error = format!("{}: {error}", action.phase);
        if let Some(container) = &container {
            kill::end_restore(container).await;
            if lives {
                self.0.engine.kill(container).await?;
                self.settled_inspect(container).await?;
            }
        }
        fail_point!("recover-restore-ended");
        if let Some(upper) = &action.journal.upper {
            let (upper, aside) = (upper.clone(), aside(upper, &action));
            off_thread(move || archive::put_back(&upper, &aside)).await?;
        }
        self.put_back_replaced(&mut action).await?;
        fail_point!("recover-restore-put-back");
        if let Some(before) = action.journal.restart_if_not.take() {
            // The attempt made the engine forget that somebody stopped it: under any other policy its next start would
            // begin the pod from its beginning.
            let is_own = row.as_ref().is_some_and(|pod| !pod.adopted);
            action.journal.restart = Some(if is_own { RestartRule::never() } else { before });
        }
        self.put_restart_rule(&action).await?;
        self.clean(&action).await?;
        fail_point!("recover-restore-cleaned");
        if action.journal.makes_pod
            && let Some(pod) = row
        {
            self.0.pods.undo_restored(pod, error.clone()).await;
        }
        self.end_action(action, Err(error), |_| Ok(())).await
    }

    /// The pod lives in its new container: its row names that, and the old one goes.
    pub(in crate::checkpoint) async fn finish_replaced(
        &self,
        action: &Action,
        mut pod: Pod,
    ) -> Result<(), CheckpointError> {
        let Some(old) = &action.journal.replaced else { return Ok(()) };
        if pod.container != action.journal.container {
            pod.container = action.journal.container.clone();
            self.0.db.write(move |tx| tx.update_pod(&pod)).await?;
        }
        Ok(self.0.engine.remove(old).await?)
    }

    /// The pod has its old container again, under its name.
    async fn put_back_replaced(&self, action: &mut Action) -> Result<(), CheckpointError> {
        let Some(old) = action.journal.replaced.clone() else { return Ok(()) };
        let engine = &self.0.engine;
        // Ours only if the old one has made way for it.
        let aside = engine.look_for(&action.replaced_name()).await?.is_some_and(|found| found.id == old);
        if aside {
            if let Some(new) = engine.look_for(&action.container_name).await?.filter(|found| found.id != old) {
                engine.remove(&new.id).await?;
            }
            engine.rename(&old, &action.container_name).await?;
        }
        action.journal.container = Some(old);
        action.journal.replaced = None;
        Ok(())
    }

    /// The container once the engine answers about it again: while it starts one, it does not.
    pub(in crate::checkpoint) async fn settled_inspect(
        &self,
        container: &ContainerId,
    ) -> Result<Option<ContainerInspect>, CheckpointError> {
        let begun = std::time::Instant::now();
        loop {
            match self.0.engine.inspect(container).await {
                Ok(inspect) => return Ok(inspect),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Removes what a restore needed for itself.
    pub(in crate::checkpoint) async fn clean(&self, action: &Action) -> Result<(), CheckpointError> {
        if let Some(upper) = &action.journal.upper {
            let aside = aside(upper, action);
            off_thread(move || disk::remove(&aside)).await?;
        }
        hold_traffic::end(action);
        self.remove_placeholders(action).await?;
        let scratch = self.0.store.scratch(action.id);
        off_thread(move || disk::remove(&scratch)).await?;
        self.remove_orders(action).await
    }

    /// Removes what an action left for the runtime, or had the engine keep with the container.
    async fn remove_orders(&self, action: &Action) -> Result<(), CheckpointError> {
        let Some(container) = &action.journal.container else { return Ok(()) };
        let left_for = container.clone();
        off_thread(move || restore::withdraw(&left_for)).await?;
        let checkpoints = self.0.engine.container_directory(container).await?.join("checkpoints");
        let prefix = format!("pody-{}", action.id);
        off_thread(move || {
            for entry in fs::read_dir(&checkpoints).into_iter().flatten().filter_map(Result::ok) {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    disk::remove(&entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the directories of rows that are to be deleted, then the rows, then images that nothing refers to any
    /// more.
    pub(in crate::checkpoint) async fn remove_deleted(&self) -> Result<(), CheckpointError> {
        let rows = self.0.db.read(|tx| tx.list_checkpoints_being(CheckpointStatus::Deleting)).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let id = row.id;
            if self.0.db.read(move |tx| tx.is_checkpoint_in_use(id)).await? {
                continue;
            }
            let store = self.0.store.clone();
            off_thread(move || store.remove(id)).await?;
            self.untag_image(id).await;
            self.0
                .db
                .write(move |tx| {
                    tx.delete_copy_later(id)?;
                    tx.delete_checkpoint(id)
                })
                .await?;
            self.0.copies.call_off(id);
        }
        Ok(())
    }

    /// Removes the tag that kept a checkpoint's image. The image has other tags, or nobody needs it.
    async fn untag_image(&self, id: CheckpointId) {
        if let Err(error) = self.0.engine.remove_image(&format!("{KEPT_IMAGES}:{id}")).await {
            tracing::warn!(%error, "could not remove the tag of a deleted checkpoint's image");
        }
    }

    /// Removes directories that no action needs: unfinished checkpoints, and those of restores.
    async fn sweep(&self) -> Result<(), CheckpointError> {
        let actions: Vec<Action> = self.0.db.read(|tx| tx.list_running_actions()).await?;
        let known: HashSet<String> =
            actions.iter().flat_map(|action| [action.id.to_string(), action.checkpoint.to_string()]).collect();
        let store = self.0.store.clone();
        off_thread(move || {
            leftovers::sweep();
            store.sweep(|id| known.contains(id))
        })
        .await
    }
}

/// The directory as the kernel names it, without symbolic links; unchanged where it is not there.
async fn resolved(directory: PathBuf) -> PathBuf {
    off_thread(move || fs::canonicalize(&directory).unwrap_or(directory)).await
}
