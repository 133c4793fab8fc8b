//! The request side of a checkpoint: what can be checked of the pod, quota and space, and the rows. [`super::job`] does
//! the rest.

use std::sync::atomic::Ordering;

use super::{
    CheckpointError, Checkpoints, admission,
    drain::drainer::new_row,
    gpu,
    job::checkpoint::{CheckpointJob, Examined},
    preflight,
    schedules::scheduler::is_needed,
    store::manifest::{Host, Manifest},
};
use crate::{
    criu::{cgroup_root, network::lock::NetworkLock, runc::deadline, version},
    db::{NewEvent, Tx},
    host::blocking::off_thread,
    model::{
        action::{Action, ActionStatus, Journal},
        checkpoint::{Checkpoint, CheckpointStatus, Kind, NewCheckpoint, Origin},
        drain::{DrainedPod, DrainedState},
        ids::{ActionId, CheckpointId},
        names::PodRef,
        phase::{ActionKind, Phase},
        pod::Pod,
        quota::Quota,
        time::Millis,
        user::{Actor, Caller},
        view::{action::ActionView, checkpoint::Verdict},
    },
    pod::PodError,
};

impl Checkpoints {
    /// Checks whether a pod can be saved. Nothing is changed.
    pub async fn check(&self, caller: &Caller, wanted: &PodRef, kind: Kind) -> Result<Verdict, CheckpointError> {
        self.0.pods.wait_ready().await;
        let pod = self.0.pods.find(caller, wanted)?;
        if let Some(action) = self.at_work_on(pod.id) {
            return Err(CheckpointError::InProgress { pod: pod.container_name.clone(), action });
        }
        Ok(self.examine(&pod, kind).await?.verdict)
    }

    /// Checks, records the action and begins it. Returns at once.
    pub async fn begin(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        new: NewCheckpoint,
    ) -> Result<ActionView, CheckpointError> {
        self.begin_by(Actor::from(caller), caller, wanted, new).await
    }

    /// The same on behalf of another actor.
    pub(super) async fn begin_by(
        &self,
        actor: Actor,
        caller: &Caller,
        wanted: &PodRef,
        new: NewCheckpoint,
    ) -> Result<ActionView, CheckpointError> {
        self.0.pods.wait_ready().await;
        self.0.engine.ensure_up()?;
        let pod = self.0.pods.find(caller, wanted)?;
        // A copy that cannot be made is refused before the pod is touched.
        self.copy_for(new.remote, CheckpointId::generate(), &pod.user)?;
        if let Some(action) = self.at_work_on(pod.id) {
            return Err(CheckpointError::InProgress { pod: pod.container_name.clone(), action });
        }
        let (guard, pod) = self.0.pods.lock(caller, wanted).await?;
        self.settle_pod(pod.id).await?;
        let seen = self.examine(&pod, new.kind).await?;
        if !seen.verdict.can_be_saved {
            return Err(CheckpointError::NotPossible {
                pod: pod.container_name.clone(),
                problems: seen.verdict.problems,
            });
        }
        if seen.verdict.space_needed > seen.verdict.space_free {
            return Err(CheckpointError::Space {
                path: self.0.store.path().to_owned(),
                needed: seen.verdict.space_needed,
                free: seen.verdict.space_free,
            });
        }
        let (checkpoint, action) = self.reserve(actor, &pod, &seen, &new).await?;
        let size = checkpoint.size;
        let (at_work, live) = self.begin_work(&action, size);
        let config = self.0.config.get();
        let most = config.checkpoint.streams();
        let saving = CheckpointJob {
            ctx: self.clone(),
            action: action.clone(),
            directory: self.0.store.directory_under_way(checkpoint.id),
            manifest: new_manifest(&checkpoint, &pod, &seen),
            checkpoint,
            deadline: deadline(&config.checkpoint, seen.findings.load()),
            pod,
            seen,
            live,
            compression: new.compression,
            streams: new.streams.map_or(most, |wanted| wanted.clamp(1, most)),
            shells: None,
            network: NetworkLock::default(),
            buffer: None,
            _guard_of_action: at_work,
        };
        tokio::spawn(saving.run(guard));
        Ok(ActionView { total_bytes: Some(size), ..ActionView::from(action) })
    }

