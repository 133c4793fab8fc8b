//! `/user/…`

use axum::http::Method;
use serde::Serialize;

use super::{ApiError, message, with_tokens_ended};
use crate::{
    account::{Tokens, UserChange},
    http::{endpoint::Ctx, identity::refuse_browsers, json::Json, params::NoParams},
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

params! { ChangePassword { passwd: String; end_tokens: bool } }

pub async fn change_password(ctx: Ctx, params: ChangePassword) -> Result<Json<impl Serialize>, ApiError> {
    // The one change that is also a GET.
    if ctx.request.method() == Method::GET {
        refuse_browsers(ctx.request.headers())?;
    }
    let caller = ctx.caller();
    let tokens = if params.end_tokens == Some(true) { Tokens::End } else { Tokens::Stay };
    let change = UserChange { password: Some(params.passwd), tokens, ..UserChange::default() };
    let ended = ctx.app.accounts.update_user(Actor::from(caller), caller.user.clone(), change).await?;
    Ok(message(with_tokens_ended("Password updated", ended)))
}
