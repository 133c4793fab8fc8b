//! The phases of checkpoints and restores, in one table each. A phase is written into the action's row before it
//! begins, so that a later start knows what may have been done; `checkpoint::job` recovers from there.
//!
//! A checkpoint:
//!
//! | phase | what is done | the pod | rolled back by |
//! | --- | --- | --- | --- |
//! | preflight | the restart policy is set to `no` if the pod is to be stopped | runs | the old policy |
//! | gpu-off | only with programs on a GPU: `cuda-checkpoint` locks them all, then copies their memory off the GPUs |
//! runs, but CUDA calls block | restore and unlock, in reverse |
//! | pause | `docker pause`, its network's ports disabled | is frozen | the ports, `docker unpause` |
//! | dump | runc has CRIU write the processes into a directory `.tmp-ID` | is frozen | CRIU's end, the network lock
//! removed, unpause |
//! | rootfs | the writable layer into an archive | is frozen | unpause |
//! | resume | the ports, `docker unpause` (leave running) | runs | |
//! | gpu-on | after gpu-off: restore and unlock, in reverse | runs | |
//! | hash | BLAKE3 and fsync of every file | runs; is frozen if it is to be stopped | unpause |
//! | commit | the manifest, fsync, the directory gets its final name | as before | nothing: it is complete |
//! | stop | `docker kill` while it is frozen | ends | nothing: it is ended at the next start |
//! | compress | the large files compressed, the manifest replaced | | the files that the manifest does not name |
//!
//! A restore:
//!
//! | phase | what is done | rolled back by |
//! | --- | --- | --- |
//! | verify | the manifest, every file's size and hash; nothing is changed before | |
//! | fetch | only if the directory is gone or damaged and has a copy: downloads what is missing from the remote store |
//! what is complete stays |
//! | prepare | container (under another name), the writable layer moved aside and created again, compressed files
//! unpacked | the layer put back, or the container removed |
//! | start | the engine starts the container from the images | what was started is killed, then as above |
//! | gpu-on | only with programs on a GPU: `cuda-checkpoint` restores and unlocks them | as above |
//! | check | whether it lives | as above |
//! | clean | removes what was moved aside, and the engine's copies | |

use super::{
    checkpoint::{Kind, LeaveRunning},
    words::words,
};

words! {
    Phase, "phase" {
        Preflight = "preflight",
        GpuOff = "gpu-off",
        Pause = "pause",
        Dump = "dump",
        Rootfs = "rootfs",
        Resume = "resume",
        GpuOn = "gpu-on",
        Hash = "hash",
        Commit = "commit",
        Stop = "stop",
        Compress = "compress",
        Verify = "verify",
        Fetch = "fetch",
        Prepare = "prepare",
        Start = "start",
        Check = "check",
        Clean = "clean",
    }
}

/// What decides about the phases of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    pub kind: Kind,
    pub leave_running: LeaveRunning,
    /// The pod runs; otherwise only its files are saved.
    pub runs: bool,
    pub compresses: bool,
    /// Some of its programs use GPUs.
    pub has_gpus: bool,
}

impl Phase {
    /// The phases of a checkpoint, in order.
    pub fn of_checkpoint(circumstances: Circumstances) -> Vec<Self> {
        let Circumstances { kind, leave_running, runs, compresses, has_gpus } = circumstances;
        let resumes = leave_running == LeaveRunning::Yes;
        let has_gpus = has_gpus && runs && kind.has_processes();
        let steps = [
            (Self::Preflight, true),
            // While the pod runs: cuda-checkpoint has a thread of each process do it.
            (Self::GpuOff, has_gpus),
            (Self::Pause, runs),
            (Self::Dump, runs && kind.has_processes()),
            (Self::Rootfs, kind.has_files()),
            (Self::Resume, runs && resumes),
            (Self::GpuOn, has_gpus && resumes),
            (Self::Hash, true),
            (Self::Commit, true),
            (Self::Stop, runs && !resumes),
            (Self::Compress, compresses),
        ];
        steps.into_iter().filter_map(|(phase, wanted)| wanted.then_some(phase)).collect()
    }

    /// The phases of a restore, in order.
    pub fn of_restore(has_gpus: bool) -> Vec<Self> {
        let mut phases = vec![Self::Verify, Self::Prepare, Self::Start];
        phases.extend(has_gpus.then_some(Self::GpuOn));
        phases.extend([Self::Check, Self::Clean]);
        phases
    }

    /// The point before this phase at which tests stop the daemon.
    pub fn fail_point(self, of: ActionKind) -> String {
        format!("{of}-{self}")
    }

    /// What was being done, for sentences like "pody was stopped while it …".
    pub fn doing(self) -> &'static str {
        match self {
            Self::Preflight => "prepared the checkpoint",
            Self::GpuOff => "copied the pod's memory off its GPUs",
            Self::Pause => "paused the pod",
            Self::Dump => "saved the processes",
            Self::Rootfs => "saved the files",
            Self::Resume => "resumed the pod",
            Self::GpuOn => "gave the pod's programs their GPUs back",
            Self::Hash => "hashed the checkpoint",
            Self::Commit => "completed the checkpoint",
            Self::Stop => "stopped the pod",
            Self::Compress => "compressed the checkpoint",
            Self::Verify => "verified the checkpoint",
            Self::Fetch => "downloaded the checkpoint",
            Self::Prepare => "prepared the pod's files",
            Self::Start => "restored the processes",
            Self::Check => "checked whether the pod lives",
            Self::Clean => "cleaned up",
        }
    }
}

words! {
    ActionKind, "kind of action" {
        Checkpoint = "checkpoint",
        Restore = "restore",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(kind: Kind, leave_running: LeaveRunning, runs: bool, compresses: bool) -> String {
        shown(kind, leave_running, runs, compresses, false)
    }

    fn shown(kind: Kind, leave_running: LeaveRunning, runs: bool, compresses: bool, has_gpus: bool) -> String {
        let phases = Phase::of_checkpoint(Circumstances { kind, leave_running, runs, compresses, has_gpus });
        phases.iter().map(|phase| phase.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pod_is_stopped_only_after_its_images_are_durable() {
        use LeaveRunning::{No, Yes};
        assert_eq!(phases(Kind::Rootfs, Yes, true, true), "preflight pause dump rootfs resume hash commit compress");
        assert_eq!(phases(Kind::Rootfs, No, true, false), "preflight pause dump rootfs hash commit stop");
        assert_eq!(phases(Kind::Simple, Yes, true, false), "preflight pause dump resume hash commit");
        assert_eq!(phases(Kind::RootfsOnly, Yes, false, false), "preflight rootfs hash commit");
    }

    #[test]
    fn memory_leaves_the_gpus_before_the_pause_and_returns_after_it() {
        use LeaveRunning::{No, Yes};
        let gpus = |kind, leave_running, runs| shown(kind, leave_running, runs, false, true);
        assert_eq!(gpus(Kind::Rootfs, Yes, true), "preflight gpu-off pause dump rootfs resume gpu-on hash commit");
        assert_eq!(gpus(Kind::Simple, No, true), "preflight gpu-off pause dump hash commit stop");
        // Files alone do not involve them.
        assert_eq!(gpus(Kind::RootfsOnly, Yes, true), "preflight pause rootfs resume hash commit");
        let words =
            |has_gpus| Phase::of_restore(has_gpus).iter().map(|phase| phase.as_str()).collect::<Vec<_>>().join(" ");
        assert_eq!(words(true), "verify prepare start gpu-on check clean");
        assert_eq!(words(false), "verify prepare start check clean");
    }
}
