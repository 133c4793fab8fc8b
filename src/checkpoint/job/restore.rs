//! The phases of a restore: see the table in [`crate::model::phase`]. [`crate::checkpoint::begin_restore`] has decided
//! by then what is restored and where.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fail::fail_point;
use tokio::sync::OwnedMutexGuard;

use super::{
    address::{self, ReservedAddresses},
    hold_traffic,
};
use crate::{
    checkpoint::{
        ActionGuard, CheckpointError, Checkpoints, Progress,
        preflight::NO_LAYER,
        store::{
            self,
            archive::{self, aside},
            compress,
            manifest::Manifest,
        },
    },
    criu::{
        cgroup_root, diagnosis,
        error::{CriuFailure, FailureKind},
        kill,
        namespace_setup::{self, Filling, Hosts, MemoryFiles, Plan},
        network::connections::{AddressPolicy, Tcp, Way},
        patches, restore,
        runc::{self, Load, deadline},
        thread_attributes,
    },
    engine::{ContainerInspect, EngineError},
    host::{blocking::off_thread, disk::DiskError},
    model::{
        action::{Action, HeldTraffic},
        checkpoint::Connections,
        ids::ContainerId,
        phase::Phase,
        pod::{Pod, RestartRule},
    },
    pod::PodError,
};

/// A pod that still exists this long after its restore lives: one whose memory is damaged ends at once.
const PROBATION: Duration = Duration::from_millis(50);

/// How often other ports are tried for a new pod.
const PORT_TRIES: usize = 5;

/// How often a pod is started that gets another address than the restore was prepared for.
const ADDRESS_TRIES: usize = 3;

/// The engine's file for `/etc/hosts`, in its directory of a container.
const HOSTS: &str = "hosts";

/// One restore in progress.
pub(in crate::checkpoint) struct RestoreJob {
    pub(in crate::checkpoint) ctx: Checkpoints,
    pub(in crate::checkpoint) action: Action,
    pub(in crate::checkpoint) manifest: Manifest,
    pub(in crate::checkpoint) directory: PathBuf,
    pub(in crate::checkpoint) pod: Pod,
    pub(in crate::checkpoint) live: Arc<Progress>,
    pub(in crate::checkpoint) connections: Option<Connections>,
    /// Where to read each image from, by its name.
    pub(in crate::checkpoint) images: Vec<(PathBuf, PathBuf)>,
    pub(in crate::checkpoint) attempts: u32,
    pub(in crate::checkpoint) _guard_of_action: ActionGuard,
}

impl RestoreJob {
    pub(in crate::checkpoint) async fn run(mut self, _guard: OwnedMutexGuard<()>) {
        let ctx = self.ctx.clone();
        let _turn = ctx.0.turns.acquire().await;
        for phase in Phase::of_restore(self.action.journal.gpu.is_some()) {
            if let Err(error) = self.step(phase).await {
                return self.fail(phase, error).await;
            }
        }
        tracing::info!(pod = self.pod.container_name, checkpoint = %self.manifest.id, "restored");
        self.action.bytes = self.manifest.stored_size();
        if let Err(error) = self.ctx.end_action(self.action.clone(), Ok(()), |_| Ok(())).await {
            tracing::warn!(%error, "could not record the end of a restore; it is retried");
            self.ctx.settle_later();
        }
    }

    async fn step(&mut self, phase: Phase) -> Result<(), CheckpointError> {
        self.action.phase = phase;
        self.ctx.write_action(&self.action).await?;
        fail_point!(&phase.fail_point(crate::model::phase::ActionKind::Restore), |_| Err(
            CheckpointError::Interrupted(phase.doing())
        ));
        match phase {
            Phase::Verify => self.verify().await,
            Phase::Prepare => self.prepare().await,
            Phase::Start => self.start().await,
            Phase::GpuOn => self.gpu_on().await,
            Phase::Check => self.check().await,
            Phase::Clean => self.finish().await,
            // `fetch` is a part of `verify`; the others are a checkpoint's.
            Phase::Fetch
            | Phase::Preflight
            | Phase::GpuOff
            | Phase::Pause
            | Phase::Dump
            | Phase::Rootfs
            | Phase::Resume
            | Phase::Hash
            | Phase::Commit
            | Phase::Stop
            | Phase::Compress => Ok(()),
        }
    }

