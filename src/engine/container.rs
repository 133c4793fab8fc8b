//! Containers and images as the engine shows them.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerSummary};

use crate::model::{
    ids::ContainerId,
    pod::{ContainerStatus, PublishedPort},
    quantities::GpuSet,
};

/// A container, as of its last inspection.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    pub status: ContainerStatus,
    /// By the name that it was created with.
    pub image: String,
    pub labels: HashMap<String, String>,
    pub networks: Vec<String>,
    pub ports: Vec<PublishedPort>,
    /// Absent until the container is inspected.
    pub detail: Option<Detail>,
}

/// What only an inspect returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Detail {
    /// Host PID of the first process; 0 when not running.
    pub pid: i32,
    pub exit_code: i64,
    /// How often the engine has restarted it.
    pub restarts: i64,
    /// RFC 3339; `None` before the first start.
    pub started_at: Option<String>,
    pub gpus: GpuSet,
    /// Bytes; `None` = no limit.
    pub memory: Option<u64>,
    pub shm: Option<u64>,
    pub host_config: HostConfig,
}

/// What is needed to adopt a container that another program created.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostConfig {
    pub hostname: String,
    pub network: String,
    pub pids: Option<u64>,
    /// Ports that are requested; they are published only while the container runs.
    pub port_bindings: Vec<PublishedPort>,
}

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// `sha256:…`
    pub id: String,
    pub tags: Vec<String>,
    pub comment: String,
    /// Bytes.
    pub size: i64,
    /// `22/tcp`, …
    pub exposed_ports: BTreeSet<String>,
    /// RFC 3339.
    pub created: String,
    /// What containers of it run.
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
}

impl Container {
    /// Whether a list entry matches the last inspection.
    pub(super) fn agrees_with(&self, summary: &Container) -> bool {
        self.status == summary.status && self.name == summary.name && self.ports == summary.ports
    }

    /// Whether it carries this label of one of our operations.
    pub fn has_label(&self, key: &str, value: &str) -> bool {
        self.labels.get(key).is_some_and(|found| found == value)
    }

    pub(super) fn from_summary(summary: ContainerSummary) -> Option<Self> {
        let mut networks: Vec<String> =
            summary.network_settings.and_then(|s| s.networks).unwrap_or_default().into_keys().collect();
        networks.sort();
        let ports = summary.ports.unwrap_or_default();
        let ports =
            ports.into_iter().filter_map(|p| Some(PublishedPort { host: p.public_port?, container: p.private_port }));
        Some(Self {
            id: summary.id?.parse().ok()?,
            name: summary.names?.first()?.trim_start_matches('/').to_owned(),
            status: summary.state?.as_ref().into(),
            image: summary.image.unwrap_or_default(),
            labels: summary.labels.unwrap_or_default(),
            networks,
            ports: sorted(ports),
            detail: None,
        })
    }

    pub(super) fn from_inspect(inspect: ContainerInspectResponse) -> Option<Self> {
        let state = inspect.state.unwrap_or_default();
        let config = inspect.config.unwrap_or_default();
        let host = inspect.host_config.unwrap_or_default();
        let network = inspect.network_settings.unwrap_or_default();
        let mut networks: Vec<String> = network.networks.unwrap_or_default().into_keys().collect();
        networks.sort();
        let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|&n| n > 0);
        let gpus = match host.device_requests.unwrap_or_default().into_iter().next() {
            None => GpuSet::none(),
            Some(request) => match request.device_ids.filter(|ids| !ids.is_empty()) {
                None if request.count.is_some_and(|count| count != 0) => GpuSet::All,
                None => GpuSet::none(),
                Some(ids) => GpuSet::Only(ids.iter().filter_map(|id| id.parse().ok()).collect()),
            },
        };
        Some(Self {
            id: inspect.id?.parse().ok()?,
            name: inspect.name?.trim_start_matches('/').to_owned(),
            status: status_of(&state),
            image: config.image.unwrap_or_default(),
            labels: config.labels.unwrap_or_default(),
            networks,
            ports: published(network.ports),
            detail: Some(Detail {
                pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0),
                exit_code: state.exit_code.unwrap_or(0),
                restarts: inspect.restart_count.unwrap_or(0),
                started_at: state.started_at.filter(|at| !at.starts_with("0001-")),
                gpus,
                memory: unsigned(host.memory),
                shm: unsigned(host.shm_size),
                host_config: HostConfig {
                    hostname: config.hostname.unwrap_or_default(),
                    network: host.network_mode.unwrap_or_default(),
                    pids: unsigned(host.pids_limit),
                    port_bindings: published(host.port_bindings),
                },
            }),
        })
    }
}

/// The status in an inspect.
pub(super) fn status_of(state: &ContainerState) -> ContainerStatus {
    state.status.as_ref().map_or("", AsRef::as_ref).into()
}

fn published(map: Option<bollard::models::PortMap>) -> Vec<PublishedPort> {
    let ports = map.unwrap_or_default().into_iter().flat_map(|(container, bindings)| {
        let container = container.split('/').next().and_then(|port| port.parse::<u16>().ok());
        let hosts =
            bindings.unwrap_or_default().into_iter().filter_map(|binding| binding.host_port?.parse::<u16>().ok());
        hosts.filter_map(move |host| Some(PublishedPort { host, container: container? })).collect::<Vec<_>>()
    });
    sorted(ports)
}

/// By port inside the pod; IPv4 and IPv6 bindings of one port are one.
fn sorted(ports: impl Iterator<Item = PublishedPort>) -> Vec<PublishedPort> {
    let unique: BTreeSet<(u16, u16)> = ports.filter(|p| p.host != 0).map(|p| (p.container, p.host)).collect();
    unique.into_iter().map(|(container, host)| PublishedPort { host, container }).collect()
}
