//! Why something was not done with checkpoints.

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

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("there is no checkpoint {0}")]
    NotFound(String),
    #[error("there is no action {0}")]
    NoAction(String),
    #[error("there is no checkpoint of {0}; make one with `pody checkpoint {0}`")]
    NoneOf(String),
    #[error("name the pod, or the checkpoint, that is to be brought back")]
    NothingNamed,
    /// The host lacks something.
    #[error("checkpoints are unavailable: {0}")]
    Unavailable(String),
    #[error("{pod} cannot be saved: {}", .problems.join("; "))]
    NotPossible { pod: String, problems: Vec<String> },
    #[error(
        "a checkpoint or restore of {pod} is already in progress; `pody actions --follow {action}` shows how far it is"
    )]
    InProgress { pod: String, action: ActionId },
    #[error("{pod} is {status}; only running pods can be saved, of others the files: --kind rootfsonly")]
    NotRunning { pod: String, status: ContainerStatus },
    #[error(
        "{pod} is {status}; stop it with `pody stop`, or restore under another name: --as, in /v2 overrides.pod_name"
    )]
    StillRuns { pod: String, status: ContainerStatus },
    #[error("checkpoint {id} is {status}; only one that is ready can be used")]
    NotReady { id: CheckpointId, status: CheckpointStatus },
    #[error("checkpoint {0} is in use by a checkpoint or restore in progress; wait for its end")]
    InUse(CheckpointId),
    #[error("a drained pod is to come back from checkpoint {0}; delete it after `pody undrain`")]
    HeldByDrain(CheckpointId),
    #[error("{0} has no schedule; set one with `pody checkpoint schedule {0} \"every 6h keep 4\"`")]
    NoSchedule(String),
    #[error(
        "a schedule may save a pod every {shortest} at the most, you ask for every {asked}; for example \"every 6h keep 4\""
    )]
    TooOften { asked: Interval, shortest: Interval },
    #[error("a reason has 1 to {longest} characters and no line breaks; for example \"driver upgrade\"")]
    Reason { longest: usize },
    #[error(
        "this needs about {} in {path}, and {} of it may be used; delete old checkpoints, or make room there",
        ByteSize(*.needed), ByteSize(*.free)
    )]
    Space { path: PathBuf, needed: u64, free: u64 },
    #[error("checkpoint {id} is damaged ({file}: {why}); it was not started")]
    Damaged { id: CheckpointId, file: String, why: String },
    /// What a manifest would say.
    #[error(
        "the checkpoint could not be read again: {0}; nothing was stopped for it. This is a fault of pody's: tell an admin"
    )]
    Unreadable(String),
    #[error("checkpoint_count is {limit} and you have {held}; delete one with `pody checkpoint rm ID`")]
    Count { limit: u64, held: u64 },
    #[error("checkpoint_size is {} and your checkpoints take {}; this one would take about {}; delete one with `pody checkpoint rm ID`",
        ByteSize(*.limit), ByteSize(*.held), ByteSize(*.asked))]
    Size { limit: u64, held: u64, asked: u64 },
    #[error("the image {0} of the checkpoint is gone; load or pull it again")]
    ImageGone(String),
    #[error(
        "the folders that pods get have changed since the checkpoint (then: {then}; now: {now}); a restore needs the same: ask an admin to set volume_mappings as they were"
    )]
    MountsChanged { then: String, now: String },
    #[error(
        "the checkpoint holds {} of memory, and the memory limit is {} now; ask an admin to raise it",
        ByteSize(*.needed), ByteSize(*.limit)
    )]
    Memory { needed: u64, limit: u64 },
    #[error(
        "the checkpoint was made on a host with {then}, this one has {now}; it can only be restored on one like that"
    )]
    OtherHost { then: String, now: String },
    /// Those that the checkpoint's programs were on, and those of now.
    #[error("{0}")]
    GpusDiffer(String),
    /// What NVIDIA's program said, as a sentence.
    #[error("{0}")]
    Cuda(String),
    /// What CRIU or runc said, as a sentence.
    #[error("{0}")]
    Criu(CriuFailure),
    #[error(
        "the pod's address of then, {address}, cannot be had: {why}; its connections with others need it: free it, or restore with its connections closed"
    )]
    AddressGone { address: Ipv4Addr, why: String },
    #[error("{what} did not end within {} s and was ended", .limit.as_secs())]
    TimedOut { what: &'static str, limit: Duration },
    #[error(
        "{0} ended while it was saved: something other than pody stopped or removed it, or it ran out of memory; see `pody logs` and `pody inspect`"
    )]
    EndedMeanwhile(String),
    #[error("{0} was let go while it was saved, by something other than pody (docker unpause); try again")]
    LetGo(String),
    #[error("the pod ended at once with exit code {0}")]
    EndedAtOnce(i64),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{program} failed: {message}")]
    Program { program: &'static str, message: String },
    #[error("pody was ended while it {0}")]
    Interrupted(&'static str),
    #[error("checkpoint {0} is on this host already; see `pody checkpoints`")]
    Known(CheckpointId),
    #[error(transparent)]
    Remote(#[from] ObjectError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
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