    async fn verify(&mut self) -> Result<(), CheckpointError> {
        match self.verify_here().await {
            Err(error @ CheckpointError::Damaged { .. }) if self.ctx.copied(self.manifest.id).await? => {
                tracing::info!(pod = self.pod.container_name, %error, "a file is damaged or missing, downloading it from the copy");
                self.action.phase = Phase::Fetch;
                self.ctx.write_action(&self.action).await?;
                fail_point!("restore-fetch", |_| Err(CheckpointError::Interrupted(Phase::Fetch.doing())));
                self.ctx.fetch(&self.manifest, &self.live).await?;
                self.action.phase = Phase::Verify;
                self.ctx.write_action(&self.action).await?;
                self.live.bytes.store(0, Ordering::Relaxed);
                self.verify_here().await
            }
            verified => verified,
        }
    }

    async fn verify_here(&self) -> Result<(), CheckpointError> {
        let (manifest, directory, live) = (self.manifest.clone(), self.directory.clone(), self.live.clone());
        let streams = self.ctx.0.config.get().checkpoint.streams();
        off_thread(move || {
            manifest.verify(&directory, streams, &|read| {
                live.bytes.fetch_add(read, Ordering::Relaxed);
            })
        })
        .await
    }

    async fn prepare(&mut self) -> Result<(), CheckpointError> {
        let scratch = self.ctx.0.store.scratch(self.action.id);
        let (manifest, directory) = (self.manifest.clone(), self.directory.clone());
        let streams = self.ctx.0.config.get().checkpoint.streams();
        self.images = off_thread(move || {
            fs::create_dir_all(&scratch).map_err(DiskError::io("making", &scratch))?;
            compress::unpack_all(&manifest, &directory, &scratch, streams, &|_| {})
        })
        .await?;
        self.fill().await
    }

    /// The container, stopped, with the files of the checkpoint.
    async fn fill(&mut self) -> Result<(), CheckpointError> {
        let engine = self.ctx.0.engine.clone();
        if self.action.journal.makes_pod {
            let container = self.ctx.0.pods.make_restored(&mut self.pod).await?;
            self.action.journal.container = Some(container);
            self.action.journal.restart = Some(RestartRule::always());
        }
        let mut container = self.container()?;
        let name = self.pod.container_name.clone();
        let gone = || PodError::NotFound(name.clone());
        let mut inspect = engine.inspect(&container).await?.ok_or_else(gone)?;
        let runtime = self.ctx.0.config.get().checkpoint.runtime.clone();
        if self.manifest.kind.has_processes() && inspect.runtime != runtime {
            container = self.replace(&inspect, &container, &runtime).await?;
            inspect = engine.inspect(&container).await?.ok_or_else(gone)?;
        }
        if self.manifest.kind.has_files() {
            let upper = inspect.upper.clone().ok_or_else(|| CheckpointError::Unavailable(NO_LAYER.to_owned()))?;
            if !self.action.journal.makes_pod && self.action.journal.replaced.is_none() {
                self.action.journal.upper = Some(upper.clone());
            }
            self.ctx.write_action(&self.action).await?;
            if let Some(upper) = &self.action.journal.upper {
                let (upper, aside) = (upper.clone(), aside(upper, &self.action));
                let put = move || archive::put_aside(&upper, &aside).map_err(DiskError::io("putting aside", &upper));
                off_thread(put).await?;
            }
            let archive = self.image(Path::new(store::ROOTFS))?;
            archive::unpack(&archive, &upper).await?;
        }
        self.ctx.write_action(&self.action).await?;
        // The engine must not start a failed pod from its beginning.
        Ok(engine.set_restart(&container, &RestartRule::never()).await?)
    }

