//! The addresses of a network. The engine assigns them: each container that starts gets the lowest free one. On the
//! default bridge no particular address can be requested.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bollard::{
    Docker,
    models::{
        ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, Mount, MountType, NetworkInspect,
        NetworkingConfig,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, InspectNetworkOptions, StartContainerOptions,
    },
};
use bytes::Bytes;

use super::{Engine, EngineError, SHORT};
use crate::model::{ids::ContainerId, pod::Init};

/// The network of containers that do not name one.
const DEFAULT: &str = "bridge";

const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Read by Docker 28 and later: how often a new address is announced to its neighbours.
const ANNOUNCEMENTS: &str = "com.docker.network.advertise_addr_nmsgs";

/// The addresses that the engine can assign, and which containers hold them.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressPool {
    first: Ipv4Addr,
    last: Ipv4Addr,
    taken: BTreeMap<Ipv4Addr, String>,
    /// The host's name of the bridge that the network's containers are attached to.
    pub bridge: Option<String>,
}

impl AddressPool {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// The container that holds it, or which part of the network itself it is.
    pub fn holder(&self, address: Ipv4Addr) -> Option<&str> {
        self.taken.get(&address).map(String::as_str)
    }

    /// How many addresses would be assigned before this one.
    pub fn free_below(&self, address: Ipv4Addr) -> usize {
        let below = u32::from(address).saturating_sub(u32::from(self.first)) as usize;
        below.saturating_sub(self.taken.range(self.first..address.max(self.first)).count())
    }

    fn new(network: NetworkInspect) -> Option<Self> {
        let bridge = bridge_of(&network);
        let config =
            network.ipam?.config?.into_iter().find(|part| part.subnet.as_deref().and_then(parse_subnet).is_some())?;
        let whole = parse_subnet(config.subnet.as_deref()?)?;
        let part = config.ip_range.as_deref().and_then(parse_subnet).unwrap_or(whole);
        // The network address and the broadcast address are not assigned.
        let first = if part.0 == whole.0 { part.0 + 1 } else { part.0 };
        let last = if part.1 == whole.1 { part.1 - 1 } else { part.1 };
        let bare = |text: &str| text.split('/').next()?.parse::<Ipv4Addr>().ok();
        let mut taken = BTreeMap::new();
        let own = config.gateway.into_iter().chain(config.auxiliary_addresses.unwrap_or_default().into_values());
        taken.extend(own.filter_map(|address| Some((bare(&address)?, "the network itself".to_owned()))));
        let ends = network.containers.unwrap_or_default().into_values();
        taken.extend(ends.filter_map(|end| Some((bare(&end.ipv4_address?)?, end.name.unwrap_or_default()))));
        Some(Self { first: first.into(), last: last.into(), taken, bridge })
    }
}

/// The engine's default name unless the network sets another one.
fn bridge_of(network: &NetworkInspect) -> Option<String> {
    let told = || network.options.as_ref()?.get(BRIDGE_NAME).cloned();
    let usual = || Some(format!("br-{}", network.id.as_ref()?.get(..12)?));
    told().or_else(usual).filter(|_| network.driver.as_deref() == Some("bridge"))
}

/// The first and the last address of `172.17.0.0/16`.
fn parse_subnet(text: &str) -> Option<(u32, u32)> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u32>().ok()?);
    if !(1..=30).contains(&length) {
        return None;
    }
    let hosts = u32::MAX >> length;
    let first = u32::from(address) & !hosts;
    Some((first, first | hosts))
}

/// A container that only holds an address.
#[derive(Clone, Debug)]
pub struct Placeholder<'a> {
    pub name: String,
    pub label: (&'static str, String),
    /// Any image that exists: none of its programs are run.
    pub image: &'a str,
    pub network: &'a str,
    /// `pody-init` on the host.
    pub program: &'a Path,
    /// After this time it exits and is removed.
    pub lasts: Duration,
}

