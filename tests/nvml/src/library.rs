//! The library's own state: the file as last read, the initialization count, the handles and event sets returned so
//! far.
//!
//! One lock, held only briefly: a call that is slow or hangs does not hold it.

use std::{
    env,
    ffi::c_void,
    fs,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::{
    Code, Fault, Gpu, MigInstance, STATE_VARIABLE, State,
    state::{Mig, Process},
};

/// How often a waiting call checks the file.
const POLL: Duration = Duration::from_millis(5);
/// The same for a caller that waits for an Xid error. The real driver's wait costs nothing; this one must not distort
/// measurements.
const XID_POLL: Duration = Duration::from_millis(50);

/// The first driver branch that has a function; functions that are not listed are older.
const SINCE: [(&str, u32); 9] = [
    ("nvmlDeviceGetComputeRunningProcesses_v2", 450),
    ("nvmlDeviceGetGraphicsRunningProcesses_v2", 450),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v2", 450),
    ("nvmlDeviceGetComputeRunningProcesses_v3", 510),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", 510),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v3", 510),
    ("nvmlDeviceGetMemoryInfo_v2", 510),
    ("nvmlDeviceGetCurrentClocksEventReasons", 535),
    ("nvmlDeviceGetTemperatureV", 570),
];

pub type Answer = Result<(), Code>;

/// `nvmlDevice_t`: the address of a [`Target`]. Compared, never dereferenced.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Handle(*const c_void);

impl Handle {
    pub fn as_nvml(self) -> nvmlDevice_t {
        self.0.cast_mut().cast()
    }
}

/// `nvmlEventSet_t`: the address of an [`EventSet`]. Compared, never dereferenced.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct SetHandle(*const c_void);

/// What a handle refers to. Lives as long as the process, since a caller may keep a handle for ever.
#[derive(PartialEq)]
struct Target {
    generation: u64,
    gpu: String,
    instance: Option<String>,
}

/// The watched GPUs, with the number of their Xids that were delivered or existed before.
#[derive(Default)]
struct EventSet {
    watched: Mutex<Vec<(&'static Target, usize)>>,
}

struct Library {
    /// How often `nvmlInit` was called without an `nvmlShutdown`.
    users: u32,
    /// The driver that the first of them found.
    generation: u64,
    /// The file as last read, kept open: so no other file can take its inode number, and a stat of the name shows
    /// whether it is still this one.
    file: Option<(File, Stamp, Arc<State>)>,
    targets: Vec<&'static Target>,
    event_sets: Vec<Arc<EventSet>>,
}

static LIBRARY: Mutex<Library> =
    Mutex::new(Library { users: 0, generation: 0, file: None, targets: Vec::new(), event_sets: Vec::new() });

#[derive(PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

/// What a handle currently refers to: a GPU or one instance of it.
#[derive(Clone, Copy)]
pub struct Device<'state> {
    pub state: &'state State,
    pub index: usize,
    pub any: &'state Gpu,
    pub instance: Option<&'state MigInstance>,
    target: &'static Target,
}

impl<'state> Device<'state> {
    /// Most functions answer for whole GPUs only.
    pub fn whole(&self) -> Result<&'state Gpu, Code> {
        if self.instance.is_none() { Ok(self.any) } else { Err(Code::NotSupported) }
    }

    pub fn mig_instance(&self) -> Result<&'state MigInstance, Code> {
        self.instance.ok_or(Code::NotSupported)
    }

    /// The instances, if the GPU is partitioned.
    pub fn mig(&self) -> Option<&'state Mig> {
        self.any.mig.as_ref().filter(|mig| mig.enabled && self.instance.is_none())
    }

    pub fn processes(&self) -> impl Iterator<Item = &'state Process> {
        let instance = self.instance.map(|instance| (Some(instance.gpu_instance), Some(instance.compute_instance)));
        let here = move |process: &&Process| {
            instance.is_none_or(|instance| instance == (process.gpu_instance, process.compute_instance))
        };
        self.any.processes.iter().filter(here)
    }

    /// The handle of the whole GPU.
    pub fn parent(&self) -> Handle {
        lock().handle(self.target.generation, self.any, None)
    }

    pub fn instance_handle(&self, instance: &MigInstance) -> Handle {
        lock().handle(self.target.generation, self.any, Some(instance))
    }
}

