//! Fake GPUs: the stand-in for libnvidia-ml, with a state of the test's own.
//!
//! ```ignore
//! let gpus = Gpus::new(State::with_gpus(2));
//! let Some(server) = Server::builder().gpus(&gpus).start() else { return };
//! gpus.change(|state| state.devices[0].processes.push(Process::computing(pid, 1 << 30)));
//! gpus.change(|state| state.devices[1].faults = Faults::from([("*".to_owned(), Fault::Error(Code::GpuIsLost))]));
//! ```

use std::{
    env,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Mutex,
};

pub use nvml_stand_in::{
    Clocks, Code, Ecc, Fault, Faults, Gpu, Kind, Mig, MigInstance, Process, STATE_VARIABLE, State,
};

/// The name under which the driver installs it, and under which clients look.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A directory with the library and its state file.
pub struct Gpus {
    folder: tempfile::TempDir,
    state: Mutex<State>,
}

impl Gpus {
    pub fn new(state: State) -> Self {
        // Cargo builds it next to the test programs, whose package depends on it.
        let built = env::current_exe().expect("a test program").with_file_name("libnvml_stand_in.so");
        assert!(built.exists(), "there is no {}", built.display());
        let folder = tempfile::Builder::new().prefix("pody-gpus-").tempdir().expect("a temporary directory");
        symlink(built, folder.path().join(LIBRARY)).expect("our own directory");
        let gpus = Self { folder, state: Mutex::new(State::default()) };
        gpus.change(|first| *first = state);
        gpus
    }

    /// Applies to every call of the library that begins after this.
    pub fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().expect("no test panics while it holds the lock");
        how(&mut state);
        state.save(&self.state_file()).expect("our own directory");
    }

    /// For `[gpu] nvml_library`.
    pub fn library(&self) -> PathBuf {
        self.folder().join(LIBRARY)
    }

    /// For `LD_LIBRARY_PATH`, for programs that have no option for the path.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// For [`STATE_VARIABLE`].
    pub fn state_file(&self) -> PathBuf {
        self.folder().join("state.json")
    }
}
