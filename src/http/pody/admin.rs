//! `/admin/…`: users and quotas over HTTP, as `pody user` and `pody quota` manage them on the host.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;

use super::{ApiError, message, with_tokens_ended};
use crate::{
    account::{AccountError, Tokens, UserChange},
    http::{
        endpoint::Ctx,
        json::Json,
        params::{BadParam, Input, NoParams, Param, Params},
    },
    model::{
        names::UserName,
        quota::{Limit, QuotaChange},
        user::Actor,
        view::account::{AddedUser, PurgedUser, QuotaView},
    },
    params,
};

pub async fn list_users(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.accounts.list_users().await.map_err(AccountError::Remote)?))
}

params! { AddUser { username: UserName; password: String, admin: bool } }

pub async fn add_user(ctx: Ctx, params: AddUser) -> Result<Json<impl Serialize>, ApiError> {
    let made_up = params.password.is_none().then(|| BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 15]>()));
    let password = params.password.or_else(|| made_up.clone()).unwrap_or_default();
    let name = params.username;
    ctx.app.accounts.add_user(Actor::from(ctx.caller()), name.clone(), &password, params.admin == Some(true)).await?;
    Ok(Json(AddedUser { message: format!("User {name} added"), password: made_up }))
}

params! { UpdateUser { username: UserName; password: String, admin: bool, disabled: bool } }

pub async fn update_user(ctx: Ctx, params: UpdateUser) -> Result<Json<impl Serialize>, ApiError> {
    let name = params.username;
    let change = UserChange {
        password: params.password,
        is_admin: params.admin,
        disabled: params.disabled,
        tokens: Tokens::End,
    };
    if change.password.is_none() && change.is_admin.is_none() && change.disabled.is_none() {
        return Err(ApiError::BadRequest("nothing to change: name password, admin or disabled".to_owned()));
    }
    let ended = ctx.app.accounts.update_user(Actor::from(ctx.caller()), name.clone(), change).await?;
    Ok(message(with_tokens_ended(&format!("User {name} updated"), ended)))
}

params! { OneUser { username: UserName } }

pub async fn delete_user(ctx: Ctx, params: OneUser) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.accounts.delete_user(Actor::from(ctx.caller()), params.username.clone()).await?;
    Ok(message(format!("User {} deleted", params.username)))
}

pub async fn purge_user(ctx: Ctx, params: OneUser) -> Result<Json<impl Serialize>, ApiError> {
    let pods = ctx.app.purge_user(Actor::from(ctx.caller()), params.username.clone()).await?;
    Ok(Json(PurgedUser { message: format!("User {} deleted", params.username), pods }))
}

params! { ListQuotas { ; username: UserName } }

pub async fn list_quotas(ctx: Ctx, params: ListQuotas) -> Result<Json<impl Serialize>, ApiError> {
    let users = ctx.app.accounts.list_users().await.map_err(AccountError::Remote)?;
    let names: Vec<UserName> = match params.username {
        Some(name) if users.iter().any(|user| user.name == name) => vec![name],
        Some(name) => return Err(AccountError::NoUser(name).into()),
        None => users.into_iter().map(|user| user.name).collect(),
    };
    let rows = names.into_iter().map(|name| QuotaView {
        quota: ctx.app.accounts.quota(&name),
        stored: ctx.app.accounts.stored_quota(&name),
        name,
    });
    Ok(Json(rows.collect::<Vec<_>>()))
}

/// The account, and one optional parameter per row of the table of limits.
pub struct UpdateQuota {
    username: UserName,
    change: QuotaChange,
}

impl UpdateQuota {
    const LIST: [Param; 1 + Limit::ALL.len()] = {
        let mut list = [OneUser::LIST[0]; 1 + Limit::ALL.len()];
        // A `for` loop cannot run in a constant.
        let mut at = 0;
        while at < Limit::ALL.len() {
            list[1 + at] = Param { name: Limit::ALL[at].name, optional: true, kind: "string" };
            at += 1;
        }
        list
    };
}

impl Params for UpdateQuota {
    const LIST: &'static [Param] = &Self::LIST;

    fn read(input: &Input) -> Result<Self, Vec<BadParam>> {
        let user = OneUser::read(input);
        let mut change = QuotaChange::default();
        let mut bad = Vec::new();
        for limit in Limit::ALL {
            let changed = input.get(limit.name).map_or(Ok(()), |text| limit.change(&mut change, text));
            bad.extend(changed.err().map(|error| BadParam::Rule { name: limit.name.into(), rule: error.to_string() }));
        }
        match user {
            Ok(OneUser { username }) if bad.is_empty() => Ok(Self { username, change }),
            Ok(_) => Err(bad),
            Err(user) => Err(user.into_iter().chain(bad).collect()),
        }
    }
}

pub async fn update_quota(ctx: Ctx, params: UpdateQuota) -> Result<Json<impl Serialize>, ApiError> {
    let UpdateQuota { username: name, change } = params;
    if ctx.app.accounts.find_user(&name).await.map_err(AccountError::Remote)?.is_none() {
        return Err(AccountError::NoUser(name).into());
    }
    if change == QuotaChange::default() {
        return Err(ApiError::BadRequest(
            "nothing to change: name at least one limit, for example max_pods=5".to_owned(),
        ));
    }
    ctx.app.accounts.update_quota(Actor::from(ctx.caller()), name.clone(), change).await?;
    Ok(message(format!("Quota of {name} updated")))
}

pub async fn reset_quota(ctx: Ctx, params: OneUser) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.accounts.reset_quota(Actor::from(ctx.caller()), params.username.clone()).await?;
    Ok(message(format!("Quota of {} reset", params.username)))
}
