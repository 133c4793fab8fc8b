//! `/action/…`: checkpoints and restores, in progress and past.

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, json::Json},
    model::{
        action::ActionFilter,
        ids::{ActionId, CheckpointId},
        names::PodRef,
        phase::ActionKind,
    },
    params,
};

params! { One { id: ActionId } }

pub async fn status(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.checkpoints.action(ctx.caller(), params.id).await?))
}

params! { List { ; ins: PodRef, r#type: ActionKind, checkpoint: CheckpointId, all: bool } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let all = params.all == Some(true);
    if all && !ctx.caller().is_admin {
        return Err(ApiError::AdminsOnly);
    }
    // By its name: a pod that was deleted, or created again by a restore, has a past too.
    let container_name = params.ins.as_ref().map(|wanted| ctx.app.pods.name_of(ctx.caller(), wanted)).transpose()?;
    // Another user's pod, which only an admin may name, has that user's actions.
    let all = all || container_name.is_some() && ctx.caller().is_admin;
    let (kind, checkpoint) = (params.r#type, params.checkpoint);
    let filter = ActionFilter { kind, container_name, checkpoint, all, ..ActionFilter::default() };
    let found = ctx.app.checkpoints.list_actions(ctx.caller(), filter).await?;
    if let (true, Some(wanted)) = (found.is_empty(), &params.ins) {
        ctx.app.pods.find(ctx.caller(), wanted)?;
    }
    Ok(Json(found))
}
