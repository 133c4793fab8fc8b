//! While the host is drained for maintenance, no pod is created, started or restored, but by the end of the drain itself.
//!
//! Whoever begins one of these looks twice: at the snapshot, to refuse before anything else is said, and in the transaction
//! that writes it down, so that none slips by a drain that is asked for at the same moment.

use super::{PodError, Pods};
use crate::{
    db::Tx,
    model::{
        pod::Pod,
        user::{Actor, Caller},
    },
};

/// Who wants something done with a pod.
#[derive(Clone, Debug)]
pub enum AskedBy {
    Caller,
    /// Maintenance, for whoever asked for it.
    Drain(Actor),
}

impl AskedBy {
    /// Who is written down as the doer.
    pub(crate) fn actor(&self, caller: &Caller) -> Actor {
        match self {
            Self::Caller => Actor::from(caller),
            Self::Drain(actor) => actor.clone(),
        }
    }

    pub(crate) fn ensure_not_drained(&self, tx: &Tx) -> Result<(), PodError> {
        match (self, tx.find_drain()?) {
            (Self::Caller, Some(drain)) if drain.holds_pods() => Err(PodError::Draining(Box::new(drain))),
            _ => Ok(()),
        }
    }
}

/// Whether a container of this status holds processes.
pub fn is_up(status: &str) -> bool {
    matches!(status, "running" | "paused" | "restarting")
}

impl Pods {
    pub(crate) fn ensure_not_drained(&self, by: &AskedBy) -> Result<(), PodError> {
        match (by, &self.db.snapshot().upkeep.drain) {
            (AskedBy::Caller, Some(drain)) if drain.holds_pods() => Err(PodError::Draining(Box::new(drain.clone()))),
            _ => Ok(()),
        }
    }

    /// Whether the pod's container holds processes, as the inventory has it.
    pub(crate) fn is_up(&self, pod: &Pod) -> bool {
        self.container(pod).is_some_and(|container| is_up(&container.status))
    }
}
