//! Whether programs on GPUs can be saved. Pure: what was found in, sentences out.

use crate::{
    criu::cuda::{About, CudaState},
    gpu::Kinds,
    model::{action::GpuProcess, quantities::ByteSize},
};

/// The first driver that can lock and copy in steps, and the first that can put memory on another GPU.
const ACTIONS: u32 = 570;

pub const DEVICE_MAP: u32 = 580;

const FILES_ALONE: &str = "end it first, or save only the files with --kind rootfsonly";

/// What the host has for GPU checkpoints.
#[derive(Clone, Debug)]
pub struct Found {
    /// `None` where no driver works.
    pub driver: Option<String>,
    /// `None` if the program is missing; otherwise what it reports about itself, or why it does not.
    pub about: Option<Result<About, String>>,
}

impl Found {
    /// The driver's branch: 570 of `570.86.10`.
    pub fn branch(&self) -> u32 {
        let driver = self.driver.as_deref().unwrap_or_default();
        driver.split('.').next().and_then(|branch| branch.parse().ok()).unwrap_or(0)
    }

    pub fn maps_devices(&self) -> bool {
        self.branch() >= DEVICE_MAP && matches!(&self.about, Some(Ok(about)) if about.maps_devices)
    }

    /// Why no pod on a GPU can be saved or restored here.
    pub fn problem(&self) -> Option<String> {
        let is_good = self.branch() >= ACTIONS && matches!(&self.about, Some(Ok(about)) if about.has_actions);
        (!is_good).then(|| {
            format!("GPU checkpoints need driver {ACTIONS}+ and cuda-checkpoint (found: {self}); ask an admin, see `pody doctor`")
        })
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.driver {
            Some(driver) => write!(f, "driver {driver}, ")?,
            None => f.write_str("no working driver, ")?,
        }
        match &self.about {
            None => f.write_str("no cuda-checkpoint"),
            Some(Err(why)) => write!(f, "a cuda-checkpoint that fails: {why}"),
            Some(Ok(about)) if !about.has_actions => write!(f, "cuda-checkpoint {} without --action", about.version),
            Some(Ok(about)) => write!(f, "cuda-checkpoint {}", about.version),
        }
    }
}

/// A program that holds a GPU.
#[derive(Clone, Debug)]
pub struct Program {
    pub process: GpuProcess,
    /// What it has open.
    pub device: Option<String>,
    /// The state of CUDA in it, or the tool's error.
    pub state: Result<CudaState, String>,
    /// What the driver reports of it.
    pub uses: Vec<Use>,
}

/// What a process does on one GPU.
#[derive(Clone, Debug)]
pub struct Use {
    pub index: u32,
    pub uuid: String,
    pub bytes: u64,
    pub kinds: Kinds,
    pub in_mig: bool,
}

impl Program {
    /// `GPU 0, 1`, or the device if the driver does not report it.
    fn gpus(&self) -> String {
        gpus(self.uses.iter().map(|used| used.index))
            .or_else(|| self.device.clone())
            .unwrap_or_else(|| "a GPU".to_owned())
    }

    /// Why it cannot be saved.
    pub fn problem(&self) -> Option<String> {
        let (who, gpus) = (self.process.who(), self.gpus());
        if self.uses.iter().any(|used| used.in_mig) {
            return Some(format!(
                "{who} uses a MIG device of {gpus}, which cuda-checkpoint cannot save; {FILES_ALONE}"
            ));
        }
        if self.uses.iter().any(|used| used.kinds.mps) {
            return Some(format!("{who} uses {gpus} through MPS, which cuda-checkpoint cannot save; {FILES_ALONE}"));
        }
        if self.uses.iter().any(|used| used.kinds.graphics) {
            return Some(format!("{who} uses {gpus} for graphics, and only CUDA can be saved; {FILES_ALONE}"));
        }
        match &self.state {
            Ok(CudaState::Running) => None,
            Ok(CudaState::Locked | CudaState::Checkpointed) => Some(format!(
                "CUDA in {who} was already locked by someone else; resume it first (cuda-checkpoint --action restore, --action unlock)"
            )),
            Ok(CudaState::Failed) => Some(format!("CUDA in {who} has failed; end it first")),
            Err(said) => Some(format!(
                "{who} holds {gpus} without CUDA of its own, as nvidia-smi does, or a child that was forked off a CUDA program ({said}); {FILES_ALONE}"
            )),
        }
    }

    /// The note about one that can be saved.
    pub fn note(&self) -> String {
        let bytes = self.uses.iter().map(|used| used.bytes).sum();
        format!("it uses {}: {} of GPU memory is saved with it", self.gpus(), ByteSize(bytes))
    }
}