impl Engine {
    /// The addresses of a network; `None` if they cannot be determined. `""` = the default network.
    pub async fn address_pool(&self, network: &str) -> Result<Option<AddressPool>, EngineError> {
        let name = named(network);
        let inspected = self
            .call(SHORT, |docker| async move { docker.inspect_network(&name, None::<InspectNetworkOptions>).await })
            .await;
        match inspected {
            Ok(network) => Ok(AddressPool::new(network)),
            Err(EngineError::NoNetwork(_) | EngineError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the lowest free address of the network and returns it.
    pub async fn hold_address(
        &self,
        placeholder: &Placeholder<'_>,
    ) -> Result<(ContainerId, Option<Ipv4Addr>), EngineError> {
        let mac = format!("02:{}", rand::random::<[u8; 5]>().map(|byte| format!("{byte:02x}")).join(":"));
        let body = placeholder_body(placeholder, &mac);
        let options = CreateContainerOptionsBuilder::new().name(&placeholder.name).build();
        let create = |docker: Arc<Docker>| async move {
            // bollard does not know this field, which engines before 25 need.
            let mut document = serde_json::to_value(&body).unwrap_or_default();
            document["MacAddress"] = mac.into();
            let text = Bytes::from(document.to_string());
            let docker = Docker::clone(&docker).with_request_modifier(move |mut request| {
                *request.body_mut() = bollard::body_full(text.clone());
                request
            });
            docker.create_container(Some(options), body).await
        };
        let made = self.call(SHORT, create).await?;
        let id: ContainerId = made.id.parse().map_err(|_| EngineError::AnswerLost("not a container id".to_owned()))?;
        let name = id.to_string();
        let start = |docker: Arc<Docker>| async move {
            docker.start_container(&name, None::<StartContainerOptions>).await?;
            docker.inspect_container(&name, None::<InspectContainerOptions>).await
        };
        let started = match self.call(SHORT, start).await {
            Ok(started) => started,
            Err(error) => {
                let _ = self.remove(&id).await;
                return Err(error);
            }
        };
        let ends = started.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = ends.into_values().find_map(|end| end.ip_address?.parse().ok());
        Ok((id, address))
    }
}

fn named(network: &str) -> String {
    if matches!(network, "" | "default") { DEFAULT.to_owned() } else { network.to_owned() }
}

/// Other hosts may still have connections with the previous holder of the address. They must not reach this container
/// and get a reset for a connection that it does not know. So it does not answer ARP requests for its address, and has
/// another hardware address than the one that the engine derives from it and that neighbours may have cached.
fn placeholder_body(placeholder: &Placeholder, mac: &str) -> ContainerCreateBody {
    let network = named(placeholder.network);
    let end = EndpointSettings {
        mac_address: Some(mac.to_owned()),
        driver_opts: Some(HashMap::from([(ANNOUNCEMENTS.to_owned(), "0".to_owned())])),
        ..EndpointSettings::default()
    };
    ContainerCreateBody {
        image: Some(placeholder.image.to_owned()),
        entrypoint: Some(vec![Init::INSIDE.to_owned(), "hold".to_owned(), placeholder.lasts.as_secs().to_string()]),
        cmd: Some(Vec::new()),
        user: Some("65534:65534".to_owned()),
        working_dir: Some("/".to_owned()),
        labels: Some(HashMap::from([(placeholder.label.0.to_owned(), placeholder.label.1.clone())])),
        env: Some(vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()]),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(network.clone(), end)])) }),
        host_config: Some(HostConfig {
            network_mode: Some(network),
            mounts: Some(vec![Mount {
                typ: Some(MountType::BIND),
                source: Some(placeholder.program.to_string_lossy().into_owned()),
                target: Some(Init::INSIDE.to_owned()),
                read_only: Some(true),
                ..Mount::default()
            }]),
            sysctls: Some(HashMap::from([("net.ipv4.conf.all.arp_ignore".to_owned(), "8".to_owned())])),
            auto_remove: Some(true),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            pids_limit: Some(4),
            memory: Some(16 << 20),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(subnet: &str, range: &str) -> AddressPool {
        let network = json!({
            "IPAM": {"Config": [{"Subnet": "fd00::/64"}, {"Subnet": subnet, "IPRange": range, "Gateway": "172.17.0.1"}]},
            "Containers": {
                "a": {"Name": "one", "IPv4Address": "172.17.0.2/16"}, "b": {"Name": "two", "IPv4Address": "172.17.0.5/16"},
            },
        });
        AddressPool::new(serde_json::from_value(network).unwrap()).unwrap()
    }

    #[test]
    fn free_below_counts_the_free_addresses_below_one() {
        let address = |last: u8| Ipv4Addr::new(172, 17, 0, last);
        let whole = pool("172.17.0.0/16", "");
        assert_eq!([2, 3, 4, 5, 6, 7].map(|last| whole.free_below(address(last))), [0, 0, 1, 2, 2, 3]);
        assert_eq!(whole.holder(address(5)), Some("two"));
        assert_eq!((whole.holder(address(1)), whole.holder(address(3))), (Some("the network itself"), None));
        assert!(whole.contains(address(1)) && !whole.contains(address(0)));
        assert!(whole.contains(Ipv4Addr::new(172, 17, 255, 254)) && !whole.contains(Ipv4Addr::new(172, 17, 255, 255)));
        assert!(!whole.contains(Ipv4Addr::new(172, 18, 0, 2)));
        let part = pool("172.17.0.0/16", "172.17.0.4/30");
        assert!(!part.contains(address(3)) && part.contains(address(4)) && part.contains(address(7)));
        assert_eq!([3, 4, 5, 6].map(|last| part.free_below(address(last))), [0, 0, 1, 1]);
    }
}
