//! Operations on containers. Every call is by full id, and each step can be repeated without harm.

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    models::{
        ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountTmpfsOptions, MountType,
        PortBinding, RestartPolicy, RestartPolicyNameEnum,
    },
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder,
        InspectContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        RestartContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
        UploadToContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};

use super::{Engine, EngineError, LONG, SHORT, checkpoint::shares_network};
use crate::model::{
    ids::ContainerId,
    pod::{Init, PodSpec},
    quantities::GpuSet,
};

/// Capabilities that a root shell, sshd and apt need. Everything else is dropped: no device nodes, no raw sockets, no
/// file or process capabilities to pass on.
const CAPABILITIES: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
    "NET_BIND_SERVICE",
    "AUDIT_WRITE",
];

/// Milliseconds to wait before the engine is asked again to pause a container. On a busy machine with cgroup version 1
/// the runtime sometimes gives up; and a container whose programs start others all the time may freeze at a later
/// attempt.
const FREEZES: [u64; 4] = [20, 70, 150, 400];

/// A container to create. Nothing else can be requested of the engine.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub name: String,
    pub labels: HashMap<String, String>,
    pub shape: PodSpec,
    /// The OCI runtime; `None` = the engine's default.
    pub runtime: Option<String>,
    pub log_max_size: String,
    pub log_max_files: u32,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace: u32,
}

/// Which part of a container's output to read.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Lines from the end; `None` = all.
    pub tail: Option<u32>,
    /// Unix seconds.
    pub since: Option<i32>,
    pub follow: bool,
}

/// The engine's JSON for a container: the one place where it is built.
fn create_body(spec: &ContainerSpec) -> ContainerCreateBody {
    let shape = &spec.shape;
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let key = |port: u16| format!("{port}/tcp");
    let bindings = shape.ports.iter().map(|port| {
        let binding = PortBinding { host_ip: None, host_port: Some(port.host.to_string()) };
        (key(port.container), Some(vec![binding]))
    });
    let binds = shape.binds.iter().map(|bind| Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.to_string_lossy().into_owned()),
        target: Some(bind.target.clone()),
        read_only: Some(bind.read_only),
        ..Mount::default()
    });
    let tmpfs = shape.tmpfs.iter().map(|tmpfs| Mount {
        typ: Some(MountType::TMPFS),
        target: Some(tmpfs.target.clone()),
        tmpfs_options: Some(MountTmpfsOptions { size_bytes: tmpfs.size.map(signed), ..MountTmpfsOptions::default() }),
        ..Mount::default()
    });
    let capabilities = [["compute", "utility", "graphics"].map(str::to_owned).to_vec()].to_vec();
    let device_requests = match &shape.gpus {
        None => None,
        Some(GpuSet::All) => {
            Some(DeviceRequest { driver: Some("nvidia".to_owned()), count: Some(-1), ..DeviceRequest::default() })
        }
        Some(GpuSet::Only(ids)) if ids.is_empty() => None,
        Some(GpuSet::Only(ids)) => Some(DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(ids.iter().map(u32::to_string).collect()),
            ..DeviceRequest::default()
        }),
    }
    .map(|request| vec![DeviceRequest { capabilities: Some(capabilities), ..request }]);
    // An image may ask for GPUs by this variable where nvidia is the default runtime; ours is always set and wins.
    let visible = match &shape.gpus {
        Some(GpuSet::All) => "all".to_owned(),
        Some(GpuSet::Only(ids)) if !ids.is_empty() => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        _ => "void".to_owned(),
    };
    let (entrypoint, cmd) = shape.init.as_ref().map_or((None, None), Init::to_run);
    let log_options = [("max-size", spec.log_max_size.clone()), ("max-file", spec.log_max_files.max(1).to_string())];
    ContainerCreateBody {
        image: Some(shape.image.clone()),
        entrypoint,
        cmd,
        hostname: Some(shape.hostname.clone()),
        labels: Some(spec.labels.clone()),
        env: Some(vec![format!("NVIDIA_VISIBLE_DEVICES={visible}")]),
        tty: Some(true),
        // Without it port bindings are silently ignored.
        exposed_ports: Some(shape.ports.iter().map(|port| key(port.container)).collect()),
        stop_timeout: Some(i64::from(spec.stop_grace)),
        host_config: Some(HostConfig {
            mounts: Some(binds.chain(tmpfs).chain(shape.init.as_ref().map(init_mount)).collect()),
            port_bindings: Some(bindings.collect()),
            network_mode: Some(shape.network.clone()).filter(|network| !network.is_empty()),
            device_requests,
            memory: shape.memory.map(signed),
            // The same as memory: no swap.
            memory_swap: shape.memory.map(signed),
            nano_cpus: shape.cpu.map(|milli| signed(milli.saturating_mul(1_000_000))),
            pids_limit: shape.pids.map(signed),
            shm_size: shape.shm.map(signed),
            storage_opt: shape.storage.map(|bytes| HashMap::from([("size".to_owned(), bytes.to_string())])),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::ALWAYS),
                maximum_retry_count: None,
            }),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(log_options.map(|(key, value)| (key.to_owned(), value)).into()),
            }),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
            security_opt: (!shape.new_privileges).then(|| vec!["no-new-privileges".to_owned()]),
            // Required to restore a checkpoint of the pod.
            ipc_mode: Some("private".to_owned()),
            init: Some(false),
            runtime: spec.runtime.clone(),
            sysctls: settings(&shape.network),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Disables multipath TCP, which servers written in Go use by default and CRIU cannot dump; they fall back to TCP. Only