    /// Makes a container that our runtime restores, in the place of one that another runtime made. That one is kept under
    /// another name until the pod lives.
    async fn replace(
        &mut self,
        old: &ContainerInspect,
        id: &ContainerId,
        runtime: &str,
    ) -> Result<ContainerId, CheckpointError> {
        let engine = self.ctx.0.engine.clone();
        self.action.journal.replaced = Some(id.clone());
        self.ctx.write_action(&self.action).await?;
        fail_point!("restore-replacing", |_| Err(CheckpointError::Interrupted(Phase::Prepare.doing())));
        engine.rename(id, &self.action.replaced_name()).await?;
        let new = engine.recreate(id, &self.pod.container_name, runtime).await?;
        self.action.journal.container = Some(new.clone());
        self.ctx.write_action(&self.action).await?;
        let (from, to) = (engine.container_directory(id).await?, engine.container_directory(&new).await?);
        let (old_id, new_id) = (id.clone(), new.clone());
        off_thread(move || {
            continue_log((&from, &old_id), (&to, &new_id)).map_err(DiskError::io("copying the log to", &to))
        })
        .await?;
        fail_point!("restore-replaced", |_| Err(CheckpointError::Interrupted(Phase::Prepare.doing())));
        if !self.manifest.kind.has_files() {
            // The files that the pod has now.
            let gone = || PodError::NotFound(self.pod.container_name.clone());
            let made = engine.inspect(&new).await?.ok_or_else(gone)?;
            let (Some(from), Some(to)) = (old.upper.clone(), made.upper) else {
                return Err(CheckpointError::Unavailable(NO_LAYER.to_owned()));
            };
            archive::copy(&from, &to, &self.ctx.0.store.scratch(self.action.id)).await?;
        }
        Ok(new)
    }

    pub(in crate::checkpoint) fn container(&self) -> Result<ContainerId, CheckpointError> {
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        Ok(self.action.journal.container.clone().ok_or_else(gone)?)
    }

    /// Where to read a file of the checkpoint from.
    fn image(&self, name: &Path) -> Result<PathBuf, CheckpointError> {
        let found = self.images.iter().find(|(path, _)| path == name).map(|(_, source)| source.clone());
        found.ok_or_else(|| CheckpointError::Damaged {
            id: self.manifest.id,
            file: name.display().to_string(),
            why: "the manifest does not name it".to_owned(),
        })
    }

    async fn start(&mut self) -> Result<(), CheckpointError> {
        for _ in 0..PORT_TRIES {
            let started = self.start_once().await;
            match started {
                Err(CheckpointError::Engine(EngineError::PortTaken(port))) if self.action.journal.makes_pod => {
                    let container = self.container()?;
                    self.ctx.0.pods.exchange_port(&mut self.pod, &container, port).await?;
                    self.action.journal.container = None;
                    self.ctx.write_action(&self.action).await?;
                    self.fill().await?;
                }
                other => return other,
            }
        }
        Err(PodError::NoPort { needed: self.pod.spec.ports.len(), free: 0, all: 0 }.into())
    }

