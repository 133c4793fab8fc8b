//! The work of a drain and an undrain, see [`crate::checkpoint::drain`].
//!
//! Every step is written into the pod's row before it is done. The id of a checkpoint or restore is written with the
//! action itself, so that after a kill the row and [`crate::checkpoint::job`] agree on its outcome.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use fail::fail_point;
use futures_util::{StreamExt, stream};

use crate::{
    checkpoint::{CheckpointError, Checkpoints, caller_for},
    db::{NewEvent, Outcome},
    engine::{EngineError, Health},
    host::process,
    model::{
        action::{Action, ActionStatus},
        checkpoint::{Compression, Kind, LeaveRunning, NewCheckpoint, NewRestore, Origin},
        drain::{Drain, DrainState, DrainedPod, DrainedState},
        ids::{ActionId, CheckpointId, PodId},
        names::PodRef,
        pod::{Pod, RestartRule, State},
        user::Actor,
        view::action::ActionView,
    },
    pod::{self, AskedBy, PodError},
};

/// Interval between two steps.
const INTERVAL: Duration = Duration::from_millis(500);

/// Tries to save or restore a pod before it counts as failed.
const TRIES: u32 = 2;

/// Pause before the engine is asked to restore a pod again.
const BREATH: Duration = Duration::from_secs(3);

/// Interval between two checks whether an action has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How long to wait for a pod that another operation holds.
const PATIENCE: Duration = Duration::from_secs(300);

impl Checkpoints {
    /// Runs for the life of the daemon.
    pub async fn drain_loop(self) {
        while let Err(error) = self.resume_after_shutdown().await {
            tracing::warn!(%error, "could not undrain after a shutdown, retrying");
            tokio::time::sleep(INTERVAL).await;
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.0.engine.health() != Health::Up || self.0.engine.inventory().age().is_none() {
                continue;
            }
            let drain = self.0.db.snapshot().upkeep.drain.clone();
            let step = match &drain {
                Some(drain) if drain.state == DrainState::Draining => self.drain_step(drain).await,
                Some(drain) if drain.state == DrainState::Undraining => self.undrain_step(drain).await,
                _ => continue,
            };
            if let Err(error) = step {
                tracing::warn!(%error, "a step of the drain or undrain failed, retrying");
            }
        }
    }

    /// The host is up again after a shutdown for which it was drained.
    async fn resume_after_shutdown(&self) -> Result<(), CheckpointError> {
        let Some(drain) = self.0.db.snapshot().upkeep.drain.clone() else { return Ok(()) };
        let is_over = match drain.state {
            DrainState::Drained => true,
            DrainState::Draining => drain.boot != process::boot_id(),
            DrainState::Undraining | DrainState::Ended => false,
        };
        if drain.shutdown && is_over {
            tracing::info!("the host is up again: restoring its pods");
            self.undrain(Actor::daemon()).await?;
        }
        Ok(())
    }

    fn drain_is(&self, state: DrainState) -> bool {
        self.0.db.snapshot().upkeep.drain.as_ref().is_some_and(|drain| drain.state == state)
    }

    /// Saves and stops what runs. It is complete when one pass finds nothing to do.
    async fn drain_step(&self, drain: &Drain) -> Result<(), CheckpointError> {
        let rows = self.0.db.read(|tx| tx.list_drained()).await?;
        let rows: HashMap<PodId, DrainedPod> = rows.into_iter().map(|row| (row.pod, row)).collect();
        let mut is_busy = false;
        let mut work = Vec::new();
        for pod in self.0.db.snapshot().pods.iter() {
            if pod.state != State::Running {
                is_busy = true;
                continue;
            }
            let row = rows.get(&pod.id);
            let runs = self.0.pods.is_up(pod);
            match row.map(|row| row.state) {
                Some(DrainedState::Running) if runs => {}
                Some(DrainedState::Running | DrainedState::Waiting) if !runs => self.forget_drained(pod.id).await?,
                Some(DrainedState::Saving | DrainedState::Stopping | DrainedState::Returning) => {
                    work.push((pod.clone(), row.cloned()));
                }
                _ if runs => work.push((pod.clone(), row.cloned())),
                // It may be about to start: that was admitted before the drain was requested.
                _ => is_busy |= self.0.pods.try_lock(pod.id).is_none(),
            }
        }
        if work.is_empty() {
            if !is_busy {
                self.finish_drain().await?;
            }
            return Ok(());
        }
        for (pod, row) in &work {
            if row.is_none() {
                self.put_drained(new_row(pod, DrainedState::Waiting)).await?;
            }
        }
        self.side_by_side(work, DrainState::Draining, |(pod, row)| async move {
            let name = pod.container_name.clone();
            if let Err(error) = self.drain_pod(drain, &pod, row).await {
                tracing::warn!(pod = name, %error, "could not drain a pod, retrying");
            }
        })
        .await;
        Ok(())
    }

