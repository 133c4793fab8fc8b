//! `/user/ssh-keys…`

use serde::Serialize;

use super::{ApiError, Message};
use crate::{
    account::ssh_keys::SshKeyInfo,
    http::{endpoint::Cx, json::Json, params::NoParams},
    model::user::{Actor, PublicKey},
    params,
};

pub async fn list(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let keys = cx.app.accounts.list_ssh_keys(&cx.caller().user).await?;
    Ok(Json(keys.iter().map(SshKeyInfo::from).collect::<Vec<_>>()))
}

params! { Add { key: PublicKey } }

pub async fn add(cx: Cx, params: Add) -> Result<Json<impl Serialize>, ApiError> {
    let caller = cx.caller();
    let key = cx.app.accounts.add_ssh_key(Actor::from(caller), caller.user.clone(), params.key).await?;
    cx.app.pods.refresh_keys_of(&caller.user).await;
    Ok(Json(SshKeyInfo::from(&key)))
}

params! { Delete { id: i64 } }

pub async fn delete(cx: Cx, params: Delete) -> Result<Json<impl Serialize>, ApiError> {
    let caller = cx.caller();
    cx.app.accounts.delete_ssh_key(Actor::from(caller), caller.user.clone(), params.id).await?;
    cx.app.pods.refresh_keys_of(&caller.user).await;
    Ok(Message::new(format!("SSH key {} deleted", params.id)))
}
