//! While the host is drained for maintenance, no pod is created, started or restored, except by the end of the drain
//! itself.
//!
//! Each of these operations checks twice: in the snapshot, to refuse before any other check, and in the transaction
//! that records it, so that none slips past a drain that is requested at the same moment.

use super::{PodError, Pods};
use crate::{
    db::Tx,
    model::{
        pod::Pod,
        user::{Actor, Caller},
    },
};

/// Who requests an operation on a pod.
#[derive(Clone, Debug)]
pub enum AskedBy {
    Caller,
    /// Maintenance, for the admin who requested it.
    Drain(Actor),
}

impl AskedBy {
    /// The actor to record.
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

impl Pods {
    pub(crate) fn ensure_not_drained(&self, by: &AskedBy) -> Result<(), PodError> {
        match (by, &self.db.snapshot().upkeep.drain) {
            (AskedBy::Caller, Some(drain)) if drain.holds_pods() => Err(PodError::Draining(Box::new(drain.clone()))),
            _ => Ok(()),
        }
    }

    /// Whether the pod's container has processes, according to the inventory.
    pub(crate) fn is_up(&self, pod: &Pod) -> bool {
        self.container(pod).is_some_and(|container| container.status.is_up())
    }
}
