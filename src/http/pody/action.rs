//! `/action/…`: checkpoints and restores under way, and past ones.

use serde::Serialize;

use super::ApiError;
use crate::{
    checkpoint::{ActionFilter, ActionKind},
    http::router::{Cx, Json},
    ids::{ActionId, CheckpointId},
    names::PodRef,
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
    let pod = match &params.ins {
        Some(wanted) => Some(cx.app.pods.find(cx.caller(), wanted)?.id),
        None => None,
    };
    // Another's pod, which only an admin finds, has another's actions.
    let all = all || pod.is_some() && cx.caller().is_admin;
    let filter =
        ActionFilter { kind: params.r#type, pod, checkpoint: params.checkpoint, all, ..ActionFilter::default() };
    Ok(Json(cx.app.checkpoints.list_actions(cx.caller(), filter).await?))
}
