//! Nobody gets an answer from a pod's address before its sockets exist again. The engine connects the pod's network
//! first, and CRIU closes it a moment later; a packet of a peer that arrives in between would be answered with the end
//! of the connection. So the bridge claims the pod's hardware address until the pod resumes ([`crate::host::bridge`]).

use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    host::bridge,
    model::action::{Action, HeldTraffic},
};

impl HeldTraffic {
    /// As the engine derives it from a container's address. Where it chooses another, nobody knows that one yet.
    fn hardware_address(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x02, 0x42, a, b, c, d]
    }

    fn begin(&self) {
        if let Err(error) = bridge::claim(&self.bridge, self.hardware_address(), true) {
            tracing::warn!(bridge = self.bridge, %error, "a connection with others may end in the restore");
        }
    }

    fn end(&self) {
        if let Err(error) = bridge::claim(&self.bridge, self.hardware_address(), false) {
            tracing::error!(bridge = self.bridge, address = %self.address, %error, "the pod may not be reachable at its address");
        }
    }
}

/// The hold; it ends when dropped.
pub(in crate::checkpoint) struct TrafficHold(HeldTraffic);

impl Drop for TrafficHold {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Holds traffic back. The hold is recorded first.
pub(in crate::checkpoint) async fn begin(
    ctx: &Checkpoints,
    action: &mut Action,
    held_traffic: HeldTraffic,
) -> Result<TrafficHold, CheckpointError> {
    action.journal.held_traffic = Some(held_traffic.clone());
    ctx.write_action(action).await?;
    held_traffic.begin();
    Ok(TrafficHold(held_traffic))
}

/// Ends a hold that a killed daemon has left.
pub(in crate::checkpoint) fn end(action: &Action) {
    if let Some(held_traffic) = &action.journal.held_traffic {
        held_traffic.end();
    }
}
