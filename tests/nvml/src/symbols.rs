//! NVML's C functions. Types and numbers as in `nvml.h`.

#![allow(non_snake_case, reason = "the names are NVML's")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong},
    iter, ptr,
    time::{Duration, SystemTime},
};

use nvml_wrapper_sys::bindings::{
    nvmlEventData_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t,
    nvmlProcessUtilizationSample_t, nvmlTemperature_t, nvmlUtilization_t,
};

use crate::{
    Clocks, Code, Kind, State,
    code::text,
    library::{
        Answer, Device, Handle, SetHandle, create_event_set, find_device, free_event_set, initialise, on_device,
        on_system, shut_down, wait_for_xid, watch,
    },
    state::Process,
};

/// `NVML_VALUE_NOT_AVAILABLE`, for memory and for the ids of instances.
const NO_MEMORY: u64 = u64::MAX;
const NO_INSTANCE: u32 = u32::MAX;
/// `nvmlEventTypeXidCriticalError`, the only event supported here.
const XID: c_ulonglong = 8;
/// How many samples the driver keeps; it always reports this number, even if it has fewer.
const SAMPLES_KEPT: usize = 100;
/// `NVML_STRUCT_VERSION`: the size, and the version above it.
const MEMORY_V2: c_uint = size_of::<nvmlMemory_v2_t>() as c_uint | 2 << 24;
const TEMPERATURE_V1: c_uint = size_of::<nvmlTemperature_t>() as c_uint | 1 << 24;

/// A caller's pointer to a value. By NVML's contract null, or valid for reading and writing one.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

/// A caller's buffer for text, with its length in another argument. By NVML's contract null, or that many bytes.
#[repr(transparent)]
pub struct Text(*mut c_char);

/// A caller's buffer for a list, with its count in another argument. By NVML's contract null, or room for that many.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct List<T>(*mut T);

/// A caller's text. By NVML's contract null, or NUL-terminated.
#[repr(transparent)]
pub struct Given(*const c_char);

impl<T: Copy> Out<T> {
    fn put(self, value: T) -> Answer {
        self.get()?;
        // SAFETY: not null, and so valid by the contract of the type.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// For values that not every GPU has.
    fn put_known(self, value: Option<T>) -> Answer {
        self.put(value.ok_or(Code::NotSupported)?)
    }

    fn get(self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(Code::InvalidArgument);
        }
        // SAFETY: not null, and so valid by the contract of the type; every T here is plain numbers.
        Ok(unsafe { self.0.read() })
    }
}

impl Text {
    fn put(self, length: c_uint, value: &str) -> Answer {
        if self.0.is_null() {
            return Err(Code::InvalidArgument);
        }
        if value.len() >= length as usize {
            return Err(Code::InsufficientSize);
        }
        // SAFETY: not null, so `length` bytes by the contract of the type, which is more than the text has.
        unsafe {
            ptr::copy_nonoverlapping(value.as_ptr().cast(), self.0, value.len());
            self.0.add(value.len()).write(0);
        }
        Ok(())
    }
}

impl Given {
    fn read(&self) -> Result<&str, Code> {
        if self.0.is_null() {
            return Err(Code::InvalidArgument);
        }
        // SAFETY: not null, and so NUL-terminated by the contract of the type; borrowed for the call only.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Code::InvalidArgument)
    }
}

impl<T: Copy> List<T> {
    /// Rows that start `stride` bytes apart. None is written unless all fit.
    fn put(self, count: Out<c_uint>, rows: &[T], stride: usize) -> Answer {
        let room = count.get()? as usize * size_of::<T>();
        count.put(rows.len() as c_uint)?;
        if rows.len() * stride > room {
            return Err(Code::InsufficientSize);
        }
        if self.0.is_null() && !rows.is_empty() {
            return Err(Code::InvalidArgument);
        }
        for (place, row) in rows.iter().enumerate() {
            // SAFETY: not null, so `room` bytes by the contract of the type, and every row ends within them.
            unsafe { self.0.byte_add(place * stride).write_unaligned(*row) };
        }
        Ok(())
    }
}

/// Functions of a device, given its handle first: `name(device, further: Type…) => answer;`.
macro_rules! on_device {
    ($($name:ident($device:ident $(, $argument:ident: $type:ty)*) => $body:expr;)*) => {$(
        // SAFETY: the name is NVML's, and nothing else of this library has it.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(handle: Handle $(, $argument: $type)*) -> Code {
            on_device(stringify!($name), handle, |$device| $body)
        }
    )*};
}

