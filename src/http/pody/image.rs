//! `/image/…`

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{names::ImageRef, view::Log},
    params,
};

pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.pods.wait_ready().await;
    Ok(Json(ctx.app.pods.list_images(&ctx.caller().user)))
}

params! { One { image: ImageRef } }

pub async fn inspect(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.pods.wait_ready().await;
    Ok(Json(ctx.app.pods.inspect_image(&ctx.caller().user, &params.image)?))
}

pub async fn delete(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    let name = ctx.app.pods.delete_image(ctx.caller(), &params.image).await?;
    Ok(Json(Log { log: format!("Image {name} deleted") }))
}
