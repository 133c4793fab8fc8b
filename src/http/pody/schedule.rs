//! `/pod/schedule` and `/pod/schedules`

use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, json::Json},
    model::{
        names::{PodRef, UserName},
        schedule::{Interval, Keep, Rule},
        view::{Message, schedule::PodSchedule},
    },
    params,
};

params! { Set { ins: PodRef; every: Interval, keep: Keep, off: bool } }

/// A schedule, or a message that it has ended.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Set(PodSchedule),
    Ended(Message),
}

pub async fn set(ctx: Ctx, params: Set) -> Result<Json<impl Serialize>, ApiError> {
    let checkpoints = &ctx.app.checkpoints;
    match (params.every, params.keep, params.off == Some(true)) {
        (Some(every), Some(keep), false) => {
            Ok(Json(Answer::Set(checkpoints.set_schedule(ctx.caller(), &params.ins, Rule { every, keep }).await?)))
        }
        (None, None, true) => {
            checkpoints.end_schedule(ctx.caller(), &params.ins).await?;
            Ok(Json(Answer::Ended(Message { message: format!("Schedule of {} ended", params.ins) })))
        }
        _ => {
            // A missing pod is reported first, as everywhere.
            ctx.app.pods.find(ctx.caller(), &params.ins)?;
            Err(ApiError::BadRequest(
                "name both every and keep, for example every=6h&keep=4, or off=true alone".to_owned(),
            ))
        }
    }
}

params! { One { ins: PodRef } }

pub async fn find(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.checkpoints.find_schedule(ctx.caller(), &params.ins)?))
}

params! { List { ; all: bool, user: UserName } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let others = params.all == Some(true) || params.user.as_ref().is_some_and(|user| user != &caller.user);
    if others && !caller.is_admin {
        return Err(ApiError::AdminsOnly);
    }
    let user = match (params.user, params.all) {
        (Some(user), _) => Some(user),
        (None, Some(true)) => None,
        (None, _) => Some(caller.user.clone()),
    };
    Ok(Json(ctx.app.checkpoints.list_schedules(user.as_ref())))
}
