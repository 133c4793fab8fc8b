//! What checkpoint and restore need from the engine: pause, restart policies, a start from a checkpoint.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    container::CreateCheckpointOptions,
    models::{ContainerUpdateBody, RestartPolicy, RestartPolicyNameEnum},
    query_parameters::{
        InspectContainerOptions, KillContainerOptionsBuilder, StartContainerOptions, TagImageOptionsBuilder,
    },
};
use serde_json::Value;

use super::{Engine, EngineError, LONG, SHORT};
use crate::model::{ids::ContainerId, pod::RestartRule};

/// What a checkpoint needs to know about a container.
#[derive(Clone, Debug)]
pub struct ContainerInspect {
    pub status: String,
    /// Host PID of the first process; 0 when there is none.
    pub pid: i32,
    pub exit_code: i64,
    /// `sha256:…`
    pub image_id: String,
    pub runtime: String,
    pub restart: RestartRule,
    /// The writable layer, where the storage driver is overlay2.
    pub upper: Option<PathBuf>,
    /// On its first network.
    pub address: Option<String>,
    /// Settings of the container that prevent a restore.
    pub obstacles: Vec<&'static str>,
    /// The engine's whole response.
    pub document: Value,
}

impl Engine {
    /// Inspects the container; `None` if there is no such container.
    pub async fn inspect(&self, id: &ContainerId) -> Result<Option<ContainerInspect>, EngineError> {
        let name = id.to_string();
        let inspect = self
            .call(SHORT, |docker| async move { docker.inspect_container(&name, None::<InspectContainerOptions>).await })
            .await;
        let inspect = match inspect {
            Ok(inspect) => inspect,
            Err(EngineError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let document = serde_json::to_value(&inspect).map_err(|e| EngineError::AnswerLost(e.to_string()))?;
        let state = inspect.state.unwrap_or_default();
        let host = inspect.host_config.unwrap_or_default();
        let rule = host.restart_policy.unwrap_or_default();
        let driver = inspect.graph_driver.filter(|driver| driver.name == "overlay2");
        let addresses = inspect.network_settings.and_then(|network| network.networks).unwrap_or_default();
        let obstacles = [
            (host.init == Some(true), "Docker's own init"),
            (host.auto_remove == Some(true), "--rm"),
            (host.privileged == Some(true), "--privileged"),
            (host.ipc_mode.as_deref().is_some_and(|mode| !matches!(mode, "" | "private" | "none")), "shared IPC"),
            (host.pid_mode.as_deref().is_some_and(|mode| !mode.is_empty()), "another's PID namespace"),
            (host.network_mode.as_deref() == Some("host"), "the host's network"),
        ];
        Ok(Some(ContainerInspect {
            status: state.status.map(|status| status.to_string()).unwrap_or_default(),
            pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
            exit_code: state.exit_code.unwrap_or(0),
            image_id: inspect.image.unwrap_or_default(),
            runtime: host.runtime.filter(|name| !name.is_empty()).unwrap_or_else(|| "runc".to_owned()),
            restart: RestartRule {
                name: rule.name.map(|name| name.to_string()).filter(|name| !name.is_empty()).unwrap_or("no".to_owned()),
                retries: rule.maximum_retry_count.unwrap_or(0),
            },
            upper: driver.and_then(|driver| driver.data.get("UpperDir").map(PathBuf::from)),
            address: addresses.into_values().find_map(|end| end.ip_address.filter(|address| !address.is_empty())),
            obstacles: obstacles.into_iter().filter_map(|(there, what)| there.then_some(what)).collect(),
            document,
        }))
    }

    /// Freezes the container's processes. Succeeds if it is already paused.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), EngineError> {
        let pause = || self.retry_lost(SHORT, |docker, id| async move { docker.pause_container(&id).await }, id);
        let paused = Self::until_frozen(pause).await;
        self.unless_said(paused, "is already paused")
    }

    /// Resumes them. Succeeds if the container is not paused.
    pub async fn unpause(&self, id: &ContainerId) -> Result<(), EngineError> {
        let unpaused =
            self.retry_lost(SHORT, |docker, id| async move { docker.unpause_container(&id).await }, id).await;
        self.unless_said(unpaused, "is not paused")
    }

    /// Sends SIGKILL. Succeeds if the container is not running.
    pub async fn kill(&self, id: &ContainerId) -> Result<(), EngineError> {
        let kill = |docker: Arc<bollard::Docker>, id: String| async move {
            let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
            docker.kill_container(&id, Some(options)).await
        };
        let killed = self.retry_lost(SHORT, kill, id).await;
        self.unless_said(killed, "is not running")
    }

    fn unless_said(&self, done: Result<(), EngineError>, words: &str) -> Result<(), EngineError> {
        match done {
            Err(EngineError::Conflict(message) | EngineError::Failed { message, .. }) if message.contains(words) => {
                Ok(())
            }
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

    /// Starts a container from the checkpoint of that name in its directory. Not retried: after a lost response the
    /// caller finds out what happened.
    pub async fn start_from(&self, id: &ContainerId, checkpoint: &str, deadline: Duration) -> Result<(), EngineError> {
        let (id, checkpoint) = (id.to_string(), checkpoint.to_owned());
        self.call_patiently(deadline, |docker| async move {
            // bollard has no such parameter.
            let docker =
                bollard::Docker::clone(&docker).with_timeout(deadline).with_request_modifier(move |mut request| {
                    let uri = request.uri();
                    let path = uri.path_and_query().map(|path| path.as_str()).unwrap_or_default();
                    let joint = if path.contains('?') { '&' } else { '?' };
                    let mut parts = uri.clone().into_parts();
                    parts.path_and_query = format!("{path}{joint}checkpoint={checkpoint}").parse().ok();
                    if let Ok(uri) = parts.try_into() {
                        *request.uri_mut() = uri;
                    }
                    request
                });
            docker.start_container(&id, None::<StartContainerOptions>).await
        })
        .await
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
