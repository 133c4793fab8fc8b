//! Quotas: the limits that a user has, each with a default in `[default_quota]`.
//!
//! A stored quota has one optional value per limit: absent means "the default". Stored and configured values can both
//! be "unlimited", which the API shows as pody 0.4.1 does: `-1` for numbers.
//!
//! A limit is one row of the `limits!` table below. The structs come from it, with one typed field per limit, so that
//! the code that enforces a limit reads `quota.max_pods` and the compiler knows its unit. [`Limit::ALL`] is the same
//! table as values: the database, the HTTP parameters, the options of `pody quota` and the documents walk over it
//! and name no limit themselves.
//!
//! What the types of limits have in common is [`LimitType`]: how an admin writes a value, and its form in a column.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::quantities::{ByteSize, GpuSet};

/// Makes from one row per limit: [`Quota`], [`StoredQuota`], [`QuotaChange`] and [`Limit::ALL`]. A row is
///
/// ```text
/// /// What it limits, as the help and the documents say it
/// name: Type = default value, "HEADING IN `pody quota list`";
/// ```
///
/// The name is that of the field, the database column, the HTTP parameter and the key in the config; with `-` for `_`
/// it is the option of `pody quota update`. The rows are in the order of the fields in a response.
macro_rules! limits {
    ($(#[doc = $doc:literal] $name:ident: $type:ty = $default:expr, $heading:literal;)+) => {
        /// The limits in force of one user. Serialized as `/user/info` shows it: bytes, -1 = no limit.
        ///
        /// Also the `[default_quota]` of config.toml: all keys are optional there; `-1` and `""` mean no limit.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Quota {
            $(#[doc = $doc] pub $name: $type,)+
        }

        impl Default for Quota {
            /// The limits of a user without a quota, under a config without `[default_quota]`.
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        /// The stored limits of a user: `None` falls back to the default. Serialized like [`Quota`], with nulls.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct StoredQuota {
            $(#[doc = $doc] pub $name: Option<$type>,)+
        }

        /// A change of some limits; `None` leaves a limit as it is.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct QuotaChange {
            $(#[doc = $doc] pub $name: Option<Change<$type>>,)+
        }

        impl StoredQuota {
            /// The limits in force: the stored ones, and the default where none is stored.
            pub fn or_default(&self, default: &Quota) -> Quota {
                fn either<T: Clone>(stored: Option<&T>, default: &T) -> T {
                    stored.unwrap_or(default).clone()
                }
                Quota { $($name: either(self.$name.as_ref(), &default.$name),)+ }
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
                $(set(&mut self.$name, change.$name);)+
            }
        }

        impl From<Quota> for StoredQuota {
            fn from(quota: Quota) -> Self {
                Self { $($name: Some(quota.$name),)+ }
            }
        }

        impl Limit {
            /// Every limit, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self {
                name: stringify!($name),
                description: $doc.trim_ascii(),
                heading: $heading,
                unit: <$type as LimitType>::UNIT,
                get: |quota| quota.$name.as_ref().map(LimitType::to_value),
                set: |quota, value| {
                    quota.$name = Some(LimitType::from_value(value)?);
                    Ok(())
                },
                change: |change, text| {
                    change.$name = Some(text.parse()?);
                    Ok(())
                },
            },)+];
        }
    };
}

