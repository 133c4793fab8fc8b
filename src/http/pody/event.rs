//! `/events`

use serde::Serialize;

use super::ApiError;
use crate::{
    db::EventFilter,
    http::{endpoint::Ctx, json::Json},
    model::names::UserName,
    params,
};

/// Events of one response.
const LIMIT: u32 = 100;

const MAX_LIMIT: u32 = 1000;

params! { List { ; limit: u32, before: i64, user: UserName } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let user = match caller.is_admin {
        true => params.user,
        false if params.user.as_ref().is_some_and(|user| user != &caller.user) => return Err(ApiError::AdminsOnly),
        false => Some(caller.user.clone()),
    };
    let filter = EventFilter { user, before: params.before, limit: params.limit.unwrap_or(LIMIT).min(MAX_LIMIT) };
    let events = ctx.app.db.read(move |tx| tx.list_events(&filter)).await?;
    Ok(Json(events))
}
