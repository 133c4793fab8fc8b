//! Quotas: fourteen limits a user has, each with a default in `[default_quota]`.
//!
//! A stored quota has one optional value per limit: absent means "the default". Stored and configured values can both
//! be "unlimited", which the API shows as pody 0.4.1 does: `-1` for numbers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::quantities::{ByteSize, GpuSet};

/// A limit on something countable; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl Limit {
    pub const UNLIMITED: Self = Self(None);

    /// Whether `amount` is within the limit.
    pub fn allows(self, amount: u64) -> bool {
        self.0.is_none_or(|limit| amount <= limit)
    }

    /// In the form of the API and the database: -1 for no limit.
    pub fn as_i64(self) -> i64 {
        self.0.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
    }

    pub fn from_i64(value: i64) -> Self {
        Self(u64::try_from(value).ok())
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.as_i64())
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(Self::from_i64)
    }
}

/// CPU cores a pod may use at once, in thousandths of a core; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuLimit(pub Option<u64>);

impl CpuLimit {
    /// From a number of cores; negative means no limit.
    pub fn from_cores(cores: f64) -> Self {
        Self((cores >= 0.0).then(|| (cores * 1000.0).round() as u64))
    }

    /// Cores, -1 for no limit.
    pub fn cores(self) -> f64 {
        self.0.map_or(-1.0, |milli| milli as f64 / 1000.0)
    }
}

impl Serialize for CpuLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.cores())
    }
}

impl<'de> Deserialize<'de> for CpuLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::from_cores)
    }
}

/// The effective limits of one user, with defaults filled in. Serialized as `/user/info` shows it: bytes, -1 = no
/// limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Pods at a time.
    pub max_pods: Limit,
    /// GPUs that may be computing at a time, across all of the user's pods.
    pub gpu_count: Limit,
    /// GPUs that the user's pods may see.
    pub gpus: GpuSet,
    /// Memory of one pod, bytes.
    pub memory_limit: Limit,
    /// Writable layer of one pod, bytes.
    pub storage_size: Limit,
    /// `/dev/shm` of one pod, bytes.
    pub shm_size: Limit,
    /// Each tmpfs of one pod, bytes; 0 = no tmpfs.
    pub tmpfs_size: Limit,
    /// Committed images at a time.
    pub commit_count: Limit,
    /// Largest writable layer of a pod that may be committed, bytes.
    pub commit_size_limit: Limit,
    /// CPU cores of one pod.
    pub cpu_limit: CpuLimit,
    /// Processes and threads of one pod.
    pub pids_limit: Limit,
    /// Memory limits of all of the user's pods together, bytes.
    pub total_memory: Limit,
    /// Checkpoints at a time.
    pub checkpoint_count: Limit,
    /// All of the user's checkpoints together, bytes.
    pub checkpoint_size: Limit,
}

/// The stored limits of a user: `None` falls back to the default. Serialized like [`Quota`], with nulls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredQuota {
    pub max_pods: Option<Limit>,
    pub gpu_count: Option<Limit>,
    pub gpus: Option<GpuSet>,
    pub memory_limit: Option<Limit>,
    pub storage_size: Option<Limit>,
    pub shm_size: Option<Limit>,
    pub tmpfs_size: Option<Limit>,
    pub commit_count: Option<Limit>,
    pub commit_size_limit: Option<Limit>,
    pub cpu_limit: Option<CpuLimit>,
    pub pids_limit: Option<Limit>,
    pub total_memory: Option<Limit>,
    pub checkpoint_count: Option<Limit>,
    pub checkpoint_size: Option<Limit>,
}

impl StoredQuota {
    /// The effective limits: the stored ones, and the default where none is stored.
    pub fn or_default(&self, default: &Quota) -> Quota {
        Quota {
            max_pods: self.max_pods.unwrap_or(default.max_pods),
            gpu_count: self.gpu_count.unwrap_or(default.gpu_count),
            gpus: self.gpus.clone().unwrap_or_else(|| default.gpus.clone()),
            memory_limit: self.memory_limit.unwrap_or(default.memory_limit),
            storage_size: self.storage_size.unwrap_or(default.storage_size),
            shm_size: self.shm_size.unwrap_or(default.shm_size),
            tmpfs_size: self.tmpfs_size.unwrap_or(default.tmpfs_size),
            commit_count: self.commit_count.unwrap_or(default.commit_count),
            commit_size_limit: self.commit_size_limit.unwrap_or(default.commit_size_limit),
            cpu_limit: self.cpu_limit.unwrap_or(default.cpu_limit),
            pids_limit: self.pids_limit.unwrap_or(default.pids_limit),
            total_memory: self.total_memory.unwrap_or(default.total_memory),
            checkpoint_count: self.checkpoint_count.unwrap_or(default.checkpoint_count),
            checkpoint_size: self.checkpoint_size.unwrap_or(default.checkpoint_size),
        }
    }

