//! What checkpoint and restore need from the engine: pause, restart policies, a start that restores.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    container::CreateCheckpointOptions,
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerUpdateBody, MountType, RestartPolicy,
        RestartPolicyNameEnum,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        RenameContainerOptionsBuilder, StartContainerOptions, TagImageOptionsBuilder,
    },
};
use serde_json::Value;

use super::{Engine, EngineError, LONG, SHORT, container::status_of};
use crate::model::{
    ids::ContainerId,
    pod::{ContainerStatus, RestartRule},
};

/// What a checkpoint needs to know about a container.
#[derive(Clone, Debug)]
pub struct ContainerInspect {
    pub status: ContainerStatus,
    /// Host PID of the first process; 0 when there is none.
    pub pid: i32,
    pub exit_code: i64,
    /// `sha256:…`
    pub image_id: String,
    pub runtime: String,
    pub restart: RestartRule,
    /// The writable layer; `None` where neither the engine nor containerd tells it.
    pub upper: Option<PathBuf>,
    /// On its first network.
    pub address: Option<String>,
    /// A network's name, `host`, or `container:…`; `""` and `default` = the default network.
    pub network_mode: String,
    /// Bytes; `None` = no limit.
    pub memory: Option<u64>,
    /// The parent of its cgroup that was asked for; mostly `""`.
    pub cgroup_parent: String,
    pub mounts: Vec<Mount>,
    /// Settings of the container that prevent a restore.
    pub obstacles: Vec<&'static str>,
    document: Value,
}

/// A mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// A path of the host; empty for a tmpfs.
    pub source: String,
    /// As opposed to a volume or a tmpfs.
    pub is_bind: bool,
}

impl ContainerInspect {
    /// The engine's whole response, for the manifest of a checkpoint. What the code reads of it has a field.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Whether it is in the network namespace of another container.
    pub fn shares_network(&self) -> bool {
        shares_network(&self.network_mode)
    }

    fn new(inspect: ContainerInspectResponse) -> Result<Self, EngineError> {
        let document = serde_json::to_value(&inspect).map_err(|e| EngineError::AnswerLost(e.to_string()))?;
        let state = inspect.state.unwrap_or_default();
        let host = inspect.host_config.unwrap_or_default();
        let rule = host.restart_policy.unwrap_or_default();
        let addresses = inspect.network_settings.and_then(|network| network.networks).unwrap_or_default();
        let obstacles = [
            (host.init == Some(true), "Docker's own init"),
            (host.auto_remove == Some(true), "--rm"),
            (host.privileged == Some(true), "--privileged"),
            (host.ipc_mode.as_deref().is_some_and(|mode| !matches!(mode, "" | "private" | "none")), "shared IPC"),
            (host.pid_mode.as_deref().is_some_and(|mode| !mode.is_empty()), "another's PID namespace"),
            (host.network_mode.as_deref() == Some("host"), "the host's network"),
        ];
        let mounts = inspect.mounts.unwrap_or_default().into_iter().map(|mount| Mount {
            source: mount.source.unwrap_or_default(),
            is_bind: mount.typ.as_deref() == Some("bind"),
        });
        Ok(Self {
            status: status_of(&state),
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
            exit_code: state.exit_code.unwrap_or(0),
            image_id: inspect.image.unwrap_or_default(),
            runtime: host.runtime.filter(|name| !name.is_empty()).unwrap_or_else(|| "runc".to_owned()),
            restart: RestartRule {
                name: rule.name.map(|name| name.to_string()).filter(|name| !name.is_empty()).unwrap_or("no".to_owned()),
                retries: rule.maximum_retry_count.unwrap_or(0),
            },
            upper: inspect.graph_driver.and_then(|driver| driver.data.get("UpperDir").map(PathBuf::from)),
            address: addresses.into_values().find_map(|end| end.ip_address.filter(|address| !address.is_empty())),
            network_mode: host.network_mode.unwrap_or_default(),
            memory: host.memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|&bytes| bytes > 0),
            cgroup_parent: host.cgroup_parent.unwrap_or_default(),
            mounts: mounts.collect(),
            obstacles: obstacles.into_iter().filter_map(|(there, what)| there.then_some(what)).collect(),
            document,
        })
    }
}

