//! `/v2/checkpoints…`, `/v2/checkpoint/path`: checkpoints made here, and those that agents report.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{EmptyAsNone, NoUuid, QuotedId, V2Error, gpu, platform, pod_ref};
use crate::{
    agents::reports::{Entry, Info},
    app::App,
    checkpoint::Manifest,
    http::{
        endpoint::Ctx,
        json::Json,
        params::{BadParam, Body, Input, NoParams, Param, Params},
    },
    model::{
        agent::ReportedStatus,
        checkpoint::CheckpointStatus,
        ids::{ActionId, CheckpointId},
        names::PodRef,
        user::Caller,
        view::checkpoint::CheckpointView as OurCheckpoint,
    },
    params,
};

/// Ids of one request.
const MAX_IDS: usize = 500;

/// The fields of all editions, and our own under `pody`.
#[derive(Serialize)]
struct CheckpointView {
    id: CheckpointId,
    name: Option<String>,
    status: &'static str,
    gpu: String,
    platform: String,
    checksum: Option<String>,
    image_name_with_tag: Option<String>,
    process_info: Value,
    info: Value,
    path: Option<String>,
    pody: Value,
    source: &'static str,
}

fn view(app: &App, entry: &Entry, manifest: Option<&Manifest>) -> CheckpointView {
    let (ours, reported) = (entry.ours.as_ref().map(|ours| &ours.row), entry.reported.as_ref());
    let status = match (ours.map(|row| row.status), reported.map(|reported| reported.status)) {
        (Some(CheckpointStatus::Creating), _) => "initializing",
        (Some(CheckpointStatus::Ready), _) => "ready",
        (Some(CheckpointStatus::Deprecated | CheckpointStatus::Deleting), _) => "deprecated",
        (None, Some(status)) => status.as_str(),
        (None, None) => ReportedStatus::Initializing.as_str(),
    };
    let unknown = |is_ours: bool, here: String| if is_ours { here } else { String::new() };
    CheckpointView {
        id: entry.id,
        name: ours.and_then(|row| row.name.as_ref()).map(|name| name.as_str().to_owned()),
        status,
        gpu: reported.and_then(|reported| reported.gpu.clone()).unwrap_or_else(|| unknown(ours.is_some(), gpu(app))),
        platform: reported
            .and_then(|reported| reported.platform.clone())
            .unwrap_or_else(|| unknown(ours.is_some(), platform())),
        checksum: manifest.map(checksum),
        image_name_with_tag: manifest.map(|manifest| manifest.shape.image.clone()),
        process_info: manifest
            .map_or(Value::Null, |manifest| json!({"frozen_ms": manifest.frozen_ms, "losses": manifest.losses})),
        info: reported.and_then(|reported| reported.info.clone()).unwrap_or_default(),
        path: app.reports.path(entry),
        pody: entry.ours.as_ref().map_or(Value::Null, |ours| json!(ours)),
        source: if ours.is_some() { "pody" } else { "agent" },
    }
}