    async fn examine(&self, pod: &Pod, kind: Kind) -> Result<Examined, CheckpointError> {
        let not_found = || PodError::NotFound(pod.container_name.clone());
        let container = pod.container.clone().ok_or_else(not_found)?;
        let inspect = self.0.engine.inspect(&container).await?.ok_or_else(not_found)?;
        let runs = inspect.status.is_running();
        if !runs && (kind.has_processes() || inspect.status.is_up()) {
            return Err(CheckpointError::NotRunning { pod: pod.container_name.clone(), status: inspect.status });
        }
        let criu = match kind.has_processes() {
            true => {
                self.ensure_engine_supported().await?;
                version::criu_version().await?
            }
            false => String::new(),
        };
        let config = self.0.config.get();
        let (id, body) = (container.clone(), inspect.clone());
        let snapshot = self.0.gpus.snapshot();
        let mut findings = off_thread(move || {
            let on_gpus = gpu::on_gpus(&snapshot, &id);
            preflight::look(&id, &body, kind, &config.checkpoint, &on_gpus)
        })
        .await;
        let gpus = self.examine_gpus(&container, &inspect, &mut findings).await;
        let store = self.0.store.clone();
        off_thread(move || store.ensure()).await?;
        let size = findings.memory + findings.gpu_memory + findings.files;
        let rate = self.0.rate.load(Ordering::Relaxed).max(1);
        let verdict = Verdict {
            pod: pod.container_name.clone(),
            kind,
            can_be_saved: findings.problems.is_empty(),
            problems: findings.problems.clone(),
            losses: findings.losses.clone(),
            processes: findings.processes.clone(),
            memory: findings.memory,
            gpu_memory: findings.gpu_memory,
            files: findings.files,
            freeze_ms: if runs {
                100 + size.saturating_mul(1000) / rate + gpu::copying_ms(findings.gpu_memory)
            } else {
                0
            },
            // Images grow a little while they are written.
            space_needed: size + size / 100 * 15,
            space_free: self.0.store.free().saturating_sub(self.0.config.get().checkpoint.keep_free.0),
        };
        let layers = self.0.engine.image_layers(&inspect.image_id).await?;
        Ok(Examined { container, inspect, layers, findings, verdict, criu, gpus })
    }

    /// Checks the quota, and records checkpoint and action.
    async fn reserve(
        &self,
        actor: Actor,
        pod: &Pod,
        seen: &Examined,
        new: &NewCheckpoint,
    ) -> Result<(Checkpoint, Action), CheckpointError> {
        let checkpoint = Checkpoint {
            id: CheckpointId::generate(),
            user: pod.user.clone(),
            pod: pod.id,
            instance: pod.instance.clone(),
            container_name: pod.container_name.clone(),
            kind: new.kind,
            compression: new.compression,
            name: new.name.clone(),
            reason: new.reason.clone(),
            status: CheckpointStatus::Creating,
            size: seen.verdict.memory + seen.verdict.gpu_memory + seen.verdict.files,
            image: seen.inspect.image_id.clone(),
            created_at: Millis::now(),
            origin: new.origin,
        };
        let mut action = Action {
            id: ActionId::generate(),
            kind: ActionKind::Checkpoint,
            user: pod.user.clone(),
            pod: pod.id,
            container_name: pod.container_name.clone(),
            checkpoint: checkpoint.id,
            status: ActionStatus::Running,
            phase: Phase::Preflight,
            bytes: 0,
            frozen_ms: None,
            losses: seen.findings.losses.clone(),
            error: None,
            started_at: Millis::now(),
            ended_at: None,
            event: 0,
            journal: Journal {
                leave_running: new.leave_running,
                container: Some(seen.container.clone()),
                remote: new.remote,
                gpu: seen.gpus.as_ref().map(|gpus| gpus.work.clone()),
                ..Journal::default()
            },
        };
        let quota = self.0.accounts.quota(&pod.user);
        let written = checkpoint.clone();
        let drained = new_row(pod, DrainedState::Saving);
        let action = self
            .0
            .db
            .write(move |tx| {
                let held = tx.list_checkpoints(Some(&written.user))?;
                let held: Vec<Checkpoint> =
                    held.into_iter().filter(|row| row.status != CheckpointStatus::Deleting).collect();
                admit(tx, &quota, held, &written, &action, drained)?;
                let event = NewEvent::by(&actor).did("pod.checkpoint", &written.container_name).of(&written.user);
                action.event = tx.insert_event(&event.pending())?;
                tx.insert_checkpoint(&written)?;
                tx.insert_action(&action)?;
                Ok::<_, CheckpointError>(action)
            })
            .await?;
        Ok((checkpoint, action))
    }
}

