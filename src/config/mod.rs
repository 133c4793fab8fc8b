//! `$PODY_HOME/config.toml`: parsed strictly at start and again when the file changes.
//!
//! A config.toml of pody 0.4.1 loads unchanged. An unknown key is an error with file, line and key, because a
//! misspelled limit that is silently ignored is no limit. `config.toml.example` lists every key with its unit.

mod checkpoint;
mod live;
mod remote_users;
mod volume;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use self::{
    checkpoint::{CheckpointConfig, CopyWhich, GpuCheckpoints, RemoteConfig, RemoteOptions},
    live::LiveConfig,
    remote_users::{RemoteProvider, RemoteService, RemoteUserProfile},
    volume::{VolumeMapping, VolumeMappingError},
};
use crate::model::{
    names::NamePrefix,
    quantities::{ByteSize, PortRanges},
    quota::Quota,
};

/// The port that clients expect if none is given.
pub const DEFAULT_PORT: u16 = 8799;

/// A signed URL must not become a second password.
const MAX_LINK_SECONDS: u32 = 7 * 86_400;

/// The data directory: `$PODY_HOME`, else `/var/lib/pody` for root and `~/.pody` for others.
pub fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("PODY_HOME").filter(|home| !home.is_empty()) {
        return PathBuf::from(home);
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/pody");
    }
    PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".pody")
}

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    #[serde(deserialize_with = "empty_is_none")]
    pub name_prefix: Option<NamePrefix>,
    pub available_ports: PortRanges,
    pub commit_name: CommitName,
    pub commit_image_ports: CommitPorts,
    pub volume_mappings: Vec<VolumeMapping>,
    /// The engine's network that pods join; empty = the engine's default bridge.
    pub network: String,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub remote_user_profile: RemoteUserProfile,
    pub default_quota: Quota,
    pub images: Vec<ImageConfig>,
    pub server: ServerConfig,
    pub pod: PodConfig,
    pub exec: ExecConfig,
    pub throttle: ThrottleConfig,
    pub gpu: GpuConfig,
    pub usage: UsageConfig,
    pub checkpoint: CheckpointConfig,
    pub files: FilesConfig,
}

/// The repository for committed images.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct CommitName(pub String);

impl Default for CommitName {
    fn default() -> Self {
        Self("pody-commit".to_owned())
    }
}

/// Ports of pods created from a committed image.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct CommitPorts(pub Vec<u16>);

impl Default for CommitPorts {
    fn default() -> Self {
        Self(vec![22])
    }
}