    async fn start_once(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if !self.manifest.kind.has_processes() {
            return Ok(self.ctx.0.engine.start(&container).await?);
        }
        let (mut way, mut others) =
            Way::choices(&self.manifest.sockets, !self.action.journal.makes_pod, self.connections);
        let mut why = match self.connections {
            Some(Connections::Close) => "as requested".to_owned(),
            _ => "the pod has another address".to_owned(),
        };
        loop {
            let error = match self.start_by(&container, way).await {
                Ok(()) => {
                    let sockets = &self.manifest.sockets;
                    let count = match way.tcp {
                        Tcp::Established => 0,
                        Tcp::CloseOutside => sockets.outside,
                        Tcp::Close => sockets.outside + sockets.local,
                    };
                    if count > 0 {
                        self.action.losses.push(format!("{count} open TCP connections were closed: {why}"));
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            let Some((next, rest)) = others.split_first() else { return Err(error) };
            match error {
                CheckpointError::AddressGone { address, why: gone } => {
                    tracing::info!(pod = self.pod.container_name, %address, gone, "restoring with another address");
                    if self.connections.is_none() {
                        why = format!("the pod's original address {address} is not available: {gone}");
                    }
                }
                CheckpointError::Criu(failure) if failure.kind == FailureKind::AddressTaken => {
                    tracing::info!(pod = self.pod.container_name, %failure, "restore failed, retrying with connections closed");
                }
                error => return Err(error),
            }
            (way, others) = (*next, rest);
        }
    }

    /// Starts it this way, and again after a transient failure.
    async fn start_by(&mut self, container: &ContainerId, way: Way) -> Result<(), CheckpointError> {
        let again = match way.addresses {
            AddressPolicy::Original => self.manifest.sockets.original_address(),
            AddressPolicy::New => None,
        };
        let (mut engine_failures, mut races) = (0, 0);
        loop {
            let held = match again {
                Some(address) => {
                    Some(address::reserve_lower(&self.ctx, &mut self.action, &self.pod, container, address).await?)
                }
                None => None,
            };
            // A peer may send at any moment.
            let held_traffic = match (again, held.as_ref().and_then(|held| held.bridge.clone())) {
                (Some(address), Some(bridge)) if way.tcp == Tcp::Established && self.manifest.sockets.outside > 0 => {
                    Some(hold_traffic::begin(&self.ctx, &mut self.action, HeldTraffic { bridge, address }).await?)
                }
                _ => None,
            };
            let started = self.start_from_images(container, way, held).await;
            drop(held_traffic);
            match (&started, again) {
                // Without an error of CRIU's the engine failed, which may succeed with the same input again.
                (Err(CheckpointError::Engine(error)), _) if error.is_failure() && engine_failures == 0 => {
                    engine_failures += 1;
                    tracing::warn!(pod = self.pod.container_name, %error, "the engine failed to start it, retrying");
                }
                // CRIU can do it by itself, only slower.
                (Err(CheckpointError::Criu(failure)), _)
                    if failure.kind == FailureKind::NotFilled && !self.manifest.memory_files.is_empty() =>
                {
                    tracing::warn!(pod = self.pod.container_name, %failure, "restore failed, retrying with CRIU unpacking tmpfs");
                    self.manifest.memory_files.clear();
                }
                // Another container was started at the same moment.
                (Err(CheckpointError::Criu(failure)), Some(address)) if failure.kind == FailureKind::OtherAddress => {
                    races += 1;
                    if races == ADDRESS_TRIES {
                        let why = "other containers that start now get it or a lower one".to_owned();
                        return Err(CheckpointError::AddressGone { address, why });
                    }
                }
                _ => return started,
            }
        }
    }

    async fn start_from_images(
        &mut self,
        container: &ContainerId,
        way: Way,
        mut held: Option<ReservedAddresses>,
    ) -> Result<(), CheckpointError> {
        self.attempts += 1;
        let config = self.ctx.0.config.get();
        let engine = &self.ctx.0.engine;
        let container_directory = engine.container_directory(container).await?;
        let scratch = self.ctx.0.store.scratch(self.action.id);
        let directory = scratch.join(format!("images-{}", self.attempts));
        let (images, memory_files) = (self.images.clone(), self.manifest.memory_files.clone());
        let made = directory.clone();
        let own_addresses = (way.tcp == Tcp::CloseOutside).then(|| self.manifest.sockets.own_addresses());
        off_thread(move || {
            let emptied = memory_files.iter().map(|files| files.image.as_path()).collect();
            restore::make_images(&made, &images, &emptied)?;
            if let Some(own) = own_addresses {
                patches::close_outside(&made, &own).map_err(DiskError::io("correcting", &made))?;
            }
            Ok::<_, CheckpointError>(())
        })
        .await?;
        let (mut plan, noted) = (self.plan(way.addresses, &container_directory)?, scratch.clone());
        let script = off_thread(move || {
            for Filling { archive, .. } in &mut plan.memory_files {
                *archive = fs::canonicalize(&*archive).map_err(DiskError::io("finding", &*archive))?;
            }
            plan.option(&noted).map_err(DiskError::io("writing", &noted))
        })
        .await?;
        let work = scratch.join(format!("work-{}", self.attempts));
        let log = work.join(restore::LOG);
        let limit = config.checkpoint.deleted_file_limit.0;
        let options = format!(
            "{}\nlink-remap\nghost-limit {limit}\n{}{script}",
            way.tcp.as_str(),
            self.cgroup_root(container).await?,
        );
        let limit = deadline(&config.checkpoint, self.load());
        let order = restore::Plan {
            action: self.action.id,
            images: directory,
            work,
            is_tcp_established: way.tcp == Tcp::Established || way.tcp == Tcp::CloseOutside,
            options,
            path: std::env::var("PATH").unwrap_or_default(),
            deadline: limit,
        };
        let place_for = container.clone();
        off_thread(move || order.place(&place_for)).await?;
        let give_back = async {
            if held.is_some() {
                namespace_setup::wait_addressed(&scratch).await;
                held = None;
            }
            std::future::pending::<Infallible>().await
        };
        let started = tokio::select! {
            done = engine.start_restore(container, limit) => done,
            () = runc::wait_runaway(&log) => Err(EngineError::TimedOut(limit)),
            never = give_back => match never {},
        };
        let error = match started {
            Ok(()) if namespace_setup::is_done(&scratch) => return Ok(()),
            Ok(()) => {
                kill::end_restore(container).await;
                self.ctx.settled_inspect(container).await?;
                return Err(CheckpointError::Criu(CriuFailure::other(
                    "the container was started from its beginning, not restored; is its runtime pody's? See `pody doctor`",
                )));
            }
            Err(error) => error,
        };
        if let EngineError::PortTaken(_) = error {
            return Err(error.into());
        }
        kill::end_restore(container).await;
        let left_for = container.clone();
        off_thread(move || restore::withdraw(&left_for)).await?;
        // The call may have succeeded although its response was lost.
        let inspect = self.ctx.settled_inspect(container).await?;
        if error.is_ambiguous()
            && namespace_setup::is_done(&scratch)
            && inspect.is_some_and(|inspect| inspect.status.is_running())
        {
            return Ok(());
        }
        if let Some(failure) = namespace_setup::failure(&scratch) {
            return Err(CheckpointError::Criu(failure));
        }
        Err(match (diagnosis::of_log(&log, &error.to_string(), self.ctx.0.store.path()), error) {
            (Some(cause), _) => CheckpointError::Criu(cause),
            (None, EngineError::TimedOut(limit)) => diagnosis::timed_out(&log, limit).into(),
            (None, error) => error.into(),
        })
    }

    /// The option that puts the pod's programs into its own cgroup; empty where runc does that.
    async fn cgroup_root(&self, container: &ContainerId) -> Result<String, CheckpointError> {
        if self.manifest.host.cgroup != 2 {
            return Ok(String::new());
        }
        let engine = &self.ctx.0.engine;
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        let inspect = engine.inspect(container).await?.ok_or_else(gone)?;
        let (parent, old) = (&inspect.cgroup_parent, self.manifest.container_id());
        let facts = engine.facts().await?;
        Ok(cgroup_root::root_option(self.manifest.host.group.as_deref(), old, container, &facts.cgroup_driver, parent))
    }

    /// What CRIU has to process: it wrote a file `mm-N.img` for each process, and `core-N.img` for each thread.
    fn load(&self) -> Load {
        let images = |start: &str| {
            let names = self.manifest.files.keys().filter_map(|path| path.file_name()?.to_str());
            names.filter(|name| name.starts_with(start) && name.ends_with(".img")).count() as u64
        };
        Load { bytes: self.manifest.full_size(), processes: images("mm-"), threads: images("core-") }
    }

    /// What is done in the pod's new network and mounts, besides what CRIU does.
    fn plan(&self, addresses: AddressPolicy, container_directory: &Path) -> Result<Plan, CheckpointError> {
        let sockets = &self.manifest.sockets;
        let again = sockets.original_address().filter(|_| addresses == AddressPolicy::Original);
        let addresses = sockets.addresses_to_add(addresses);
        let filling = |files: &MemoryFiles| {
            let archive = self.image(&files.image)?;
            Ok::<_, CheckpointError>(Filling { archive, target: files.target.clone(), mount: files.mount })
        };
        let memory_files = self.manifest.memory_files.iter().map(filling).collect::<Result<_, _>>()?;
        let hosts = self.manifest.hosts.clone();
        let hosts = hosts.map(|content| Hosts { file: container_directory.join(HOSTS), content });
        Ok(Plan { again, addresses, memory_files, network: self.manifest.network.clone(), hosts })
    }

    async fn check(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if !self.manifest.kind.has_processes() {
            return Ok(());
        }
        tokio::time::sleep(PROBATION).await;
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        let inspect = self.ctx.0.engine.inspect(&container).await?.ok_or_else(gone)?;
        if !inspect.status.is_running() {
            return Err(CheckpointError::EndedAtOnce(inspect.exit_code));
        }
        thread_attributes::put_back(&container, &self.manifest.tuning);
        let now = inspect.address.unwrap_or_default();
        if let (Some(then), Some(_)) = (&self.manifest.sockets.address, &self.manifest.hosts)
            && *then != now
            && !now.is_empty()
        {
            let file = self.ctx.0.engine.container_directory(&container).await?.join(HOSTS);
            if let Err(error) = namespace_setup::renew_hosts(&file, then, &now) {
                tracing::warn!(pod = self.pod.container_name, %error, "its /etc/hosts contains its original address");
            }
        }
        let bound = self.manifest.sockets.bound.iter().map(ToString::to_string);
        let original: Vec<String> = bound.filter(|address| *address != now).collect();
        if !original.is_empty() {
            self.action.losses.push(format!(
                "the pod's address is now {now}; what is bound to the original one ({}) is reachable only inside the pod",
                original.join(", ")
            ));
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if self.action.journal.makes_pod {
            self.ctx.0.pods.finish_restored(self.pod.clone(), container.clone()).await?;
        }
        self.ctx.finish_replaced(&self.action, self.pod.clone()).await?;
        self.ctx.put_restart_rule(&self.action).await?;
        self.ctx.clean(&self.action).await?;
        let _ = self.ctx.0.engine.look(&container).await;
        Ok(())
    }

    /// Rolls everything back.
    async fn fail(mut self, phase: Phase, error: CheckpointError) {
        tracing::warn!(pod = self.pod.container_name, %phase, %error, "restore failed");
        self.action.error = Some(error.to_string());
        let settled = async {
            self.ctx.write_action(&self.action).await?;
            self.ctx.settle_restore(&self.action).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(pod = self.pod.container_name, %error, "could not roll back; it is retried");
            self.ctx.settle_later();
        }
    }
}

/// Copies a container's output, in the files of the engine's driver `json-file`, to a new container.
fn continue_log(from: (&Path, &ContainerId), to: (&Path, &ContainerId)) -> std::io::Result<()> {
    let old = format!("{}-json.log", from.1);
    for entry in fs::read_dir(from.0)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(rotated) = name.strip_prefix(&old) {
            fs::copy(from.0.join(&name), to.0.join(format!("{}-json.log{rotated}", to.1)))?;
        }
    }
    Ok(())
}