limits! {
    /// Number of pods
    max_pods: CountLimit = CountLimit::UNLIMITED, "PODS";
    /// Number of GPUs in use at the same time
    gpu_count: CountLimit = CountLimit::UNLIMITED, "GPUS AT ONCE";
    /// The GPUs that pods see, by index: all, none, or a list like 0,1
    gpus: GpuSet = GpuSet::UNLIMITED, "GPUS";
    /// Memory of each pod, like 64g
    memory_limit: SizeLimit = SizeLimit::UNLIMITED, "MEMORY";
    /// Writable layer of each pod, like 100g
    storage_size: SizeLimit = SizeLimit::UNLIMITED, "STORAGE";
    /// /dev/shm of each pod, like 8g
    shm_size: SizeLimit = SizeLimit::UNLIMITED, "SHM";
    // As in pody 0.4.1: a config without this key gets no tmpfs.
    /// Each tmpfs of each pod, like 1g; none for no tmpfs
    tmpfs_size: SizeLimit = SizeLimit(Some(0)), "TMPFS";
    /// Number of committed images
    commit_count: CountLimit = CountLimit::UNLIMITED, "COMMITS";
    /// Largest writable layer that may be committed, like 20g
    commit_size_limit: SizeLimit = SizeLimit::UNLIMITED, "COMMIT SIZE";
    /// CPU cores of each pod, like 16 or 0.5
    cpu_limit: CpuLimit = CpuLimit::UNLIMITED, "CORES";
    /// Number of processes and threads of each pod
    pids_limit: CountLimit = CountLimit(Some(DEFAULT_PIDS)), "PIDS";
    /// Sum of the memory limits of all pods, like 128g
    total_memory: SizeLimit = SizeLimit::UNLIMITED, "ALL MEMORY";
    /// Number of checkpoints
    checkpoint_count: CountLimit = CountLimit::UNLIMITED, "CHECKPOINTS";
    /// Size of all checkpoints together, like 200g
    checkpoint_size: SizeLimit = SizeLimit::UNLIMITED, "CHECKPOINT SIZE";
}

/// Threads count as processes: enough for the data loaders of a large job, far below what harms the host.
const DEFAULT_PIDS: u64 = 8192;

/// One row of the table of limits, with the way to its field in each struct.
pub struct Limit {
    /// Of the field, the column, the HTTP parameter and the key in the config.
    pub name: &'static str,
    pub description: &'static str,
    /// Of its column in `pody quota list`.
    pub heading: &'static str,
    pub unit: Unit,
    get: fn(&StoredQuota) -> Option<LimitValue>,
    set: fn(&mut StoredQuota, LimitValue) -> Result<(), String>,
    change: fn(&mut QuotaChange, &str) -> Result<(), ChangeError>,
}

impl Limit {
    /// The stored value; `None` falls back to the default.
    pub fn get(&self, quota: &StoredQuota) -> Option<LimitValue> {
        (self.get)(quota)
    }

    /// Stores a value. The error is a sentence for the log: the value is of another type, or cannot be read.
    pub fn set(&self, quota: &mut StoredQuota, value: LimitValue) -> Result<(), String> {
        (self.set)(quota, value)
    }

    /// Adds a new value in an admin's notation to a change.
    pub fn change(&self, change: &mut QuotaChange, text: &str) -> Result<(), ChangeError> {
        (self.change)(change, text)
    }
}

/// What the value of a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    Bytes,
    /// CPU cores. A [`LimitValue`] has them in thousandths.
    Cores,
    /// GPUs by their indices.
    Gpus,
}

impl Unit {
    /// Why `text` is no value of this unit.
    fn refuse(self, text: &str) -> ChangeError {
        let text = text.to_owned();
        match self {
            Self::Count => ChangeError::Count(text),
            Self::Bytes => ChangeError::Size(text),
            Self::Cores => ChangeError::Cores(text),
            Self::Gpus => ChangeError::Gpus(text),
        }
    }
}

/// The value of a limit of any type, as a database column holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitValue {
    /// A count, bytes or thousandths of a core; negative for no limit.
    Integer(i64),
    /// A set of GPUs.
    Text(String),
}

impl LimitValue {
    /// A number whose `None` is no limit.
    fn number(amount: Option<u64>) -> Self {
        Self::Integer(signed(amount))
    }

    /// The number; `None` is no limit.
    fn as_number(&self) -> Result<Option<u64>, String> {
        match self {
            Self::Integer(number) => Ok(unsigned(*number)),
            Self::Text(text) => Err(format!("{text:?} is not a number")),
        }
    }
}

/// In the form of the API and the database: -1 for no limit.
fn signed(amount: Option<u64>) -> i64 {
    amount.map_or(-1, |amount| i64::try_from(amount).unwrap_or(i64::MAX))
}

