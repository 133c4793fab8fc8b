//! Facts about the engine, for `pody doctor` and `/host/spec`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::Serialize;

use super::{Engine, EngineError, ImageStore, SHORT};

/// Version and settings of the engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineFacts {
    pub version: String,
    pub api_version: String,
    /// Containers keep running while the engine restarts.
    pub live_restore: bool,
    /// Needed where the engine itself must dump.
    pub experimental: bool,
    pub storage_driver: String,
    pub root_dir: PathBuf,
    /// Of containers and images: below `root_dir`, except where containerd keeps them.
    pub layers_dir: PathBuf,
    /// `None` where a graph driver keeps images and the files of containers.
    pub image_store: Option<ImageStore>,
    /// What the engine says does not work here, such as limits.
    pub warnings: Vec<String>,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// The OCI runtimes, by name: the program of each; empty for those that are containerd's own.
    pub runtimes: BTreeMap<String, PathBuf>,
}

impl EngineFacts {
    /// Whether a container's limit of storage is enforced, or at least refused: containerd's image store ignores it.
    pub fn heeds_storage_size(&self) -> bool {
        self.image_store.is_none()
    }
}

impl Engine {
    /// Asked once per connection, since for each answer the engine runs runc and its init to ask for their versions.
    /// Settings that can change while the engine runs (`live-restore`) may therefore be out of date.
    pub async fn facts(&self) -> Result<Arc<EngineFacts>, EngineError> {
        self.ensure_up()?;
        if let Some(known) = self.facts.load_full() {
            return Ok(known);
        }
        let version = self.call(SHORT, |docker| async move { docker.version().await }).await?;
        let info = self.call(SHORT, |docker| async move { docker.info().await }).await?;
        let image_store = ImageStore::of(&info);
        let layers = match &image_store {
            Some(store) => store.directory().await.filter(|directory| directory.exists()),
            None => None,
        };
        let root_dir = PathBuf::from(info.docker_root_dir.unwrap_or_default());
        let facts = Arc::new(EngineFacts {
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            live_restore: info.live_restore_enabled.unwrap_or(false),
            experimental: info.experimental_build.unwrap_or(false),
            storage_driver: info.driver.unwrap_or_default(),
            layers_dir: layers.unwrap_or_else(|| root_dir.clone()),
            root_dir,
            image_store,
            warnings: info.warnings.unwrap_or_default(),
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            cgroup_driver: info.cgroup_driver.map(|v| v.to_string()).unwrap_or_default(),
            runtimes: info
                .runtimes
                .unwrap_or_default()
                .into_iter()
                .map(|(name, runtime)| (name, runtime.path.unwrap_or_default().into()))
                .collect(),
        });
        self.facts.store(Some(facts.clone()));
        Ok(facts)
    }
}
