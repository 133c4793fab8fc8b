//! `/user_api/…`: this node's accounts for other nodes, as pody 0.4.1 speaks it.

use serde::Serialize;

use super::{ApiError, message};
use crate::{
    account::{AccountError, Tokens, UserChange},
    http::{endpoint::Ctx, error::ServiceRefusal, json::Json},
    model::{
        names::UserName,
        user::{Actor, UserInfo},
    },
    params,
};

/// A user on the wire; userid 0 is "no such user".
#[derive(Serialize)]
struct WireUser {
    userid: i64,
    name: String,
    is_admin: bool,
}

impl From<Option<UserInfo>> for WireUser {
    fn from(user: Option<UserInfo>) -> Self {
        match user {
            Some(user) => Self { userid: user.id, name: user.name.to_string(), is_admin: user.is_admin },
            None => Self { userid: 0, name: String::new(), is_admin: false },
        }
    }
}

fn writable(ctx: &Ctx) -> Result<Actor, ApiError> {
    match ctx.app.config.get().remote_user_profile.service.readonly {
        true => Err(ServiceRefusal::ReadOnly.into()),
        false => Ok(Actor::node(ctx.peer.ip())),
    }
}

params! { Add { username: UserName, password: String; is_admin: bool } }

pub async fn add(ctx: Ctx, params: Add) -> Result<Json<impl Serialize>, ApiError> {
    let actor = writable(&ctx)?;
    let name = params.username;
    ctx.app.accounts.add_user(actor, name.clone(), &params.password, params.is_admin == Some(true)).await?;
    Ok(message(format!("User '{name}' added successfully")))
}

params! { Update { username: UserName; password: String, is_admin: bool } }

pub async fn update(ctx: Ctx, params: Update) -> Result<Json<impl Serialize>, ApiError> {
    let actor = writable(&ctx)?;
    let name = params.username;
    if params.password.is_none() && params.is_admin.is_none() {
        return Err(ApiError::BadRequest("No fields to update".to_owned()));
    }
    // The protocol does not say whether the user or an admin has set it.
    let change =
        UserChange { password: params.password, is_admin: params.is_admin, disabled: None, tokens: Tokens::End };
    ctx.app.accounts.update_user(actor, name.clone(), change).await?;
    Ok(message(format!("User '{name}' updated successfully")))
}

params! { Delete { username: UserName } }

pub async fn delete(ctx: Ctx, params: Delete) -> Result<Json<impl Serialize>, ApiError> {
    let actor = writable(&ctx)?;
    let name = params.username;
    ctx.app.accounts.delete_user(actor, name.clone()).await?;
    Ok(message(format!("User '{name}' deleted successfully")))
}

params! { Get { ; user_id: i64, username: String } }

pub async fn get(ctx: Ctx, params: Get) -> Result<Json<impl Serialize>, ApiError> {
    let users = ctx.app.accounts.list_users().await.map_err(AccountError::Remote)?;
    let mut users = users.into_iter();
    let found = match (params.user_id, params.username) {
        (None, None) => return Err(ApiError::BadRequest("Either user_id or username must be provided".to_owned())),
        (Some(_), Some(_)) => {
            return Err(ApiError::BadRequest("Only one of user_id or username should be provided".to_owned()));
        }
        (Some(id), None) => users.find(|user| user.id == id),
        (None, Some(name)) => users.find(|user| user.name.as_str() == name),
    };
    Ok(Json(WireUser::from(found)))
}

params! { Check { credential: String; username: UserName } }

pub async fn check(ctx: Ctx, params: Check) -> Result<Json<impl Serialize>, ApiError> {
    let found = ctx.app.accounts.check_credential(&params.credential, params.username.as_ref(), ctx.peer.ip()).await?;
    Ok(Json(WireUser::from(found)))
}

params! { List { ; usernames: String } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let wanted: Option<Vec<String>> =
        params.usernames.map(|list| list.split(',').map(|name| name.trim().to_owned()).collect());
    let users = ctx.app.accounts.list_users().await.map_err(AccountError::Remote)?.into_iter();
    let users =
        users.filter(|user| wanted.as_ref().is_none_or(|list| list.iter().any(|name| name == user.name.as_str())));
    Ok(Json(users.map(|user| WireUser::from(Some(user))).collect::<Vec<_>>()))
}