/// a pod with a network namespace of its own has such settings, and only if the kernel knows them.
fn settings(network: &str) -> Option<HashMap<String, String>> {
    let is_own = network != "host" && !shares_network(network);
    (is_own && Path::new("/proc/sys/net/mptcp/enabled").exists())
        .then(|| HashMap::from([("net.mptcp.enabled".to_owned(), "0".to_owned())]))
}

impl Engine {
    /// Creates the container, or finds it if an earlier response was lost: `label` distinguishes ours from another
    /// container of that name.
    pub async fn ensure_created(&self, spec: &ContainerSpec, label: (&str, &str)) -> Result<ContainerId, EngineError> {
        let body = create_body(spec);
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let made = self.call(SHORT, |docker| async move { docker.create_container(Some(options), body).await }).await;
        let error = match made {
            Ok(answer) => {
                return answer.id.parse().map_err(|_| EngineError::AnswerLost("not a container id".to_owned()));
            }
            Err(error @ (EngineError::AnswerLost(_) | EngineError::Conflict(_))) => error,
            Err(error) => return Err(error),
        };
        match self.look_for(&spec.name).await? {
            Some(found) if found.has_label(label.0, label.1) => Ok(found.id.clone()),
            _ => Err(error),
        }
    }

    pub async fn start(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.retry_lost(
            SHORT,
            |docker, id| async move { docker.start_container(&id, None::<StartContainerOptions>).await },
            id,
        )
        .await
    }

    /// SIGTERM, then SIGKILL after `grace` seconds.
    pub async fn stop(&self, id: &ContainerId, grace: u32) -> Result<(), EngineError> {
        let deadline = SHORT + Duration::from_secs(grace.into());
        let options = StopContainerOptionsBuilder::new().t(i32::try_from(grace).unwrap_or(i32::MAX)).build();
        let stop = |docker: std::sync::Arc<bollard::Docker>, id: String| {
            let options = options.clone();
            async move { docker.stop_container(&id, Some(options)).await }
        };
        self.retry_lost(deadline, stop, id).await
    }

    pub async fn restart(&self, id: &ContainerId, grace: u32) -> Result<(), EngineError> {
        let deadline = SHORT + Duration::from_secs(grace.into());
        let options = RestartContainerOptionsBuilder::new().t(i32::try_from(grace).unwrap_or(i32::MAX)).build();
        let id = id.to_string();
        self.call(deadline, |docker| async move { docker.restart_container(&id, Some(options)).await }).await
    }

