//! `/admin/drain` and `/admin/undrain`

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{drain::NewDrain, user::Actor},
    params,
};

params! { Begin { reason: String; force: bool } }

pub async fn begin(ctx: Ctx, params: Begin) -> Result<Json<impl Serialize>, ApiError> {
    let new = NewDrain { reason: params.reason, forced: params.force == Some(true), shutdown: false };
    Ok(Json(ctx.app.checkpoints.drain(Actor::from(ctx.caller()), new).await?))
}

pub async fn end(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.checkpoints.undrain(Actor::from(ctx.caller())).await?))
}

pub async fn status(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.checkpoints.drain_status().await?))
}
