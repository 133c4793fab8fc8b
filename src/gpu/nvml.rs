//! NVML: opens the library and reads one GPU.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use nvml_wrapper::{
    Device as Handle, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};

use super::{Kinds, MigInstance, Reading, old_memory::OldMemory};
use crate::{host::process, model::usage::GpuUuid};

/// Drivers often ship only the first one.
const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// Why NVML, or a GPU, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("there is no NVIDIA driver")]
    Absent,
    #[error("the driver was upgraded and not reloaded: reboot, or unload and load the nvidia kernel modules")]
    Mismatch,
    #[error(
        "the GPU is lost: it fell off the bus or needs a reset; `dmesg | grep Xid` shows details, a reboot usually brings it back"
    )]
    Lost,
    #[error("a call to the driver for this GPU hangs")]
    Hangs,
    #[error("{0}")]
    Other(NvmlError),
}

impl DriverError {
    /// Whether all handles must be dropped and the library reopened.
    pub fn needs_reopening(&self) -> bool {
        match self {
            Self::Absent | Self::Mismatch | Self::Lost => true,
            Self::Hangs => false,
            Self::Other(error) => {
                matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::Unknown)
            }
        }
    }
}

impl From<NvmlError> for DriverError {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Self::Absent,
            NvmlError::LibRmVersionMismatch => Self::Mismatch,
            NvmlError::GpuLost | NvmlError::ResetRequired => Self::Lost,
            other => Self::Other(other),
        }
    }
}

/// The opened library.
pub struct Library {
    nvml: Nvml,
    old_memory: OldMemory,
    pub driver: String,
}

/// A GPU as NVML shows it.
pub struct RawDevice {
    pub reading: Reading,
    /// When the processes were listed, in ticks since boot.
    pub listed_at: u64,
    /// By PID: a process with several contexts on a GPU is one entry.
    pub processes: BTreeMap<i32, RawProcess>,
    pub mig: Vec<MigInstance>,
    /// The newest utilisation sample, for the next call.
    pub last_sample: u64,
}

/// A process as NVML shows it.
#[derive(Debug, Default, PartialEq)]
pub struct RawProcess {
    pub kinds: Kinds,
    pub memory: Option<u64>,
    pub utilization: Option<u32>,
    pub gpu_instance: Option<u32>,
}

/// Opens the configured library, or the first one that the loader finds.
pub fn open(path: Option<&Path>) -> Result<Nvml, DriverError> {
    let mut last = DriverError::Absent;
    for name in names(path) {
        match Nvml::builder().lib_path(&name).init().map_err(DriverError::from) {
            Ok(nvml) => return Ok(nvml),
            Err(DriverError::Absent) => {}
            Err(trouble) => last = trouble,
        }
    }
    Err(last)
}

/// The libraries to try, in this order.
fn names(path: Option<&Path>) -> Vec<OsString> {
    path.map_or_else(|| NAMES.iter().map(OsString::from).collect(), |path| vec![path.into()])
}

impl Library {
    pub fn open(path: Option<&Path>) -> Result<Self, DriverError> {
        let nvml = open(path)?;
        let driver = nvml.sys_driver_version().unwrap_or_default();
        Ok(Self { nvml, old_memory: OldMemory::new(names(path)), driver })
    }

    pub fn count(&self) -> Result<u32, DriverError> {
        Ok(self.nvml.device_count()?)
    }

    /// UUID and name.
    pub fn identify(&self, index: u32) -> Result<(GpuUuid, String), DriverError> {
        let handle = self.nvml.device_by_index(index)?;
        Ok((GpuUuid(handle.uuid()?), handle.name().unwrap_or_default()))
    }