    /// As many at a time as are saved or restored at a time, for as long as that state is wanted.
    async fn side_by_side<T, F: Future<Output = ()>>(&self, work: Vec<T>, wanted: DrainState, each: impl Fn(T) -> F) {
        let at_a_time = self.0.config.get().checkpoint.parallelism.max(1);
        let each = &each;
        stream::iter(work)
            .for_each_concurrent(at_a_time, |item| async move {
                if self.drain_is(wanted) {
                    each(item).await;
                }
            })
            .await;
    }

    async fn drain_pod(&self, drain: &Drain, pod: &Arc<Pod>, row: Option<DrainedPod>) -> Result<(), CheckpointError> {
        // What a previous daemon began.
        if let Some(row) = row {
            if let (DrainedState::Saving | DrainedState::Returning, Some(id)) = (row.state, row.action) {
                let ended = self.wait_end(id).await?;
                if !self.runs(pod).await? && (row.state == DrainedState::Returning || is_done(ended.as_ref())) {
                    return self.put_drained(DrainedPod { state: row.stopped_state(), ..row }).await;
                }
            }
            let is_stopped = matches!(row.state, DrainedState::Stopping | DrainedState::Returning);
            if is_stopped && !self.runs(pod).await? {
                return self.put_drained(DrainedPod { state: row.stopped_state(), ..row }).await;
            }
        }
        let Some(reason) = self.save_for_drain(drain, pod).await? else { return Ok(()) };
        if !self.runs(pod).await? {
            // Its owner stopped it meanwhile, or it ended.
            return self.forget_drained(pod.id).await;
        }
        tracing::warn!(pod = pod.container_name, reason, "the drain could not save a pod");
        if !drain.forced {
            let row = new_row(pod, DrainedState::Running);
            return self.put_drained(DrainedPod { reason: Some(reason), ..row }).await;
        }
        let row = DrainedPod { reason: Some(reason), ..new_row(pod, DrainedState::Stopping) };
        self.put_drained(row.clone()).await?;
        fail_point!("drain-stop", |_| Ok(()));
        self.stop_plainly(drain, pod).await?;
        self.put_drained(DrainedPod { state: DrainedState::Stopped, ..row }).await
    }

    /// Saves and stops a pod; returns the reason why it could not. A failure halfway may succeed the next time.
    async fn save_for_drain(&self, drain: &Drain, pod: &Arc<Pod>) -> Result<Option<String>, CheckpointError> {
        let new = || NewCheckpoint {
            kind: Kind::Rootfs,
            leave_running: LeaveRunning::No,
            compression: Compression::None,
            name: None,
            reason: Some(drain.reason.clone()),
            origin: Origin::Drain,
            remote: false,
            streams: None,
        };
        let (caller, wanted) = (caller_for(&pod.user), reference(pod));
        let mut reason = String::new();
        for _ in 0..TRIES {
            let begun = self.when_free(|| self.begin_by(actor_of(drain), &caller, &wanted, new())).await;
            let action = match begun {
                Ok(action) => action,
                // This says nothing about the pod.
                Err(error @ (CheckpointError::Db(_) | CheckpointError::Engine(EngineError::Unavailable(_)))) => {
                    return Err(error);
                }
                Err(error) => return Ok(Some(error.to_string())),
            };
            let ended = self.wait_end(action.id).await?;
            fail_point!("drain-saved", |_| Ok(None));
            if is_done(ended.as_ref()) && !self.runs(pod).await? {
                let (id, checkpoint) = (Some(action.id), Some(action.checkpoint));
                self.put_drained(DrainedPod { action: id, checkpoint, ..new_row(pod, DrainedState::Saved) }).await?;
                return Ok(None);
            }
            let why = ended.map(|ended| ended.error.unwrap_or_else(|| ended.losses.join("; ")));
            reason = why.unwrap_or_else(|| "the outcome of its checkpoint is unknown".to_owned());
        }
        Ok(Some(reason))
    }