    /// Applies every field that `change` sets.
    pub fn apply(&mut self, change: QuotaChange) {
        fn set<T>(field: &mut Option<T>, change: Option<Change<T>>) {
            match change {
                None => {}
                Some(Change::Default) => *field = None,
                Some(Change::To(value)) => *field = Some(value),
            }
        }
        set(&mut self.max_pods, change.max_pods);
        set(&mut self.gpu_count, change.gpu_count);
        set(&mut self.gpus, change.gpus);
        set(&mut self.memory_limit, change.memory_limit);
        set(&mut self.storage_size, change.storage_size);
        set(&mut self.shm_size, change.shm_size);
        set(&mut self.tmpfs_size, change.tmpfs_size);
        set(&mut self.commit_count, change.commit_count);
        set(&mut self.commit_size_limit, change.commit_size_limit);
        set(&mut self.cpu_limit, change.cpu_limit);
        set(&mut self.pids_limit, change.pids_limit);
        set(&mut self.total_memory, change.total_memory);
        set(&mut self.checkpoint_count, change.checkpoint_count);
        set(&mut self.checkpoint_size, change.checkpoint_size);
    }
}

/// A new value for one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Remove the stored value.
    Default,
    To(T),
}

/// Why a text is not a value for a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("{0:?} is not a count; write a whole number, \"default\" or \"unlimited\"")]
    Count(String),
    #[error("{0:?} is not a size; write a size like 64g, \"default\", \"unlimited\" or \"none\" for zero")]
    Size(String),
    #[error("{0:?} is not a number of cores; write a number like 4 or 0.5, \"default\" or \"unlimited\"")]
    Cores(String),
    #[error("{0:?} is not a set of GPUs; write \"all\", \"none\", indices like \"0,1\" or \"default\"")]
    Gpus(String),
}

/// A count, a size, cores or GPUs in an admin's notation. `default`, the empty text and pody's `-1` mean the default.
fn parse_change<T>(s: &str, unlimited: impl Fn() -> Option<T>, value: impl Fn(&str) -> Option<T>) -> Option<Change<T>> {
    match s.trim() {
        "" | "-1" | "default" => Some(Change::Default),
        "unlimited" => unlimited().map(Change::To),
        text => value(text).map(Change::To),
    }
}

/// One field of [`QuotaChange`], by its unit.
macro_rules! change_text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $error:ident, $unlimited:expr, $value:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub Change<$inner>);

        impl std::str::FromStr for $name {
            type Err = ChangeError;

            fn from_str(s: &str) -> Result<Self, ChangeError> {
                parse_change(s, $unlimited, $value).map(Self).ok_or_else(|| ChangeError::$error(s.to_owned()))
            }
        }
    };
}

change_text!(
    /// A new count: `5`, `default`, `unlimited`.
    CountChange(Limit),
    Count,
    || Some(Limit::UNLIMITED),
    |text| text.parse().ok().filter(|&n: &u64| n <= i64::MAX as u64).map(|n| Limit(Some(n)))
);

change_text!(
    /// A new size: `64g`, `none` (zero), `default`, `unlimited`.
    SizeChange(Limit),
    Size,
    || Some(Limit::UNLIMITED),
    |text| match text {
        "none" => Some(Limit(Some(0))),
        text => text.parse::<ByteSize>().ok().map(|size| Limit(Some(size.0))),
    }
);

change_text!(
    /// A new number of cores: `4`, `0.5`, `default`, `unlimited`.
    CoresChange(CpuLimit),
    Cores,
    || Some(CpuLimit(None)),
    |text| text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0).map(CpuLimit::from_cores)
);

