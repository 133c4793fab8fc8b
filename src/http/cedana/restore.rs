//! `/v2/restore/pod`, `/v2/restores/info`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    EmptyAsNone, NoUuid, QuotedId, V2Error,
    action::{CriuOptions, For},
    ensure_this_host,
};
use crate::{
    checkpoint::CheckpointError,
    http::{
        endpoint::Ctx,
        params::{Body, NoParams},
    },
    model::{
        checkpoint::NewRestore,
        ids::{ActionId, CheckpointId},
        names::InstanceName,
        phase::ActionKind,
    },
    params,
};

super::reasons! {
    NodeTermination = "nodeTermination",
    NodeUnschedulable = "nodeUnschedulable",
    Manual = "manual",
}

/// An older edition sends no reason.
#[derive(Deserialize, ToSchema)]
pub struct Restore {
    action_id: String,
    cluster_id: Option<String>,
    #[schema(inline, value_type = Option<Reason>)]
    #[serde(default)]
    reason: EmptyAsNone<Reason>,
    #[schema(inline)]
    #[serde(default, deserialize_with = "super::object")]
    overrides: Option<Overrides>,
}

#[derive(Default, Deserialize, ToSchema)]
struct Overrides {
    criu_opts: Option<String>,
    /// The name to restore it under.
    pod_name: Option<String>,
}

pub async fn restore(ctx: Ctx, (_, Body(body)): (NoParams, Body<Restore>)) -> Result<String, V2Error> {
    let (app, caller) = (&ctx.app, ctx.caller());
    ensure_this_host(app, body.cluster_id.as_deref())?;
    let bad = |error: NoUuid| V2Error::BadRequest(format!("action_id: {error}"));
    let QuotedId(id) = body.action_id.parse::<QuotedId<ActionId>>().map_err(bad)?;
    let overrides = body.overrides.unwrap_or_default();
    let options = CriuOptions::parse(overrides.criu_opts.as_deref(), For::Restore)?;
    let name = overrides.pod_name.filter(|name| !name.is_empty());
    let restore_as = name.map(|name| name.parse::<InstanceName>()).transpose();
    let restore_as = restore_as.map_err(|error| V2Error::BadRequest(format!("overrides.pod_name: {error}")))?;
    // The checkpoint of an action, or one by its own id.
    let checkpoint = match app.checkpoints.action(caller, id).await {
        Ok(action) => action.checkpoint,
        Err(CheckpointError::NoAction(_)) => {
            let QuotedId(id) = body.action_id.parse::<QuotedId<CheckpointId>>().map_err(bad)?;
            let is_one = app.checkpoints.find(caller, id).await;
            is_one.map_err(|_| CheckpointError::NoAction(id.to_string()))?.row.id
        }
        Err(error) => return Err(error.into()),
    };
    let new = NewRestore { checkpoint: Some(checkpoint), pod: None, restore_as, connections: options.connections };
    let action = app.checkpoints.begin_restore(caller, new).await?;
    if let Some(reason) = body.reason.0 {
        app.reports.tell(caller, action.id, move |reported| reported.reason = Some(reason.as_str().to_owned())).await?;
    }
    Ok(action.id.to_string())
}

params! { One { id: QuotedId<ActionId> } }

#[derive(Deserialize, Serialize, ToSchema)]
pub struct Info {
    error: Option<String>,
    profiling: Option<Value>,
    total_duration: Option<i64>,
    total_io: Option<i64>,
}

pub async fn put_info(ctx: Ctx, (params, Body(body)): (One, Body<Info>)) -> Result<String, V2Error> {
    let id = params.id.0;
    if ctx.app.checkpoints.action(ctx.caller(), id).await?.kind != ActionKind::Restore {
        return Err(V2Error::NotFound(format!("{id} is the action of a checkpoint, not of a restore")));
    }
    let info = serde_json::to_value(&body).unwrap_or_default();
    ctx.app.reports.tell(ctx.caller(), id, |reported| reported.info = Some(info)).await?;
    Ok(id.to_string())
}
