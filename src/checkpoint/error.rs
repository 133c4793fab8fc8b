//! Why a checkpoint or restore failed or was refused.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use crate::{
    criu::error::{CriuError, CriuFailure},
    db::DbError,
    engine::EngineError,
    host::disk::DiskError,
    model::{
        checkpoint::CheckpointStatus,
        ids::{ActionId, CheckpointId},
        pod::ContainerStatus,
        quantities::ByteSize,
        schedule::Interval,
    },
    objects::ObjectError,
    pod::PodError,
};

#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum CheckpointError {
    #[error("there is no checkpoint {0}")]
    #[strum(serialize = "checkpoint_not_found")]
    NotFound(String),
    #[error("there is no action {0}")]
    #[strum(serialize = "action_not_found")]
    NoAction(String),
    #[error("there is no checkpoint of {0}; create one with `pody checkpoint {0}`")]
    #[strum(serialize = "pod_has_no_checkpoint")]
    NoneOf(String),
    #[error("name the pod or the checkpoint to restore")]
    NothingNamed,
    /// The host lacks something.
    #[error("checkpoints are unavailable: {0}")]
    #[strum(serialize = "checkpoints_unavailable")]
    Unavailable(String),
    #[error("{pod} cannot be saved: {}", .problems.join("; "))]
    #[strum(serialize = "checkpoint_not_possible")]
    NotPossible { pod: String, problems: Vec<String> },
    #[error(
        "a checkpoint or restore of {pod} is already in progress; `pody actions --follow {action}` shows its progress"
    )]
    #[strum(serialize = "action_in_progress")]
    InProgress { pod: String, action: ActionId },
    #[error(
        "{pod} is {status}; only running pods can be saved with their processes; save the files with --kind rootfsonly"
    )]
    #[strum(serialize = "pod_not_running")]
    NotRunning { pod: String, status: ContainerStatus },
    #[error(
        "{pod} is {status}; stop it with `pody stop`, or restore under another name: --as, in /v2 overrides.pod_name"
    )]
    #[strum(serialize = "pod_still_runs")]
    StillRuns { pod: String, status: ContainerStatus },
    #[error("checkpoint {id} is {status}; only one that is ready can be used")]
    #[strum(serialize = "checkpoint_not_ready")]
    NotReady { id: CheckpointId, status: CheckpointStatus },
    #[error("checkpoint {0} is in use by a checkpoint or restore in progress; wait until that ends")]
    #[strum(serialize = "checkpoint_in_use")]
    InUse(CheckpointId),
    #[error("checkpoint {0} is needed to restore a drained pod; delete it after `pody undrain`")]
    HeldByDrain(CheckpointId),
    #[error("{0} has no schedule; set one with `pody checkpoint schedule {0} \"every 6h keep 4\"`")]
    #[strum(serialize = "schedule_not_found")]
    NoSchedule(String),
    #[error("a schedule may save a pod at most every {shortest}, not every {asked}; for example \"every 6h keep 4\"")]
    #[strum(serialize = "schedule_too_often")]
    TooOften { asked: Interval, shortest: Interval },
    #[error("a reason must have 1 to {longest} characters and no line breaks; for example \"driver upgrade\"")]
    #[strum(serialize = "reason_length")]
    Reason { longest: usize },
    #[error(
        "this needs about {} in {path}, but only {} may be used; delete old checkpoints, or free space there",
        ByteSize(*.needed), ByteSize(*.free)
    )]
    #[strum(serialize = "not_enough_space")]
    Space { path: PathBuf, needed: u64, free: u64 },
    #[error("checkpoint {id} is damaged ({file}: {why}); it was not started")]
    #[strum(serialize = "checkpoint_damaged")]
    Damaged { id: CheckpointId, file: String, why: String },
    /// What the user of its manifest would see.
    #[error(
        "the checkpoint could not be read back: {0}; the pod was not stopped. This is a bug in pody: report it to an admin"
    )]
    #[strum(serialize = "checkpoint_unreadable")]
    Unreadable(String),
    #[error("checkpoint_count is {limit} and you have {held}; delete one with `pody checkpoint rm ID`")]
    #[strum(serialize = "checkpoint_count")]
    Count { limit: u64, held: u64 },
    #[error("checkpoint_size is {} and your checkpoints take {}; this one would take about {}; delete one with `pody checkpoint rm ID`",
        ByteSize(*.limit), ByteSize(*.held), ByteSize(*.asked))]
    #[strum(serialize = "checkpoint_size")]
    Size { limit: u64, held: u64, asked: u64 },
    #[error("the image {0} of the checkpoint no longer exists; load or pull it again")]
    ImageGone(String),
    #[error(
        "the folders mounted into pods have changed since the checkpoint (saved: {then}; now: {now}); a restore needs the same ones: ask an admin to restore the old volume_mappings"
    )]
    MountsChanged { then: String, now: String },
    #[error(
        "the checkpoint holds {} of memory, but the memory limit is now {}; ask an admin to raise it",
        ByteSize(*.needed), ByteSize(*.limit)
    )]
    #[strum(serialize = "memory_limit")]
    Memory { needed: u64, limit: u64 },
    #[error(
        "the checkpoint was made on a host with {then}, this one has {now}; it can only be restored on a host like that"
    )]
    OtherHost { then: String, now: String },
    /// The GPUs that the checkpoint's programs were on, compared with the current ones.
    #[error("{0}")]
    GpusDiffer(String),
    /// The message of cuda-checkpoint, as a sentence.
    #[error("{0}")]
    #[strum(serialize = "cuda_failed")]
    Cuda(String),
    /// The message of CRIU or runc, as a sentence.
    #[error("{0}")]
    #[strum(serialize = "criu_failed")]
    Criu(CriuFailure),
    #[error(
        "the pod's original address {address} is not available: {why}; its connections with others need it: free it, or restore with its connections closed"
    )]
    AddressGone { address: Ipv4Addr, why: String },
    #[error("{what} did not end within {} s and was ended", .limit.as_secs())]
    #[strum(serialize = "checkpoint_timed_out")]
    TimedOut { what: &'static str, limit: Duration },
    #[error(
        "{0} ended while it was saved: something other than pody stopped or removed it, or it ran out of memory; see `pody logs` and `pody inspect`"
    )]
    #[strum(serialize = "pod_ended_meanwhile")]
    EndedMeanwhile(String),
    #[error("{0} was unpaused during the checkpoint by something other than pody (docker unpause); try again")]
    #[strum(serialize = "pod_resumed_meanwhile")]
    LetGo(String),
    #[error("the pod ended at once with exit code {0}")]
    #[strum(serialize = "pod_ended_at_once")]
    EndedAtOnce(i64),
    #[error(transparent)]
    #[strum(transparent)]
    Disk(#[from] DiskError),
    #[error("{program} failed: {message}")]
    #[strum(serialize = "program_failed")]
    Program { program: &'static str, message: String },
    #[error("pody was stopped while it {0}")]
    Interrupted(&'static str),
    #[error("checkpoint {0} already exists on this host; see `pody checkpoints`")]
    #[strum(serialize = "checkpoint_known")]
    Known(CheckpointId),
    #[error(transparent)]
    #[strum(transparent)]
    Remote(#[from] ObjectError),
    #[error(transparent)]
    #[strum(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    #[strum(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
}

impl From<CriuError> for CheckpointError {
    fn from(error: CriuError) -> Self {
        match error {
            CriuError::Unavailable(why) => Self::Unavailable(why),
            CriuError::Failed(failure) => Self::Criu(failure),
            CriuError::TimedOut { what, limit } => Self::TimedOut { what, limit },
            CriuError::Disk(error) => Self::Disk(error),
        }
    }
}
