//! Saving a pod: see the table in [`super::phase`].

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fail::fail_point;
use tokio::sync::OwnedMutexGuard;

use super::{
    Action, ActionKind, ActionStatus, AtWork, Checkpoint, CheckpointError, CheckpointStatus, Checkpoints, Compression,
    DrainedPod, DrainedState, Journal, Kind, LeaveRunning, Live, NewCheckpoint, Origin, Phase, Verdict, admission,
    archive, compress,
    drainer::new_row,
    hashing,
    manifest::{Host, Manifest},
    millis_since, note, off_thread,
    phase::Circumstances,
    preflight::{self, Findings},
    runtime,
    scheduler::is_needed,
    settle_in, sockets, store,
};
use crate::{
    account::{Actor, Caller},
    db::{Outcome, Tx, now},
    engine::{Anatomy, EngineError, RestartRule},
    ids::{ActionId, CheckpointId, ContainerId},
    names::PodRef,
    pod::{Pod, PodError, ShellsHeld},
};

/// The images kept from being pruned have names of this repository.
pub const KEPT_IMAGES: &str = "pody-keep";
/// Time between two looks at how much was written.
const LOOK: Duration = Duration::from_millis(100);

/// What was found out about a pod that is to be saved.
struct Seen {
    container: ContainerId,
    anatomy: Anatomy,
    findings: Findings,
    verdict: Verdict,
    criu: String,
}

/// One checkpoint under way.
struct Saving {
    me: Checkpoints,
    action: Action,
    checkpoint: Checkpoint,
    pod: Arc<Pod>,
    seen: Seen,
    folder: PathBuf,
    manifest: Manifest,
    live: Arc<Live>,
    compression: Compression,
    streams: usize,
    deadline: Duration,
    /// Nobody attaches to a terminal of the pod until it goes on.
    shells: Option<ShellsHeld>,
    _at_work: AtWork,
}

impl Checkpoints {
    /// Looks whether a pod can be saved. Nothing is changed.
    pub async fn check(&self, caller: &Caller, wanted: &PodRef, kind: Kind) -> Result<Verdict, CheckpointError> {
        self.0.pods.wait_ready().await;
        let pod = self.0.pods.find(caller, wanted)?;
        Ok(self.examine(&pod, kind).await?.verdict)
    }

    /// Checks, writes the action down and begins it. Returns at once.
    pub async fn begin(&self, caller: &Caller, wanted: &PodRef, new: NewCheckpoint) -> Result<Action, CheckpointError> {
        self.begin_by(Actor::from(caller), caller, wanted, new).await
    }

    /// The same with another written down as the doer.
    pub(super) async fn begin_by(
        &self,
        actor: Actor,
        caller: &Caller,
        wanted: &PodRef,
        new: NewCheckpoint,
    ) -> Result<Action, CheckpointError> {
        self.0.pods.wait_ready().await;
        self.0.engine.ensure_up()?;
        let pod = self.0.pods.find(caller, wanted)?;
        // A copy that cannot be made is refused before the pod is touched.
        self.copy_for(new.remote, CheckpointId::generate(), &pod.user)?;
        if self.is_at_work_on(pod.id) {
            return Err(CheckpointError::InProgress(pod.container_name.clone()));
        }
        let (guard, pod) = self.0.pods.lock(caller, wanted).await?;
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
        let (at_work, live) = self.begin_work(&action, checkpoint.size);
        let config = self.0.config.get();
        let most = config.checkpoint.streams();
        let saving = Saving {
            me: self.clone(),
            action: action.clone(),
            folder: self.0.store.folder_under_way(checkpoint.id),
            manifest: new_manifest(&checkpoint, &pod, &seen),
            checkpoint,
            deadline: deadline(&config.checkpoint, seen.verdict.memory),
            pod,
            seen,
            live,
            compression: new.compression,
            streams: new.streams.map_or(most, |wanted| wanted.clamp(1, most)),
            shells: None,
            _at_work: at_work,
        };
        tokio::spawn(saving.run(guard));
        Ok(action)
    }

