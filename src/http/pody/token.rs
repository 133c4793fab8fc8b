//! `/user/tokens…`

use serde::Serialize;

use super::{ApiError, message};
use crate::{
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{quantities::Span, user::Actor},
    params,
};

pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.accounts.list_tokens(&ctx.caller().user)))
}

params! { Create { ; name: String, expires: Span } }

pub async fn create(ctx: Ctx, params: Create) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let name = params.name.unwrap_or_else(|| "token".to_owned());
    Ok(Json(ctx.app.accounts.create_token(Actor::from(caller), caller.user.clone(), name, params.expires).await?))
}

params! { Revoke { id: i64 } }

pub async fn revoke(ctx: Ctx, params: Revoke) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    ctx.app.accounts.revoke_token(Actor::from(caller), caller.user.clone(), params.id).await?;
    Ok(message(format!("Token {} revoked", params.id)))
}