/// Functions of no device: `name(state, further: Type…) => answer;`.
macro_rules! on_system {
    ($($name:ident($state:ident $(, $argument:ident: $type:ty)*) => $body:expr;)*) => {$(
        // SAFETY: the name is NVML's, and nothing else of this library has it.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($argument: $type),*) -> Code {
            on_system(stringify!($name), |$state| $body)
        }
    )*};
}

/// Functions that look up the state themselves, by their name: `name(NAME, further: Type…) => answer;`.
macro_rules! plain {
    ($($name:ident($own_name:ident $(, $argument:ident: $type:ty)*) => $body:expr;)*) => {$(
        // SAFETY: the name is NVML's, and nothing else of this library has it.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($argument: $type),*) -> Code {
            let answer = |$own_name: &str| -> Answer { $body };
            answer(stringify!($name)).into()
        }
    )*};
}

/// Lists of processes: `name: Kind, version, row;`.
macro_rules! process_lists {
    ($($name:ident: $kind:ident, $version:literal, $row:ty;)*) => {
        on_device! {$(
            $name(device, count: Out<c_uint>, infos: List<$row>) => list(device, Kind::$kind, $version, count, infos);
        )*}
    };
}

// SAFETY: the name is NVML's, and nothing else of this library has it.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(number: c_uint) -> *const c_char {
    text(number).as_ptr()
}

plain! {
    nvmlInit_v2(name) => initialise(name);
    nvmlInitWithFlags(name, _flags: c_uint) => initialise(name);
    nvmlShutdown(_name) => shut_down();

    nvmlDeviceGetHandleByIndex_v2(name, index: c_uint, device: Out<Handle>) => {
        let in_range = |state: &State| Some(index as usize).filter(|index| *index < state.devices.len());
        device.put(find_device(name, |state| in_range(state).ok_or(Code::InvalidArgument))?)
    };
    nvmlDeviceGetHandleByUUID(name, uuid: Given, device: Out<Handle>) => {
        let uuid = uuid.read()?;
        device.put(find_device(name, |state| Ok(state.gpu(uuid).ok_or(Code::NotFound)?.0))?)
    };

    nvmlEventSetFree(_name, set: SetHandle) => free_event_set(set);
    nvmlEventSetWait_v2(name, set: SetHandle, event: Out<nvmlEventData_t>, milliseconds: c_uint) => {
        let (device, xid) = wait_for_xid(name, set, Duration::from_millis(milliseconds.into()))?;
        event.put(nvmlEventData_t {
            device: device.as_nvml(),
            eventType: XID,
            eventData: xid,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        })
    };
}

on_system! {
    nvmlSystemGetDriverVersion(state, version: Text, length: c_uint) => version.put(length, &state.driver_version);
    nvmlSystemGetNVMLVersion(state, version: Text, length: c_uint) => version.put(length, &state.nvml_version);
    nvmlSystemGetCudaDriverVersion(state, version: Out<c_int>) => version.put(state.cuda_version);
    nvmlSystemGetCudaDriverVersion_v2(state, version: Out<c_int>) => version.put(state.cuda_version);
    nvmlDeviceGetCount_v2(state, count: Out<c_uint>) => count.put(state.devices.len() as c_uint);
    nvmlEventSetCreate(_state, set: Out<SetHandle>) => set.put(create_event_set());
}