    async fn examine(&self, pod: &Pod, kind: Kind) -> Result<Seen, CheckpointError> {
        let not_found = || PodError::NotFound(pod.container_name.clone());
        let container = pod.container.clone().ok_or_else(not_found)?;
        let anatomy = self.0.engine.anatomy(&container).await?.ok_or_else(not_found)?;
        let runs = anatomy.status == "running";
        if !runs && (kind.has_processes() || matches!(anatomy.status.as_str(), "paused" | "restarting")) {
            return Err(CheckpointError::NotRunning { pod: pod.container_name.clone(), status: anatomy.status });
        }
        let criu = match kind.has_processes() {
            true => runtime::criu_version().await?,
            false => String::new(),
        };
        let config = self.0.config.get();
        let (id, body) = (container.clone(), anatomy.clone());
        let findings = off_thread(move || preflight::look(&id, &body, kind, &config.checkpoint)).await;
        self.0.store.ensure()?;
        let size = findings.memory + findings.files;
        let rate = self.0.rate.load(Ordering::Relaxed).max(1);
        let verdict = Verdict {
            pod: pod.container_name.clone(),
            kind,
            can_be_saved: findings.problems.is_empty(),
            problems: findings.problems.clone(),
            losses: findings.losses.clone(),
            processes: findings.processes.clone(),
            memory: findings.memory,
            files: findings.files,
            freeze_ms: if runs { 100 + size.saturating_mul(1000) / rate } else { 0 },
            // Images grow a little while they are made.
            space_needed: size + size / 100 * 15,
            space_free: self.0.store.free().saturating_sub(self.0.config.get().checkpoint.keep_free.0),
        };
        Ok(Seen { container, anatomy, findings, verdict, criu })
    }

    /// Takes what the quota allows, and writes checkpoint and action down.
    async fn reserve(
        &self,
        actor: Actor,
        pod: &Pod,
        seen: &Seen,
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
            size: seen.verdict.memory + seen.verdict.files,
            image: seen.anatomy.image_id.clone(),
            created_at: now(),
            origin: new.origin,
            remote: None,
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
            total_bytes: Some(checkpoint.size),
            frozen_ms: None,
            losses: seen.findings.losses.clone(),
            error: None,
            remote: None,
            started_at: now(),
            ended_at: None,
            event: 0,
            journal: Journal {
                leave_running: new.leave_running,
                container: Some(seen.container.clone()),
                remote: new.remote,
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
                let sizes = |rows: &[Checkpoint]| rows.iter().map(|row| row.size).collect::<Vec<u64>>();
                match written.origin {
                    Origin::Hand => admission::admit_checkpoint(&quota, &sizes(&held), written.size)?,
                    // Maintenance is no wish of the user's: it neither fails for the quota nor is it lost by it.
                    Origin::Drain => {
                        let (id, checkpoint) = (Some(action.id), Some(written.id));
                        tx.upsert_drained(&DrainedPod { action: id, checkpoint, ..drained })?;
                    }
                    Origin::Schedule => {
                        let (mut its, mut others) = (Vec::new(), Vec::new());
                        for row in held {
                            let is_its = row.pod == written.pod
                                && row.origin == Origin::Schedule
                                && row.status == CheckpointStatus::Ready;
                            let goes = is_its && !is_needed(tx, row.id)?;
                            if goes { its.push(row) } else { others.push(row) }
                        }
                        its.sort_by_key(|row| (row.created_at, row.id));
                        let count = admission::admit_in_place_of(&quota, &sizes(&others), &sizes(&its), written.size)?;
                        let Some(mut schedule) = tx.find_schedule(written.pod)? else {
                            return Err(CheckpointError::NoSchedule(written.container_name.clone()));
                        };
                        schedule.action = Some(action.id);
                        schedule.replaces = its.iter().take(count).map(|row| row.id).collect();
                        schedule.last_at = Some(action.started_at);
                        schedule.advance(action.started_at);
                        tx.upsert_schedule(&schedule)?;
                    }
                }
                let object = written.container_name.clone();
                action.event = note(tx, &actor, "pod.checkpoint", object, &written.user, Outcome::Pending)?;
                tx.insert_checkpoint(&written)?;
                tx.insert_action(&action)?;
                Ok::<_, CheckpointError>(action)
            })
            .await?;
        Ok((checkpoint, action))
    }
}

/// How long CRIU may take with so many bytes.
pub fn deadline(config: &crate::config::CheckpointConfig, bytes: u64) -> Duration {
    Duration::from_secs(config.timeout_seconds + bytes / config.slowest_rate.0.max(1))
}

