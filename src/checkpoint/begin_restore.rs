//! The request side of a restore: which checkpoint, as which pod, and all that can be checked before anything is
//! changed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use tokio::sync::OwnedMutexGuard;

use super::{
    CheckpointError, Checkpoints,
    job::restore::RestoreJob,
    store::{self, KEPT_IMAGES, manifest::Manifest},
};
use crate::{
    criu::{cgroup_root, version},
    db::NewEvent,
    engine::Image,
    host::{blocking::off_thread, disk},
    model::{
        action::{Action, ActionStatus, Journal},
        checkpoint::{Checkpoint, CheckpointFilter, CheckpointStatus, NewRestore},
        drain::{DrainedPod, DrainedState},
        ids::ActionId,
        names::{ImageRef, PodRef},
        phase::{ActionKind, Phase},
        pod::{Pod, PodSpec, RestartRule},
        time::Millis,
        user::{Actor, Caller},
        view::action::ActionView,
    },
    pod::{AskedBy, PodError},
};

impl Checkpoints {
    /// Checks, records the action and begins it. Returns at once.
    pub async fn begin_restore(&self, caller: &Caller, new: NewRestore) -> Result<ActionView, CheckpointError> {
        self.begin_restore_by(AskedBy::Caller, caller, new).await
    }

    /// The same for maintenance: while it lasts, only its own end restores pods.
    pub(super) async fn begin_restore_by(
        &self,
        by: AskedBy,
        caller: &Caller,
        new: NewRestore,
    ) -> Result<ActionView, CheckpointError> {
        self.0.pods.wait_ready().await;
        self.0.engine.ensure_up()?;
        self.0.pods.ensure_not_drained(&by)?;
        let row = self.checkpoint_for(caller, &new).await?;
        if row.status != CheckpointStatus::Ready {
            return Err(CheckpointError::NotReady { id: row.id, status: row.status });
        }
        if row.kind.has_processes() {
            self.ensure_engine_supported().await?;
            version::criu_version().await?;
        }
        let directory = self.0.store.directory(row.id);
        let manifest = match self.manifest_of(&row).await {
            Ok(manifest) => manifest,
            // It may have been deleted meanwhile: then it is not damaged but gone.
            Err(error) => return Err(self.find_row(caller, row.id).await.err().unwrap_or(error)),
        };
        check_belongs(&manifest, &row)?;
        self.check_space(&manifest).await?;
        let instance = new.restore_as.clone().unwrap_or_else(|| row.instance.clone());
        let wanted = PodRef { prefix: None, user: Some(row.user.clone()), instance: instance.clone() };
        let (guard, pod, journal) = match self.0.pods.find(caller, &wanted) {
            Ok(pod) if pod.id == row.pod => {
                let (guard, pod, mut journal) = self.in_place(caller, &wanted, &manifest).await?;
                let given = pod.container.as_ref().and_then(|container| self.given_gpus(container));
                journal.gpu = self.plan_gpus(row.kind, manifest.gpus.as_ref(), given).await?;
                (guard, pod, journal)
            }
            Ok(pod) => return Err(PodError::Exists(pod.container_name.clone()).into()),
            Err(PodError::NotFound(_)) => {
                let image = self.image_of(&manifest).await?;
                let (spec, allowed) = self.0.pods.restored_spec(&row.user, &instance, &manifest.shape, image).await?;
                check_mounts(&manifest.shape, &spec)?;
                let gpu = self.plan_gpus(row.kind, manifest.gpus.as_ref(), spec.gpus.clone()).await?;
                let (actor, needed) = (Actor::from(caller), memory_needed(&manifest));
                let check = move |granted: &PodSpec| check_memory(needed, granted.memory);
                let (guard, pod) =
                    self.0.pods.reserve_restored(actor, row.user.clone(), instance, allowed, spec, check).await?;
                (guard, pod, Journal { makes_pod: true, gpu, ..Journal::default() })
            }
            Err(error) => return Err(error.into()),
        };
        let makes_pod = journal.makes_pod;
        let action = match self.write_restore(by, caller, &row, &pod, &manifest, journal).await {
            Ok(action) => action,
            Err(error) => {
                if makes_pod {
                    self.0.pods.undo_restored(pod, error.to_string()).await;
                }
                return Err(error);
            }
        };
        let size = manifest.stored_size();
        let (at_work, live) = self.begin_work(&action, size);
        let restoring = RestoreJob {
            ctx: self.clone(),
            action: action.clone(),
            manifest,
            directory,
            pod,
            live,
            connections: new.connections,
            images: Vec::new(),
            attempts: 0,
            _guard_of_action: at_work,
        };
        tokio::spawn(restoring.run(guard));
        Ok(ActionView { total_bytes: Some(size), ..ActionView::from(action) })
    }

