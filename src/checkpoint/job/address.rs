//! The pod's original address, assigned to it by the engine again.
//!
//! A container that starts gets the lowest free address of its network, and on the default bridge none can be
//! requested. So while a pod is started again, placeholders hold all free addresses below its own: containers of ours
//! that do nothing. The engine then assigns the address by itself, knows that the pod has it, and gives it to no other;
//! published ports lead there, and neighbours find the original hardware address.
//!
//! Placeholders are removed as soon as the pod has its network. They are recorded before they are created
//! ([`crate::model::action::Journal`]), and exit by themselves, so a kill leaves none.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::sync::OwnedMutexGuard;

use crate::{
    checkpoint::{CheckpointError, Checkpoints, Manifest},
    engine::{Engine, Placeholder},
    host::blocking::off_thread,
    model::{
        action::Action,
        drain::DrainedPod,
        ids::{ActionId, ContainerId},
        pod::Pod,
    },
};

/// Placeholders for one restore; each costs the start of a container.
const MOST: usize = 32;

/// The engine gets slower with more at a time, not faster.
const AT_A_TIME: usize = 4;

/// A placeholder that nobody removes exits after this time.
const LASTS: Duration = Duration::from_secs(120);

/// How long another restore's placeholder is awaited.
const PATIENCE: Duration = Duration::from_secs(10);

const LOOK: Duration = Duration::from_millis(100);

/// The prefix of their names: those have too many parts for a pod's.
const NAME: &str = "pody-address-";

const LABEL: &str = "pody.action";

/// All addresses that the engine would assign before the wanted one. Dropping it frees them; until then no other
/// restore here has its turn.
pub(in crate::checkpoint) struct ReservedAddresses {
    engine: Engine,
    placeholders: Vec<ContainerId>,
    /// The host's name for the bridge of the network's containers.
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

/// Makes the engine assign the container, if it is started next, the address that it had.
pub(in crate::checkpoint) async fn reserve_lower(
    ctx: &Checkpoints,
    action: &mut Action,
    pod: &Pod,
    container: &ContainerId,
    address: Ipv4Addr,
) -> Result<ReservedAddresses, CheckpointError> {
    let engine = &ctx.0.engine;
    let closed = |why: String| CheckpointError::AddressGone { address, why };
    let turn = ctx.0.addresses.clone().lock_owned().await;
    let mut held =
        ReservedAddresses { engine: engine.clone(), placeholders: Vec::new(), bridge: None, turn: Some(turn) };
    let inspect = engine.inspect(container).await?.ok_or_else(|| closed("the pod is gone".to_owned()))?;
    let network = inspect.network_mode.as_str();
    let (free_below, bridge) = free_below(engine, network, address, &pod.container_name).await?.map_err(&closed)?;
    held.bridge = bridge;
    if free_below > MOST {
        return Err(closed(format!(
            "{free_below} lower addresses are free and would be assigned first, and only up to {MOST} can be reserved"
        )));
    }
    if free_below == 0 {
        return Ok(held);
    }
    tracing::info!(pod = pod.container_name, %address, placeholders = free_below, "reserved lower addresses");
    let program = ctx.0.pods.init_program()?;
    let first = action.journal.placeholders;
    let count = u32::try_from(free_below).unwrap_or(0);
    action.journal.placeholders = first + count;
    ctx.write_action(action).await?;
    let id = action.id;
    let made = stream::iter(first..first + count).map(|number| {
        let (program, image) = (&program, &inspect.image_id);
        async move {
            let label = (LABEL, id.to_string());
            let name = name(id, number);
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
    // One was freed meanwhile, and is now the lowest.
    remove_all(engine, own).await;
    Ok(held)
}

/// How many free addresses come before it, and the network's bridge; or why it is not available.
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
            return Ok(Err("the pod's network no longer has this address".to_owned()));
        };
        match pool.holder(address) {
            None => return Ok(Ok((pool.free_below(address), pool.bridge))),
            // Another daemon's of this host, or our own attempt that is being removed.
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
            tracing::warn!(container = id.short(), %error, "could not remove a placeholder; it exits by itself");
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

    /// Those that others are connected with by their original addresses, lowest first, and all others. The engine
    /// assigns the lowest free one: so each of them finds its own, and the others take none of these.
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