on_device! {
    nvmlDeviceGetUUID(device, uuid: Text, length: c_uint) => {
        uuid.put(length, device.instance.map_or(&device.any.uuid, |instance| &instance.uuid))
    };
    nvmlDeviceGetName(device, name: Text, length: c_uint) => {
        name.put(length, device.instance.map_or(&device.any.name, |instance| &instance.name))
    };
    nvmlDeviceGetIndex(device, index: Out<c_uint>) => device.whole().and(index.put(device.index as c_uint));
    nvmlDeviceGetMinorNumber(device, minor: Out<c_uint>) => device.whole().and(minor.put(device.index as c_uint));
    nvmlDeviceGetPciInfo_v3(device, pci: Out<nvmlPciInfo_t>) => device.whole().and(pci.put(pci_info(device.index)));

    nvmlDeviceGetMemoryInfo(device, memory: Out<nvmlMemory_t>) => {
        let (total, reserved, used) = memory_of(device);
        memory.put(nvmlMemory_t { total, free: total.saturating_sub(reserved + used), used: reserved + used })
    };
    nvmlDeviceGetMemoryInfo_v2(device, memory: Out<nvmlMemory_v2_t>) => {
        let (total, reserved, used) = memory_of(device);
        if memory.get()?.version != MEMORY_V2 {
            return Err(Code::ArgumentVersionMismatch);
        }
        let free = total.saturating_sub(reserved + used);
        memory.put(nvmlMemory_v2_t { version: MEMORY_V2, total, reserved, free, used })
    };

    nvmlDeviceGetUtilizationRates(device, rates: Out<nvmlUtilization_t>) => {
        let gpu = device.whole()?;
        let known = gpu.utilization.filter(|_| device.mig().is_none());
        rates.put_known(known.map(|percent| nvmlUtilization_t { gpu: percent, memory: gpu.memory_utilization }))
    };
    nvmlDeviceGetPowerUsage(device, milliwatts: Out<c_uint>) => milliwatts.put_known(device.whole()?.power_mw);
    nvmlDeviceGetEnforcedPowerLimit(device, limit: Out<c_uint>) => limit.put_known(device.whole()?.power_limit_mw);
    nvmlDeviceGetPowerManagementLimit(device, limit: Out<c_uint>) => limit.put_known(device.whole()?.power_limit_mw);
    nvmlDeviceGetTotalEnergyConsumption(device, millijoules: Out<c_ulonglong>) => {
        millijoules.put_known(device.whole()?.energy_mj)
    };
    nvmlDeviceGetTemperature(device, sensor: c_uint, degrees: Out<c_uint>) => match sensor {
        0 => degrees.put_known(device.whole()?.temperature),
        _ => Err(Code::InvalidArgument),
    };
    nvmlDeviceGetTemperatureV(device, temperature: Out<nvmlTemperature_t>) => {
        let asked = temperature.get()?;
        if asked.version != TEMPERATURE_V1 {
            return Err(Code::ArgumentVersionMismatch);
        }
        let known = device.whole()?.temperature;
        temperature.put_known(known.map(|degrees| nvmlTemperature_t { temperature: degrees as c_int, ..asked }))
    };
    nvmlDeviceGetFanSpeed(device, percent: Out<c_uint>) => percent.put_known(device.whole()?.fan);
    nvmlDeviceGetClockInfo(device, kind: c_uint, clock: Out<c_uint>) => {
        clock.put(clock_of(device.whole()?.clocks, kind)?)
    };
    nvmlDeviceGetMaxClockInfo(device, kind: c_uint, clock: Out<c_uint>) => {
        clock.put(clock_of(device.whole()?.max_clocks, kind)?)
    };
    // 0 is the fastest of the states, 8 the one of an idle GPU.
    nvmlDeviceGetPerformanceState(device, state: Out<c_uint>) => {
        state.put(if device.whole()?.utilization == Some(0) { 8 } else { 0 })
    };
    nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons: Out<c_ulonglong>) => {
        reasons.put_known(device.whole()?.throttle_reasons)
    };
    nvmlDeviceGetCurrentClocksEventReasons(device, reasons: Out<c_ulonglong>) => {
        reasons.put_known(device.whole()?.throttle_reasons)
    };
    nvmlDeviceGetEccMode(device, current: Out<c_uint>, pending: Out<c_uint>) => {
        let enabled = device.whole()?.ecc.map(|_| 1);
        current.put_known(enabled).and(pending.put_known(enabled))
    };
    nvmlDeviceGetTotalEccErrors(device, kind: c_uint, _counter: c_uint, errors: Out<c_ulonglong>) => {
        errors.put_known(device.whole()?.ecc.map(|ecc| if kind == 0 { ecc.corrected } else { ecc.uncorrected }))
    };

    nvmlDeviceGetProcessUtilization(
        device, samples: List<nvmlProcessUtilizationSample_t>, count: Out<c_uint>, last_seen: c_ulonglong
    ) => {
        device.whole()?;
        if device.mig().is_some() {
            return Err(Code::NotSupported);
        }
        let found: Vec<_> = device.processes().filter_map(sample).filter(|new| new.timeStamp > last_seen).collect();
        if samples.0.is_null() || count.get()? == 0 {
            count.put(found.len().max(SAMPLES_KEPT) as c_uint)?;
            return Err(Code::InsufficientSize);
        }
        if found.is_empty() {
            return Err(Code::NotFound);
        }
        samples.put(count, &found, size_of::<nvmlProcessUtilizationSample_t>())
    };

    nvmlDeviceGetMigMode(device, current: Out<c_uint>, pending: Out<c_uint>) => {
        let enabled = device.whole()?.mig.as_ref().map(|mig| mig.enabled.into());
        current.put_known(enabled).and(pending.put_known(enabled))
    };
    nvmlDeviceGetMaxMigDeviceCount(device, count: Out<c_uint>) => count.put(device.mig().map_or(0, |_| 7));
    nvmlDeviceGetMigDeviceHandleByIndex(device, index: c_uint, found: Out<Handle>) => {
        let instances = &device.mig().ok_or(Code::NotSupported)?.instances;
        found.put(device.instance_handle(instances.get(index as usize).ok_or(Code::NotFound)?))
    };
    nvmlDeviceIsMigDeviceHandle(device, answer: Out<c_uint>) => answer.put(device.instance.is_some().into());
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device, parent: Out<Handle>) => {
        device.mig_instance().and(parent.put(device.parent()))
    };
    nvmlDeviceGetGpuInstanceId(device, id: Out<c_uint>) => id.put(device.mig_instance()?.gpu_instance);
    nvmlDeviceGetComputeInstanceId(device, id: Out<c_uint>) => id.put(device.mig_instance()?.compute_instance);

    nvmlDeviceGetSupportedEventTypes(device, types: Out<c_ulonglong>) => device.whole().and(types.put(XID));
    nvmlDeviceRegisterEvents(device, types: c_ulonglong, set: SetHandle) => match types {
        XID => watch(device, set),
        _ => Err(Code::NotSupported),
    };
}

