//! `/pod/…`

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::ApiError;
pub use super::shell::shell;
use crate::{
    engine::LogOptions,
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{
        names::{CommitTag, ImageRef, PodRef, UserName},
        quantities::{GpuRequest, Span},
        time::Millis,
        user::Actor,
        view::{
            Log,
            pod::{CommitView, CreatedPod, ExecView},
        },
    },
    params,
    pod::{Action, Executed, NewPod},
};

/// Default lines of `/pod/logs`, and its size limit in bytes.
const LOG_LINES: u32 = 100;

const LOG_BYTES: usize = 4 << 20;

pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let pods = ctx.app.pods.list(&ctx.caller().user);
    Ok(Json(pods.iter().map(|pod| pod.instance.clone()).collect::<Vec<_>>()))
}

pub async fn list_all(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let pods = ctx.app.pods.list_all();
    Ok(Json(pods.iter().map(|pod| pod.container_name.clone()).collect::<Vec<_>>()))
}

params! { Ps { ; all: bool, user: UserName } }

pub async fn ps(ctx: Ctx, params: Ps) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let others = params.all == Some(true) || params.user.as_ref().is_some_and(|user| user != &caller.user);
    if others && !caller.is_admin {
        return Err(ApiError::AdminsOnly);
    }
    ctx.app.pods.wait_ready().await;
    let pods = match (&params.user, params.all) {
        (Some(user), _) => ctx.app.pods.list(user),
        (None, Some(true)) => ctx.app.pods.list_all(),
        (None, _) => ctx.app.pods.list(&caller.user),
    };
    Ok(Json(pods.iter().map(|pod| ctx.app.pods.view(pod)).collect::<Vec<_>>()))
}

params! { One { ins: PodRef } }

pub async fn inspect(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    let pod = ctx.app.pods.find(ctx.caller(), &params.ins)?;
    ctx.app.pods.wait_ready().await;
    Ok(Json(ctx.app.pods.view(&pod)))
}

params! { Create { ins: PodRef, image: ImageRef; gpus: GpuRequest } }

pub async fn create(ctx: Ctx, params: Create) -> Result<Json<impl Serialize>, ApiError> {
    let caller = ctx.caller();
    let PodRef { prefix, user, instance } = params.ins;
    let owner = user.unwrap_or_else(|| caller.user.clone());
    let other_prefix = prefix.is_some() && prefix != ctx.app.config.get().name_prefix;
    if other_prefix || owner != caller.user && !caller.is_admin {
        return Err(ApiError::BadRequest(format!("ins: name only the instance; the pod will be {}'s", caller.user)));
    }
    if owner != caller.user && !matches!(ctx.app.accounts.find_user(&owner).await, Ok(Some(_))) {
        return Err(crate::account::AccountError::NoUser(owner).into());
    }
    let pod = ctx
        .app
        .pods
        .create(Actor::from(caller), NewPod { owner, instance, image: params.image, gpus: params.gpus })
        .await?;
    let log = match &pod.container {
        Some(container) => ctx.app.pods.last_output(container).await,
        None => String::new(),
    };
    Ok(Json(CreatedPod { log, info: ctx.app.pods.view(&pod) }))
}

pub async fn delete(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    let name = ctx.app.pods.delete(ctx.caller(), &params.ins).await?;
    Ok(Json(Log { log: format!("Container {name} deleted") }))
}

pub async fn start(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    act(ctx, params, Action::Start).await
}

pub async fn stop(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    act(ctx, params, Action::Stop).await
}

pub async fn restart(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    act(ctx, params, Action::Restart).await
}

async fn act(ctx: Ctx, params: One, action: Action) -> Result<Json<Log>, ApiError> {
    Ok(Json(Log { log: ctx.app.pods.act(ctx.caller(), &params.ins, action).await? }))
}

params! { Exec { ins: PodRef, cmd: String; timeout: u64, detach: bool } }

pub async fn exec(ctx: Ctx, params: Exec) -> Result<Json<impl Serialize>, ApiError> {
    if params.detach == Some(true) {
        let session = Some(ctx.app.pods.exec_detached(ctx.caller(), &params.ins, params.cmd).await?);
        return Ok(Json(ExecView { exit_code: 0, log: String::new(), truncated: false, output: None, session }));
    }
    let limit = ctx.app.config.get().exec.output_limit;
    Ok(Json(match ctx.app.pods.exec(ctx.caller(), &params.ins, params.cmd, params.timeout).await? {
        Executed::Ended { exit_code, mut output, truncated } => {
            if truncated {
                output.push_str(&format!("\n[pody: the output was cut after {limit}]"));
            }
            ExecView { exit_code, log: output, truncated, output: None, session: None }
        }
        Executed::TimedOut { output } => {
            let log = "Timeout".to_owned();
            ExecView { exit_code: -1, log, truncated: false, output: Some(output), session: None }
        }
    }))
}

pub async fn sessions(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.pods.list_sessions(ctx.caller(), &params.ins).await?))
}

params! { Commit { ins: PodRef; tag: CommitTag, msg: String } }

pub async fn commit(ctx: Ctx, params: Commit) -> Result<Json<impl Serialize>, ApiError> {
    let done = ctx.app.pods.commit(ctx.caller(), &params.ins, params.tag, params.msg).await?;
    let log = format!("Container {} committed to image: {}", done.pod, done.image);
    Ok(Json(CommitView { image_name: done.image, log }))
}

params! { Logs { ins: PodRef; tail: u32, since: Span, follow: bool } }

pub async fn logs(ctx: Ctx, params: Logs) -> Result<Response, ApiError> {
    let container = ctx.app.pods.log_source(ctx.caller(), &params.ins)?;
    let since = params.since.map(|span| (Millis::now().seconds() - span.0 as i64).clamp(0, i64::from(i32::MAX)) as i32);
    let follow = params.follow == Some(true);
    let tail = params.tail.or_else(|| since.is_none().then_some(LOG_LINES));
    let options = LogOptions { tail, since, follow };
    if follow {
        let stream = ctx.app.pods.follow_logs(&container, options)?;
        return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response());
    }
    let log = ctx.app.pods.logs(&container, options, LOG_BYTES).await?;
    Ok(Json(Log { log }).into_response())
}

pub async fn stats(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(ctx.app.pods.stats(ctx.caller(), &params.ins).await?))
}