/// Whether the quota allows it, by who asked for it.
fn admit(
    tx: &Tx,
    quota: &Quota,
    held: Vec<Checkpoint>,
    wanted: &Checkpoint,
    action: &Action,
    drained: DrainedPod,
) -> Result<(), CheckpointError> {
    let sizes = |rows: &[Checkpoint]| rows.iter().map(|row| row.size).collect::<Vec<u64>>();
    match wanted.origin {
        Origin::Hand => admission::admit_checkpoint(quota, &sizes(&held), wanted.size)?,
        // Maintenance is not the user's request: it neither fails for the quota nor deletes the user's checkpoints.
        Origin::Drain => {
            let (id, checkpoint) = (Some(action.id), Some(wanted.id));
            tx.upsert_drained(&DrainedPod { action: id, checkpoint, ..drained })?;
        }
        Origin::Schedule => {
            let (mut its, mut others) = (Vec::new(), Vec::new());
            for row in held {
                let is_its =
                    row.pod == wanted.pod && row.origin == Origin::Schedule && row.status == CheckpointStatus::Ready;
                let goes = is_its && !is_needed(tx, row.id)?;
                if goes { its.push(row) } else { others.push(row) }
            }
            its.sort_by_key(|row| (row.created_at, row.id));
            let count = admission::admit_in_place_of(quota, &sizes(&others), &sizes(&its), wanted.size)?;
            let Some(mut schedule) = tx.find_schedule(wanted.pod)? else {
                return Err(CheckpointError::NoSchedule(wanted.container_name.clone()));
            };
            schedule.action = Some(action.id);
            schedule.replaces = its.iter().take(count).map(|row| row.id).collect();
            schedule.last_at = Some(action.started_at);
            schedule.advance(action.started_at);
            tx.upsert_schedule(&schedule)?;
        }
    }
    Ok(())
}

fn new_manifest(checkpoint: &Checkpoint, pod: &Pod, seen: &Examined) -> Manifest {
    let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Manifest {
        format: Manifest::format(),
        id: checkpoint.id,
        user: pod.user.clone(),
        pod: pod.id,
        instance: pod.instance.clone(),
        container_name: pod.container_name.clone(),
        kind: checkpoint.kind,
        created_at: checkpoint.created_at,
        shape: pod.spec.clone(),
        image_id: seen.inspect.image_id.clone(),
        layers: seen.layers.clone(),
        host: Host {
            kernel: line("/proc/sys/kernel/osrelease"),
            machine: std::env::consts::ARCH.to_owned(),
            criu: seen.criu.clone(),
            runtime: seen.inspect.runtime.clone(),
            cgroup: cgroup_root::version(),
            group: cgroup_root::of(seen.inspect.pid),
        },
        sockets: seen.findings.sockets.clone(),
        memory_files: Vec::new(),
        gpus: seen.gpus.as_ref().map(|gpus| gpus.saved.clone()),
        tuning: Vec::new(),
        network: std::collections::BTreeMap::new(),
        hosts: None,
        losses: seen.findings.losses.clone(),
        frozen_ms: 0,
        files: std::collections::BTreeMap::new(),
        container: seen.inspect.document().clone(),
    }
}