process_lists! {
    nvmlDeviceGetComputeRunningProcesses: Compute, 1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetComputeRunningProcesses_v2: Compute, 2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetComputeRunningProcesses_v3: Compute, 3, nvmlProcessInfo_v2_t;
    nvmlDeviceGetGraphicsRunningProcesses: Graphics, 1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetGraphicsRunningProcesses_v2: Graphics, 2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetGraphicsRunningProcesses_v3: Graphics, 3, nvmlProcessInfo_v2_t;
    nvmlDeviceGetMPSComputeRunningProcesses: Mps, 1, nvmlProcessInfo_v1_t;
    nvmlDeviceGetMPSComputeRunningProcesses_v2: Mps, 2, nvmlProcessInfo_v2_t;
    nvmlDeviceGetMPSComputeRunningProcesses_v3: Mps, 3, nvmlProcessInfo_v2_t;
}

/// Total, reserved, used.
fn memory_of(device: Device) -> (u64, u64, u64) {
    match device.instance {
        Some(instance) => (instance.memory_total, 0, instance.memory_used),
        None => (device.any.memory_total, device.any.memory_reserved, device.any.memory_used),
    }
}

/// `nvmlClockType_t`.
fn clock_of(clocks: Option<Clocks>, kind: c_uint) -> Result<c_uint, Code> {
    let clocks = clocks.ok_or(Code::NotSupported)?;
    [clocks.graphics, clocks.sm, clocks.memory, clocks.video].get(kind as usize).copied().ok_or(Code::InvalidArgument)
}

/// Each GPU on a bus of its own.
fn pci_info(index: usize) -> nvmlPciInfo_t {
    fn padded<const N: usize>(text: &str) -> [c_char; N] {
        let mut bytes = text.bytes().map(|byte| byte as c_char).chain(iter::repeat(0));
        std::array::from_fn(|_| bytes.next().unwrap_or(0))
    }
    let bus = index as c_uint + 1;
    nvmlPciInfo_t {
        busIdLegacy: padded(&format!("0000:{bus:02X}:00.0")),
        domain: 0,
        bus,
        device: 0,
        pciDeviceId: 0x20b2_10de,
        pciSubSystemId: 0x1463_10de,
        busId: padded(&format!("00000000:{bus:02X}:00.0")),
    }
}

/// A row of a process list.
trait Row: Copy {
    fn of(process: &Process) -> Self;
}

impl Row for nvmlProcessInfo_v1_t {
    fn of(process: &Process) -> Self {
        Self { pid: process.pid, usedGpuMemory: process.used_memory.unwrap_or(NO_MEMORY) }
    }
}

impl Row for nvmlProcessInfo_v2_t {
    fn of(process: &Process) -> Self {
        Self {
            pid: process.pid,
            usedGpuMemory: process.used_memory.unwrap_or(NO_MEMORY),
            gpuInstanceId: process.gpu_instance.unwrap_or(NO_INSTANCE),
            computeInstanceId: process.compute_instance.unwrap_or(NO_INSTANCE),
        }
    }
}

fn list<T: Row>(device: Device, kind: Kind, version: u8, count: Out<c_uint>, infos: List<T>) -> Answer {
    let rows: Vec<T> = device.processes().filter(|process| process.kinds.contains(&kind)).map(T::of).collect();
    let wider = if version == 3 && device.state.wide_process_rows { size_of::<u64>() } else { 0 };
    infos.put(count, &rows, size_of::<T>() + wider)
}

fn sample(process: &Process) -> Option<nvmlProcessUtilizationSample_t> {
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
    Some(nvmlProcessUtilizationSample_t {
        pid: process.pid,
        timeStamp: process.timestamp_us.unwrap_or_else(now),
        smUtil: process.sm_util?,
        memUtil: process.mem_util,
        encUtil: 0,
        decUtil: 0,
    })
}