/// Runs a function that concerns no GPU.
pub fn on_system(function: &str, body: impl FnOnce(&State) -> Answer) -> Code {
    let answer = || {
        let state = settle(function, |state| lock().session(state, Code::Uninitialized).map(|_| None))?;
        body(&state)
    };
    answer().into()
}

/// Runs a function on one GPU, or on one instance of it.
pub fn on_device(function: &str, handle: Handle, body: impl FnOnce(Device) -> Answer) -> Code {
    let answer = || {
        let state = settle(function, |state| Ok(Some(lock().device(state, handle)?.any)))?;
        let device = lock().device(&state, handle)?;
        body(device)
    };
    answer().into()
}

/// Runs a function that returns the handle of a GPU; `find` returns its index.
pub fn find_device(function: &str, find: impl Fn(&State) -> Result<usize, Code>) -> Result<Handle, Code> {
    let find_gpu = |state: &State| {
        lock().session(state, Code::Uninitialized)?;
        find(state)
    };
    let state = settle(function, |state| find_gpu(state).map(|index| Some(&state.devices[index])))?;
    let index = find_gpu(&state)?;
    Ok(lock().handle(state.generation, &state.devices[index], None))
}

pub fn initialise(function: &str) -> Answer {
    let state = settle(function, |_| Ok(None))?;
    if let Some(error) = state.init_error {
        return Err(error);
    }
    let mut library = lock();
    if library.users == 0 {
        library.generation = state.generation;
    }
    library.users += 1;
    Ok(())
}

/// Never fails on purpose, so that a test can always start over.
pub fn shut_down() -> Answer {
    let mut library = lock();
    library.users = library.users.checked_sub(1).ok_or(Code::Uninitialized)?;
    Ok(())
}

pub fn create_event_set() -> SetHandle {
    let set = Arc::new(EventSet::default());
    let handle = SetHandle(Arc::as_ptr(&set).cast());
    lock().event_sets.push(set);
    handle
}

pub fn free_event_set(handle: SetHandle) -> Answer {
    let mut library = lock();
    let set = library.event_set(handle)?;
    library.event_sets.retain(|known| !Arc::ptr_eq(known, &set));
    Ok(())
}

pub fn watch(device: Device, handle: SetHandle) -> Answer {
    let set = lock().event_set(handle)?;
    let seen = device.whole()?.xids.len();
    set.watched.lock().unwrap_or_else(PoisonError::into_inner).push((device.target, seen));
    Ok(())
}

/// The next Xid of a watched GPU.
pub fn wait_for_xid(function: &str, handle: SetHandle, timeout: Duration) -> Result<(Handle, u64), Code> {
    let set = lock().event_set(handle)?;
    let begun = Instant::now();
    loop {
        let state = settle(function, |state| lock().session(state, Code::GpuIsLost).map(|_| None))?;
        for (target, seen) in set.watched.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let (_, gpu) = state.gpu(&target.gpu).ok_or(Code::GpuIsLost)?;
            *seen = gpu.xids.len().min(*seen);
            if let Some(&xid) = gpu.xids.get(*seen) {
                *seen += 1;
                return Ok((Handle(ptr::from_ref(*target).cast()), xid));
            }
        }
        if begun.elapsed() >= timeout {
            return Err(Code::Timeout);
        }
        thread::sleep(XID_POLL);
    }
}

