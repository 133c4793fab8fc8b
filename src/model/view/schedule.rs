//! Checkpoint schedules.

use serde::{Deserialize, Serialize};

use crate::model::{
    ids::CheckpointId,
    names::{InstanceName, UserName},
    schedule::Schedule,
    time::Millis,
};

/// A schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScheduleView {
    /// `every 6h keep 4`
    pub rule: String,
    pub every_seconds: i64,
    pub keep: u32,
    pub next_at: Millis,
    pub last_at: Option<Millis>,
    pub last_checkpoint: Option<CheckpointId>,
    pub last_error: Option<String>,
}

impl From<&Schedule> for ScheduleView {
    fn from(schedule: &Schedule) -> Self {
        Self {
            rule: schedule.rule().to_string(),
            every_seconds: schedule.every,
            keep: schedule.keep,
            next_at: schedule.next_at,
            last_at: schedule.last_at,
            last_checkpoint: schedule.last_checkpoint,
            last_error: schedule.last_error.clone(),
        }
    }
}

/// A schedule with its pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSchedule {
    pub user: UserName,
    pub instance: InstanceName,
    #[serde(flatten)]
    pub schedule: ScheduleView,
}
