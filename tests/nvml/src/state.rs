//! The state file.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::Code;

/// The environment variable that names the file.
pub const STATE_VARIABLE: &str = "PODY_NVML_STATE";

const GIB: u64 = 1 << 30;

/// The whole file. A GPU's index is its place in `devices`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// A different number is a reloaded driver.
    pub generation: u64,
    /// Determines which functions exist.
    pub driver_version: String,
    pub nvml_version: String,
    /// 1000 × major + 10 × minor.
    pub cuda_version: i32,
    /// What `nvmlInit` answers: `DRIVER_NOT_LOADED`, `LIB_RM_VERSION_MISMATCH` and the like.
    pub init_error: Option<Code>,
    /// Process lists of version 3 have rows of 32 bytes, as in the first drivers of branch 535: callers that expect 24
    /// read garbage.
    pub wide_process_rows: bool,
    /// For all GPUs, and for functions that concern none. A GPU's own take precedence.
    pub faults: Faults,
    pub devices: Vec<Gpu>,
}

/// By function, or `*` for all functions without an entry.
pub type Faults = BTreeMap<String, Fault>;

/// `{"error": "GPU_IS_LOST"}`, `{"delay_ms": 50}` or `"hang"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Error(Code),
    /// Answers after this many milliseconds.
    DelayMs(u64),
    /// Answers once the file no longer asks for this.
    Hang,
}

/// One GPU. `null` in an optional value means that the GPU does not support it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Of one GPU only.
    pub uuid: String,
    pub name: String,
    /// In bytes, like all memory here.
    pub memory_total: u64,
    /// Without the reserved memory.
    pub memory_used: u64,
    /// Reserved by the driver.
    pub memory_reserved: u64,
    /// Percent, like the next.
    pub utilization: Option<u32>,
    pub memory_utilization: u32,
    pub power_mw: Option<u32>,
    pub power_limit_mw: Option<u32>,
    /// Since the driver was loaded.
    pub energy_mj: Option<u64>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Percent.
    pub fan: Option<u32>,
    pub clocks: Option<Clocks>,
    pub max_clocks: Option<Clocks>,
    pub ecc: Option<Ecc>,
    /// Bits as `nvmlClocksEventReason…`; 1 is "idle", 0x40 is "hardware, too hot".
    pub throttle_reasons: Option<u64>,
    /// `null`: cannot be partitioned.
    pub mig: Option<Mig>,
    /// Only grows: each one added is an event for callers that registered before.
    pub xids: Vec<u64>,
    pub processes: Vec<Process>,
    pub faults: Faults,
}

/// MHz.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clocks {
    pub graphics: u32,
    pub sm: u32,
    pub memory: u32,
    pub video: u32,
}

/// Memory errors, since the driver was loaded and over the GPU's lifetime.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ecc {
    pub corrected: u64,
    pub uncorrected: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mig {
    pub enabled: bool,
    pub instances: Vec<MigInstance>,
}

/// A device of a partitioned GPU; `processes` of that GPU name it by `gpu_instance` and `compute_instance`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigInstance {
    pub uuid: String,
    pub name: String,
    pub gpu_instance: u32,
    pub compute_instance: u32,
    pub memory_total: u64,
    pub memory_used: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// On the host.
    pub pid: u32,
    /// The lists that contain it.
    pub kinds: Vec<Kind>,
    /// `null`: not available.
    pub used_memory: Option<u64>,
    pub gpu_instance: Option<u32>,
    pub compute_instance: Option<u32>,
    /// Percent. `null`: no sample of it.
    pub sm_util: Option<u32>,
    pub mem_util: u32,
    /// When the sample was taken, in microseconds since 1970. `null`: just now.
    pub timestamp_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Compute,
    Graphics,
    Mps,
}

impl State {
    /// Idle GPUs, 0 up to `count`.
    pub fn with_gpus(count: u32) -> Self {
        Self { devices: (0..count).map(Gpu::numbered).collect(), ..Self::default() }
    }

    /// Replaces the file atomically: a reader sees the old one or the new one.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, path)
    }

    pub(crate) fn gpu(&self, uuid: &str) -> Option<(usize, &Gpu)> {
        self.devices.iter().enumerate().find(|(_, gpu)| gpu.uuid == uuid)
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            generation: 0,
            driver_version: "550.54.15".to_owned(),
            nvml_version: "12.550.54.15".to_owned(),
            cuda_version: 12_040,
            init_error: None,
            wide_process_rows: false,
            faults: Faults::new(),
            devices: Vec::new(),
        }
    }
}

impl Gpu {
    /// An idle GPU with a UUID of its own.
    pub fn numbered(number: u32) -> Self {
        Self { uuid: format!("GPU-00000000-0000-0000-0000-{number:012x}"), ..Self::default() }
    }
}

impl Default for Gpu {
    fn default() -> Self {
        let max_clocks = Clocks { graphics: 1_410, sm: 1_410, memory: 1_593, video: 1_290 };
        Self {
            uuid: "GPU-00000000-0000-0000-0000-000000000000".to_owned(),
            name: "NVIDIA A100-SXM4-80GB".to_owned(),
            memory_total: 80 * GIB,
            memory_used: 0,
            memory_reserved: GIB / 2,
            utilization: Some(0),
            memory_utilization: 0,
            power_mw: Some(62_000),
            power_limit_mw: Some(400_000),
            energy_mj: Some(0),
            temperature: Some(31),
            fan: None,
            clocks: Some(Clocks { graphics: 210, sm: 210, ..max_clocks }),
            max_clocks: Some(max_clocks),
            ecc: Some(Ecc::default()),
            throttle_reasons: Some(1),
            mig: None,
            xids: Vec::new(),
            processes: Vec::new(),
            faults: Faults::new(),
        }
    }
}

impl Process {
    /// One that computes and holds memory.
    pub fn computing(pid: u32, used_memory: u64) -> Self {
        Self { pid, used_memory: Some(used_memory), ..Self::default() }
    }
}

impl Default for Process {
    fn default() -> Self {
        Self {
            pid: 0,
            kinds: vec![Kind::Compute],
            used_memory: None,
            gpu_instance: None,
            compute_instance: None,
            sm_util: None,
            mem_util: 0,
            timestamp_us: None,
        }
    }
}
