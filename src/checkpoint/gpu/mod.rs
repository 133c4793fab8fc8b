//! Pods whose programs use GPUs, behind `[checkpoint] gpu = "experimental"`. CRIU knows nothing of GPUs, so NVIDIA's
//! `cuda-checkpoint` copies GPU memory into that of the processes before the pod is paused, and back when it resumes.
//!
//! - [`crate::criu::cuda`]: the program; [`crate::checkpoint::job`]: what is done with it, in which order, and its
//!   rollback
//! - [`verdict`]: what can be checked before a pod is touched; [`plan`]: which GPUs a restore puts the memory on. Both
//!   pure
//! - this file: the checks of driver, program and processes
//!
//! The processes are recorded by their PIDs inside the pod, which are the same after a restore.

mod plan;
mod verdict;

use std::time::Duration;

use futures_util::future::join_all;

pub use self::plan::SavedGpus;
use self::{
    plan::{GpuNow, SavedProcess},
    verdict::{Found, Memory, Program, Use},
};
use super::{
    CheckpointError, Checkpoints,
    preflight::{Findings, Holder},
};
use crate::{
    config::GpuCheckpoints,
    criu::cuda::Tool,
    engine::ContainerInspect,
    gpu::{Device, GpuProcess as GpuUser, Health, Owner, Snapshot},
    host::{
        cgroup::Cgroup,
        memory,
        process::{self, Stat},
    },
    model::{
        action::{GpuProcess, GpuWork},
        checkpoint::Kind,
        gpu::Library,
        ids::ContainerId,
        quantities::GpuSet,
        view::checkpoint::Saved,
    },
};

/// How long to wait for a fresh reading of the driver.
const LOOK: Duration = Duration::from_secs(2);

/// Expected bytes per second of a copy between a GPU and the host: about what PCIe 4 does, with CUDA's own work.
const COPY_RATE: u64 = 5 << 30;

impl From<&Holder> for GpuProcess {
    fn from(holder: &Holder) -> Self {
        Self { pid: holder.inside, name: holder.name.clone() }
    }
}

/// What a check found of a pod's GPU programs that can be saved.
pub struct GpusSeen {
    pub saved: SavedGpus,
    pub work: GpuWork,
}

/// Milliseconds to copy this many bytes off the GPUs and back.
pub fn copying_ms(bytes: u64) -> u64 {
    bytes.saturating_mul(2_000) / COPY_RATE
}

/// Processes of the container in the driver's last reading.
pub fn on_gpus(snapshot: &Snapshot, container: &ContainerId) -> Vec<i32> {
    let processes = snapshot.devices.iter().flat_map(|device| &device.processes);
    let is_its = |process: &&GpuUser| {
        matches!(&*process.owner, Owner::Pod { container: its, .. } if its == container)
            && Stat::read(process.id.pid).is_some_and(|stat| stat.id == process.id)
    };
    processes.filter(is_its).map(|process| process.id.pid).collect()
}

impl Checkpoints {
    /// Checks the programs that use GPUs, and records what prevents saving them.
    pub(super) async fn examine_gpus(
        &self,
        container: &ContainerId,
        inspect: &ContainerInspect,
        found: &mut Findings,
    ) -> Option<GpusSeen> {
        let config = self.0.config.get();
        if found.gpu_holders.is_empty() || config.checkpoint.gpu == GpuCheckpoints::Off {
            return None;
        }
        let snapshot = self.fresh_gpus().await;
        let tool = Tool::find(config.checkpoint.cuda_checkpoint.as_deref());
        let host = self.found(&snapshot, tool.as_ref()).await;
        let limit = Duration::from_secs(config.checkpoint.timeout_seconds.max(1));
        let looks = found.gpu_holders.iter().map(|holder| {
            let (tool, host) = (&tool, &host);
            async move {
                let state = match tool {
                    Some(tool) if host.problem().is_none() => {
                        tool.state(holder.pid, None, limit).await.map_err(|trouble| trouble.to_string())
                    }
                    _ => Err(String::new()),
                };
                Program { process: holder.into(), device: holder.device.clone(), state, uses: Vec::new() }
            }
        });
        let mut programs: Vec<Program> = join_all(looks).await;
        for (program, holder) in programs.iter_mut().zip(&found.gpu_holders) {
            program.uses = uses(&snapshot, holder);
        }
        let lives: Vec<i32> =
            found.gpu_holders.iter().filter(|holder| lives(holder, container)).map(|h| h.inside).collect();
        programs.retain(|program| lives.contains(&program.process.pid));
        if programs.is_empty() {
            return None;
        }
        let bytes = programs.iter().flat_map(|program| &program.uses).map(|used| used.bytes).sum();
        found.gpu_memory = bytes;
        let before = found.problems.len();
        match host.problem() {
            Some(needed) => found.problems.push(format!("{}; {needed}", verdict::used(&programs))),
            None => found.problems.extend(programs.iter().filter_map(Program::problem)),
        }
        found.problems.extend(memory(inspect).problem(bytes));
        for program in &programs {
            note(found, program, host.problem());
        }
        let (Some(tool), true) = (tool, found.problems.len() == before) else { return None };
        let given = self.given_gpus(container);
        let devices = plan::needed(&snapshot, given.as_ref(), &programs);
        let processes = programs.iter().map(|program| SavedProcess {
            process: program.process.clone(),
            uses: program.uses.iter().map(|used| (used.uuid.clone(), used.bytes)).collect(),
        });
        Some(GpusSeen {
            saved: SavedGpus {
                driver: host.driver.unwrap_or_default(),
                given: given.is_some(),
                devices,
                processes: processes.collect(),
            },
            work: GpuWork {
                program: tool.program,
                processes: programs.iter().map(|program| program.process.clone()).collect(),
                bytes,
                device_map: None,
            },
        })
    }

