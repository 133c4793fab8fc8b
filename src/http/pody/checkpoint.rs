//! `/pod/checkpoint`, `/pod/restore`, `/pod/checkpoints` and `/checkpoint/…`

use serde::Serialize;

use super::ApiError;
use crate::{
    checkpoint::Manifest,
    http::{endpoint::Ctx, json::Json},
    model::{
        checkpoint::{
            CheckpointFilter, CheckpointName, Compression, Kind, LeaveRunning, NewCheckpoint, NewRestore, Origin,
        },
        ids::CheckpointId,
        names::{InstanceName, PodRef, UserName},
        view::{
            Log,
            checkpoint::{CheckpointContent, CheckpointDetails, CheckpointFile},
        },
    },
    params,
};

params! { Create { ins: PodRef; kind: Kind, leave_running: bool, compression: Compression, name: CheckpointName,
remote: bool } }

pub async fn create(ctx: Ctx, params: Create) -> Result<Json<impl Serialize>, ApiError> {
    let new = NewCheckpoint {
        kind: params.kind.unwrap_or(Kind::Rootfs),
        leave_running: if params.leave_running == Some(false) { LeaveRunning::No } else { LeaveRunning::Yes },
        compression: params.compression.unwrap_or(ctx.app.config.get().checkpoint.compression),
        name: params.name,
        reason: None,
        origin: Origin::Hand,
        remote: params.remote == Some(true),
        streams: None,
    };
    Ok(Json(ctx.app.checkpoints.begin(ctx.caller(), &params.ins, new).await?))
}

params! { Restore { ins: PodRef; checkpoint: CheckpointId, r#as: InstanceName } }

pub async fn restore(ctx: Ctx, params: Restore) -> Result<Json<impl Serialize>, ApiError> {
    let new =
        NewRestore { checkpoint: params.checkpoint, pod: Some(params.ins), restore_as: params.r#as, connections: None };
    Ok(Json(ctx.app.checkpoints.begin_restore(ctx.caller(), new).await?))
}

params! { List { ; ins: PodRef, all: bool, user: UserName } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let others = params.all == Some(true) || params.user.as_ref().is_some_and(|user| user != &caller.user);
    if others && !caller.is_admin {
        return Err(ApiError::AdminsOnly);
    }
    let all = params.all == Some(true);
    let filter = CheckpointFilter { user: params.user, all, pod: params.ins, ..CheckpointFilter::default() };
    Ok(Json(ctx.app.checkpoints.list(caller, filter).await?))
}

params! { One { checkpoint: CheckpointId } }

impl From<Manifest> for CheckpointContent {
    fn from(manifest: Manifest) -> Self {
        let files = manifest.files.iter().map(|(path, file)| CheckpointFile {
            path: path.display().to_string(),
            size: file.size,
            stored: file.packed.as_ref().map_or(file.size, |packed| packed.size),
            blake3: file.blake3.clone(),
        });
        Self {
            files: files.collect(),
            image: manifest.shape.image,
            hostname: manifest.shape.hostname,
            kernel: manifest.host.kernel,
            criu: manifest.host.criu,
            frozen_ms: manifest.frozen_ms,
            losses: manifest.losses,
            tcp_connections: manifest.sockets.local + manifest.sockets.outside,
        }
    }
}

pub async fn inspect(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    let checkpoint = ctx.app.checkpoints.find(ctx.caller(), params.checkpoint).await?;
    let content = ctx.app.checkpoints.manifest(ctx.caller(), params.checkpoint).await.ok().map(CheckpointContent::from);
    Ok(Json(CheckpointDetails { checkpoint, content }))
}

pub async fn delete(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.checkpoints.delete(ctx.caller(), params.checkpoint).await?;
    Ok(Json(Log { log: format!("Checkpoint {} deleted", params.checkpoint) }))
}

params! { Remote { ; user: UserName } }

/// The checkpoints in the remote store.
pub async fn list_remote(ctx: Ctx, params: Remote) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    if params.user.as_ref().is_some_and(|user| user != &caller.user) && !caller.is_admin {
        return Err(ApiError::AdminsOnly);
    }
    Ok(Json(ctx.app.checkpoints.list_remote(caller, params.user).await?))
}

params! { Fetch { checkpoint: CheckpointId; user: UserName } }

/// Registers a checkpoint that this host does not know.
pub async fn fetch(ctx: Ctx, params: Fetch) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    if params.user.as_ref().is_some_and(|user| user != &caller.user) && !caller.is_admin {
        return Err(ApiError::AdminsOnly);
    }
    Ok(Json(ctx.app.checkpoints.take_in(caller, params.user, params.checkpoint).await?))
}

params! { Check { ins: PodRef; kind: Kind } }

pub async fn check(ctx: Ctx, params: Check) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.checkpoints.check(ctx.caller(), &params.ins, params.kind.unwrap_or(Kind::Rootfs)).await?))
}