fn new_manifest(checkpoint: &Checkpoint, pod: &Pod, seen: &Seen) -> Manifest {
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
        image_id: seen.anatomy.image_id.clone(),
        host: Host {
            kernel: line("/proc/sys/kernel/osrelease"),
            machine: std::env::consts::ARCH.to_owned(),
            criu: seen.criu.clone(),
            runtime: seen.anatomy.runtime.clone(),
            cgroup: if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
        },
        sockets: seen.findings.sockets.clone(),
        memory_files: Vec::new(),
        losses: seen.findings.losses.clone(),
        frozen_ms: 0,
        files: std::collections::BTreeMap::new(),
        container: seen.anatomy.document.clone(),
    }
}

impl Saving {
    async fn run(mut self, guard: OwnedMutexGuard<()>) {
        let me = self.me.clone();
        let _turn = me.0.turns.acquire().await;
        let mut guard = Some(guard);
        let phases = Phase::of_checkpoint(Circumstances {
            kind: self.checkpoint.kind,
            leave_running: self.action.journal.leave_running,
            runs: self.seen.anatomy.status == "running",
            compresses: self.compression != Compression::None,
        });
        for phase in phases {
            if let Err(error) = self.step(phase).await {
                return self.fail(phase, error).await;
            }
            // What follows does not concern the container.
            if matches!(phase, Phase::Resume | Phase::Stop) {
                guard.take();
            }
        }
        self.done().await;
    }

    async fn step(&mut self, phase: Phase) -> Result<(), CheckpointError> {
        self.action.phase = phase;
        self.action.bytes = self.live.bytes.load(Ordering::Relaxed);
        self.me.write_action(&self.action).await?;
        fail_point!(&phase.fail_point(ActionKind::Checkpoint), |_| Err(CheckpointError::Interrupted(phase.doing())));
        tracing::debug!(pod = self.pod.container_name, %phase, "checkpoint");
        match phase {
            Phase::Preflight => self.prepare().await,
            Phase::Pause => self.pause().await,
            Phase::Dump => self.dump().await,
            Phase::Rootfs => self.save_files().await,
            Phase::Resume => self.resume().await,
            Phase::Hash => self.hash().await,
            Phase::Commit => self.commit().await,
            Phase::Stop => self.stop().await,
            Phase::Compress => self.compress().await,
            Phase::Verify | Phase::Fetch | Phase::Prepare | Phase::Start | Phase::Check | Phase::Clean => Ok(()),
        }
    }

