//! `/user/…`

use serde::Serialize;

use super::{ApiError, message};
use crate::{
    account::UserChange,
    http::{endpoint::Ctx, identity::refuse_other_sites, json::Json, params::NoParams},
    model::{
        user::Actor,
        view::account::{AccountUser, AccountView},
    },
    params,
};

pub async fn info(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let quota = ctx.app.accounts.quota(&caller.user);
    Ok(Json(AccountView {
        user: AccountUser { name: caller.user.clone(), is_admin: u8::from(caller.is_admin) },
        quota,
    }))
}

pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let users = ctx.app.accounts.list_users().await.map_err(crate::account::AccountError::Remote)?;
    Ok(Json(users.into_iter().map(|user| user.name).collect::<Vec<_>>()))
}

params! { ChangePassword { passwd: String } }

pub async fn change_password(ctx: Ctx, params: ChangePassword) -> Result<Json<impl Serialize>, ApiError> {
    // The one change that is also a GET, which another site's page could make a browser send.
    refuse_other_sites(ctx.request.headers(), ctx.request.uri())?;
    let caller = ctx.caller();
    let change = UserChange { password: Some(params.passwd), ..UserChange::default() };
    ctx.app.accounts.update_user(Actor::from(caller), caller.user.clone(), change).await?;
    Ok(message("Password updated"))
}