change_text!(
    /// A new set of GPUs: `all`, `none`, `0,1`, `default`.
    GpusChange(GpuSet),
    Gpus,
    || Some(GpuSet::All),
    |text| text.parse().ok()
);

/// A change of some limits; `None` leaves a limit as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaChange {
    pub max_pods: Option<Change<Limit>>,
    pub gpu_count: Option<Change<Limit>>,
    pub gpus: Option<Change<GpuSet>>,
    pub memory_limit: Option<Change<Limit>>,
    pub storage_size: Option<Change<Limit>>,
    pub shm_size: Option<Change<Limit>>,
    pub tmpfs_size: Option<Change<Limit>>,
    pub commit_count: Option<Change<Limit>>,
    pub commit_size_limit: Option<Change<Limit>>,
    pub cpu_limit: Option<Change<CpuLimit>>,
    pub pids_limit: Option<Change<Limit>>,
    pub total_memory: Option<Change<Limit>>,
    pub checkpoint_count: Option<Change<Limit>>,
    pub checkpoint_size: Option<Change<Limit>>,
}

/// `[default_quota]` of config.toml. All keys are optional; `-1` and `""` mean no limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefaultQuota {
    pub max_pods: i64,
    pub gpu_count: i64,
    pub gpus: GpuSet,
    #[serde(deserialize_with = "size_limit")]
    pub memory_limit: Limit,
    #[serde(deserialize_with = "size_limit")]
    pub storage_size: Limit,
    #[serde(deserialize_with = "size_limit")]
    pub shm_size: Limit,
    #[serde(deserialize_with = "size_limit")]
    pub tmpfs_size: Limit,
    pub commit_count: i64,
    #[serde(deserialize_with = "size_limit")]
    pub commit_size_limit: Limit,
    pub cpu_limit: f64,
    pub pids_limit: i64,
    #[serde(deserialize_with = "size_limit")]
    pub total_memory: Limit,
    pub checkpoint_count: i64,
    #[serde(deserialize_with = "size_limit")]
    pub checkpoint_size: Limit,
}

/// Threads count as processes: enough for the data loaders of a large job, far below what harms the host.
const DEFAULT_PIDS: i64 = 8192;

impl Default for DefaultQuota {
    fn default() -> Self {
        Self {
            max_pods: -1,
            gpu_count: -1,
            gpus: GpuSet::All,
            memory_limit: Limit::UNLIMITED,
            storage_size: Limit::UNLIMITED,
            shm_size: Limit::UNLIMITED,
            // As in pody 0.4.1: a config without this key gets no tmpfs.
            tmpfs_size: Limit(Some(0)),
            commit_count: -1,
            commit_size_limit: Limit::UNLIMITED,
            cpu_limit: -1.0,
            pids_limit: DEFAULT_PIDS,
            total_memory: Limit::UNLIMITED,
            checkpoint_count: -1,
            checkpoint_size: Limit::UNLIMITED,
        }
    }
}

impl From<&DefaultQuota> for Quota {
    fn from(d: &DefaultQuota) -> Self {
        Self {
            max_pods: Limit::from_i64(d.max_pods),
            gpu_count: Limit::from_i64(d.gpu_count),
            gpus: d.gpus.clone(),
            memory_limit: d.memory_limit,
            storage_size: d.storage_size,
            shm_size: d.shm_size,
            tmpfs_size: d.tmpfs_size,
            commit_count: Limit::from_i64(d.commit_count),
            commit_size_limit: d.commit_size_limit,
            cpu_limit: CpuLimit::from_cores(d.cpu_limit),
            pids_limit: Limit::from_i64(d.pids_limit),
            total_memory: d.total_memory,
            checkpoint_count: Limit::from_i64(d.checkpoint_count),
            checkpoint_size: d.checkpoint_size,
        }
    }
}

/// A size in the config: `"64g"`, `""` for no limit, `"none"` for zero, or a plain number of bytes.
fn size_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Number(i64),
        Text(String),
    }
    match Raw::deserialize(deserializer)? {
        Raw::Number(n) => Ok(Limit::from_i64(n)),
        Raw::Text(text) => match text.trim() {
            "" | "-1" => Ok(Limit::UNLIMITED),
            "none" => Ok(Limit(Some(0))),
            size => size.parse::<ByteSize>().map(|s| Limit(Some(s.0))).map_err(serde::de::Error::custom),
        },
    }
}
