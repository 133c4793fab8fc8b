//! Memory of programs off the GPUs and back on them: the phases gpu-off and gpu-on, and their rollback after a failure
//! or a kill. All are locked before the first is copied, since they may wait for each other; the rollback runs in
//! reverse.
//!
//! The rollback follows the state that each process reports, not what is believed to have been done.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{checkpoint::CheckpointJob, restore::RestoreJob};
use crate::{
    checkpoint::{CheckpointError, Checkpoints, preflight},
    criu::{
        cuda::{self, CudaState, Step, Tool, ToolError},
        kill,
        runc::{Load, deadline},
    },
    host::{blocking::off_thread, process},
    model::{
        action::{Action, GpuProcess, GpuWork},
        ids::{ActionId, ContainerId},
    },
};

/// How often programs are searched that have begun to use a GPU meanwhile, and how often a failure is retried.
const ROUNDS: usize = 3;

/// Pause before a retry.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a process for which a call fails may take to exit, which explains the failure.
const ENDING: Duration = Duration::from_secs(1);

/// `cuda-checkpoint` for one action on one container.
struct CudaCheckpointer {
    tool: Tool,
    action: ActionId,
    container: ContainerId,
    /// Limit of a call that copies no memory.
    short: Duration,
    /// Limit of a call that copies all of it.
    long: Duration,
}

impl CudaCheckpointer {
    /// All processes of the container, by their PIDs inside the pod.
    fn members(&self) -> HashMap<i32, i32> {
        let members = kill::members(&self.container).into_iter();
        members.filter_map(|pid| Some((process::pid_inside(pid)?, pid))).collect()
    }