/// The state for the answer of a function, after the delay or failure that the file asks for. `look` returns any other
/// error, and the GPU that the function works on.
fn settle(function: &str, look: impl Fn(&State) -> Result<Option<&Gpu>, Code>) -> Result<Arc<State>, Code> {
    let mut delayed = false;
    loop {
        let state = lock().state()?;
        if SINCE.iter().any(|&(newer, branch)| newer == function && branch > driver_branch(&state)) {
            return Err(Code::FunctionNotFound);
        }
        let of_gpu = look(&state)?.and_then(|gpu| gpu.faults.get(function).or_else(|| gpu.faults.get("*")));
        match of_gpu.or_else(|| state.faults.get(function)).or_else(|| state.faults.get("*")) {
            Some(Fault::Error(code)) => return Err(*code),
            Some(Fault::Hang) => thread::sleep(POLL),
            Some(Fault::DelayMs(milliseconds)) if !delayed => {
                thread::sleep(Duration::from_millis(*milliseconds));
                delayed = true;
            }
            Some(Fault::DelayMs(_)) | None => return Ok(state),
        }
    }
}

fn driver_branch(state: &State) -> u32 {
    state.driver_version.split('.').next().and_then(|branch| branch.parse().ok()).unwrap_or(u32::MAX)
}

fn lock() -> MutexGuard<'static, Library> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Library {
    /// The current file. Without one there is no driver.
    fn state(&mut self) -> Result<Arc<State>, Code> {
        let path = env::var_os(STATE_VARIABLE).ok_or(Code::DriverNotLoaded)?;
        let now = Stamp::of(&fs::metadata(&path).map_err(|_| Code::DriverNotLoaded)?);
        if let Some((_, known, state)) = &self.file
            && *known == now
        {
            return Ok(Arc::clone(state));
        }
        let read = || -> io::Result<_> {
            let file = File::open(&path)?;
            let stamp = Stamp::of(&file.metadata()?);
            let state = Arc::new(serde_json::from_str(&io::read_to_string(&file)?)?);
            Ok((file, stamp, state))
        };
        let (file, stamp, state) = read().map_err(|error| {
            eprintln!("{STATE_VARIABLE}: {}: {error}", path.display());
            Code::Unknown
        })?;
        self.file = Some((file, stamp, Arc::clone(&state)));
        Ok(state)
    }

    /// Whether the library is initialized, with the current driver.
    fn session(&self, state: &State, reloaded: Code) -> Answer {
        if self.users == 0 {
            return Err(Code::Uninitialized);
        }
        if self.generation == state.generation { Ok(()) } else { Err(reloaded) }
    }

    fn device<'state>(&self, state: &'state State, handle: Handle) -> Result<Device<'state>, Code> {
        self.session(state, Code::GpuIsLost)?;
        let target = *self.targets.iter().find(|known| ptr::addr_eq(**known, handle.0)).ok_or(Code::InvalidArgument)?;
        if target.generation != state.generation {
            return Err(Code::GpuIsLost);
        }
        let (index, any) = state.gpu(&target.gpu).ok_or(Code::GpuIsLost)?;
        let find = |uuid: &String| {
            let instances = any.mig.as_ref().map_or(&[][..], |mig| &mig.instances);
            instances.iter().find(|instance| instance.uuid == *uuid).ok_or(Code::GpuIsLost)
        };
        let instance = target.instance.as_ref().map(find).transpose()?;
        Ok(Device { state, index, any, instance, target })
    }

    /// Returns the same one each time.
    fn handle(&mut self, generation: u64, gpu: &Gpu, instance: Option<&MigInstance>) -> Handle {
        let instance = instance.map(|instance| instance.uuid.clone());
        let target = Target { generation, gpu: gpu.uuid.clone(), instance };
        let known = self.targets.iter().copied().find(|known| **known == target);
        let target = known.unwrap_or_else(|| {
            let target = &*Box::leak(Box::new(target));
            self.targets.push(target);
            target
        });
        Handle(ptr::from_ref(target).cast())
    }

    fn event_set(&self, handle: SetHandle) -> Result<Arc<EventSet>, Code> {
        let known = self.event_sets.iter().find(|set| ptr::addr_eq(Arc::as_ptr(set), handle.0));
        known.cloned().ok_or(Code::InvalidArgument)
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }
}
