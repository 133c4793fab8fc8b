//! `/admin/drain` and `/admin/undrain`

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Cx, json::Json, params::NoParams},
    model::{drain::NewDrain, user::Actor},
    params,
};

params! { Begin { reason: String; force: bool } }

pub async fn begin(cx: Cx, params: Begin) -> Result<Json<impl Serialize>, ApiError> {
    let new = NewDrain { reason: params.reason, forced: params.force == Some(true), shutdown: false };
    Ok(Json(cx.app.checkpoints.drain(Actor::from(cx.caller()), new).await?))
}

pub async fn end(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(cx.app.checkpoints.undrain(Actor::from(cx.caller())).await?))
}

pub async fn status(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(cx.app.checkpoints.drain_status().await?))
}
