//! A stand-in for NVIDIA's `libnvidia-ml.so.1`, for tests on machines without a GPU.
//!
//! The shared library has NVML's C symbols and answers from a JSON file, named by `PODY_NVML_STATE` and reloaded as
//! soon as it changes: see [`State`]. Everything that the file omits has a default, so `{"devices": [{}]}` is an idle
//! GPU. As a Rust library it is the file's types, with [`State::save`] to replace it.
//!
//! ```json
//! {
//!   "driver_version": "550.54.15",
//!   "faults": {"nvmlDeviceGetMemoryInfo_v2": {"error": "FUNCTION_NOT_FOUND"}},
//!   "devices": [
//!     {
//!       "uuid": "GPU-5a1b…", "memory_used": 1073741824, "utilization": 97,
//!       "processes": [{"pid": 4711, "kinds": ["compute"], "used_memory": 1073741824, "sm_util": 97}]
//!     },
//!     {"uuid": "GPU-9c0d…", "faults": {"*": {"error": "GPU_IS_LOST"}}},
//!     {"uuid": "GPU-77e2…", "faults": {"nvmlDeviceGetUtilizationRates": "hang"}, "power_mw": null}
//!   ]
//! }
//! ```
//!
//! As with the real driver, a handle is valid only for the driver that returned it: another `generation` in the file is
//! a reloaded driver, and until every caller has called `nvmlShutdown` and one calls `nvmlInit` again, devices are
//! `GPU_IS_LOST` and everything else `UNINITIALIZED`. A GPU that is no longer in the file is `GPU_IS_LOST`.
//!
//! Unlike the real driver, a function that is too new for `driver_version` exists and returns `FUNCTION_NOT_FOUND`.

mod code;
mod library;
mod state;
mod symbols;

pub use self::{
    code::Code,
    state::{Clocks, Ecc, Fault, Faults, Gpu, Kind, Mig, MigInstance, Process, STATE_VARIABLE, State},
};
