//! The pod's address of then, given to it by the engine once more.
//!
//! A container that starts gets the lowest address of its network that is free, and on the default bridge none can be
//! asked for. So for the moment in which a pod is started again, placeholders take all that are free below its own:
//! containers of ours that do nothing. The engine then gives it the address by itself, knows that it has it, and gives
//! it to nobody else; ports that are published lead there, and neighbours find the hardware address of then.
//!
//! Placeholders are removed as soon as the pod has its network. They are written down before they are made
//! ([`crate::checkpoint::Journal`]), and end by themselves, so a kill leaves none.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::sync::OwnedMutexGuard;

use super::restore::RestoreJob;
use crate::{
    checkpoint::{CheckpointError, Checkpoints, Manifest},
    engine::{Engine, Placeholder},
    host::blocking::off_thread,
    model::{
        action::Action,
        drain::DrainedPod,
        ids::{ActionId, ContainerId},
    },
};

/// Placeholders for one restore; each costs a container's start.
const MOST: usize = 32;

/// The engine gets slower with more at a time, not faster.
const AT_A_TIME: usize = 4;

/// A placeholder that nobody removes ends.
const LASTS: Duration = Duration::from_secs(120);

/// How long another's placeholder is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const LOOK: Duration = Duration::from_millis(100);

/// Names begin so: they have too many parts for a pod's.
const NAME: &str = "pody-address-";

const LABEL: &str = "pody.action";

/// All that the engine would give before the address. Dropped, they are given back; until then nobody else here has its
/// turn.
pub(in crate::checkpoint) struct ReservedAddresses {
    engine: Engine,
    placeholders: Vec<ContainerId>,
    /// The host's name for what the network's containers hang on.
    pub(in crate::checkpoint) bridge: Option<String>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for ReservedAddresses {
    fn drop(&mut self) {
        let (engine, placeholders, turn) =
            (self.engine.clone(), std::mem::take(&mut self.placeholders), self.turn.take());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            remove_all(&engine, placeholders).await;
            drop(turn);
        });
    }
}

impl RestoreJob {
    /// Sees to it that the engine gives the container, if it is started next, the address that it had.
    pub(in crate::checkpoint) async fn reserve_lower_addresses(
        &mut self,
        container: &ContainerId,
        address: Ipv4Addr,
    ) -> Result<ReservedAddresses, CheckpointError> {
        let ctx = self.ctx.clone();
        let engine = &ctx.0.engine;
        let closed = |why: String| CheckpointError::AddressGone { address, why };
        let turn = ctx.0.addresses.clone().lock_owned().await;
        let mut held =
            ReservedAddresses { engine: engine.clone(), placeholders: Vec::new(), bridge: None, turn: Some(turn) };
        let inspect = engine.inspect(container).await?.ok_or_else(|| closed("the pod is gone".to_owned()))?;
        let network = inspect.document["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
        let (free_below, bridge) =
            free_below(engine, network, address, &self.pod.container_name).await?.map_err(&closed)?;
        held.bridge = bridge;
        if free_below > MOST {
            return Err(closed(format!(
                "{free_below} lower ones are free and would be given first, and up to {MOST} can be held back"
            )));
        }
        if free_below == 0 {
            return Ok(held);
        }
        tracing::info!(pod = self.pod.container_name, %address, placeholders = free_below, "held back lower addresses");
        let program = ctx.0.pods.init_program()?;
        let first = self.action.journal.placeholders;
        let count = u32::try_from(free_below).unwrap_or(0);
        self.action.journal.placeholders = first + count;
        ctx.write_action(&self.action).await?;
        let action = self.action.id;
        let made = stream::iter(first..first + count).map(|number| {
            let (program, image) = (&program, &inspect.image_id);
            async move {
                let label = (LABEL, action.to_string());
                let name = name(action, number);
                engine.hold_address(&Placeholder { name, label, image, network, program, lasts: LASTS }).await
            }
        });
        let made: Vec<_> = made.buffer_unordered(AT_A_TIME).collect().await;
        let mut own = Vec::new();
        for made in made {
            match made {
                Ok((id, Some(given))) if given == address => own.push(id),
                Ok((id, _)) => held.placeholders.push(id),
                Err(error) => tracing::warn!(%error, "a placeholder is missing"),
            }
        }
        fail::fail_point!("restore-held");
        // One was freed meanwhile, and this is the lowest now.
        remove_all(engine, own).await;
        Ok(held)
    }
}

/// How many come before it, and the network's bridge; or why it cannot be had.
async fn free_below(
    engine: &Engine,
    network: &str,
    address: Ipv4Addr,
    own: &str,
) -> Result<Result<(usize, Option<String>), String>, CheckpointError> {
    let begun = Instant::now();
    loop {
        let pool = engine.address_pool(network).await?;
        let Some(pool) = pool.filter(|pool| pool.contains(address)) else {
            return Ok(Err("the pod's network has no such address now".to_owned()));
        };
        match pool.holder(address) {
            None => return Ok(Ok((pool.free_below(address), pool.bridge))),
            // Another daemon's of this host, or our own attempt that is being cleared away.
            Some(holder) if (holder.starts_with(NAME) || holder == own) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK).await
            }
            Some(_) => return Ok(Err("another container has it now".to_owned())),
        }
    }
}

fn name(action: ActionId, number: u32) -> String {
    format!("{NAME}{action}-{number}")
}

async fn remove_all(engine: &Engine, placeholders: Vec<ContainerId>) {
    let each = |id: ContainerId| async move {
        if let Err(error) = engine.remove(&id).await {
            tracing::warn!(container = id.short(), %error, "a placeholder ends later");
        }
    };
    stream::iter(placeholders).for_each_concurrent(AT_A_TIME, each).await;
}

impl Checkpoints {
    /// Removes the placeholders that an action has left.
    pub(in crate::checkpoint) async fn remove_placeholders(&self, action: &Action) -> Result<(), CheckpointError> {
        let engine = &self.0.engine;
        for number in 0..action.journal.placeholders {
            let found = engine.look_for(&name(action.id, number)).await?;
            if let Some(found) = found.filter(|found| found.has_label(LABEL, &action.id.to_string())) {
                engine.remove(&found.id).await?;
            }
        }
        Ok(())
    }

    /// Those that others are connected with by their addresses of then, lowest first, and all others. The engine gives
    /// the lowest that is free: so each of them finds its own, and those that do not care take none of them.
    pub(in crate::checkpoint) async fn by_address(&self, rows: Vec<DrainedPod>) -> (Vec<DrainedPod>, Vec<DrainedPod>) {
        let store = self.0.store.clone();
        off_thread(move || {
            let address = |row: &DrainedPod| {
                let id = row.checkpoint?;
                let sockets = Manifest::read(&store.directory(id), id).ok()?.sockets;
                sockets.original_address().filter(|_| sockets.need_their_address())
            };
            let (mut first, mut rest) = (Vec::new(), Vec::new());
            for row in rows {
                match address(&row) {
                    Some(address) => first.push((address, row)),
                    None => rest.push(row),
                }
            }
            first.sort_by_key(|(address, _)| *address);
            (first.into_iter().map(|(_, row)| row).collect(), rest)
        })
        .await
    }
}
