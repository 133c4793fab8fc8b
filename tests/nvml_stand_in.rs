//! The stand-in for libnvidia-ml, as nvml-wrapper and older callers see it.

mod common;

use std::{
    env,
    ffi::{c_uint, c_void},
    ops::Deref,
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::{device::UsedGpuMemory, event::XidError},
    error::NvmlError,
};

use common::gpus::{Code, Ecc, Fault, Faults, Gpu, Gpus, Kind, Mig, MigInstance, Process, STATE_VARIABLE, State};

const V1: &str = "nvmlDeviceGetComputeRunningProcesses";
const V2: &str = "nvmlDeviceGetComputeRunningProcesses_v2";
const V3: &str = "nvmlDeviceGetComputeRunningProcesses_v3";

/// A test's exclusive use of the stand-in.
struct Turn {
    gpus: Gpus,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = Gpus;

    fn deref(&self) -> &Gpus {
        &self.gpus
    }
}

/// The library is one per process, and so is its state: tests take turns.
fn with_state(state: State) -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let gpus = Gpus::new(state);
    // SAFETY: everything here that reads the environment does so through std, which synchronizes readers and writers.
    unsafe { env::set_var(STATE_VARIABLE, gpus.state_file()) };
    Turn { gpus, _turn: turn }
}

fn open(gpus: &Gpus) -> Nvml {
    try_open(gpus).expect("a driver")
}

fn try_open(gpus: &Gpus) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(gpus.library().as_os_str()).init()
}

fn faults(function: &str, fault: Fault) -> Faults {
    Faults::from([(function.to_owned(), fault)])
}

fn pids(device: &Device) -> Vec<u32> {
    device.running_compute_processes().expect("a list").iter().map(|process| process.pid).collect()
}

#[test]
fn a_gpus_values_are_read() {
    let gpu = Gpu {
        memory_used: 3 << 30,
        utilization: Some(97),
        memory_utilization: 40,
        ecc: Some(Ecc { corrected: 3, uncorrected: 1 }),
        throttle_reasons: Some(0x40),
        power_mw: None,
        ..Gpu::numbered(1)
    };
    let gpus = with_state(State { devices: vec![Gpu::numbered(0), gpu], ..State::default() });
    let nvml = open(&gpus);
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.54.15");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "12.550.54.15");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12_040);
    assert_eq!(nvml.device_count().unwrap(), 2);

    let device = nvml.device_by_uuid("GPU-00000000-0000-0000-0000-000000000001").unwrap();
    assert_eq!(device.uuid().unwrap(), "GPU-00000000-0000-0000-0000-000000000001");
    assert_eq!(device.name().unwrap(), "NVIDIA A100-SXM4-80GB");
    assert_eq!((device.index().unwrap(), device.minor_number().unwrap()), (1, 1));
    assert_eq!(device.pci_info().unwrap().bus_id, "00000000:02:00.0");
    let memory = device.memory_info().unwrap();
    assert_eq!((memory.total, memory.used, memory.free), (80 << 30, 3 << 30, (77 << 30) - (1 << 29)));
    let rates = device.utilization_rates().unwrap();
    assert_eq!((rates.gpu, rates.memory), (97, 40));
    assert!(matches!(device.power_usage(), Err(NvmlError::NotSupported)));
    assert_eq!(device.enforced_power_limit().unwrap(), 400_000);
    assert_eq!(device.power_management_limit().unwrap(), 400_000);
    assert_eq!(device.total_energy_consumption().unwrap(), 0);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 31);
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 210);
    assert_eq!(device.max_clock_info(Clock::Graphics).unwrap(), 1_410);
    assert_eq!(device.current_throttle_reasons().unwrap(), ThrottleReasons::HW_THERMAL_SLOWDOWN);
    assert!(device.is_ecc_enabled().unwrap().currently_enabled);
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).unwrap();
    assert_eq!((errors(MemoryError::Corrected), errors(MemoryError::Uncorrected)), (3, 1));
    assert!(matches!(device.mig_mode(), Err(NvmlError::NotSupported)));
    assert_eq!(device.mig_device_count().unwrap(), 0);

    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
    assert!(matches!(device.serial(), Err(NvmlError::FailedToLoadSymbol(_))), "an error, not a crash");
}