/// One hash over the hashes of all files.
fn checksum(manifest: &Manifest) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, file) in &manifest.files {
        hasher.update(path.as_os_str().as_encoded_bytes()).update(&[0]).update(file.blake3.as_bytes()).update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

/// `ids` of one parameter or of several.
pub struct List(Vec<String>);

impl Params for List {
    const LIST: &'static [Param] = &[Param { name: "ids", optional: true, kind: "string" }];

    fn read(input: &Input) -> Result<Self, Vec<BadParam>> {
        let ids = input.get_all("ids").flat_map(|list| list.split(',')).filter(|id| !id.trim().is_empty());
        Ok(Self(ids.map(str::to_owned).collect()))
    }
}

pub async fn list(ctx: Ctx, List(ids): List) -> Result<Json<impl Serialize>, V2Error> {
    let ids = Some(parse_ids(&ids)?).filter(|ids| !ids.is_empty());
    let entries = ctx.app.reports.list(ctx.caller(), ids).await?;
    let mut shown = Vec::with_capacity(entries.len());
    for entry in &entries {
        let is_complete = entry.ours.as_ref().is_some_and(|ours| ours.row.status != CheckpointStatus::Creating);
        let manifest = match is_complete {
            true => ctx.app.checkpoints.manifest(ctx.caller(), entry.id).await.ok(),
            false => None,
        };
        shown.push(view(&ctx.app, entry, manifest.as_ref()));
    }
    Ok(Json(shown))
}

fn parse_ids(ids: &[String]) -> Result<Vec<CheckpointId>, V2Error> {
    if ids.len() > MAX_IDS {
        return Err(V2Error::BadRequest(format!("ids: at most {MAX_IDS} in one request")));
    }
    let bad = |error: NoUuid| V2Error::BadRequest(format!("ids: {error}; separate several with commas"));
    ids.iter().map(|id| id.parse().map(|QuotedId(id)| id).map_err(bad)).collect()
}

pub async fn create(ctx: Ctx, _: NoParams) -> Result<String, V2Error> {
    Ok(ctx.app.reports.create(ctx.caller()).await?.to_string())
}

params! { One { id: QuotedId<CheckpointId> } }

#[derive(Deserialize, ToSchema)]
pub struct NewInfo {
    gpu: String,
    platform: String,
    info: Option<Value>,
}

pub async fn put_info(ctx: Ctx, (params, Body(body)): (One, Body<NewInfo>)) -> Result<String, V2Error> {
    let info = Info { gpu: body.gpu, platform: body.platform, info: body.info };
    ctx.app.reports.put_info(ctx.caller(), params.id.0, info).await?;
    Ok(params.id.0.to_string())
}

#[derive(Deserialize, ToSchema)]
pub struct Uploaded {
    restore_path: Option<String>,
}

pub async fn uploaded(ctx: Ctx, (params, Body(body)): (One, Body<Uploaded>)) -> Result<String, V2Error> {
    ctx.app.reports.uploaded(ctx.caller(), params.id.0, body.restore_path).await?;
    Ok(params.id.0.to_string())
}

pub async fn deprecate(ctx: Ctx, params: One) -> Result<String, V2Error> {
    ctx.app.reports.deprecate(ctx.caller(), params.id.0).await?;
    Ok(params.id.0.to_string())
}

// The editions document none of its parameters: all that may identify a checkpoint.
params! { Which { ; name: String, checkpoint_id: EmptyAsNone<QuotedId<CheckpointId>>, action_id: EmptyAsNone<QuotedId<ActionId>>,
pod_id: String, pod_name: String, namespace: String } }

/// The path of the newest that is ready.
pub async fn path(ctx: Ctx, mut which: Which) -> Result<String, V2Error> {
    let caller = ctx.caller();
    for text in [&mut which.name, &mut which.pod_id, &mut which.pod_name, &mut which.namespace] {
        // Clients send an empty text for a field that nobody filled in.
        *text = text.take().filter(|text| !text.is_empty());
    }
    let checkpoint = which.checkpoint_id.and_then(|id| id.0).map(|QuotedId(id)| id);
    let action = which.action_id.and_then(|id| id.0).map(|QuotedId(id)| id);
    let is_of_pod = which.pod_id.is_some() || which.pod_name.is_some();
    if which.name.is_none() && checkpoint.is_none() && action.is_none() && !is_of_pod {
        let say = "name the checkpoint: name, checkpoint_id, action_id, pod_id, or pod_name and its owner as namespace";
        return Err(V2Error::BadRequest(say.to_owned()));
    }
    let of_action = match action {
        Some(id) => Some(ctx.app.checkpoints.action(caller, id).await?.checkpoint),
        None => None,
    };
    let ids = checkpoint.into_iter().chain(of_action).collect::<Vec<_>>();
    let entries = match ids[..] {
        [one, other] if one != other => Vec::new(),
        _ => ctx.app.reports.list(caller, Some(ids).filter(|ids| !ids.is_empty())).await?,
    };
    let newest = entries.iter().find(|entry| is_meant(&ctx.app, entry, &which, caller));
    let newest = newest.ok_or_else(|| V2Error::NotFound("you have no such checkpoint".to_owned()))?;
    ctx.app.reports.path(newest).ok_or_else(|| {
        let say = "reported no restore_path; report it with POST /v2/checkpoints/uploaded/";
        V2Error::NotFound(format!("the agent of checkpoint {0} {say}{0}", newest.id))
    })
}

fn is_meant(app: &App, entry: &Entry, which: &Which, caller: &Caller) -> bool {
    let Some(OurCheckpoint { row, .. }) = &entry.ours else {
        // An agent's own has no name and no pod here.
        let is_ready = entry.reported.as_ref().is_some_and(|reported| reported.status == ReportedStatus::Ready);
        let is_of_pod = which.pod_id.is_some() || which.pod_name.is_some();
        return is_ready && which.checkpoint_id.is_some_and(|id| id.0.is_some()) && which.name.is_none() && !is_of_pod;
    };
    // In the way that a pod to be saved is named.
    let is_pod = |wanted: PodRef| {
        let is_owner = *wanted.user.as_ref().unwrap_or(&caller.user) == row.user;
        is_owner && wanted.instance == row.instance && app.pods.name_of(caller, &wanted).is_ok()
    };
    let is_named =
        |name: &String| row.container_name == *name || pod_ref(name, which.namespace.as_deref()).is_ok_and(is_pod);
    row.status == CheckpointStatus::Ready
        && which.name.as_ref().is_none_or(|name| row.name.as_ref().is_some_and(|known| known.as_str() == name))
        && which.pod_id.as_ref().is_none_or(|id| id.parse().is_ok_and(|QuotedId(id)| row.pod == id) || is_named(id))
        && which.pod_name.as_ref().is_none_or(is_named)
}