fn unsigned(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

/// A type that the value of a limit can have.
pub trait LimitType: Sized {
    const UNIT: Unit;
    const UNLIMITED: Self;

    /// From an admin's text, other than those that every limit knows.
    fn parse(text: &str) -> Option<Self>;

    fn to_value(&self) -> LimitValue;

    /// The error is a sentence for the log.
    fn from_value(value: LimitValue) -> Result<Self, String>;
}

/// A limit on something countable; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountLimit(pub Option<u64>);

impl LimitType for CountLimit {
    const UNIT: Unit = Unit::Count;
    const UNLIMITED: Self = Self(None);

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|&n: &u64| n <= i64::MAX as u64).map(|n| Self(Some(n)))
    }

    fn to_value(&self) -> LimitValue {
        LimitValue::number(self.0)
    }

    fn from_value(value: LimitValue) -> Result<Self, String> {
        value.as_number().map(Self)
    }
}

impl Serialize for CountLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(signed(self.0))
    }
}

impl<'de> Deserialize<'de> for CountLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(|number| Self(unsigned(number)))
    }
}

/// A limit in bytes; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimit(pub Option<u64>);

impl LimitType for SizeLimit {
    const UNIT: Unit = Unit::Bytes;
    const UNLIMITED: Self = Self(None);

    fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self(Some(0))),
            size => size.parse::<ByteSize>().ok().map(|size| Self(Some(size.0))),
        }
    }

    fn to_value(&self) -> LimitValue {
        LimitValue::number(self.0)
    }

    fn from_value(value: LimitValue) -> Result<Self, String> {
        value.as_number().map(Self)
    }
}

impl Serialize for SizeLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(signed(self.0))
    }
}

impl<'de> Deserialize<'de> for SizeLimit {
    /// `"64g"`, `""` for no limit, `"none"` for zero, or a plain number of bytes.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(i64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(number) => Ok(Self(unsigned(number))),
            Raw::Text(text) => match text.trim() {
                "" | "-1" => Ok(Self::UNLIMITED),
                "none" => Ok(Self(Some(0))),
                size => size.parse::<ByteSize>().map(|size| Self(Some(size.0))).map_err(serde::de::Error::custom),
            },
        }
    }
}

/// CPU cores a pod may use at once, in thousandths of a core; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl LimitType for CpuLimit {
    const UNIT: Unit = Unit::Cores;
    const UNLIMITED: Self = Self(None);

    fn parse(text: &str) -> Option<Self> {
        text.parse::<f64>().ok().filter(|cores| cores.is_finite() && *cores > 0.0).map(Self::from_cores)
    }

    fn to_value(&self) -> LimitValue {
        LimitValue::number(self.0)
    }

    fn from_value(value: LimitValue) -> Result<Self, String> {
        value.as_number().map(Self)
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

impl LimitType for GpuSet {
    const UNIT: Unit = Unit::Gpus;
    const UNLIMITED: Self = Self::All;

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn to_value(&self) -> LimitValue {
        LimitValue::Text(self.to_string())
    }

    fn from_value(value: LimitValue) -> Result<Self, String> {
        match value {
            LimitValue::Text(text) => text.parse().map_err(|error| format!("{text:?}: {error}")),
            LimitValue::Integer(number) => Err(format!("{number} is not a set of GPUs")),
        }
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

impl<T: LimitType> FromStr for Change<T> {
    type Err = ChangeError;

    /// An admin's notation: `default`, `unlimited`, or a value like `5`, `64g`, `0.5` or `0,1`. The empty text and
    /// pody's `-1` mean the default.
    fn from_str(text: &str) -> Result<Self, ChangeError> {
        match text.trim() {
            "" | "-1" | "default" => Ok(Self::Default),
            "unlimited" => Ok(Self::To(T::UNLIMITED)),
            value => T::parse(value).map(Self::To).ok_or_else(|| T::UNIT.refuse(text)),
        }
    }
}
