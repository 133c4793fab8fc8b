//! `/user/ssh-keys…`

use serde::Serialize;

use super::{ApiError, message};
use crate::{
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{
        user::{Actor, PublicKey},
        view::account::SshKeyInfo,
    },
    params,
};

pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let keys = ctx.app.accounts.list_ssh_keys(&ctx.caller().user).await?;
    Ok(Json(keys.iter().map(SshKeyInfo::from).collect::<Vec<_>>()))
}

params! { Add { key: PublicKey } }

pub async fn add(ctx: Ctx, params: Add) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let key = ctx.app.accounts.add_ssh_key(Actor::from(caller), caller.user.clone(), params.key).await?;
    ctx.app.pods.refresh_keys_of(&caller.user).await;
    Ok(Json(SshKeyInfo::from(&key)))
}

params! { Delete { id: i64 } }

pub async fn delete(ctx: Ctx, params: Delete) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    ctx.app.accounts.delete_ssh_key(Actor::from(caller), caller.user.clone(), params.id).await?;
    ctx.app.pods.refresh_keys_of(&caller.user).await;
    Ok(message(format!("SSH key {} deleted", params.id)))
}