/// The request that creates a container like this one. The engine's two documents have the same fields.
fn like(inspect: ContainerInspectResponse, runtime: &str) -> serde_json::Result<ContainerCreateBody> {
    let mut host = inspect.host_config.unwrap_or_default();
    host.runtime = Some(runtime.to_owned());
    let mut body: ContainerCreateBody = serde_json::from_value(serde_json::to_value(inspect.config)?)?;
    let bound = |target: &str| {
        let binds = host.binds.iter().flatten().filter_map(|bind| bind.split(':').nth(1));
        let mounts = host.mounts.iter().flatten().filter_map(|mount| mount.target.as_deref());
        binds.chain(mounts).any(|other| other == target)
    };
    // Those of the image have names that only the container knows.
    let volumes: Vec<_> = inspect
        .mounts
        .unwrap_or_default()
        .into_iter()
        .filter(|mount| mount.typ.as_deref() == Some("volume"))
        .filter(|mount| mount.destination.as_deref().is_some_and(|target| !bound(target)))
        .map(|mount| bollard::models::Mount {
            typ: Some(MountType::VOLUME),
            source: mount.name,
            target: mount.destination,
            ..Default::default()
        })
        .collect();
    host.mounts.get_or_insert_default().extend(volumes);
    body.host_config = Some(host);
    Ok(body)
}

/// Whether a network mode is the network namespace of another container.
pub(super) fn shares_network(network_mode: &str) -> bool {
    network_mode.starts_with("container:")
}