#[test]
fn processes_are_listed_with_memory_and_utilization() {
    let mut state = State::with_gpus(1);
    state.devices[0].processes = vec![
        Process { sm_util: Some(55), mem_util: 7, timestamp_us: Some(1_000), ..Process::computing(100, 1 << 30) },
        Process { pid: 101, kinds: vec![Kind::Compute, Kind::Graphics], ..Process::default() },
        Process { pid: 102, kinds: vec![Kind::Mps], ..Process::default() },
    ];
    let gpus = with_state(state);
    let nvml = open(&gpus);
    let device = nvml.device_by_index(0).unwrap();

    let compute = device.running_compute_processes().unwrap();
    assert_eq!((compute[0].pid, &compute[0].used_gpu_memory), (100, &UsedGpuMemory::Used(1 << 30)));
    assert_eq!((compute[1].pid, &compute[1].used_gpu_memory), (101, &UsedGpuMemory::Unavailable));
    assert_eq!((compute[0].gpu_instance_id, compute[0].compute_instance_id), (None, None));
    assert_eq!(device.running_graphics_processes().unwrap()[0].pid, 101);
    assert_eq!(device.mps_running_compute_processes().unwrap()[0].pid, 102);

    let samples = device.process_utilization_stats(None).unwrap();
    assert_eq!(samples.len(), 1);
    assert_eq!((samples[0].pid, samples[0].sm_util, samples[0].timestamp), (100, 55, 1_000));
    assert!(matches!(device.process_utilization_stats(1_000), Err(NvmlError::NotFound)), "nothing newer");

    // Changes are seen at once, however quickly they follow each other.
    for pid in 200..300 {
        gpus.change(|state| state.devices[0].processes = vec![Process::computing(pid, 0)]);
        assert_eq!(pids(&device), [pid]);
    }
    gpus.change(|state| state.devices[0].processes.clear());
    assert!(pids(&device).is_empty());
    assert!(matches!(device.process_utilization_stats(None), Err(NvmlError::NotFound)));
}

#[test]
fn older_drivers_are_read_through_the_older_calls() {
    let mut state = State { driver_version: "440.33.01".to_owned(), ..State::with_gpus(1) };
    state.devices[0].processes = (1..=3).map(|pid| Process::computing(pid, 1 << pid)).collect();
    let gpus = with_state(state);
    let nvml = open(&gpus);
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(device.memory_info(), Err(NvmlError::FunctionNotFound)));
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::FunctionNotFound)));

    // The process lists by name, with room for this many rows. The driver writes rows of its own version's size; the
    // caller's buffer always has rows of the right size.
    let list = |name: &str, drivers_row: usize, room: usize| {
        type List = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut u32) -> c_uint;
        let callers_row = if name == V1 { 16 } else { 24 };
        let mut rows = vec![0; callers_row / 4 * room];
        let mut count = room as c_uint;
        let place = if room == 0 { ptr::null_mut() } else { rows.as_mut_ptr() };
        // SAFETY: the handle is one of this library; the buffer has room for as many rows as the call is given, each of
        // the right size.
        let code = unsafe {
            let list = nvml.lib().__library.get::<List>(name.as_bytes()).expect("a function of the library");
            list(device.handle().cast(), &mut count, place)
        };
        // The bytes between the PID and the memory are never written.
        rows.iter_mut().skip(1).step_by(drivers_row / 4).for_each(|padding| *padding = 0);
        (code, count, rows)
    };
    let none = u32::MAX;
    assert_eq!(list(V1, 16, 0), (Code::InsufficientSize as c_uint, 3, vec![]));
    assert_eq!(list(V1, 16, 2), (Code::InsufficientSize as c_uint, 3, vec![0; 8]), "all or nothing");
    assert_eq!(list(V1, 16, 3), (0, 3, vec![1, 0, 2, 0, 2, 0, 4, 0, 3, 0, 8, 0]));
    assert_eq!(list(V2, 24, 3).0, Code::FunctionNotFound as c_uint);

    gpus.change(|state| state.driver_version = "470.161.03".to_owned());
    assert_eq!(list(V2, 24, 3).2, [1, 0, 2, 0, none, none, 2, 0, 4, 0, none, none, 3, 0, 8, 0, none, none]);
    assert_eq!(list(V3, 24, 3).0, Code::FunctionNotFound as c_uint);

    gpus.change(|state| {
        state.driver_version = "535.54.03".to_owned();
        state.wide_process_rows = true;
    });
    assert_eq!(list(V3, 32, 4).2[..12], [1, 0, 2, 0, none, none, 0, 0, 2, 0, 4, 0]);
    assert_eq!(list(V3, 32, 3).0, Code::InsufficientSize as c_uint, "never past the end of the caller's buffer");
}

