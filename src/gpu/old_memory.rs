//! The first version of NVML's memory call, which nvml-wrapper does not provide: drivers before 510 have no other.

use std::{cell::OnceCell, ffi::OsString, mem::MaybeUninit};

use nvml_wrapper::{
    Device,
    error::{NvmlError, nvml_try},
};
use nvml_wrapper_sys::bindings::NvmlLib;

/// The library's symbols, looked up when they are first needed.
pub struct OldMemory {
    names: Vec<OsString>,
    symbols: OnceCell<Option<NvmlLib>>,
}

impl OldMemory {
    /// Names of the library, in the order in which they are tried.
    pub fn new(names: Vec<OsString>) -> Self {
        Self { names, symbols: OnceCell::new() }
    }

    /// Total and used, bytes.
    pub fn ask(&self, device: &Device) -> Result<(u64, u64), NvmlError> {
        let symbols = self.symbols.get_or_init(|| self.names.iter().find_map(load)).as_ref();
        let call = symbols.and_then(|symbols| symbols.nvmlDeviceGetMemoryInfo.as_ref().ok());
        let call = call.ok_or(NvmlError::FunctionNotFound)?;
        let mut memory = MaybeUninit::zeroed();
        // SAFETY: the handle belongs to the library that is loaded here a second time, for which the loader returns the
        // same one, still initialized as long as `device` lives. The struct has the size of this version of the call.
        // It holds three integers, for which zeroes are valid values, so it is initialized whether or not the call
        // wrote to it.
        let memory = unsafe {
            nvml_try(call(device.handle(), memory.as_mut_ptr()))?;
            memory.assume_init()
        };
        Ok((memory.total, memory.used))
    }
}

fn load(name: &OsString) -> Option<NvmlLib> {
    // SAFETY: NVIDIA's library, or the one that the config names; it is loaded in this process already.
    unsafe { NvmlLib::new(name) }.ok()
}