impl Engine {
    /// Inspects the container; `None` if there is no such container.
    pub async fn inspect(&self, id: &ContainerId) -> Result<Option<ContainerInspect>, EngineError> {
        let name = id.to_string();
        let inspect = self
            .call(SHORT, |docker| async move { docker.inspect_container(&name, None::<InspectContainerOptions>).await })
            .await;
        match inspect {
            Ok(inspect) => {
                let mut inspect = ContainerInspect::new(inspect)?;
                if inspect.upper.is_none() {
                    inspect.upper = self.layer_of(id).await?;
                }
                Ok(Some(inspect))
            }
            Err(EngineError::NotFound(_)) => {
                self.layers.forget(id);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Freezes the container's processes. Succeeds if it is already paused.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), EngineError> {
        let pause = || self.retry_lost(SHORT, |docker, id| async move { docker.pause_container(&id).await }, id);
        match Self::until_frozen(pause).await {
            Err(EngineError::AlreadyPaused(_)) => Ok(()),
            other => other,
        }
    }

    /// Resumes them. Succeeds if the container is not paused.
    pub async fn unpause(&self, id: &ContainerId) -> Result<(), EngineError> {
        match self.retry_lost(SHORT, |docker, id| async move { docker.unpause_container(&id).await }, id).await {
            Err(EngineError::NotPaused(_)) => Ok(()),
            other => other,
        }
    }

    /// Sends SIGKILL. Succeeds if the container is not running.
    pub async fn kill(&self, id: &ContainerId) -> Result<(), EngineError> {
        let kill = |docker: Arc<bollard::Docker>, id: String| async move {
            let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
            docker.kill_container(&id, Some(options)).await
        };
        match self.retry_lost(SHORT, kill, id).await {
            Err(EngineError::NotRunning(_)) => Ok(()),
            other => other,
        }
    }

    pub async fn set_restart(&self, id: &ContainerId, rule: &RestartRule) -> Result<(), EngineError> {
        let policy = RestartPolicy {
            name: rule.name.parse::<RestartPolicyNameEnum>().ok(),
            maximum_retry_count: (rule.retries > 0).then_some(rule.retries),
        };
        let update = |docker: Arc<bollard::Docker>, id: String| {
            let body = ContainerUpdateBody { restart_policy: Some(policy.clone()), ..ContainerUpdateBody::default() };
            async move { docker.update_container(&id, body).await }
        };
        self.retry_lost(SHORT, update, id).await
    }

    /// Starts a container whose runtime has a restore to do. Not retried: after a lost response the caller finds out
    /// what happened.
    pub async fn start_restore(&self, id: &ContainerId, deadline: Duration) -> Result<(), EngineError> {
        let id = id.to_string();
        self.call_patiently(deadline, |docker| async move {
            let docker = bollard::Docker::clone(&docker).with_timeout(deadline);
            docker.start_container(&id, None::<StartContainerOptions>).await
        })
        .await
    }

    /// Creates a container that is like this one but for its name and its OCI runtime, with the same volumes and an
    /// empty writable layer.
    pub async fn recreate(&self, id: &ContainerId, name: &str, runtime: &str) -> Result<ContainerId, EngineError> {
        let old = id.to_string();
        let inspect = self
            .call(SHORT, |docker| async move { docker.inspect_container(&old, None::<InspectContainerOptions>).await })
            .await?;
        let body = like(inspect, runtime).map_err(|error| EngineError::AnswerLost(error.to_string()))?;
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let made = self.call(SHORT, |docker| async move { docker.create_container(Some(options), body).await }).await?;
        made.id.parse().map_err(|_| EngineError::AnswerLost("not a container id".to_owned()))
    }

    /// Gives the container another name.
    pub async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), EngineError> {
        let id = id.to_string();
        let options = RenameContainerOptionsBuilder::new().name(name).build();
        self.call(SHORT, |docker| async move { docker.rename_container(&id, options).await }).await
    }

    /// Has the engine dump a container into the engine's own directory. The container keeps running, or stays paused,
    /// as before.
    pub async fn dump(&self, id: &ContainerId, name: &str, deadline: Duration) -> Result<(), EngineError> {
        let options = CreateCheckpointOptions { checkpoint_id: name.to_owned(), checkpoint_dir: None, exit: false };
        let id = id.to_string();
        self.call_patiently(deadline, |docker| async move {
            let docker = bollard::Docker::clone(&docker).with_timeout(deadline);
            docker.create_checkpoint(&id, options).await
        })
        .await
    }

    /// Adds a name to an image.
    pub async fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<(), EngineError> {
        let image = image.to_owned();
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.call(SHORT, |docker| async move { docker.tag_image(&image, Some(options)).await }).await
    }

    /// The directory in which the engine keeps a container's data, including its checkpoints.
    pub async fn container_directory(&self, id: &ContainerId) -> Result<PathBuf, EngineError> {
        let info = self.call(LONG, |docker| async move { docker.info().await }).await?;
        let root = info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned());
        Ok(PathBuf::from(root).join("containers").join(id.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inspect(document: Value) -> ContainerInspect {
        ContainerInspect::new(serde_json::from_value(document).unwrap()).unwrap()
    }

    #[test]
    fn an_inspect_has_its_fields_from_the_document() {
        let found = inspect(json!({
            "Id": "2f1e", "Image": "sha256:1f", "State": {"Status": "paused", "Pid": 7, "ExitCode": 0},
            "HostConfig": {"NetworkMode": "container:2f1e", "Memory": 1 << 30, "CgroupParent": "/lab"},
            "Mounts": [{"Type": "bind", "Source": "/srv/a"}, {"Type": "tmpfs", "Source": ""}],
        }));
        assert_eq!((&found.status, found.pid, found.memory), (&ContainerStatus::Paused, 7, Some(1 << 30)));
        assert_eq!((found.cgroup_parent.as_str(), found.image_id.as_str()), ("/lab", "sha256:1f"));
        assert!(found.shares_network() && found.obstacles.is_empty());
        let mount = |source: &str, is_bind| Mount { source: source.to_owned(), is_bind };
        assert_eq!(found.mounts, [mount("/srv/a", true), mount("", false)]);
        assert_eq!(
            (&found.document()["Id"], &found.document()["HostConfig"]["CgroupParent"]),
            (&json!("2f1e"), &json!("/lab"))
        );
    }

    #[test]
    fn what_an_inspect_lacks_is_no_limit() {
        let found = inspect(json!({"State": {}, "HostConfig": {"Memory": 0}}));
        assert_eq!((found.memory, found.network_mode.as_str(), found.mounts.len()), (None, "", 0));
        assert!(!found.shares_network());
        assert_eq!(found.status, ContainerStatus::Unknown(String::new()));
    }
}