    async fn prepare(&mut self) -> Result<(), CheckpointError> {
        self.folder = self.me.0.store.begin(self.checkpoint.id)?;
        let tag = self.checkpoint.id.to_string();
        // A restore needs the very image; without a name, pruning takes it once the pod is gone.
        if let Err(error) = self.me.0.engine.tag_image(&self.seen.anatomy.image_id, KEPT_IMAGES, &tag).await {
            tracing::warn!(image = self.seen.anatomy.image_id, %error, "the image of a checkpoint is not kept from pruning");
        }
        if self.action.journal.leave_running == LeaveRunning::No && self.seen.anatomy.status == "running" {
            // Else the engine would start the pod anew as soon as it is stopped.
            self.action.journal.restart = Some(self.seen.anatomy.restart.clone());
            self.me.write_action(&self.action).await?;
            self.me.0.engine.set_restart(&self.seen.container, &RestartRule::never()).await?;
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<(), CheckpointError> {
        // A terminal with somebody at it is a connection to the outside, which cannot be saved.
        self.shells = Some(self.me.0.pods.detach_shells(&self.pod).await);
        *self.live.frozen_since() = Some(Instant::now());
        Ok(self.me.0.engine.pause(&self.seen.container).await?)
    }

    async fn dump(&mut self) -> Result<(), CheckpointError> {
        let config = self.me.0.config.get();
        // Of now, when nothing changes any more.
        let address = self.manifest.sockets.address.take();
        self.manifest.sockets = sockets::of(self.seen.anatomy.pid);
        self.manifest.sockets.address = address;
        let images = self.folder.join(store::IMAGES);
        let begun = Instant::now();
        let anatomy = &self.seen.anatomy;
        let root = runtime::root_of(&config.checkpoint, &self.seen.container, anatomy.pid, &anatomy.runtime);
        let dumping = async {
            let Some(root) = root else { return self.dump_by_engine().await };
            let bin = runtime::ensure_bin(self.me.0.store.path())?;
            runtime::dump(runtime::Dump {
                action: self.action.id,
                container: &self.seen.container,
                pid: anatomy.pid,
                root: &root,
                folder: &self.folder,
                bin: &bin,
                upper: anatomy.upper.as_deref().filter(|_| self.checkpoint.kind.has_files()),
                config: &config.checkpoint,
                deadline: self.deadline,
            })
            .await
        };
        tokio::select! {
            dumped = dumping => dumped?,
            () = self.watch(&images) => {}
        }
        self.manifest.memory_files = settle_in::memory_files(&images, anatomy.pid);
        let size = store::size_of(&images);
        self.live.bytes.store(size, Ordering::Relaxed);
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        // A small one tells of CRIU's start and not of its speed.
        if size > 64 << 20 {
            self.me.0.rate.store(size.saturating_mul(1000) / millis, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Where runc's own folder is not found: the engine does it, never with a stop, and its images are taken over.
    async fn dump_by_engine(&self) -> Result<(), CheckpointError> {
        let config = self.me.0.config.get();
        let engine = &self.me.0.engine;
        let name = format!("pody-{}", self.action.id);
        let container = &self.seen.container;
        tracing::info!(pod = self.pod.container_name, "runc's folder is not found: the engine writes the processes");
        let made = engine.container_folder(container).await?.join("checkpoints").join(&name);
        let upper = self.seen.anatomy.upper.as_deref().filter(|_| self.checkpoint.kind.has_files());
        let log = self.folder.join(store::DUMP_LOG);
        let options = runtime::dump_options(&config.checkpoint, self.seen.anatomy.pid, &self.folder, upper)
            .map_err(CheckpointError::io("writing", &self.folder))?;
        let options = format!("tcp-established\nfile-locks\n{options}log-file {}\n", log.display());
        let _options = runtime::GlobalOptions::place(&options).await?;
        let dumped = engine.dump(container, &name, self.deadline).await;
        if dumped.is_err() {
            runtime::end_engine_dump(container).await;
        }
        dumped.map_err(|error| match (runtime::explain(&log), error) {
            (Some(cause), _) => CheckpointError::Criu(cause),
            (None, EngineError::TimedOut(limit)) => CheckpointError::TimedOut { what: "CRIU", limit },
            (None, error) => error.into(),
        })?;
        // It may have thawed what it was to write.
        runtime::refreeze(self.seen.anatomy.pid);
        let images = self.folder.join(store::IMAGES);
        for file in store::files_below(&made).map_err(CheckpointError::io("reading", &made))? {
            let to = images.join(&file);
            std::fs::rename(made.join(&file), &to)
                .or_else(|_| std::fs::copy(made.join(&file), &to).map(drop))
                .map_err(CheckpointError::io("taking over", &to))?;
        }
        store::remove(&made)
    }

    async fn save_files(&mut self) -> Result<(), CheckpointError> {
        let upper = self.seen.anatomy.upper.clone().ok_or_else(|| CheckpointError::NotPossible {
            pod: self.pod.container_name.clone(),
            problems: vec!["Docker's storage driver here is not overlay2".to_owned()],
        })?;
        let packed = archive::pack(&upper, &self.folder.join(store::ROOTFS)).await;
        runtime::drop_links(&self.folder);
        packed?;
        self.live.bytes.store(store::size_of(&self.folder), Ordering::Relaxed);
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), CheckpointError> {
        self.me.0.engine.unpause(&self.seen.container).await?;
        self.thawed().await;
        Ok(())
    }

    /// The pod stands still no longer.
    async fn thawed(&mut self) {
        self.shells = None;
        let since = self.live.frozen_since().take();
        self.action.frozen_ms = since.map(millis_since).or(self.action.frozen_ms);
        self.manifest.frozen_ms = self.action.frozen_ms.unwrap_or(0);
        // The next read shows it.
        let _ = self.me.0.engine.look(&self.seen.container).await;
    }

    async fn hash(&mut self) -> Result<(), CheckpointError> {
        let (folder, streams) = (self.folder.clone(), self.streams);
        self.manifest.files = off_thread(move || hashing::hash_and_sync(&folder, streams, &|_| {})).await?;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), CheckpointError> {
        if let Some(since) = *self.live.frozen_since() {
            // It stands still until it is stopped, which takes no time.
            self.manifest.frozen_ms = millis_since(since);
        }
        let (store, id, folder, manifest) =
            (self.me.0.store.clone(), self.checkpoint.id, self.folder.clone(), self.manifest.clone());
        self.folder = off_thread(move || {
            manifest.write(&folder)?;
            store.commit(id)
        })
        .await?;
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), CheckpointError> {
        self.me.0.engine.kill(&self.seen.container).await?;
        self.thawed().await;
        self.me.put_restart_rule(&self.action).await
    }

    async fn compress(&mut self) -> Result<(), CheckpointError> {
        let (mut manifest, folder, by) = (self.manifest.clone(), self.folder.clone(), self.compression);
        let streams = self.streams;
        let packed = off_thread(move || {
            compress::pack_all(&mut manifest, &folder, by, streams, &|_| {}).inspect_err(|_| {
                // What was not finished; the manifest in the folder says what counts.
                let swept = Manifest::read(&folder, manifest.id).and_then(|there| compress::sweep(&there, &folder));
                drop(swept);
            })?;
            Ok::<_, CheckpointError>(manifest)
        })
        .await;
        match packed {
            Ok(manifest) => self.manifest = manifest,
            // The checkpoint is complete without.
            Err(error) => self.action.losses.push(format!("it is not packed: {error}")),
        }
        Ok(())
    }

    /// Tells how much was written, for ever.
    async fn watch(&self, folder: &std::path::Path) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.live.bytes.store(store::size_of(folder), Ordering::Relaxed);
        }
    }

    async fn done(self) {
        let size = self.manifest.stored_size();
        let id = self.checkpoint.id;
        tracing::info!(pod = self.pod.container_name, checkpoint = %id, size, frozen_ms = self.action.frozen_ms, "saved");
        let mut action = self.action.clone();
        action.bytes = size;
        let written = self.me.end_saved(action, size).await;
        if let Err(error) = written {
            tracing::warn!(%error, "the end of a checkpoint is written later");
            self.me.settle_later();
        }
    }

    /// Puts everything as it was before, but for a checkpoint that is complete: that is kept.
    async fn fail(mut self, phase: Phase, error: CheckpointError) {
        tracing::warn!(pod = self.pod.container_name, %phase, %error, "not saved");
        self.action.error = Some(error.to_string());
        let since = *self.live.frozen_since();
        self.action.frozen_ms = since.map(millis_since).or(self.action.frozen_ms);
        let settled = async {
            self.me.write_action(&self.action).await?;
            self.me.settle_checkpoint(&self.action).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(pod = self.pod.container_name, %error, "settled later");
            self.me.settle_later();
        }
        self.live.frozen_since().take();
    }
}

impl Checkpoints {
    /// The end of a checkpoint that is complete: from now on it counts, and is copied where that is wanted.
    pub(super) async fn end_saved(&self, action: Action, size: u64) -> Result<(), CheckpointError> {
        let id = action.checkpoint;
        // The store may have gone out of the config meanwhile.
        let copy = self.copy_for(action.journal.remote, id, &action.user).unwrap_or_else(|error| {
            tracing::warn!(checkpoint = %id, %error, "not copied");
            None
        });
        let also = move |tx: &Tx| {
            tx.update_checkpoint(id, CheckpointStatus::Ready, size)?;
            copy.as_ref().map_or(Ok(()), |copy| tx.put_copy(copy))
        };
        self.end_action(action, Ok(()), also).await?;
        self.0.copies.wake();
        Ok(())
    }

    /// Gives a container its restart rule back; one that was saved and stopped is not started by a reboot.
    pub(super) async fn put_restart_rule(&self, action: &Action) -> Result<(), CheckpointError> {
        let (Some(container), Some(rule)) = (&action.journal.container, &action.journal.restart) else { return Ok(()) };
        let stopped = action.kind == ActionKind::Checkpoint && action.phase == Phase::Stop;
        let rule = if stopped && *rule == RestartRule::always() { RestartRule::unless_stopped() } else { rule.clone() };
        match self.0.engine.set_restart(container, &rule).await {
            Err(EngineError::NotFound(_)) => Ok(()),
            other => Ok(other?),
        }
    }
}