    /// Whether it has ended, or is ending right now.
    async fn ends(&self, pid: i32) -> bool {
        let begun = Instant::now();
        while process::container_of(pid).as_ref() == Some(&self.container) && !kill::is_zombie(pid) {
            if begun.elapsed() > ENDING {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Runs a step for each process; those that end meanwhile are skipped. Returns those that are left.
    async fn each(&self, step: Step, processes: &[GpuProcess]) -> Result<Vec<GpuProcess>, CheckpointError> {
        let members = self.members();
        let mut left = Vec::new();
        for process in processes {
            let Some(&pid) = members.get(&process.pid) else { continue };
            match self.call(step, pid, None).await {
                Ok(()) => left.push(process.clone()),
                // It is ending, or has left the GPU by itself.
                Err(_) if self.ends(pid).await || step == Step::Lock && !preflight::holds_gpu(pid) => {}
                Err(trouble) => return Err(CheckpointError::Cuda(sentence(step, process, &trouble))),
            }
        }
        Ok(left)
    }

    async fn call(&self, step: Step, pid: i32, device_map: Option<&str>) -> Result<(), ToolError> {
        let (tool, action) = (&self.tool, self.action);
        match step {
            Step::Lock => tool.lock(pid, action, self.short).await,
            Step::Checkpoint => tool.step(step, pid, None, action, self.long).await,
            Step::Restore => tool.step(step, pid, device_map, action, self.long).await,
            Step::Unlock => tool.step(step, pid, None, action, self.short).await,
        }
    }

    /// Gives all of them their GPUs back, whatever state each is in. Returns what is wrong with those that did not get
    /// them.
    async fn resume(&self, work: &GpuWork) -> Vec<String> {
        let mut complaints = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            complaints = self.resume_once(work).await;
            if complaints.is_empty() {
                break;
            }
            tracing::warn!(container = %self.container, ?complaints, "could not give GPUs back");
        }
        complaints
    }

    async fn resume_once(&self, work: &GpuWork) -> Vec<String> {
        let members = self.members();
        let there = || work.processes.iter().rev().filter_map(|process| Some((process, *members.get(&process.pid)?)));
        let mut complaints = Vec::new();
        let mut locked = Vec::new();
        for (process, pid) in there() {
            let state = self.tool.state(pid, Some(self.action), self.short).await;
            let restored = match state {
                Ok(CudaState::Running) => continue,
                Ok(CudaState::Locked) => Ok(()),
                Ok(CudaState::Checkpointed) => self.call(Step::Restore, pid, work.device_map.as_deref()).await,
                Ok(CudaState::Failed) => Err(ToolError::Said("its CUDA has failed".to_owned())),
                Err(trouble) => Err(trouble),
            };
            match restored {
                Ok(()) => locked.push((process, pid)),
                Err(_) if self.ends(pid).await => {}
                Err(trouble) => complaints.push(sentence(Step::Restore, process, &trouble)),
            }
        }
        // None resumes before all have their memory: they may use each other's.
        for (process, pid) in locked {
            match self.call(Step::Unlock, pid, None).await {
                Err(trouble) if !self.ends(pid).await => complaints.push(sentence(Step::Unlock, process, &trouble)),
                _ => {}
            }
        }
        complaints
    }
}

fn sentence(step: Step, process: &GpuProcess, trouble: &ToolError) -> String {
    format!("cuda-checkpoint cannot {} {}: {trouble}", step.as_str(), process.who())
}

impl Checkpoints {
    fn hand(&self, action: &Action, container: &ContainerId, work: &GpuWork) -> CudaCheckpointer {
        let config = self.0.config.get();
        let journalled = Tool::find(Some(&work.program));
        let tool = journalled.or_else(|| Tool::find(config.checkpoint.cuda_checkpoint.as_deref()));
        CudaCheckpointer {
            // A program that no longer exists shows that with the first call.
            tool: tool.unwrap_or_else(|| Tool { program: work.program.clone() }),
            action: action.id,
            container: container.clone(),
            short: Duration::from_secs(config.checkpoint.timeout_seconds.max(1)),
            long: deadline(&config.checkpoint, Load { bytes: work.bytes, ..Load::default() })
                .max(Duration::from_secs(1)),
        }
    }

    /// Gives the programs of an action's pod their GPUs back, whatever was done with them. Returns what went wrong.
    pub(in crate::checkpoint) async fn wake_gpus(&self, action: &Action, container: &ContainerId) -> Vec<String> {
        let Some(work) = &action.journal.gpu else { return Vec::new() };
        let hand = self.hand(action, container, work);
        // Of a daemon that was killed meanwhile.
        cuda::wait_for_calls(action.id, hand.long).await;
        hand.resume(work).await
    }
}

impl CheckpointJob {
    /// Locks all, then copies their memory into the host's.
    pub(in crate::checkpoint) async fn gpu_off(&mut self) -> Result<(), CheckpointError> {
        // From here on its calls to CUDA block.
        *self.live.frozen_since() = Some(Instant::now());
        let Some(mut work) = self.action.journal.gpu.clone() else { return Ok(()) };
        let hand = self.ctx.hand(&self.action, &self.seen.container, &work);
        let init = self.seen.inspect.pid;
        let mut locked = hand.each(Step::Lock, &work.processes).await?;
        for round in 0.. {
            let container = self.seen.container.clone();
            let holders = off_thread(move || preflight::gpu_holders(&container, init)).await;
            // By its PID: a program may rename itself.
            let is_new = |process: &GpuProcess| work.processes.iter().all(|known| known.pid != process.pid);
            let new: Vec<GpuProcess> = holders.iter().map(GpuProcess::from).filter(is_new).collect();
            if new.is_empty() {
                break;
            }
            if round == ROUNDS {
                let names: Vec<String> = new.iter().map(GpuProcess::who).collect();
                return Err(CheckpointError::Cuda(format!(
                    "programs keep starting to use a GPU, the last of them {}; save the pod when they have all started",
                    names.join(", ")
                )));
            }
            work.processes.extend(new.iter().cloned());
            self.action.journal.gpu = Some(work.clone());
            self.ctx.write_action(&self.action).await?;
            locked.extend(hand.each(Step::Lock, &new).await?);
        }
        if locked != work.processes {
            // Those that have ended, or have left their GPU, must not be asked about it any more.
            work.processes.clone_from(&locked);
            self.action.journal.gpu = Some(work);
            self.ctx.write_action(&self.action).await?;
        }
        let saved = hand.each(Step::Checkpoint, &locked).await?;
        match &mut self.manifest.gpus {
            Some(gpus) if !saved.is_empty() => gpus.keep(&saved),
            // All have ended meanwhile.
            gpus => *gpus = None,
        }
        let container = self.seen.container.clone();
        let left = off_thread(move || preflight::gpu_holders(&container, init)).await;
        match left.first() {
            Some(holder) => Err(CheckpointError::Cuda(format!(
                "{} still holds {} after its CUDA memory left the GPU, and CRIU cannot save that; end it first",
                GpuProcess::from(holder).who(),
                holder.device.as_deref().unwrap_or("a GPU")
            ))),
            None => Ok(()),
        }
    }

    /// The reverse of gpu-off. The checkpoint is good even where a program does not get its GPU back.
    pub(in crate::checkpoint) async fn gpu_on(&mut self) {
        let Some(work) = &self.action.journal.gpu else { return };
        let complaints = self.ctx.hand(&self.action, &self.seen.container, work).resume(work).await;
        match complaints.is_empty() {
            true => self.action.journal.gpu = None,
            false => self.action.losses.push(not_resumed(&complaints)),
        }
    }
}

impl RestoreJob {
    pub(in crate::checkpoint) async fn gpu_on(&mut self) -> Result<(), CheckpointError> {
        let Some(work) = &self.action.journal.gpu else { return Ok(()) };
        let hand = self.ctx.hand(&self.action, &self.container()?, work);
        let members = hand.members();
        if let Some(lost) = work.processes.iter().find(|process| !members.contains_key(&process.pid)) {
            return Err(CheckpointError::Cuda(format!("{} ended before it got its GPU back", lost.who())));
        }
        let complaints = hand.resume(work).await;
        if !complaints.is_empty() {
            return Err(CheckpointError::Cuda(complaints.join("; ")));
        }
        let members = hand.members();
        let ended = work.processes.iter().filter(|process| !members.contains_key(&process.pid));
        let ended: Vec<String> = ended.map(|process| format!("{} has ended with its GPU", process.who())).collect();
        self.action.losses.extend(ended);
        Ok(())
    }
}

/// The sentence for programs that stay without their GPUs.
pub fn not_resumed(complaints: &[String]) -> String {
    format!(
        "programs of the pod are still without their GPUs ({}); stop the pod and start it, or restore a checkpoint",
        complaints.join("; ")
    )
}