#[test]
fn faults_affect_one_gpu_or_all() {
    let gpus = with_state(State::with_gpus(2));
    let nvml = open(&gpus);
    let [first, second] = [0, 1].map(|index| nvml.device_by_index(index).unwrap());

    gpus.change(|state| state.devices[0].faults = faults("*", Fault::Error(Code::GpuIsLost)));
    assert!(matches!(first.temperature(TemperatureSensor::Gpu), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert!(second.temperature(TemperatureSensor::Gpu).is_ok());

    gpus.change(|state| {
        state.devices[0].faults.clear();
        state.faults = faults("nvmlDeviceGetUtilizationRates", Fault::Error(Code::Unknown));
    });
    assert!(matches!(second.utilization_rates(), Err(NvmlError::Unknown)));
    assert!(second.power_usage().is_ok());

    gpus.change(|state| state.faults = faults("nvmlDeviceGetPowerUsage", Fault::DelayMs(60)));
    let begun = Instant::now();
    assert!(first.power_usage().is_ok());
    assert!(begun.elapsed() >= Duration::from_millis(60));

    gpus.change(|state| {
        state.faults.clear();
        state.devices[0].faults = faults("nvmlDeviceGetUUID", Fault::Hang);
    });
    thread::scope(|scope| {
        let hanging = scope.spawn(|| first.uuid());
        thread::sleep(Duration::from_millis(60));
        assert!(!hanging.is_finished());
        assert!(second.uuid().is_ok(), "only that GPU hangs");
        gpus.change(|state| state.devices[0].faults.clear());
        assert!(hanging.join().unwrap().is_ok());
    });

    gpus.change(|state| drop(state.devices.remove(0)));
    assert!(matches!(first.uuid(), Err(NvmlError::GpuLost)), "fell off the bus");
    assert_eq!(second.index().unwrap(), 0);
}

#[test]
fn init_fails_until_the_driver_is_reloaded() {
    let gpus = with_state(State { init_error: Some(Code::LibRmVersionMismatch), ..State::with_gpus(1) });
    assert!(matches!(try_open(&gpus), Err(NvmlError::LibRmVersionMismatch)));
    gpus.change(|state| state.init_error = Some(Code::DriverNotLoaded));
    assert!(matches!(try_open(&gpus), Err(NvmlError::DriverNotLoaded)));
    gpus.change(|state| state.init_error = None);

    let nvml = open(&gpus);
    let device = nvml.device_by_index(0).unwrap();
    gpus.change(|state| state.generation += 1);
    assert!(matches!(device.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_count(), Err(NvmlError::Uninitialized)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::Uninitialized)));
    nvml.shutdown().unwrap();

    let nvml = open(&gpus);
    assert!(nvml.device_by_index(0).unwrap().uuid().is_ok());
}

#[test]
fn mig_instances_are_read() {
    let instance = |number: u32| MigInstance {
        uuid: format!("MIG-{number}"),
        name: "NVIDIA A100-SXM4-80GB MIG 1g.10gb".to_owned(),
        gpu_instance: 7 + number,
        memory_total: 10 << 30,
        memory_used: 1 << 30,
        ..MigInstance::default()
    };
    let mut state = State::with_gpus(1);
    state.devices[0].mig = Some(Mig { enabled: true, instances: vec![instance(0), instance(1)] });
    let inside =
        |pid, number| Process { gpu_instance: Some(number), compute_instance: Some(0), ..Process::computing(pid, 1) };
    state.devices[0].processes = vec![inside(10, 7), inside(11, 8)];
    let gpus = with_state(state);
    let nvml = open(&gpus);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.mig_mode().unwrap().current, 1);
    assert_eq!(device.mig_device_count().unwrap(), 7);
    assert!(matches!(device.utilization_rates(), Err(NvmlError::NotSupported)));
    assert_eq!(pids(&device), [10, 11]);

    let second = device.mig_device_by_index(1).unwrap();
    assert!(second.mig_is_mig_device_handle().unwrap());
    assert_eq!(second.uuid().unwrap(), "MIG-1");
    assert_eq!(second.memory_info().unwrap().total, 10 << 30);
    assert_eq!(pids(&second), [11]);
    assert_eq!(second.running_compute_processes().unwrap()[0].gpu_instance_id, Some(8));
    assert_eq!(second.mig_parent_device().unwrap().uuid().unwrap(), device.uuid().unwrap());
    assert!(matches!(second.power_usage(), Err(NvmlError::NotSupported)));
    assert!(matches!(device.mig_device_by_index(2), Err(NvmlError::NotFound)));
}

#[test]
fn xid_errors_are_delivered() {
    let mut state = State::with_gpus(2);
    state.devices[1].xids = vec![31];
    let gpus = with_state(state);
    let nvml = open(&gpus);
    let mut set = nvml.create_event_set().unwrap();
    for index in 0..2 {
        let device = nvml.device_by_index(index).unwrap();
        assert_eq!(device.supported_event_types().unwrap(), EventTypes::CRITICAL_XID_ERROR);
        set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(matches!(set.wait(20), Err(NvmlError::Timeout)), "earlier errors are not delivered");
    gpus.change(|state| state.devices[1].xids.push(79));
    let event = set.wait(1_000).unwrap();
    assert!(matches!(event.event_data, Some(XidError::Value(79))));
    assert_eq!(event.device.index().unwrap(), 1);
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    set.release_events().unwrap();
}
