//! Checkpoints and restores, running and past.

use serde::{Deserialize, Serialize};

use super::checkpoint::CopyView;
use crate::model::{
    action::{Action, ActionStatus},
    ids::{ActionId, CheckpointId, PodId},
    names::UserName,
    phase::{ActionKind, Phase},
    time::Millis,
};

/// An action, with its progress while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActionView {
    pub id: ActionId,
    #[serde(rename = "type")]
    pub kind: ActionKind,
    pub user: UserName,
    pub pod: PodId,
    pub container_name: String,
    pub checkpoint: CheckpointId,
    pub status: ActionStatus,
    pub phase: Phase,
    /// Written or read so far.
    pub bytes: u64,
    /// Expected, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// How long the pod was frozen; still counting while it is.
    pub frozen_ms: Option<u64>,
    /// What is not in the checkpoint, or was not brought back.
    pub losses: Vec<String>,
    pub error: Option<String>,
    /// The copy of its checkpoint in the remote store.
    #[serde(flatten)]
    pub remote: Option<CopyView>,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
}

impl From<Action> for ActionView {
    /// As the row has it: without an expected size and without a copy.
    fn from(row: Action) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            user: row.user,
            pod: row.pod,
            container_name: row.container_name,
            checkpoint: row.checkpoint,
            status: row.status,
            phase: row.phase,
            bytes: row.bytes,
            total_bytes: None,
            frozen_ms: row.frozen_ms,
            losses: row.losses,
            error: row.error,
            remote: None,
            started_at: row.started_at,
            ended_at: row.ended_at,
        }
    }
}
