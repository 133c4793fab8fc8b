//! The driver of the GPUs, and what it reports.

use serde::{Deserialize, Serialize};

use super::{usage::GpuUuid, words::words};

/// The state of the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Library {
    /// Not opened yet.
    Starting,
    /// There is no NVIDIA driver on this host.
    Absent,
    Working {
        driver: String,
    },
    /// It is installed but does not work.
    Failing {
        reason: String,
    },
}

/// What a GPU reports. What it does not support is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Bytes.
    pub memory_total: Option<u64>,
    pub memory_used: Option<u64>,
    /// Percent of the time a kernel was running.
    pub utilization: Option<u32>,
    /// Watts.
    pub power: Option<f64>,
    pub power_limit: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// MHz.
    pub sm_clock: Option<u32>,
    pub memory_clock: Option<u32>,
    /// Uncorrected errors since boot; `None` where ECC is off.
    pub ecc_errors: Option<u64>,
    /// Why its clocks are reduced.
    #[serde(default)]
    pub throttle_reasons: Vec<String>,
}

/// A partition of a GPU that works like a GPU of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigInstance {
    pub index: u32,
    pub uuid: GpuUuid,
    pub name: String,
    /// Bytes; `None` if the driver does not report it.
    pub memory_total: Option<u64>,
    pub memory_used: Option<u64>,
    /// Percent; `None` with today's drivers, since NVML does not report it per instance.
    pub utilization: Option<u32>,
}

words! {
    /// The list of the driver in which a process appears.
    ProcessKind, "kind of process on a GPU" {
        Compute = "compute",
        Graphics = "graphics",
        Mps = "mps",
    }
}
