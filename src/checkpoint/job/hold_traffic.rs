//! Nobody is answered under a pod's address before its sockets are there again. The engine connects the pod's network
//! first, and CRIU closes it a moment later; a packet of somebody who goes on to send, if it comes in between, would be
//! answered with the end of the connection. So the bridge claims the pod's hardware address until the pod goes on
//! ([`crate::host::bridge`]).

use crate::{
    checkpoint::{CheckpointError, Checkpoints},
    host::bridge,
    model::action::{Action, HeldTraffic},
};

impl HeldTraffic {
    /// As the engine makes it of the address of a container. Where it makes another, nobody knows that one yet.
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
            tracing::error!(bridge = self.bridge, address = %self.address, %error, "the pod may not be reached under its address");
        }
    }
}

/// The silence; it ends when dropped.
pub(in crate::checkpoint) struct TrafficHold(HeldTraffic);

impl Drop for TrafficHold {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Holds the traffic back. What is held is written down before.
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

/// Ends what a killed daemon has left.
pub(in crate::checkpoint) fn end(action: &Action) {
    if let Some(held_traffic) = &action.journal.held_traffic {
        held_traffic.end();
    }
}