    /// Reads one GPU. What the GPU does not support is left out; a failure of what it should support is an error.
    pub fn read(&self, index: u32, last_sample: u64) -> Result<RawDevice, DriverError> {
        let handle = self.nvml.device_by_index(index)?;
        let mig = self.read_mig(&handle)?;
        let memory = self.memory(&handle)?;
        let reading = Reading {
            memory_total: memory.map(|(total, _)| total),
            memory_used: memory.map(|(_, used)| used),
            // Not available for a GPU that is split into MIG instances.
            utilization: optional(handle.utilization_rates())?.map(|rates| rates.gpu),
            power: optional(handle.power_usage())?.map(watts),
            power_limit: optional(handle.enforced_power_limit())?.map(watts),
            temperature: optional(handle.temperature(TemperatureSensor::Gpu))?,
            sm_clock: optional(handle.clock_info(Clock::SM))?,
            memory_clock: optional(handle.clock_info(Clock::Memory))?,
            ecc_errors: optional(handle.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?,
            throttle_reasons: optional(handle.current_throttle_reasons())?.map(throttle_reasons).unwrap_or_default(),
        };
        let listed_at = process::ticks_now();
        let mut processes = BTreeMap::new();
        let compute = listed(handle.running_compute_processes(), || handle.running_compute_processes_v2())?;
        let graphics = listed(handle.running_graphics_processes(), || handle.running_graphics_processes_v2())?;
        merge(&mut processes, |kinds| kinds.compute = true, compute);
        merge(&mut processes, |kinds| kinds.graphics = true, graphics);
        merge(&mut processes, |kinds| kinds.mps = true, optional(handle.mps_running_compute_processes())?);
        let mut newest = last_sample;
        for sample in optional(handle.process_utilization_stats(last_sample))?.unwrap_or_default() {
            newest = newest.max(sample.timestamp);
            if let Some(process) = i32::try_from(sample.pid).ok().and_then(|pid| processes.get_mut(&pid)) {
                process.utilization = Some(process.utilization.unwrap_or(0).max(sample.sm_util));
            }
        }
        Ok(RawDevice { reading, listed_at, processes, mig, last_sample: newest })
    }

    /// Total and used, bytes. Drivers before 510 have only the first version of the call.
    fn memory(&self, handle: &Handle) -> Result<Option<(u64, u64)>, DriverError> {
        let newer = handle.memory_info().map(|memory| (memory.total, memory.used));
        optional(match newer {
            Err(NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)) => self.old_memory.ask(handle),
            other => other,
        })
    }

    fn read_mig(&self, handle: &Handle) -> Result<Vec<MigInstance>, DriverError> {
        if optional(handle.mig_mode())?.is_none_or(|mode| mode.current == 0) {
            return Ok(Vec::new());
        }
        let mut instances = Vec::new();
        for index in 0..optional(handle.mig_device_count())?.unwrap_or(0) {
            // Indices may have gaps.
            let Some(instance) = optional(handle.mig_device_by_index(index))? else { continue };
            let memory = self.memory(&instance)?;
            instances.push(MigInstance {
                index,
                uuid: GpuUuid(optional(instance.uuid())?.unwrap_or_default()),
                name: optional(instance.name())?.unwrap_or_default(),
                memory_total: memory.map(|(total, _)| total),
                memory_used: memory.map(|(_, used)| used),
                utilization: optional(instance.utilization_rates())?.map(|rates| rates.gpu),
            });
        }
        Ok(instances)
    }
}

/// `None` for what this GPU, driver or moment does not have.
fn optional<T>(result: Result<T, NvmlError>) -> Result<Option<T>, DriverError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NotFound
            | NvmlError::NoPermission
            | NvmlError::NoData
            | NvmlError::InvalidArg
            | NvmlError::InsufficientSize(_)
            | NvmlError::UnexpectedVariant(_)
            | NvmlError::IncorrectBits(_),
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A list of processes; uses the older call if the driver (before 510) lacks the newer one. Having neither is an error:
/// an empty list would mean that the GPU is free.
fn listed(
    newer: Result<Vec<ProcessInfo>, NvmlError>,
    older: impl FnOnce() -> Result<Vec<ProcessInfo>, NvmlError>,
) -> Result<Option<Vec<ProcessInfo>>, DriverError> {
    match newer {
        Err(NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)) => Ok(Some(older()?)),
        Err(NvmlError::NotSupported) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// A process may be in several lists, and have several contexts: its memory is the largest total that one list reports.
fn merge(processes: &mut BTreeMap<i32, RawProcess>, note: impl Fn(&mut Kinds), list: Option<Vec<ProcessInfo>>) {
    let mut list = list.unwrap_or_default();
    list.sort_by_key(|info| info.pid);
    for contexts in list.chunk_by(|one, next| one.pid == next.pid) {
        let Ok(pid) = i32::try_from(contexts[0].pid) else { continue };
        let process = processes.entry(pid).or_default();
        note(&mut process.kinds);
        let instance = contexts.iter().find_map(|info| info.gpu_instance_id);
        process.gpu_instance = process.gpu_instance.or(instance);
        let told = contexts.iter().filter_map(|info| match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        });
        process.memory = process.memory.max(told.reduce(u64::saturating_add));
    }
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

fn throttle_reasons(reasons: ThrottleReasons) -> Vec<String> {
    // Idle is not a reason of slowness.
    let slow = reasons - ThrottleReasons::GPU_IDLE - ThrottleReasons::NONE;
    slow.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
}
