//! The phases of a checkpoint: see the table in [`crate::model::phase`].

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fail::fail_point;
use tokio::sync::OwnedMutexGuard;

use crate::{
    checkpoint::{
        ActionGuard, CheckpointError, Checkpoints, Manifest, Progress,
        gpu::GpusSeen,
        millis_since,
        preflight::{Findings, NO_LAYER},
        store::{self, KEPT_IMAGES, archive, compress, hashing},
    },
    criu::{
        error::CriuFailure,
        image_buffer::ImageBuffer,
        network::lock::{self, NetworkLock},
        runc, stopped_tasks,
    },
    db::Tx,
    engine::{ContainerInspect, EngineError},
    host::{
        blocking::off_thread,
        disk::{self, DiskError},
    },
    model::{
        action::Action,
        checkpoint::{Checkpoint, CheckpointStatus, Compression, LeaveRunning},
        ids::ContainerId,
        phase::{ActionKind, Circumstances, Phase},
        pod::{Pod, RestartRule},
        view::checkpoint::Verdict,
    },
    pod::ShellBlock,
};

/// How long a pod runs before the next try to save it, milliseconds.
pub(in crate::checkpoint) const RETRY_DELAYS: [u64; 4] = [20, 70, 150, 400];

/// How often a program that is found in vfork(2), which lasts about a millisecond, is resumed, and for how long.
const VFORKS: u32 = 40;

const VFORK_DELAY: Duration = Duration::from_millis(7);

/// One checkpoint in progress.
pub struct CheckpointJob {
    pub ctx: Checkpoints,
    pub action: Action,
    pub checkpoint: Checkpoint,
    pub pod: Arc<Pod>,
    pub seen: Examined,
    pub directory: PathBuf,
    pub manifest: Manifest,
    pub live: Arc<Progress>,
    pub compression: Compression,
    pub streams: usize,
    pub deadline: Duration,
    /// Nobody attaches to a terminal of the pod until it resumes.
    pub shells: Option<ShellBlock>,
    pub network: NetworkLock,
    /// Memory that receives the images, until they are files.
    pub buffer: Option<ImageBuffer>,
    pub _guard_of_action: ActionGuard,
}

impl CheckpointJob {
    pub async fn run(mut self, guard: OwnedMutexGuard<()>) {
        let ctx = self.ctx.clone();
        let _turn = ctx.0.turns.acquire().await;
        let mut guard = Some(guard);
        let phases = Phase::of_checkpoint(Circumstances {
            kind: self.checkpoint.kind,
            leave_running: self.action.journal.leave_running,
            runs: self.seen.inspect.status.is_running(),
            compresses: self.compression != Compression::None,
            has_gpus: self.action.journal.gpu.is_some(),
        });
        // The phases after this one do not involve the container.
        let last = phases.iter().rfind(|phase| matches!(phase, Phase::Resume | Phase::GpuOn | Phase::Stop)).copied();
        for phase in phases {
            if let Err(error) = self.step(phase).await {
                return self.fail(phase, error).await;
            }
            if Some(phase) == last {
                guard.take();
            }
        }
        self.done().await;
    }

    async fn step(&mut self, phase: Phase) -> Result<(), CheckpointError> {
        self.action.phase = phase;
        self.action.bytes = self.live.bytes.load(Ordering::Relaxed);
        self.ctx.write_action(&self.action).await?;
        fail_point!(&phase.fail_point(ActionKind::Checkpoint), |_| Err(CheckpointError::Interrupted(phase.doing())));
        tracing::debug!(pod = self.pod.container_name, %phase, "checkpoint");
        match phase {
            Phase::Preflight => self.prepare().await,
            Phase::GpuOff => self.gpu_off().await,
            Phase::Pause => self.pause().await,
            Phase::Dump => self.dump().await,
            Phase::Rootfs => self.save_files().await,
            Phase::Resume => self.resume().await,
            Phase::GpuOn => {
                self.gpu_on().await;
                self.thawed().await;
                Ok(())
            }
            Phase::Hash => self.hash().await,
            Phase::Commit => self.commit().await,
            Phase::Stop => self.stop().await,
            Phase::Compress => self.compress().await,
            Phase::Verify | Phase::Fetch | Phase::Prepare | Phase::Start | Phase::Check | Phase::Clean => Ok(()),
        }
    }