/// An image that members may use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// `name:tag`, or `name` for all of its tags.
    pub name: String,
    /// Ports inside the pod that get a port of the host.
    pub ports: Vec<u16>,
    /// Lets set-user-id programs such as sudo gain privileges in pods of this image.
    #[serde(default)]
    pub new_privileges: bool,
    /// Lets programs use io_uring in pods of this image; a program that uses it cannot be checkpointed.
    #[serde(default)]
    pub io_uring: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Connections at a time; further ones wait in the listen queue.
    pub max_connections: usize,
    /// Seconds a client may take to send its request's head, and to stay idle between requests.
    pub header_timeout_seconds: u64,
    /// Seconds a client may take to send a request's body.
    pub body_timeout_seconds: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self { max_connections: 16_384, header_timeout_seconds: 15, body_timeout_seconds: 15 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodConfig {
    /// Seconds between SIGTERM and SIGKILL when a pod is stopped.
    pub stop_grace_seconds: u32,
    /// Size of one log file of a pod's output, and how many are kept.
    pub log_max_size: String,
    pub log_max_files: u32,
    /// Creates and starts handed to the engine at a time; the engine is saturated by 4.
    pub engine_parallelism: usize,
}

impl Default for PodConfig {
    fn default() -> Self {
        Self { stop_grace_seconds: 10, log_max_size: "10m".to_owned(), log_max_files: 3, engine_parallelism: 4 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecConfig {
    /// Seconds a command may run if the caller sets no timeout.
    pub timeout_seconds: u64,
    /// Longest timeout that a caller may set, seconds.
    pub max_timeout_seconds: u64,
    /// Output of one command that is kept, in bytes or as a size.
    #[serde(deserialize_with = "byte_size")]
    pub output_limit: ByteSize,
}

impl Default for ExecConfig {
    fn default() -> Self {
        Self { timeout_seconds: 30, max_timeout_seconds: 3600, output_limit: ByteSize(1 << 20) }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuConfig {
    /// NVIDIA's management library; `None` = `libnvidia-ml.so.1`, then `libnvidia-ml.so`. Read at start only.
    pub nvml_library: Option<PathBuf>,
    /// Seconds between two polls of the GPUs while a client watches, and while none does.
    pub poll_seconds: f64,
    pub idle_poll_seconds: f64,
    /// Seconds that a user may compute on more GPUs than `gpu_count`.
    pub overuse_grace_seconds: f64,
    pub on_overuse: OnOveruse,
    /// Members see the command lines of each other's processes.
    pub show_commands: bool,
    /// Seconds between two checks whether pods with GPUs can still open them.
    pub probe_seconds: f64,
    /// The device that every program on a GPU opens first.
    pub control_device: PathBuf,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self {
            nvml_library: None,
            poll_seconds: 1.0,
            idle_poll_seconds: 5.0,
            overuse_grace_seconds: 60.0,
            on_overuse: OnOveruse::KillProcess,
            show_commands: false,
            probe_seconds: 30.0,
            control_device: "/dev/nvidiactl".into(),
        }
    }
}

/// What happens to a user who computes on more GPUs than their quota for longer than the grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOveruse {
    Warn,
    KillProcess,
    StopPod,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageConfig {
    /// Seconds between two samples of what pods use.
    pub sample_seconds: f64,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self { sample_seconds: 5.0 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilesConfig {
    pub store: FileStore,
    /// Total size of one user's files, and size of one file; in bytes or as a size.
    #[serde(deserialize_with = "byte_size")]
    pub user_limit: ByteSize,
    #[serde(deserialize_with = "byte_size")]
    pub file_limit: ByteSize,
    /// Number of one user's files.
    pub max_files: u64,
    /// Space to leave free on the disk, in bytes or as a size.
    #[serde(deserialize_with = "byte_size")]
    pub keep_free: ByteSize,
    /// Seconds that a signed URL is valid.
    pub link_seconds: u32,
    /// Base of signed URLs; empty = the address under which the client asked for one.
    pub public_url: String,
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self {
            store: FileStore::Here,
            user_limit: ByteSize(10 << 30),
            file_limit: ByteSize(10 << 30),
            max_files: 10_000,
            keep_free: ByteSize(1 << 30),
            link_seconds: 900,
            public_url: String::new(),
        }
    }
}

/// Where members' files are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStore {
    Here,
    /// In the store of `[checkpoint.remote]`, behind URLs that it signs.
    Remote,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleConfig {
    /// Wrong passwords for one account, and from one address, before further attempts are rejected without checking.
    pub account_failures: u32,
    pub address_failures: u32,
    /// Seconds until one failure is forgotten.
    pub forget_seconds: u64,
}

impl Default for ThrottleConfig {
    fn default() -> Self {
        Self { account_failures: 10, address_failures: 30, forget_seconds: 30 }
    }
}

fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<NamePrefix>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

fn byte_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Why a config cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The parser's own text shows line, column and key.
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {rule}")]
    Rule { path: PathBuf, rule: &'static str },
    /// A member who writes into the outer one could lead the inner one anywhere.
    #[error(
        "{path}: in volume_mappings {inner} lies in {outer}, where members can write: they could replace it by a link to any directory of this host; map a directory outside of it, or make the outer one :ro"
    )]
    NestedVolumes { path: PathBuf, outer: String, inner: String },
    #[error("{path}: {why}")]
    Remote { path: PathBuf, why: String },
    #[error("{path} contains keys of the remote store and is readable by other users; run `chmod 600 {path}`")]
    Readable { path: PathBuf },
}

/// Says what is wrong with `[checkpoint.remote]`: only `objects` knows the options of each kind of store.
pub type CheckRemote = fn(&RemoteConfig) -> Result<(), String>;

impl Config {
    /// Reads and checks one file. A missing file counts as empty.
    pub fn load(path: &Path, check_remote: CheckRemote) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let config: Self = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string().trim_end().to_owned() })?;
        config.check().map_err(|rule| ConfigError::Rule { path: path.to_owned(), rule })?;
        if let Some((outer, inner)) = volume::nested(&config.volume_mappings) {
            return Err(ConfigError::NestedVolumes { path: path.to_owned(), outer, inner });
        }
        let remote = &config.checkpoint.remote;
        check_remote(remote).map_err(|why| ConfigError::Remote { path: path.to_owned(), why })?;
        let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
        if mode & 0o077 != 0 && remote.options.secrets().next().is_some() {
            return Err(ConfigError::Readable { path: path.to_owned() });
        }
        Ok(config)
    }

    /// Rules over several keys.
    fn check(&self) -> Result<(), &'static str> {
        let remote = &self.remote_user_profile;
        let rules = [
            (
                remote.provider.enabled
                    && (remote.provider.endpoint.is_empty() || remote.provider.access_token.is_empty()),
                "[remote_user_profile.provider] is enabled: set endpoint and access_token",
            ),
            (
                remote.service.enabled && remote.service.access_token.is_empty(),
                "[remote_user_profile.service] is enabled: set access_token",
            ),
            (
                self.tls_cert.is_some() != self.tls_key.is_some(),
                "tls_cert and tls_key belong together: set both or none",
            ),
            (self.server.max_connections == 0, "[server] max_connections must be at least 1"),
            (self.checkpoint.parallelism == 0, "[checkpoint] parallelism must be at least 1"),
            (self.checkpoint.streams > checkpoint::MAX_STREAMS, "[checkpoint] streams must be at most 256"),
            (self.checkpoint.remote.parallelism == 0, "[checkpoint.remote] parallelism must be at least 1"),
            (
                self.checkpoint.remote.copy == CopyWhich::All && self.checkpoint.remote.url.is_empty(),
                "[checkpoint.remote] copy is \"all\": set url",
            ),
            (
                self.files.store == FileStore::Remote
                    && !["s3", "gs", "az", "adl", "azure", "abfs", "https"]
                        .iter()
                        .any(|scheme| self.checkpoint.remote.url.starts_with(scheme)),
                "[files] store is \"remote\": set [checkpoint.remote] url to a store that signs URLs (s3://, gs:// or az://)",
            ),
            (self.checkpoint.slowest_rate.0 == 0, "[checkpoint] slowest_rate must be at least 1"),
            (
                self.checkpoint.cuda_checkpoint.as_ref().is_some_and(|path| !path.is_absolute()),
                "[checkpoint] cuda_checkpoint must be absolute",
            ),
            (
                self.checkpoint.directory.as_ref().is_some_and(|path| !path.is_absolute())
                    || self.checkpoint.watch_paths.iter().any(|path| !path.is_absolute()),
                "[checkpoint] directory and watch_paths must be absolute",
            ),
            (
                !(1..=MAX_LINK_SECONDS).contains(&self.files.link_seconds),
                "[files] link_seconds must be 1 to 604800, a week",
            ),
            (
                !self.files.public_url.is_empty()
                    && !["http://", "https://"].iter().any(|begin| self.files.public_url.starts_with(begin)),
                "[files] public_url must begin with http:// or https://",
            ),
            (self.pod.engine_parallelism == 0, "[pod] engine_parallelism must be at least 1"),
            (
                self.throttle.account_failures == 0 || self.throttle.address_failures == 0,
                "[throttle] account_failures and address_failures must be at least 1",
            ),
        ];
        rules.into_iter().find_map(|(broken, rule)| broken.then_some(rule)).map_or(Ok(()), Err)
    }

    /// The entry for an image; `None` if members may not use it. Committed images are not decided here.
    pub fn image(&self, name: &str) -> Option<&ImageConfig> {
        self.images.iter().find(|image| {
            image.name == name
                || (!image.name.contains(':')
                    && name.strip_prefix(image.name.as_str()).is_some_and(|rest| rest.starts_with(':')))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default config that pody 0.4.1 writes.
    const ORIGINAL: &str = r#"
name_prefix = "pd"
available_ports = "20000-21000"
commit_name = "pody-commit"
commit_image_ports = [22, 8000]
volume_mappings = [
	"/data/pody-volume/$username:/workspace/$username:rw",
	"/data/pody-volume/share:/workspace/share:ro",
	"tmpfs:/workspace/tmpfs",
]
network = ""
[remote_user_profile.provider]
enabled = false
endpoint = "http://localhost:8799"
access_token = ""
[remote_user_profile.service]
enabled = false
readonly = true
access_token = ""
[default_quota]
max_pods = 5
gpu_count = -1
gpus = "all"
memory_limit = '64g'
storage_size = ''
commit_count = 1
commit_size_limit = '20g'
shm_size = '8g'
tmpfs_size = '1g'
[[images]]
name = "ubuntu2204-cu121-base:latest"
ports = [22, 8000]
[[images]]
name = "lab-cuda"
ports = [22]
"#;

    #[test]
    fn the_config_of_pody_0_4_1_loads_unchanged() {
        let config: Config = toml::from_str(ORIGINAL).unwrap();
        assert_eq!(config.available_ports.count(), 1001);
        assert_eq!(config.volume_mappings.len(), 3);
        assert_eq!(config.default_quota.memory_limit.0, Some(64 << 30));
        assert_eq!(config.default_quota.storage_size.0, None);
        assert!(config.image("lab-cuda:any").is_some());
        assert!(config.image("lab-cuda2:any").is_none());
        assert!(config.image("ubuntu2204-cu121-base:other").is_none());
    }

    #[test]
    fn the_example_loads_and_names_every_default() {
        let example: Config = toml::from_str(include_str!("../../config.toml.example")).unwrap();
        assert!(example.check().is_ok());
    }

    #[test]
    fn a_config_with_keys_must_not_be_readable_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let text =
            "[checkpoint.remote]\nurl = \"s3://b\"\n[checkpoint.remote.options]\naws_secret_access_key = \"hidden\"\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Config::load(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("hidden"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = Config::load(&path, |_| Ok(())).unwrap();
        assert_eq!(format!("{:?}", config.checkpoint.remote.options), "{\"aws_secret_access_key\"}");
        assert_eq!(config.checkpoint.remote.options.secrets().collect::<Vec<_>>(), ["hidden"]);
        // A URL alone is not secret.
        std::fs::write(&path, "[checkpoint.remote]\nurl = \"file:///srv/x\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Config::load(&path, |_| Ok(())).is_ok());
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "network = \"\"\n[default_quota]\nmax_podz = 5\n").unwrap();
        let message = Config::load(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(
            message.contains("config.toml") && message.contains("line 3") && message.contains("max_podz"),
            "{message}"
        );
    }
}
