//! Creating a pod: the row first, then the engine; each step can be repeated.
//!
//! 1. `reserve`: one transaction checks the quota, reserves name and ports, and writes the row as `creating`.
//! 2. `build`: directories of the volumes, container, SSH keys, start. A port that another program took meanwhile is
//!    replaced.
//! 3. `finish`: one transaction to `running`.
//!
//! Any failure after 1 is rolled back by [`super::delete`]'s `undo`, which leaves nothing behind.

use std::{collections::HashSet, fs, sync::Arc, time::Duration};

use fail::fail_point;

use super::{
    AskedBy, PodError, Pods,
    admission::{self, HeldQuota},
    images::AllowedImage,
    label, ports,
};
use crate::{
    config::VolumeMapping,
    db::{DbError, NewEvent, Outcome},
    engine::{ContainerSpec, EngineError},
    host::blocking::off_thread,
    model::{
        ids::{ContainerId, OpId, PodId},
        names::{ImageRef, InstanceName, UserName, container_name},
        pod::{Bind, Pod, PodSpec, State, Tmpfs},
        quantities::{GpuRequest, GpuSet},
        quota::Quota,
        time::Millis,
        user::Actor,
    },
};

/// Attempts with new ports when one is taken between choice and start.
const PORT_TRIES: usize = 5;

/// Deadline of a create, extended whenever another create succeeds; after it the create is rolled back.
const PATIENCE: Duration = Duration::from_secs(7);

/// A request for a pod.
pub struct NewPod {
    pub owner: UserName,
    pub instance: InstanceName,
    pub image: ImageRef,
    /// `None` = all that the quota allows.
    pub gpus: Option<GpuRequest>,
}

impl Pods {
    /// Creates and starts a pod.
    pub async fn create(&self, actor: Actor, wanted: NewPod) -> Result<Arc<Pod>, PodError> {
        self.ensure_not_drained(&AskedBy::Caller)?;
        self.engine.wait_ready(super::FIRST_LIST).await;
        self.engine.ensure_up()?;
        if !self.engine.inventory().is_ready() {
            return Err(EngineError::Unavailable("its images are not listed yet".to_owned()).into());
        }
        let image = self.allowed_image(&wanted.owner, &wanted.image)?;
        let id = PodId::generate();
        let _guard = self.locks.lock(id).await;
        if wanted.gpus.is_some() {
            // To choose the GPUs that are least used at this moment.
            self.gpus.look().await;
        }
        let spec = self.spec(&wanted, &image).await?;
        let mut pod = self.reserve((actor, "pod.create"), id, wanted, image, spec, |_| Ok::<_, PodError>(())).await?;
        fail_point!("create-reserved");
        match self.build_in_time(&mut pod).await {
            Ok(container) => {
                fail_point!("create-built");
                self.finish_create(pod, container).await
            }
            Err(error) => {
                self.undo(pod, error.to_string()).await;
                Err(error)
            }
        }
    }

    /// The spec of a new pod of this user; its ports and memory are decided when it is admitted.
    pub(super) async fn spec(
        &self,
        NewPod { owner, instance, gpus, .. }: &NewPod,
        image: &AllowedImage,
    ) -> Result<PodSpec, PodError> {
        let config = self.config.get();
        let quota = self.accounts.quota(owner);
        let mut binds = Vec::new();
        let mut tmpfs = Vec::new();
        for mapping in &config.volume_mappings {
            match mapping {
                VolumeMapping::Bind { source, target, read_only } => binds.push(Bind {
                    source: VolumeMapping::source_for(source, owner),
                    target: target.replace("${username}", owner.as_str()).replace("$username", owner.as_str()),
                    read_only: *read_only,
                }),
                VolumeMapping::Tmpfs { target } if quota.tmpfs_size.0 != Some(0) => {
                    tmpfs.push(Tmpfs { target: target.clone(), size: quota.tmpfs_size.0 });
                }
                VolumeMapping::Tmpfs { .. } => {}
            }
        }
        // pody takes 0 for "no limit" in these three, and so does the engine.
        let positive = |limit: Option<u64>| limit.filter(|&n| n > 0);
        let gpus = self.gpus_for(&quota, gpus.as_ref()).await?;
        Ok(PodSpec {
            image: image.name.clone(),
            hostname: instance.to_string(),
            binds,
            tmpfs,
            ports: Vec::new(),
            network: config.network.clone(),
            gpus,
            memory: None,
            cpu: positive(quota.cpu_limit.0),
            pids: positive(quota.pids_limit.0),
            shm: positive(quota.shm_size.0),
            storage: positive(quota.storage_size.0),
            new_privileges: image.new_privileges,
            init: {
                let (init, image) = (self.init.clone(), image.clone());
                off_thread(move || init.for_image(&image)).await?
            },
        })
    }