    async fn prepare(&mut self) -> Result<(), CheckpointError> {
        let (store, id) = (self.ctx.0.store.clone(), self.checkpoint.id);
        self.directory = off_thread(move || store.begin(id)).await?;
        let tag = self.checkpoint.id.to_string();
        // A restore needs the same image; without a name, pruning would remove it once the pod is gone.
        if let Err(error) = self.ctx.0.engine.tag_image(&self.seen.inspect.image_id, KEPT_IMAGES, &tag).await {
            tracing::warn!(image = self.seen.inspect.image_id, %error, "could not protect the image of a checkpoint from pruning");
        }
        if self.action.journal.leave_running == LeaveRunning::No && self.seen.inspect.status.is_running() {
            // Otherwise the engine would restart the pod as soon as it is stopped.
            self.action.journal.restart = Some(self.seen.inspect.restart.clone());
            self.ctx.write_action(&self.action).await?;
            self.ctx.0.engine.set_restart(&self.seen.container, &RestartRule::never()).await?;
        }
        if self.action.journal.leave_running == LeaveRunning::Yes && self.checkpoint.kind.has_processes() {
            let (bytes, streams) = (self.seen.verdict.memory + self.seen.verdict.gpu_memory, self.streams);
            self.buffer = Some(off_thread(move || ImageBuffer::take(bytes, streams)).await);
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<(), CheckpointError> {
        // A terminal that someone uses is a connection to the outside, which cannot be saved.
        self.shells = Some(self.ctx.0.pods.detach_shells(&self.pod).await);
        self.freeze().await
    }

    pub(in crate::checkpoint) async fn freeze(&mut self) -> Result<(), CheckpointError> {
        self.freeze_outside_vfork().await?;
        // A network that it shares remains when it is stopped.
        if !self.seen.inspect.shares_network() {
            let is_stopped = self.action.journal.leave_running == LeaveRunning::No;
            self.network = lock::lock(self.seen.inspect.pid, is_stopped).await;
        }
        let stopped = stopped_tasks::find(&self.seen.container);
        if !stopped.is_empty() {
            self.action.journal.stopped = stopped;
            self.ctx.write_action(&self.action).await?;
            stopped_tasks::send_sigcont(&self.action.journal.stopped);
        }
        Ok(())
    }

    /// CRIU could wait for ever for a program in vfork(2): the pod is resumed for a moment.
    async fn freeze_outside_vfork(&self) -> Result<(), CheckpointError> {
        let engine = &self.ctx.0.engine;
        for _ in 0..VFORKS {
            self.live.frozen_since().get_or_insert_with(Instant::now);
            engine.pause(&self.seen.container).await.map_err(|error| match error {
                EngineError::NotFrozen(_) => CheckpointError::Criu(CriuFailure::other(
                    "the kernel could not freeze its programs, as they constantly start others or wait for a disk; try again when the pod is less busy",
                )),
                error => error.into(),
            })?;
            if !self.checkpoint.kind.has_processes() || stopped_tasks::in_vfork(&self.seen.container).is_none() {
                return Ok(());
            }
            engine.unpause(&self.seen.container).await?;
            if self.action.journal.gpu.is_none() {
                *self.live.frozen_since() = None;
            }
            tokio::time::sleep(VFORK_DELAY).await;
        }
        let name = stopped_tasks::in_vfork(&self.seen.container).unwrap_or_else(|| "a program".to_owned());
        Err(CheckpointError::Criu(CriuFailure::other(format!(
            "{name} constantly starts other programs (vfork) and was never found outside vfork; try again when it is less busy"
        ))))
    }

    async fn save_files(&mut self) -> Result<(), CheckpointError> {
        let upper = self.seen.inspect.upper.clone().ok_or_else(|| CheckpointError::NotPossible {
            pod: self.pod.container_name.clone(),
            problems: vec![NO_LAYER.to_owned()],
        })?;
        let packed =
            archive::pack(&upper, &self.directory.join(store::ROOTFS), &runc::link_suffix(&self.directory)).await;
        runc::drop_links(&self.directory);
        // Before tar's error: for a pod that was unpaused, tar reports files that changed.
        self.ensure_paused().await?;
        packed?;
        let directory = self.directory.clone();
        let size = off_thread(move || disk::size_of(&directory)).await;
        self.live.bytes.store(size, Ordering::Relaxed);
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), CheckpointError> {
        self.thaw().await?;
        // From now on someone may resume them.
        self.action.journal.stopped.clear();
        match self.action.journal.gpu {
            // Its programs wait for their GPUs.
            Some(_) => self.shells = None,
            None => self.thawed().await,
        }
        Ok(())
    }

    /// A pod that was unpaused behind our back differs from its images.
    async fn ensure_paused(&self) -> Result<(), CheckpointError> {
        if self.live.frozen_since().is_none() {
            return Ok(());
        }
        match self.ctx.0.engine.inspect(&self.seen.container).await? {
            Some(now) if now.pid == self.seen.inspect.pid && now.status.is_paused() => Ok(()),
            Some(now) if now.pid == self.seen.inspect.pid => {
                Err(CheckpointError::LetGo(self.pod.container_name.clone()))
            }
            _ => Err(CheckpointError::EndedMeanwhile(self.pod.container_name.clone())),
        }
    }

    pub(in crate::checkpoint) async fn thaw(&self) -> Result<(), CheckpointError> {
        lock::open_ports(self.seen.inspect.pid);
        stopped_tasks::stop_again(&self.action.journal.stopped);
        Ok(self.ctx.0.engine.unpause(&self.seen.container).await?)
    }

    /// The pod is no longer frozen.
    async fn thawed(&mut self) {
        self.shells = None;
        let since = self.live.frozen_since().take();
        self.action.frozen_ms = since.map(millis_since).or(self.action.frozen_ms);
        self.manifest.frozen_ms = self.action.frozen_ms.unwrap_or(0);
        // Updates the inventory for the next read.
        let _ = self.ctx.0.engine.look(&self.seen.container).await;
    }

    async fn hash(&mut self) -> Result<(), CheckpointError> {
        if let Some(buffer) = self.buffer.take() {
            let written = off_thread(move || buffer.write_out()).await;
            written.map_err(DiskError::io("writing images to", self.ctx.0.store.path()))?;
        }
        let (directory, streams) = (self.directory.clone(), self.streams);
        self.manifest.files = off_thread(move || hashing::hash_and_sync(&directory, streams, &|_| {})).await?;
        self.ensure_paused().await
    }

    async fn commit(&mut self) -> Result<(), CheckpointError> {
        if let Some(since) = *self.live.frozen_since() {
            // It stays frozen until it is stopped, which takes no time.
            self.manifest.frozen_ms = millis_since(since);
        }
        let (store, id, directory, manifest) =
            (self.ctx.0.store.clone(), self.checkpoint.id, self.directory.clone(), self.manifest.clone());
        self.directory = off_thread(move || {
            manifest.write(&directory)?;
            store.commit(id)
        })
        .await?;
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), CheckpointError> {
        self.ctx.0.engine.kill(&self.seen.container).await?;
        self.thawed().await;
        self.ctx.put_restart_rule(&self.action).await
    }

    async fn compress(&mut self) -> Result<(), CheckpointError> {
        let (mut manifest, directory, by) = (self.manifest.clone(), self.directory.clone(), self.compression);
        let streams = self.streams;
        let packed = off_thread(move || {
            compress::pack_all(&mut manifest, &directory, by, streams, &|_| {}).inspect_err(|_| {
                // What was not finished; the manifest in the directory says what counts.
                let swept =
                    Manifest::read(&directory, manifest.id).and_then(|there| compress::sweep(&there, &directory));
                drop(swept);
            })?;
            Ok::<_, CheckpointError>(manifest)
        })
        .await;
        match packed {
            Ok(manifest) => self.manifest = manifest,
            // The checkpoint is complete without packing.
            Err(error) => self.action.losses.push(format!("it was not packed: {error}")),
        }
        Ok(())
    }

    async fn done(self) {
        let size = self.manifest.stored_size();
        let id = self.checkpoint.id;
        tracing::info!(pod = self.pod.container_name, checkpoint = %id, size, frozen_ms = self.action.frozen_ms, "saved");
        let mut action = self.action.clone();
        action.bytes = size;
        let written = self.ctx.end_saved(action, size).await;
        if let Err(error) = written {
            tracing::warn!(%error, "could not record the end of a checkpoint; it is retried");
            self.ctx.settle_later();
        }
    }

    /// Rolls everything back, except a checkpoint that is complete: that is kept.
    async fn fail(mut self, phase: Phase, error: CheckpointError) {
        tracing::warn!(pod = self.pod.container_name, %phase, %error, "checkpoint failed");
        let error = match self.has_ended().await {
            true => CheckpointError::EndedMeanwhile(self.pod.container_name.clone()),
            false => error,
        };
        self.action.error = Some(error.to_string());
        let since = *self.live.frozen_since();
        self.action.frozen_ms = since.map(millis_since).or(self.action.frozen_ms);
        let settled = async {
            self.ctx.write_action(&self.action).await?;
            self.ctx.settle_checkpoint(&self.action).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(pod = self.pod.container_name, %error, "could not roll back; it is retried");
            self.ctx.settle_later();
        }
        self.live.frozen_since().take();
    }

    /// Whether the pod that should be frozen has ended: then CRIU's errors are about files that were removed meanwhile.
    async fn has_ended(&self) -> bool {
        let pid = self.seen.inspect.pid;
        let is_frozen = pid != 0 && self.live.frozen_since().is_some();
        let now = self.ctx.0.engine.inspect(&self.seen.container).await;
        is_frozen && now.is_ok_and(|now| now.is_none_or(|now| now.pid != pid))
    }
}

impl Checkpoints {
    /// Ends a checkpoint that is complete: from now on it counts, and is copied where that is wanted.
    pub(in crate::checkpoint) async fn end_saved(&self, action: Action, size: u64) -> Result<(), CheckpointError> {
        let id = action.checkpoint;
        // The store may have been removed from the config meanwhile.
        let copy = self.copy_for(action.journal.remote, id, &action.user).unwrap_or_else(|error| {
            tracing::warn!(checkpoint = %id, %error, "not copied");
            None
        });
        let also = move |tx: &Tx| {
            match tx.update_checkpoint(id, CheckpointStatus::Ready, size) {
                Ok(()) => copy.as_ref().map_or(Ok(()), |copy| tx.insert_copy(copy)),
                // Its user was deleted meanwhile. It stays marked for deletion and gets no copy; only the action ends.
                Err(error) if error.is_too_late() => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.end_action(action, Ok(()), also).await?;
        self.0.copies.resume();
        Ok(())
    }

    /// Gives a container its restart policy back; one that was saved and stopped is not started by a reboot.
    pub(in crate::checkpoint) async fn put_restart_rule(&self, action: &Action) -> Result<(), CheckpointError> {
        let (Some(container), Some(rule)) = (&action.journal.container, &action.journal.restart) else { return Ok(()) };
        let stopped = action.kind == ActionKind::Checkpoint && action.phase == Phase::Stop;
        let rule = if stopped && *rule == RestartRule::always() { RestartRule::unless_stopped() } else { rule.clone() };
        match self.0.engine.set_restart(container, &rule).await {
            Err(EngineError::NotFound(_)) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// What was found about a pod that is to be saved.
pub struct Examined {
    pub container: ContainerId,
    pub inspect: ContainerInspect,
    /// Of its image.
    pub layers: Vec<String>,
    pub findings: Findings,
    pub verdict: Verdict,
    pub criu: String,
    /// Programs on GPUs, if there are any and they can be saved.
    pub gpus: Option<GpusSeen>,
}
