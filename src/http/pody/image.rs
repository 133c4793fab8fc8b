//! `/image/…`

use serde::Serialize;

use super::{ApiError, Log};
use crate::{
    http::{endpoint::Cx, json::Json, params::NoParams},
    model::names::ImageRef,
    params,
};

pub async fn list(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    cx.app.pods.wait_ready().await;
    Ok(Json(cx.app.pods.list_images(&cx.caller().user)))
}

params! { One { image: ImageRef } }

pub async fn inspect(cx: Cx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    cx.app.pods.wait_ready().await;
    Ok(Json(cx.app.pods.inspect_image(&cx.caller().user, &params.image)?))
}

pub async fn delete(cx: Cx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    let name = cx.app.pods.delete_image(cx.caller(), &params.image).await?;
    Ok(Json(Log { log: format!("Image {name} deleted") }))
}