    /// The GPUs of a new pod. A request that names none gets what the quota and the host allow, maybe nothing.
    async fn gpus_for(&self, quota: &Quota, request: Option<&GpuRequest>) -> Result<Option<GpuSet>, PodError> {
        let Some(request) = request else { return Ok(off_thread(host_gives_gpus).await.then(|| quota.gpus.clone())) };
        let chosen = admission::choose_gpus(quota, request, &self.gpus.loads())?;
        match chosen != GpuSet::none() && !off_thread(host_gives_gpus).await {
            true => Err(PodError::NoGpuDriver),
            false => Ok(Some(chosen)),
        }
    }

    /// Admits a pod, on `action` of `actor`, and inserts its row. `check` may refuse what the pod is granted.
    pub(super) async fn reserve<E>(
        &self,
        (actor, action): (Actor, &'static str),
        id: PodId,
        NewPod { owner, instance, .. }: NewPod,
        image: AllowedImage,
        mut spec: PodSpec,
        check: impl FnOnce(&PodSpec) -> Result<(), E> + Send + 'static,
    ) -> Result<Pod, E>
    where
        E: From<PodError> + From<DbError> + Send + 'static,
    {
        let config = self.config.get();
        let quota = self.accounts.quota(&owner);
        let name = container_name(config.name_prefix.as_ref(), &owner, &instance);
        let foreign = self.engine.inventory().find_by_name(&name).is_some();
        let used_elsewhere = self.engine.inventory().used_ports();
        self.db
            .write(move |tx| {
                AskedBy::Caller.ensure_not_drained(tx)?;
                let live = tx.list_live_pods()?;
                if live.iter().any(|pod| pod.container_name == name) {
                    return Err(PodError::Exists(name).into());
                }
                if foreign {
                    return Err(PodError::Foreign(name).into());
                }
                let held: Vec<HeldQuota> = live
                    .iter()
                    .filter(|pod| pod.user == owner)
                    .map(|pod| HeldQuota { name: pod.container_name.clone(), memory: pod.spec.memory })
                    .collect();
                let grant = admission::admit_pod(&quota, &held).map_err(PodError::from)?;
                spec.memory = grant.memory.filter(|&bytes| bytes > 0);
                let mut taken: HashSet<u16> = tx.list_ports()?.into_iter().collect();
                taken.extend(used_elsewhere);
                spec.ports = ports::choose(&config.available_ports, &taken, &image.ports)?;
                check(&spec)?;
                let event = tx.insert_event(&NewEvent::by(&actor).did(action, &name).of(&owner).pending())?;
                let pod = Pod {
                    id,
                    workload: tx.ensure_workload(&owner, &instance)?,
                    user: owner,
                    instance,
                    container_name: name,
                    state: State::Creating,
                    spec,
                    adopted: false,
                    container: None,
                    op: OpId::generate(),
                    event,
                    reason: None,
                    created_at: Millis::now(),
                };
                tx.insert_pod(&pod)?;
                Ok(pod)
            })
            .await
    }

    /// Many creates wait for one another, which is fine while some succeed; if the engine hangs, all time out.
    async fn build_in_time(&self, pod: &mut Pod) -> Result<ContainerId, PodError> {
        let mut created = self.created.subscribe();
        let mut build = std::pin::pin!(self.build(pod));
        loop {
            tokio::select! {
                built = &mut build => {
                    if built.is_ok() {
                        self.created.send_replace(());
                    }
                    return built;
                }
                Ok(()) = created.changed() => {}
                () = tokio::time::sleep(PATIENCE) => return Err(EngineError::TimedOut(PATIENCE).into()),
            }
        }
    }

    async fn build(&self, pod: &mut Pod) -> Result<ContainerId, PodError> {
        make_directories(&mut pod.spec).await?;
        let _turn = self.engine_turns.acquire().await;
        for _ in 0..PORT_TRIES {
            let container = self.make_container(pod).await?;
            fail_point!("create-made");
            match self.start_container(pod, &container).await {
                Err(PodError::Engine(EngineError::PortTaken(port))) => {
                    tracing::info!(pod = pod.container_name, port, "port taken by another program, choosing another");
                    self.engine.remove(&container).await?;
                    self.change_ports(pod, port).await?;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(container),
            }
        }
        Err(PodError::NoPort { needed: pod.spec.ports.len(), free: 0, all: self.config.get().available_ports.count() })
    }

    /// The container of this row, created or found.
    pub(super) async fn make_container(&self, pod: &Pod) -> Result<ContainerId, PodError> {
        // It would run without the limit, and nobody would know.
        if pod.spec.storage.is_some() && !self.engine.facts().await?.heeds_storage_size() {
            return Err(PodError::StorageUnsupported);
        }
        let config = self.config.get();
        let spec = ContainerSpec {
            name: pod.container_name.clone(),
            labels: pod.labels(),
            shape: pod.spec.clone(),
            log_max_size: config.pod.log_max_size.clone(),
            log_max_files: config.pod.log_max_files,
            stop_grace: config.pod.stop_grace_seconds,
            runtime: self.runtime().await?,
        };
        self.engine.ensure_created(&spec, (label::OP, &pod.op.to_string())).await.map_err(|error| match error {
            EngineError::Conflict(_) => PodError::Foreign(pod.container_name.clone()),
            EngineError::NoImage(_) => PodError::Image {
                image: pod.spec.image.parse().expect("an image that the engine listed"),
                allowed: Vec::new(),
            },
            EngineError::StorageOptUnsupported(_) => PodError::StorageUnsupported,
            error => error.into(),
        })
    }

    /// The runtime that can restore the pod. Where the engine does not have it, pods run under its default one, and
    /// `pody doctor` says so.
    async fn runtime(&self) -> Result<Option<String>, PodError> {
        let name = self.config.get().checkpoint.runtime.clone();
        let is_there = self.engine.facts().await?.runtimes.contains_key(&name);
        if !is_there {
            tracing::warn!(
                runtime = name,
                "Docker does not have this runtime: the pod cannot be restored from a checkpoint of its programs"
            );
        }
        Ok(is_there.then_some(name))
    }

    async fn start_container(&self, pod: &Pod, container: &ContainerId) -> Result<(), PodError> {
        let keys = self.keys_of(&pod.user).await;
        if !keys.is_empty()
            && let Err(error) = self.put_keys(container, &keys).await
        {
            tracing::warn!(pod = pod.container_name, %error, "cannot write SSH keys into the pod");
        }
        self.engine.start(container).await.map_err(|error| match error {
            EngineError::NoNetwork(_) => PodError::Network(pod.spec.network.clone()),
            EngineError::NoGpuDriver(_) => PodError::NoGpuDriver,
            error => error.into(),
        })?;
        // The engine can drop port bindings silently: check that all requested ones exist.
        let running = self.engine.look(container).await?;
        let published = running.map(|container| container.ports.clone()).unwrap_or_default();
        match pod.spec.ports.iter().find(|port| !published.contains(port)) {
            // A pod that exited at once publishes nothing, which is no error here.
            Some(port) if !published.is_empty() => Err(EngineError::PortTaken(port.host).into()),
            _ => Ok(()),
        }
    }

    /// Gives the row new ports, without the one that is taken.
    pub(super) async fn change_ports(&self, pod: &mut Pod, taken_port: u16) -> Result<(), PodError> {
        let ranges = self.config.get().available_ports.clone();
        let mut used_elsewhere = self.engine.inventory().used_ports();
        used_elsewhere.insert(taken_port);
        let mut changed = pod.clone();
        *pod = self
            .db
            .write(move |tx| {
                tx.delete_ports(changed.id)?;
                let mut taken: HashSet<u16> = tx.list_ports()?.into_iter().collect();
                taken.extend(used_elsewhere);
                let wanted: Vec<u16> = changed.spec.ports.iter().map(|port| port.container).collect();
                changed.spec.ports = ports::choose(&ranges, &taken, &wanted)?;
                tx.insert_ports(changed.id, &changed.spec.ports)?;
                tx.update_pod(&changed)?;
                Ok::<_, PodError>(changed)
            })
            .await?;
        Ok(())
    }

    /// The last step: from here on the pod exists.
    pub(super) async fn finish_create(&self, mut pod: Pod, container: ContainerId) -> Result<Arc<Pod>, PodError> {
        pod.state = State::Running;
        pod.container = Some(container);
        let row = pod.clone();
        self.db
            .write(move |tx| {
                tx.update_pod(&row)?;
                tx.close_event(row.event, Outcome::Ok, None)
            })
            .await?;
        fail_point!("create-finished");
        Ok(Arc::new(pod))
    }

    /// Adopts a container that is named like a pod of a known user and that no row names.
    pub(super) async fn adopt(
        &self,
        owner: UserName,
        instance: InstanceName,
        container: &crate::engine::Container,
    ) -> Result<(), DbError> {
        let Some(detail) = container.detail.clone() else { return Ok(()) };
        let actor = Actor::daemon();
        let name = container.name.clone();
        let wanted = detail.host_config.port_bindings.iter().chain(&container.ports).copied();
        let mut bound: Vec<_> = wanted.collect();
        bound.sort_by_key(|port| port.host);
        bound.dedup_by_key(|port| port.host);
        let spec = PodSpec {
            image: container.image.clone(),
            hostname: detail.host_config.hostname,
            binds: Vec::new(),
            tmpfs: Vec::new(),
            ports: Vec::new(),
            network: detail.host_config.network,
            gpus: Some(detail.gpus),
            memory: detail.memory,
            cpu: None,
            pids: detail.host_config.pids,
            shm: detail.shm,
            storage: None,
            new_privileges: true,
            init: None,
        };
        let id = container.id.clone();
        let shown = name.clone();
        self.db
            .write(move |tx| {
                if tx
                    .list_live_pods()?
                    .iter()
                    .any(|pod| pod.container_name == name || pod.container.as_ref() == Some(&id))
                {
                    return Ok(());
                }
                let taken = tx.list_ports()?;
                let mut pod = Pod {
                    id: PodId::generate(),
                    workload: tx.ensure_workload(&owner, &instance)?,
                    user: owner.clone(),
                    instance,
                    container_name: name.clone(),
                    state: State::Running,
                    spec,
                    adopted: true,
                    container: Some(id),
                    op: OpId::generate(),
                    event: tx.insert_event(&NewEvent::by(&actor).did("pod.adopt", &name).of(&owner).pending())?,
                    reason: None,
                    created_at: Millis::now(),
                };
                pod.spec.ports = bound.into_iter().filter(|port| !taken.contains(&port.host)).collect();
                tx.insert_pod(&pod)?;
                tx.close_event(pod.event, Outcome::Ok, None)
            })
            .await?;
        tracing::info!(pod = shown, "adopted");
        Ok(())
    }
}

/// Creates missing directories on the host, and resolves all of them: a bind mount whose source is a symbolic link can
/// be checkpointed but not restored.
pub(super) async fn make_directories(spec: &mut PodSpec) -> Result<(), PodError> {
    let mut binds = spec.binds.clone();
    // Volumes may be on a network file system that does not answer.
    spec.binds = off_thread(move || {
        for bind in &mut binds {
            let path = bind.source.clone();
            let made = fs::create_dir_all(&path).or_else(|error| match path.exists() {
                // A file may be mounted too.
                true => Ok(()),
                false => Err(error),
            });
            let resolved = made.and_then(|()| fs::canonicalize(&path));
            bind.source = resolved.map_err(|source| PodError::Volume { path, source })?;
        }
        Ok::<_, PodError>(binds)
    })
    .await?;
    Ok(())
}

/// Whether the engine can give GPUs to containers: it can when NVIDIA's hook was on its PATH at its start.
fn host_gives_gpus() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin", "/usr/local/nvidia/toolkit"].map(std::path::PathBuf::from);
    let mut directories = std::env::split_paths(&path).chain(usual);
    directories.any(|directory| directory.join("nvidia-container-runtime-hook").is_file())
}

/// GPUs of a pod as the API shows them: `None` = all.
pub(super) fn shown_gpus(gpus: Option<&GpuSet>) -> Option<Vec<u32>> {
    gpus.map_or(Some(Vec::new()), GpuSet::ids)
}