    /// What a restore has to do with GPUs; refused if the pod's current ones do not fit. `given` are those that the pod
    /// has, by the engine or by its row.
    pub(super) async fn plan_gpus(
        &self,
        kind: Kind,
        saved: Option<&SavedGpus>,
        given: Option<GpuSet>,
    ) -> Result<Option<GpuWork>, CheckpointError> {
        let Some(saved) = saved.filter(|_| kind.has_processes()) else { return Ok(None) };
        let config = self.0.config.get();
        if config.checkpoint.gpu == GpuCheckpoints::Off {
            return Err(CheckpointError::Unavailable(
                "this checkpoint contains GPU memory, and [checkpoint] gpu is \"off\" on this host; ask an admin to set it to \"experimental\""
                    .to_owned(),
            ));
        }
        let snapshot = self.fresh_gpus().await;
        let tool = Tool::find(config.checkpoint.cuda_checkpoint.as_deref());
        let host = self.found(&snapshot, tool.as_ref()).await;
        if let Some(needed) = host.problem() {
            return Err(CheckpointError::Unavailable(format!("this checkpoint contains GPU memory; {needed}")));
        }
        // A pod that had GPUs without the engine gets them the same way again.
        let given = if saved.given { given.unwrap_or_else(GpuSet::none) } else { GpuSet::All };
        let now: Vec<GpuNow> = plan::within(&snapshot, &given).map(GpuNow::from).collect();
        let device_map = saved.plan(&now, &host).map_err(CheckpointError::GpusDiffer)?;
        let program = tool.map(|tool| tool.program).unwrap_or_default();
        let processes = saved.processes.iter().map(|saved| saved.process.clone()).collect();
        Ok(Some(GpuWork { program, processes, bytes: saved.bytes(), device_map }))
    }

    /// The GPUs that the engine gave a container; `None` = none.
    pub(super) fn given_gpus(&self, container: &ContainerId) -> Option<GpuSet> {
        let container = self.0.engine.inventory().get(container)?;
        let gpus = container.detail.as_ref()?.gpus.clone();
        Some(gpus).filter(|gpus| *gpus != GpuSet::none())
    }

    async fn found(&self, snapshot: &Snapshot, tool: Option<&Tool>) -> Found {
        let driver = match &snapshot.library {
            Library::Working { driver } => Some(driver.clone()),
            Library::Starting | Library::Absent | Library::Failing { .. } => None,
        };
        let about = match tool {
            None => None,
            Some(tool) => Some(tool.about().await.map_err(|trouble| trouble.to_string())),
        };
        Found { driver, about }
    }

    /// A reading of the GPUs taken from now on, not the last one.
    async fn fresh_gpus(&self) -> std::sync::Arc<Snapshot> {
        let mut changes = self.0.gpus.changes();
        self.0.gpus.look().await;
        changes.mark_unchanged();
        let _ = tokio::time::timeout(LOOK, changes.changed()).await;
        self.0.gpus.snapshot()
    }
}

/// Whether it still lives after all the questions.
fn lives(holder: &Holder, container: &ContainerId) -> bool {
    process::container_of(holder.pid).as_ref() == Some(container)
        && process::pid_inside(holder.pid) == Some(holder.inside)
}

/// What the driver reports of a process, GPU by GPU.
fn uses(snapshot: &Snapshot, holder: &Holder) -> Vec<Use> {
    let of = |device: &Device| {
        let process = device.processes.iter().find(|process| process.id.pid == holder.pid)?;
        let whole = match &device.health {
            Health::Known(reading) => reading.memory_used,
            Health::Unknown { .. } => None,
        };
        Some(Use {
            index: device.index,
            uuid: device.uuid.0.clone(),
            // All memory in use there, if the driver does not report whose it is.
            bytes: process.gpu_memory.or(whole).unwrap_or(0),
            kinds: process.kinds,
            in_mig: !device.mig.is_empty() || process.gpu_instance.is_some(),
        })
    };
    snapshot.devices.iter().filter_map(of).collect()
}

/// Adds it to the verdict about the process.
fn note(found: &mut Findings, program: &Program, needed: Option<String>) {
    let Some(process) = found.processes.iter_mut().find(|process| process.pid == program.process.pid) else { return };
    match needed.or_else(|| program.problem()) {
        Some(problem) => {
            process.saved = Saved::No;
            process.notes.push(problem);
        }
        None => process.notes.push(program.note()),
    }
}

/// The memory available for that of the GPUs.
fn memory(inspect: &ContainerInspect) -> Memory {
    let used = Cgroup::of_process(inspect.pid).and_then(|cgroup| cgroup.read()).map_or(0, |sample| sample.memory_bytes);
    Memory { host_free: memory::available(), pod: inspect.memory.map(|limit| (limit, limit.saturating_sub(used))) }
}