    /// The named checkpoint, or the newest of the named pod.
    async fn checkpoint_for(&self, caller: &Caller, new: &NewRestore) -> Result<Checkpoint, CheckpointError> {
        if let Some(id) = new.checkpoint {
            let row = self.find_row(caller, id).await?;
            let is_its =
                |pod: &PodRef| pod.instance == row.instance && pod.user.as_ref().unwrap_or(&caller.user) == &row.user;
            return match &new.pod {
                Some(pod) if !is_its(pod) => Err(CheckpointError::NotFound(format!("{id} of {pod}"))),
                _ => Ok(row),
            };
        }
        let pod = new.pod.clone().ok_or(CheckpointError::NothingNamed)?;
        let filter = CheckpointFilter { pod: Some(pod.clone()), ..CheckpointFilter::default() };
        let rows = self.list_rows(caller, filter).await?;
        let newest = rows.into_iter().find(|row| row.status == CheckpointStatus::Ready);
        newest.ok_or_else(|| CheckpointError::NoneOf(pod.to_string()))
    }

    /// The existing pod, stopped, to be filled from the checkpoint.
    async fn in_place(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        manifest: &Manifest,
    ) -> Result<(OwnedMutexGuard<()>, Pod, Journal), CheckpointError> {
        let pod = self.0.pods.find(caller, wanted)?;
        if let Some(action) = self.at_work_on(pod.id) {
            return Err(CheckpointError::InProgress { pod: pod.container_name.clone(), action });
        }
        let (guard, pod) = self.0.pods.lock(caller, wanted).await?;
        self.settle_pod(pod.id).await?;
        let not_found = || PodError::NotFound(pod.container_name.clone());
        let container = pod.container.clone().ok_or_else(not_found)?;
        let inspect = self.0.engine.inspect(&container).await?.ok_or_else(not_found)?;
        if !inspect.status.is_stopped() {
            return Err(CheckpointError::StillRuns { pod: pod.container_name.clone(), status: inspect.status });
        }
        check_memory(memory_needed(manifest), inspect.memory)?;
        // One that was saved and stopped, or not restored, has had its policy changed: from now on it is a pod like others.
        let restart = match &inspect.restart {
            rule if *rule == RestartRule::unless_stopped() => RestartRule::always(),
            _ if !pod.adopted => RestartRule::always(),
            rule => rule.clone(),
        };
        let journal = Journal {
            container: Some(container),
            restart: Some(restart),
            restart_if_not: Some(inspect.restart.clone()),
            ..Journal::default()
        };
        Ok((guard, Pod::clone(&pod), journal))
    }

    /// Packed files are unpacked into the store, and the pod's files to where the engine has those of containers.
    async fn check_space(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let keep = self.0.config.get().checkpoint.keep_free.0;
        let packed = manifest.files.values().filter(|file| file.packed.is_some()).map(|file| file.size).sum();
        let files = manifest.files.get(Path::new(store::ROOTFS)).map_or(0, |file| file.size);
        let (store, engine) = (self.0.store.path().to_owned(), self.0.engine.facts().await?.layers_dir.clone());
        off_thread(move || {
            let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
            let needs = match device(&store) == device(&engine) {
                true => vec![(store, packed + files)],
                false => vec![(store, packed), (engine, files)],
            };
            for (path, needed) in needs {
                let free = disk::free(&path).saturating_sub(keep);
                if needed > free {
                    return Err(CheckpointError::Space { path, needed, free });
                }
            }
            Ok(())
        })
        .await
    }

    /// The same image, by its original name where that still means it.
    async fn image_of(&self, manifest: &Manifest) -> Result<ImageRef, CheckpointError> {
        let gone = || CheckpointError::ImageGone(manifest.shape.image.clone());
        let images = self.0.engine.inventory().images();
        let image = match images.iter().find(|image| image.id == manifest.image_id) {
            Some(image) => image,
            None => self.with_layers(&images, manifest).await?.ok_or_else(gone)?,
        };
        let kept = |tag: &&String| tag.starts_with(KEPT_IMAGES);
        let name = match image.tags.iter().find(|tag| **tag == manifest.shape.image) {
            Some(name) => name.as_str(),
            None => image.tags.iter().find(|tag| !kept(tag)).map_or(image.id.as_str(), String::as_str),
        };
        name.parse().map_err(|_| gone())
    }

