//! Where the files of containers and images lie, by what the engine says and not by the name of a driver.
//!
//! - A graph driver (overlay2) names a container's writable layer in its inspect.
//! - containerd's image store, the default of new installations of Docker 29, names none. There a container has a
//!   snapshot of its own name, and containerd tells how that is mounted, whether or not the container runs. Only
//!   containerd is asked: a pod's own table of mounts is no witness for a path that we write to as root.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::models::SystemInfo;
use serde::Serialize;
use tokio::process::Command;

use super::{Engine, EngineError};
use crate::model::ids::ContainerId;

/// The value of `driver-type` in `docker info` where containerd keeps the images.
const IMAGE_STORE: &str = "io.containerd.snapshotter.v1";

/// The socket of the containerd that dockerd starts for itself, and of one that is a service: Docker names it since 27.
const SOCKETS: [&str; 2] = ["/var/run/docker/containerd/containerd.sock", "/run/containerd/containerd.sock"];

/// An answer takes 10 ms.
const DEADLINE: Duration = Duration::from_secs(5);

/// `ctr` waits ten seconds for a socket that does not exist, as a create would.
const CONNECT: &str = "1s";

/// Layers that are remembered: more than a host has pods. Beyond that all are asked for again.
const MOST_LAYERS: usize = 4_096;

/// containerd as the keeper of images and containers' files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageStore {
    /// Its socket.
    pub address: PathBuf,
    pub namespace: String,
    /// `overlayfs`
    pub snapshotter: String,
}

impl ImageStore {
    /// `None` where a graph driver keeps them.
    pub(super) fn of(info: &SystemInfo) -> Option<Self> {
        let mut status = info.driver_status.iter().flatten();
        status.find(|row| row.iter().map(String::as_str).eq(["driver-type", IMAGE_STORE]))?;
        let containerd = info.containerd.clone().unwrap_or_default();
        let address = match containerd.address {
            Some(address) => PathBuf::from(address),
            None => SOCKETS.map(PathBuf::from).into_iter().find(|path| path.exists())?,
        };
        let namespace = containerd.namespaces.and_then(|names| names.containers).unwrap_or_else(|| "moby".to_owned());
        Some(Self { address, namespace, snapshotter: info.driver.clone().unwrap_or_default() })
    }

    /// Where the snapshotter keeps its files: containerd's directory need not be Docker's.
    pub(super) async fn directory(&self) -> Option<PathBuf> {
        let filter = format!("id=={}", self.snapshotter);
        let text = self.ask(&["plugins", "ls", "--detailed", &filter]).await?;
        exported_root(&text)
    }

    /// The writable layer of a container, whether or not it runs.
    async fn layer(&self, container: &ContainerId) -> Option<PathBuf> {
        // The target appears only in the command that the answer is.
        let key = container.to_string();
        let text = self.ask(&["snapshots", "--snapshotter", &self.snapshotter, "mounts", "/x", &key]).await?;
        upper_of(&text)
    }

    /// `ctr` comes with containerd.
    async fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.address).args(["--connect-timeout", CONNECT]);
        command.args(["--namespace", &self.namespace]).args(arguments);
        let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let problem = match tokio::time::timeout(DEADLINE, run).await {
            Ok(Ok(output)) if output.status.success() => return String::from_utf8(output.stdout).ok(),
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        };
        tracing::warn!(address = %self.address.display(), ?arguments, problem, "ctr cannot ask containerd");
        None
    }
}

/// `mount -t overlay overlay /x -o index=off,workdir=…,upperdir=…,lowerdir=…`. An overlay alone has such a layer.
fn upper_of(text: &str) -> Option<PathBuf> {
    let line = text.lines().find(|line| line.starts_with("mount -t overlay "))?;
    let options = line.split_once(" -o ")?.1.split(',');
    let upper = options.filter_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from).next()?;
    upper.is_absolute().then_some(upper)
}

/// A line `root  /var/lib/containerd/…` among the exports.
fn exported_root(text: &str) -> Option<PathBuf> {
    let root = text.lines().find_map(|line| line.trim_start().strip_prefix("root "))?;
    Some(PathBuf::from(root.trim())).filter(|path| path.is_absolute())
}

/// The layers that containerd told: a container has the same one for as long as it exists.
#[derive(Clone, Default)]
pub(super) struct Layers(Arc<Mutex<HashMap<ContainerId, PathBuf>>>);

impl Layers {
    fn known(&self) -> MutexGuard<'_, HashMap<ContainerId, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, container: &ContainerId, layer: PathBuf) {
        let mut known = self.known();
        if known.len() >= MOST_LAYERS {
            known.clear();
        }
        known.insert(container.clone(), layer);
    }

    pub(super) fn forget(&self, container: &ContainerId) {
        self.known().remove(container);
    }
}

impl Engine {
    /// The writable layer of a container whose inspect does not name it.
    pub(super) async fn layer_of(&self, container: &ContainerId) -> Result<Option<PathBuf>, EngineError> {
        if let Some(layer) = self.layers.known().get(container) {
            return Ok(Some(layer.clone()));
        }
        let facts = self.facts().await?;
        let Some(store) = &facts.image_store else { return Ok(None) };
        let layer = store.layer(container).await;
        if let Some(layer) = &layer {
            self.layers.remember(container, layer.clone());
        }
        Ok(layer)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn store(info: serde_json::Value) -> Option<ImageStore> {
        ImageStore::of(&serde_json::from_value(info).unwrap())
    }

    #[test]
    fn the_image_store_is_known_by_the_type_of_its_driver() {
        let found = store(json!({
            "Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
            "Containerd": {"Address": "/run/c.sock", "Namespaces": {"Containers": "moby-1", "Plugins": "p"}},
        }));
        let expected = ImageStore {
            address: "/run/c.sock".into(),
            namespace: "moby-1".to_owned(),
            snapshotter: "overlayfs".to_owned(),
        };
        assert_eq!(found, Some(expected));
        let graph = json!({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"], ["driver-type"]]});
        for other in [graph, json!({"Driver": "overlayfs"}), json!({})] {
            assert_eq!(store(other.clone()), None, "{other}");
        }
    }

    #[test]
    fn the_layer_is_in_the_command_that_would_mount_it() {
        let upper = |text: &str| upper_of(text).map(|path| path.to_str().unwrap().to_owned());
        let overlay = "mount -t overlay overlay /x -o index=off,workdir=/c/snapshots/3/work,upperdir=/c/snapshots/3/fs,\
                       lowerdir=/c/snapshots/2/fs:/c/snapshots/1/fs\n";
        assert_eq!(upper(overlay).as_deref(), Some("/c/snapshots/3/fs"));
        for none in [
            "mount -t bind /c/snapshots/1/fs /x -o rbind,rw",
            "mount -t overlay overlay /x -o lowerdir=/a:/b",
            "mount -t overlay overlay /x -o upperdir=fs,lowerdir=/a",
            "",
        ] {
            assert_eq!(upper(none), None, "{none}");
        }
    }

    #[test]
    fn the_directory_is_an_export_of_the_snapshotter() {
        let told = "Type:             io.containerd.snapshotter.v1\nID:               overlayfs\nExports:         \n\
                    \x20                 root      /srv/c d/io.containerd.snapshotter.v1.overlayfs\nCapabilities: x\n";
        let root = Path::new("/srv/c d/io.containerd.snapshotter.v1.overlayfs");
        assert_eq!(exported_root(told).as_deref(), Some(root));
        assert_eq!(exported_root("Exports:\n    root   relative\n"), None);
        assert_eq!(exported_root("Type: x\n"), None);
    }
}
