//! `/user/tokens…`

use serde::Serialize;

use super::{ApiError, Message};
use crate::{
    http::{endpoint::Cx, json::Json, params::NoParams},
    model::{quantities::Span, user::Actor},
    params,
};

pub async fn list(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(cx.app.accounts.list_tokens(&cx.caller().user)))
}

params! { Create { ; name: String, expires: Span } }

pub async fn create(cx: Cx, params: Create) -> Result<Json<impl Serialize>, ApiError> {
    let caller = cx.caller();
    let name = params.name.unwrap_or_else(|| "token".to_owned());
    Ok(Json(cx.app.accounts.create_token(Actor::from(caller), caller.user.clone(), name, params.expires).await?))
}

params! { Revoke { id: i64 } }

pub async fn revoke(cx: Cx, params: Revoke) -> Result<Json<impl Serialize>, ApiError> {
    let caller = cx.caller();
    cx.app.accounts.revoke_token(Actor::from(caller), caller.user.clone(), params.id).await?;
    Ok(Message::new(format!("Token {} revoked", params.id)))
}