    /// Stops a pod that cannot be saved. A reboot must not start it early.
    async fn stop_plainly(&self, drain: &Drain, pod: &Arc<Pod>) -> Result<(), CheckpointError> {
        if let Some(container) = &pod.container {
            self.0.engine.set_restart(container, &RestartRule::unless_stopped()).await?;
        }
        let (caller, wanted) = (caller_for(&pod.user), reference(pod));
        let by = AskedBy::Drain(actor_of(drain));
        match self.0.pods.act_for(by, &caller, &wanted, pod::Action::Stop).await {
            Ok(_) => Ok(()),
            // A pod that was paused by hand does not receive a termination signal.
            Err(PodError::Engine(_)) if pod.container.is_some() => {
                let container = pod.container.as_ref().ok_or_else(|| PodError::NotFound(pod.container_name.clone()))?;
                self.0.engine.kill(container).await?;
                let _ = self.0.engine.look(container).await;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn finish_drain(&self) -> Result<(), CheckpointError> {
        self.0
            .db
            .write(|tx| {
                let Some(drain) = tx.find_drain()?.filter(|drain| drain.state == DrainState::Draining) else {
                    return Ok(());
                };
                let left = named(&tx.list_drained()?, DrainedState::Running);
                tx.upsert_drain(&Drain { state: DrainState::Drained, ..drain.clone() })?;
                let (outcome, text) = match left.is_empty() {
                    true => (Outcome::Ok, "no pod is running".to_owned()),
                    false => (Outcome::Failed, format!("not saved, left running: {left}")),
                };
                let event = NewEvent::by(&actor_of(&drain)).did("host.drained", "host");
                tx.insert_event(&event.outcome(outcome).detail(text))?;
                Ok(())
            })
            .await
    }

    /// Restores what the drain has stopped.
    async fn undrain_step(&self, drain: &Drain) -> Result<(), CheckpointError> {
        let rows = self.0.db.read(|tx| tx.list_drained()).await?;
        let is_over = |row: &DrainedPod| matches!(row.state, DrainedState::Back | DrainedState::Failed);
        let work: Vec<DrainedPod> = rows.into_iter().filter(|row| !is_over(row)).collect();
        if work.is_empty() {
            return self.finish_undrain().await;
        }
        let each = |row: DrainedPod| async move {
            let name = row.container_name.clone();
            if let Err(error) = self.bring_back(drain, row).await {
                tracing::warn!(pod = name, %error, "could not restore a pod, retrying");
            }
        };
        let (first, rest) = self.by_address(work).await;
        self.side_by_side(first, DrainState::Undraining, &each).await;
        self.side_by_side(rest, DrainState::Undraining, &each).await;
        Ok(())
    }

    async fn bring_back(&self, drain: &Drain, row: DrainedPod) -> Result<(), CheckpointError> {
        let Some(pod) = self.0.db.snapshot().pods.get(row.pod).cloned() else {
            // Its owner has deleted it.
            return self.forget_drained(row.pod).await;
        };
        let ended = match row.action {
            Some(id) => self.wait_end(id).await?,
            None => None,
        };
        if matches!(row.state, DrainedState::Waiting | DrainedState::Running)
            || row.state == DrainedState::Saving && !is_done(ended.as_ref())
        {
            // It was never stopped.
            return self.forget_drained(row.pod).await;
        }
        let back = DrainedPod { state: DrainedState::Back, ..row.clone() };
        if self.runs(&pod).await? {
            return self.put_drained(back).await;
        }
        let done = match row.checkpoint {
            Some(checkpoint) => self.restore_for_undrain(drain, &pod, checkpoint).await?,
            None => self.start_plainly(drain, &pod, &row).await.map_err(|error| error.to_string()),
        };
        fail_point!("undrain-back", |_| Ok(()));
        match done {
            Ok(()) => self.put_drained(back).await,
            Err(reason) => {
                tracing::warn!(pod = pod.container_name, reason, "could not restore a pod");
                let failed = DrainedPod { state: DrainedState::Failed, reason: Some(reason), ..row };
                self.put_drained(failed).await
            }
        }
    }

    /// Restores a pod in place; `Err` with the reason why it could not. Right after a reboot the engine is busy, and
    /// what fails then may succeed the next time.
    async fn restore_for_undrain(
        &self,
        drain: &Drain,
        pod: &Pod,
        checkpoint: CheckpointId,
    ) -> Result<Result<(), String>, CheckpointError> {
        let new = || NewRestore { checkpoint: Some(checkpoint), pod: None, restore_as: None, connections: None };
        let caller = caller_for(&pod.user);
        let by = || AskedBy::Drain(actor_of(drain));
        let mut reason = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tracing::warn!(pod = pod.container_name, reason, "could not restore a pod, retrying");
                tokio::time::sleep(BREATH).await;
            }
            reason = match self.when_free(|| self.begin_restore_by(by(), &caller, new())).await {
                Ok(action) => {
                    let ended = self.wait_end(action.id).await?;
                    if is_done(ended.as_ref()) {
                        return Ok(Ok(()));
                    }
                    let why = ended.and_then(|ended| ended.error);
                    why.unwrap_or_else(|| "the outcome of its restore is unknown".to_owned())
                }
                Err(error @ (CheckpointError::Db(_) | CheckpointError::Engine(EngineError::Unavailable(_)))) => {
                    return Err(error);
                }
                Err(error) => error.to_string(),
            };
        }
        Ok(Err(reason))
    }

    async fn start_plainly(&self, drain: &Drain, pod: &Arc<Pod>, row: &DrainedPod) -> Result<(), CheckpointError> {
        self.put_drained(DrainedPod { state: DrainedState::Returning, ..row.clone() }).await?;
        if let Some(container) = &pod.container {
            self.0.engine.set_restart(container, &RestartRule::always()).await?;
        }
        let (caller, by) = (caller_for(&pod.user), AskedBy::Drain(actor_of(drain)));
        self.0.pods.act_for(by, &caller, &reference(pod), pod::Action::Start).await?;
        Ok(())
    }

    async fn finish_undrain(&self) -> Result<(), CheckpointError> {
        self.0
            .db
            .write(|tx| {
                let Some(drain) = tx.find_drain()?.filter(|drain| drain.state == DrainState::Undraining) else {
                    return Ok(());
                };
                let rows = tx.list_drained()?;
                let failed = named(&rows, DrainedState::Failed);
                let (outcome, text) = match failed.is_empty() {
                    true => {
                        tx.delete_drain()?;
                        (Outcome::Ok, format!("{} pods were restored", rows.len()))
                    }
                    false => {
                        for row in rows.iter().filter(|row| row.state == DrainedState::Back) {
                            tx.delete_drained(row.pod)?;
                        }
                        tx.upsert_drain(&Drain { state: DrainState::Ended, shutdown: false, ..drain.clone() })?;
                        (Outcome::Failed, format!("not restored: {failed}"))
                    }
                };
                let event = NewEvent::by(&actor_of(&drain)).did("host.undrained", "host");
                tx.insert_event(&event.outcome(outcome).detail(text))?;
                Ok(())
            })
            .await
    }

    /// Retries while another operation holds the pod.
    async fn when_free<F>(&self, begin: impl Fn() -> F) -> Result<ActionView, CheckpointError>
    where
        F: Future<Output = Result<ActionView, CheckpointError>>,
    {
        let begun = std::time::Instant::now();
        loop {
            match begin().await {
                Err(CheckpointError::InProgress { .. } | CheckpointError::Pod(PodError::Busy { .. }))
                    if begun.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// The action once it has ended; `None` if its row no longer exists.
    pub(in crate::checkpoint) async fn wait_end(&self, id: ActionId) -> Result<Option<Action>, CheckpointError> {
        loop {
            let action: Option<Action> = self.0.db.read(move |tx| tx.find_action(id)).await?;
            if action.as_ref().is_none_or(|action| action.status != ActionStatus::Running) {
                return Ok(action);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether a pod's container runs, asked of the engine.
    async fn runs(&self, pod: &Pod) -> Result<bool, CheckpointError> {
        let Some(container) = &pod.container else { return Ok(false) };
        let inspect = self.settled_inspect(container).await?;
        Ok(inspect.is_some_and(|inspect| inspect.status.is_up()))
    }

    async fn put_drained(&self, row: DrainedPod) -> Result<(), CheckpointError> {
        Ok(self.0.db.write(move |tx| tx.upsert_drained(&row)).await?)
    }

    async fn forget_drained(&self, pod: PodId) -> Result<(), CheckpointError> {
        Ok(self.0.db.write(move |tx| tx.delete_drained(pod)).await?)
    }
}

fn is_done(action: Option<&Action>) -> bool {
    action.is_some_and(|action| action.status == ActionStatus::Done)
}

fn actor_of(drain: &Drain) -> Actor {
    Actor { name: drain.actor.clone(), source: drain.source.clone() }
}

fn reference(pod: &Pod) -> PodRef {
    PodRef { prefix: None, user: Some(pod.user.clone()), instance: pod.instance.clone() }
}

pub(in crate::checkpoint) fn new_row(pod: &Pod, state: DrainedState) -> DrainedPod {
    DrainedPod {
        pod: pod.id,
        user: pod.user.clone(),
        instance: pod.instance.clone(),
        container_name: pod.container_name.clone(),
        state,
        action: None,
        checkpoint: None,
        reason: None,
    }
}

/// Those in a state, each with its reason.
fn named(rows: &[DrainedPod], state: DrainedState) -> String {
    let named = rows.iter().filter(|row| row.state == state);
    let named = named.map(|row| format!("{} ({})", row.container_name, row.reason.as_deref().unwrap_or("?")));
    named.collect::<Vec<_>>().join("; ")
}
