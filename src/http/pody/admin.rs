//! `/admin/…`: users and quotas over HTTP, as `pody user` and `pody quota` do them on the host.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;

use super::{ApiError, message};
use crate::{
    account::{AccountError, UserChange},
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{
        names::UserName,
        quota::{CoresChange, CountChange, GpusChange, QuotaChange, SizeChange},
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
    let change = UserChange { password: params.password, is_admin: params.admin, disabled: params.disabled };
    if change.password.is_none() && change.is_admin.is_none() && change.disabled.is_none() {
        return Err(ApiError::BadRequest("nothing to change: name password, admin or disabled".to_owned()));
    }
    ctx.app.accounts.update_user(Actor::from(ctx.caller()), name.clone(), change).await?;
    Ok(message(format!("User {name} updated")))
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

params! { UpdateQuota { username: UserName;
    max_pods: CountChange, gpu_count: CountChange, gpus: GpusChange, memory_limit: SizeChange, storage_size: SizeChange,
    shm_size: SizeChange, tmpfs_size: SizeChange, commit_count: CountChange, commit_size_limit: SizeChange,
    cpu_limit: CoresChange, pids_limit: CountChange, total_memory: SizeChange,
    checkpoint_count: CountChange, checkpoint_size: SizeChange,
} }

pub async fn update_quota(ctx: Ctx, params: UpdateQuota) -> Result<Json<impl Serialize>, ApiError> {
    let name = params.username;
    if ctx.app.accounts.find_user(&name).await.map_err(AccountError::Remote)?.is_none() {
        return Err(AccountError::NoUser(name).into());
    }
    let change = QuotaChange {
        max_pods: params.max_pods.map(|change| change.0),
        gpu_count: params.gpu_count.map(|change| change.0),
        gpus: params.gpus.map(|change| change.0),
        memory_limit: params.memory_limit.map(|change| change.0),
        storage_size: params.storage_size.map(|change| change.0),
        shm_size: params.shm_size.map(|change| change.0),
        tmpfs_size: params.tmpfs_size.map(|change| change.0),
        commit_count: params.commit_count.map(|change| change.0),
        commit_size_limit: params.commit_size_limit.map(|change| change.0),
        cpu_limit: params.cpu_limit.map(|change| change.0),
        pids_limit: params.pids_limit.map(|change| change.0),
        total_memory: params.total_memory.map(|change| change.0),
        checkpoint_count: params.checkpoint_count.map(|change| change.0),
        checkpoint_size: params.checkpoint_size.map(|change| change.0),
    };
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