/// `X uses GPU 0, 1`.
pub fn used(programs: &[Program]) -> String {
    let names: Vec<String> = programs.iter().map(|program| program.process.who()).collect();
    let indices = programs.iter().flat_map(|program| program.uses.iter().map(|used| used.index));
    let what = gpus(indices).or_else(|| programs.iter().find_map(|program| program.device.clone()));
    let verb = if names.len() == 1 { "uses" } else { "use" };
    format!("{} {verb} {}", names.join(", "), what.unwrap_or_else(|| "a GPU".to_owned()))
}

fn gpus(indices: impl Iterator<Item = u32>) -> Option<String> {
    let indices: std::collections::BTreeSet<u32> = indices.collect();
    let indices: Vec<String> = indices.iter().map(u32::to_string).collect();
    (!indices.is_empty()).then(|| format!("GPU {}", indices.join(", ")))
}

/// The host's memory, into which that of the GPUs is copied.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub host_free: Option<u64>,
    /// The pod's limit, and what is left of it.
    pub pod: Option<(u64, u64)>,
}

impl Memory {
    pub fn problem(self, bytes: u64) -> Option<String> {
        let needed = format!(
            "its programs have {} of GPU memory, which is copied into the host's memory during the checkpoint",
            ByteSize(bytes)
        );
        match (self.host_free, self.pod) {
            (Some(free), _) if bytes > free => Some(format!(
                "{needed}, but only {} of that is free; end other programs, or free GPU memory first",
                ByteSize(free)
            )),
            (_, Some((limit, left))) if bytes > left => Some(format!(
                "{needed}, but only {} of the pod's memory limit of {} is left; ask an admin for more memory, or free GPU memory first",
                ByteSize(left),
                ByteSize(limit)
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(driver: Option<&str>, help: Option<(bool, bool)>) -> Found {
        let about = |(has_actions, maps_devices)| About { version: "570.86.10".to_owned(), has_actions, maps_devices };
        Found { driver: driver.map(str::to_owned), about: help.map(|help| Ok(about(help))) }
    }

    #[test]
    fn driver_and_program_must_be_new_enough() {
        assert_eq!(found(Some("570.86.10"), Some((true, false))).problem(), None);
        assert_eq!(
            found(Some("550.54.15"), None).problem().unwrap(),
            "GPU checkpoints need driver 570+ and cuda-checkpoint (found: driver 550.54.15, no cuda-checkpoint); ask an admin, see `pody doctor`"
        );
        for (driver, help) in
            [(None, Some((true, true))), (Some("565.1"), Some((true, true))), (Some("580.1"), Some((false, false)))]
        {
            assert!(found(driver, help).problem().is_some(), "{driver:?} {help:?}");
        }
        assert!(found(Some("580.65.06"), Some((true, true))).maps_devices());
        assert!(!found(Some("570.86.10"), Some((true, true))).maps_devices());
        assert!(!found(Some("580.65.06"), Some((true, false))).maps_devices());
    }

    fn program(state: Result<CudaState, String>, change: impl FnOnce(&mut Use)) -> Program {
        let kinds = Kinds { compute: true, ..Kinds::default() };
        let mut used = Use { index: 2, uuid: "GPU-2".to_owned(), bytes: 1 << 30, kinds, in_mig: false };
        change(&mut used);
        let process = GpuProcess { pid: 12, name: "python".to_owned() };
        Program { process, device: Some("/dev/nvidia2".to_owned()), state, uses: vec![used] }
    }

    #[test]
    fn only_plain_cuda_is_saved() {
        let good = program(Ok(CudaState::Running), |_| {});
        assert_eq!(good.problem(), None);
        assert_eq!(good.note(), "it uses GPU 2: 1g of GPU memory is saved with it");
        for (bad, words) in [
            (program(Ok(CudaState::Running), |used| used.in_mig = true), "a MIG device of GPU 2"),
            (program(Ok(CudaState::Running), |used| used.kinds.mps = true), "through MPS"),
            (program(Ok(CudaState::Running), |used| used.kinds.graphics = true), "uses GPU 2 for graphics"),
            (program(Ok(CudaState::Locked), |_| {}), "CUDA in python[12] was already locked"),
            (program(Ok(CudaState::Failed), |_| {}), "has failed"),
            (program(Err("initialization error".to_owned()), |_| {}), "without CUDA of its own"),
        ] {
            assert!(bad.problem().unwrap().contains(words), "{:?}", bad.problem());
        }
    }

    #[test]
    fn the_memory_of_gpus_must_fit_into_the_hosts_and_the_pods() {
        let memory = |host_free, pod| Memory { host_free: Some(host_free), pod };
        assert_eq!(memory(10, Some((20, 10))).problem(10), None);
        assert_eq!(memory(10, None).problem(10), None);
        assert!(memory(9 << 30, None).problem(10 << 30).unwrap().contains("10g of GPU memory"));
        assert!(
            memory(99 << 30, Some((8 << 30, 3 << 30)))
                .problem(4 << 30)
                .unwrap()
                .contains("only 3g of the pod's memory limit of 8g")
        );
    }
}