    /// The image under another id, as after the change to containerd's image store: the layers are its content. One
    /// that has the original name comes first.
    async fn with_layers<'a>(
        &self,
        images: &'a [Image],
        manifest: &Manifest,
    ) -> Result<Option<&'a Image>, CheckpointError> {
        if manifest.layers.is_empty() {
            return Ok(None);
        }
        let mut candidates: Vec<&Image> = images.iter().collect();
        candidates.sort_by_key(|image| !image.tags.contains(&manifest.shape.image));
        for image in candidates {
            if self.0.engine.image_layers(&image.id).await? == manifest.layers {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    async fn write_restore(
        &self,
        by: AskedBy,
        caller: &Caller,
        row: &Checkpoint,
        pod: &Pod,
        manifest: &Manifest,
        journal: Journal,
    ) -> Result<Action, CheckpointError> {
        let mut action = Action {
            id: ActionId::generate(),
            kind: ActionKind::Restore,
            user: row.user.clone(),
            pod: pod.id,
            container_name: pod.container_name.clone(),
            checkpoint: row.id,
            status: ActionStatus::Running,
            phase: Phase::Verify,
            bytes: 0,
            frozen_ms: None,
            losses: manifest.losses.clone(),
            error: None,
            started_at: Millis::now(),
            ended_at: None,
            event: pod.event,
            journal,
        };
        let id = row.id;
        let actor = by.actor(caller);
        self.0
            .db
            .write(move |tx| {
                by.ensure_not_drained(tx)?;
                // It may have been deleted meanwhile.
                let status = tx.find_checkpoint(id)?.map(|row| row.status);
                if status != Some(CheckpointStatus::Ready) {
                    return Err(CheckpointError::NotFound(id.to_string()));
                }
                if !action.journal.makes_pod {
                    let event = NewEvent::by(&actor).did("pod.restore", &action.container_name).of(&action.user);
                    action.event = tx.insert_event(&event.pending())?;
                }
                tx.insert_action(&action)?;
                if let AskedBy::Drain(_) = by
                    && let Some(row) = tx.find_drained(action.pod)?
                {
                    tx.upsert_drained(&DrainedPod { state: DrainedState::Returning, action: Some(action.id), ..row })?;
                }
                Ok(action)
            })
            .await
    }
}

/// A manifest of another user, checkpoint or machine.
fn check_belongs(manifest: &Manifest, row: &Checkpoint) -> Result<(), CheckpointError> {
    let damaged = |why: String| CheckpointError::Damaged { id: row.id, file: store::MANIFEST.to_owned(), why };
    if manifest.user != row.user {
        return Err(damaged(format!("it belongs to {}", manifest.user)));
    }
    if manifest.pod != row.pod || manifest.kind != row.kind {
        return Err(damaged("it belongs to another checkpoint".to_owned()));
    }
    let (then, now) = (manifest.host.machine.clone(), std::env::consts::ARCH.to_owned());
    if then != now {
        return Err(CheckpointError::OtherHost { then, now });
    }
    let (then, now) = (manifest.host.cgroup, cgroup_root::version());
    if manifest.kind.has_processes() && then != now {
        // A pod has as many mounts as the host has hierarchies.
        let told = |version: u8| format!("cgroups version {version}");
        return Err(CheckpointError::OtherHost { then: told(then), now: told(now) });
    }
    Ok(())
}

/// What the pod needs for certain, bytes. Processes may share memory that the images hold once for each, so only the
/// largest of them counts, plus the tmpfs mounts.
fn memory_needed(manifest: &Manifest) -> u64 {
    if !manifest.kind.has_processes() {
        return 0;
    }
    let sizes = |start: &'static str| {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        manifest.files.iter().filter(move |(path, _)| name(path).starts_with(start)).map(|(_, file)| file.size)
    };
    sizes("pages-").max().unwrap_or(0) + sizes("tmpfs-dev-").sum::<u64>()
}

/// Refuses a limit that is too small for certain.
fn check_memory(needed: u64, limit: Option<u64>) -> Result<(), CheckpointError> {
    match limit.filter(|&limit| needed > limit) {
        Some(limit) => Err(CheckpointError::Memory { needed, limit }),
        None => Ok(()),
    }
}

/// CRIU finds files by the mounts of the dump: their targets must be the same.
fn check_mounts(saved: &PodSpec, now: &PodSpec) -> Result<(), CheckpointError> {
    let targets = |spec: &PodSpec| {
        let binds = spec.binds.iter().map(|bind| bind.target.clone());
        let mut targets: Vec<String> =
            binds.chain(spec.tmpfs.iter().map(|tmpfs| format!("tmpfs:{}", tmpfs.target))).collect();
        targets.sort();
        targets
    };
    let (then, now) = (targets(saved), targets(now));
    match then == now {
        true => Ok(()),
        false => Err(CheckpointError::MountsChanged { then: then.join(", "), now: now.join(", ") }),
    }
}