    /// Kills and removes the container and its anonymous volumes. Succeeds if there is no such container.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let remove = |docker: std::sync::Arc<bollard::Docker>, id: String| {
            let options = options.clone();
            async move { docker.remove_container(&id, Some(options)).await }
        };
        let removed = match self.retry_lost(SHORT, remove, id).await {
            Err(EngineError::NotFound(_)) => Ok(()),
            Err(EngineError::RemovalInProgress(_)) => self.wait_gone(id).await,
            other => other,
        };
        if removed.is_ok() {
            // So that the next read no longer shows it.
            let _ = self.look(id).await;
        }
        removed
    }

    async fn wait_gone(&self, id: &ContainerId) -> Result<(), EngineError> {
        let gone = async {
            while self.look(id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        tokio::time::timeout(SHORT, gone).await.map_err(|_| EngineError::TimedOut(SHORT))?
    }

    /// Makes a call, and repeats it once if the response was lost.
    pub(super) async fn retry_lost<F>(
        &self,
        deadline: Duration,
        call: impl Fn(std::sync::Arc<bollard::Docker>, String) -> F,
        id: &ContainerId,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), bollard::errors::Error>>,
    {
        match self.call(deadline, |docker| call(docker, id.to_string())).await {
            Err(EngineError::AnswerLost(_)) => self.call(deadline, |docker| call(docker, id.to_string())).await,
            other => other,
        }
    }

    /// The container's output, including terminal control bytes.
    pub fn logs(
        &self,
        id: &ContainerId,
        options: LogOptions,
    ) -> Result<impl Stream<Item = Result<Bytes, EngineError>> + Send + use<>, EngineError> {
        let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let query = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(options.follow).tail(&tail);
        let query = query.since(options.since.unwrap_or(0)).build();
        let stream = self.docker()?.logs(id.as_str(), Some(query));
        Ok(stream.map(|item| item.map(bollard::container::LogOutput::into_bytes).map_err(EngineError::from)))
    }

    /// The end of the container's output, at most `limit` bytes; at `deadline`, what was read so far.
    pub async fn tail(
        &self,
        id: &ContainerId,
        options: LogOptions,
        limit: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, EngineError> {
        let mut stream = std::pin::pin!(self.logs(id, options)?);
        let mut output: Vec<u8> = Vec::new();
        let read = async {
            while let Some(chunk) = stream.next().await {
                output.extend_from_slice(&chunk?);
                if output.len() > 2 * limit {
                    output.drain(..output.len() - limit);
                }
            }
            Ok::<_, EngineError>(())
        };
        match tokio::time::timeout(deadline, read).await {
            Ok(result) => result?,
            Err(_) if output.is_empty() => return Err(EngineError::TimedOut(deadline)),
            Err(_) => {}
        }
        if output.len() > limit {
            output.drain(..output.len() - limit);
        }
        Ok(output)
    }

    /// Bytes in the container's writable layer.
    pub async fn writable_size(&self, id: &ContainerId) -> Result<u64, EngineError> {
        let options = InspectContainerOptionsBuilder::new().size(true).build();
        let id = id.to_string();
        let inspect =
            self.call(LONG, |docker| async move { docker.inspect_container(&id, Some(options)).await }).await?;
        Ok(inspect.size_rw.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))
    }

    /// Retries after each of [`FREEZES`] when the runtime gave up on freezing.
    pub(super) async fn until_frozen<T, F>(freeze: impl Fn() -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        for pause in FREEZES {
            match freeze().await {
                Err(EngineError::NotFrozen(_)) => tokio::time::sleep(Duration::from_millis(pause)).await,
                other => return other,
            }
        }
        freeze().await
    }

    /// Makes an image of the container's files, with `labels` set, that runs what the container's own image runs. The
    /// container is paused meanwhile.
    pub async fn commit(
        &self,
        id: &ContainerId,
        image: &str,
        comment: Option<&str>,
        author: &str,
        labels: &[(&str, &str)],
        init: Option<&Init>,
    ) -> Result<(), EngineError> {
        let (repo, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let labels = labels.iter().map(|(key, value)| format!("LABEL {key}=\"{value}\""));
        let changes: Vec<String> = labels.chain(init.into_iter().flat_map(Init::original)).collect();
        let mut options =
            CommitContainerOptionsBuilder::new().container(id.as_str()).repo(repo).tag(tag).author(author).pause(true);
        options = options.comment(comment.unwrap_or_default()).changes(&changes.join("\n"));
        let options = options.build();
        let commit = |docker: std::sync::Arc<bollard::Docker>| {
            let options = options.clone();
            async move { docker.commit_container(options, bollard::models::ContainerConfig::default()).await }
        };
        Self::until_frozen(|| self.call(LONG, commit)).await?;
        self.refresh_images().await
    }

    /// A file of the container, at most `limit` bytes; `None` if there is none.
    pub async fn read_file(&self, id: &ContainerId, path: &str, limit: usize) -> Result<Option<Vec<u8>>, EngineError> {
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let id = id.to_string();
        let read = |docker: std::sync::Arc<bollard::Docker>| async move {
            let mut archive = Vec::new();
            let mut stream = std::pin::pin!(docker.download_from_container(&id, Some(options)));
            while let Some(chunk) = stream.try_next().await? {
                archive.extend_from_slice(&chunk);
                if archive.len() > limit + 4096 {
                    break;
                }
            }
            Ok(archive)
        };
        let archive = match self.call(SHORT, read).await {
            Ok(archive) => archive,
            Err(EngineError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut archive = tar::Archive::new(archive.as_slice());
        let broken = |error: std::io::Error| EngineError::AnswerLost(error.to_string());
        let Some(entry) = archive.entries().map_err(broken)?.next() else { return Ok(None) };
        let mut entry = entry.map_err(broken)?;
        // A link or a directory in its place is not read.
        if !entry.header().entry_type().is_file() || entry.size() > limit as u64 {
            return Ok(None);
        }
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).map_err(broken)?;
        Ok(Some(content))
    }

    /// Puts a tar archive into the container below `path`. The engine resolves links inside the container.
    pub async fn unpack(&self, id: &ContainerId, path: &str, archive: Vec<u8>) -> Result<(), EngineError> {
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        let id = id.to_string();
        let body = bollard::body_full(Bytes::from(archive));
        self.call(SHORT, |docker| async move { docker.upload_to_container(&id, Some(options), body).await }).await
    }
}

/// How the program of a pod gets into it.
fn init_mount(init: &Init) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(init.program.to_string_lossy().into_owned()),
        target: Some(Init::INSIDE.to_owned()),
        read_only: Some(true),
        ..Mount::default()
    }
}
