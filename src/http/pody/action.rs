//! `/action/…`: checkpoints and restores under way, and past ones.

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Cx, json::Json},
    model::{
        action::ActionFilter,
        ids::{ActionId, CheckpointId},
        names::PodRef,
        phase::ActionKind,
    },
    params,
};

params! { One { id: ActionId } }

pub async fn status(cx: Cx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(cx.app.checkpoints.action(cx.caller(), params.id).await?))
}

params! { List { ; ins: PodRef, r#type: ActionKind, checkpoint: CheckpointId, all: bool } }

pub async fn list(cx: Cx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let all = params.all == Some(true);
    if all && !cx.caller().is_admin {
        return Err(ApiError::AdminsOnly);
    }
    // By its name: a pod that was deleted, or made anew by a restore, has a past too.
    let container_name = params.ins.as_ref().map(|wanted| cx.app.pods.name_of(cx.caller(), wanted)).transpose()?;
    // Another's pod, which only an admin may name, has another's actions.
    let all = all || container_name.is_some() && cx.caller().is_admin;
    let (kind, checkpoint) = (params.r#type, params.checkpoint);
    let filter = ActionFilter { kind, container_name, checkpoint, all, ..ActionFilter::default() };
    let found = cx.app.checkpoints.list_actions(cx.caller(), filter).await?;
    if let (true, Some(wanted)) = (found.is_empty(), &params.ins) {
        cx.app.pods.find(cx.caller(), wanted)?;
    }
    Ok(Json(found))
}
