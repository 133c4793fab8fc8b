//! `/user/…`

use serde::Serialize;

use super::{ApiError, Message};
use crate::{
    account::UserChange,
    http::{endpoint::Cx, identity::refuse_other_sites, json::Json, params::NoParams},
    model::{names::UserName, quota::Quota, user::Actor},
    params,
};

#[derive(Serialize)]
struct Info {
    user: InfoUser,
    quota: Quota,
}

#[derive(Serialize)]
struct InfoUser {
    name: UserName,
    /// 0 or 1, as the original has it.
    is_admin: u8,
}

pub async fn info(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let caller = cx.caller();
    let quota = cx.app.accounts.quota(&caller.user);
    Ok(Json(Info { user: InfoUser { name: caller.user.clone(), is_admin: u8::from(caller.is_admin) }, quota }))
}

pub async fn list(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let users = cx.app.accounts.list_users().await.map_err(crate::account::AccountError::Remote)?;
    Ok(Json(users.into_iter().map(|user| user.name).collect::<Vec<_>>()))
}

params! { ChangePassword { passwd: String } }

pub async fn change_password(cx: Cx, params: ChangePassword) -> Result<Json<impl Serialize>, ApiError> {
    // The one change that is also a GET, which another site's page could make a browser send.
    refuse_other_sites(cx.request.headers(), cx.request.uri())?;
    let caller = cx.caller();
    let change = UserChange { password: Some(params.passwd), ..UserChange::default() };
    cx.app.accounts.update_user(Actor::from(caller), caller.user.clone(), change).await?;
    Ok(Message::new("Password updated"))
}
