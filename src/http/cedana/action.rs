//! `/v2/actions…`, `/v2/checkpoint/pod`, `/v2/checkpoint/status`: checkpoints and restores, in progress and past.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{EmptyAsNone, QuotedId, V2Error, ensure_this_host, pod_ref};
use crate::{
    agents::reports::ensure_plain,
    app::App,
    checkpoint::CheckpointError,
    http::{
        endpoint::Ctx,
        json::Json,
        params::{Body, NoParams, sentence},
    },
    model::{
        action::{ActionFilter, ActionStatus},
        agent::ReportedAction,
        checkpoint::{Compression, Connections, Kind, LeaveRunning, NewCheckpoint, Origin},
        ids::{ActionId, CheckpointId, PodId},
        names::{PodRef, clipped},
        phase::{ActionKind, Phase},
        pod::Pod,
        user::Caller,
        view::action as view,
        words::words,
    },
    params,
};

/// Actions of one response, the newest.
const LIMIT: u32 = 1000;

/// Interval between two checks of an action that a request waits for, and the longest wait.
const LOOK: Duration = Duration::from_millis(100);

const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Most streams that a caller may allow.
const MAX_STREAMS: i32 = 256;

#[derive(Serialize)]
struct ActionView {
    action_id: ActionId,
    action_timestamp: String,
    checkpoint_completed_timestamp: Option<String>,
    checkpoint_id: CheckpointId,
    details: Value,
    gpu: String,
    node_name: String,
    platform: String,
    reason: Option<String>,
    status: &'static str,
    /// Milliseconds.
    total_duration: Option<i64>,
    /// Bytes.
    total_io: Option<i64>,
    r#type: ActionKind,
}

impl ActionView {
    fn new(app: &App, action: view::ActionView, reason: Option<String>, reported: Option<&ReportedAction>) -> Self {
        let saved = action.kind == ActionKind::Checkpoint && action.status == ActionStatus::Done;
        let reason = reported.and_then(|reported| reported.reason.clone()).or(reason);
        let copy = action.remote.as_ref();
        Self {
            status: match step(&action) {
                Step::Ready => "completed",
                other => other.as_str(),
            },
            details: json!({
                "pod": action.container_name,
                "pod_id": action.pod,
                "phase": action.phase,
                "frozen_ms": action.frozen_ms,
                "losses": action.losses,
                "error": action.error,
                "told": reported.and_then(|reported| reported.upload.as_ref()),
                "restore_info": reported.and_then(|reported| reported.info.as_ref()),
                "remote": copy.map(|copy| &copy.state),
                "remote_bytes": copy.and_then(|copy| copy.bytes),
                "remote_total_bytes": copy.and_then(|copy| copy.total_bytes),
            }),
            action_id: action.id,
            action_timestamp: action.started_at.to_string(),
            checkpoint_completed_timestamp: action.ended_at.filter(|_| saved).map(|at| at.to_string()),
            checkpoint_id: action.checkpoint,
            gpu: super::gpu(app),
            node_name: app.clusters.host_name(),
            platform: super::platform(),
            reason,
            total_duration: action.ended_at.map(|end| end.since(action.started_at)),
            total_io: i64::try_from(action.bytes).ok(),
            r#type: action.kind,
        }
    }
}

words! {
    /// The progress of an action, in this dialect's words.
    Step, "step of an action" {
        Initialized = "initialized",
        Processing = "processing",
        Created = "checkpoint_created",
        Ready = "ready",
        Error = "error",
    }
}

fn step(action: &view::ActionView) -> Step {
    match (action.status, action.phase) {
        (ActionStatus::Done, _) => Step::Ready,
        (ActionStatus::Error, _) => Step::Error,
        (ActionStatus::Running, Phase::Preflight | Phase::Verify) => Step::Initialized,
        // It is complete; what follows changes the pod or compresses the files.
        (ActionStatus::Running, Phase::Stop | Phase::Compress) => Step::Created,
        (
            ActionStatus::Running,
            Phase::GpuOff
            | Phase::Pause
            | Phase::Dump
            | Phase::Rootfs
            | Phase::Resume
            | Phase::GpuOn
            | Phase::Hash
            | Phase::Commit
            | Phase::Fetch
            | Phase::Prepare
            | Phase::Start
            | Phase::Check
            | Phase::Clean,
        ) => Step::Processing,
    }
}

params! { List { ; r#type: String } }

pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, V2Error> {
    let caller = ctx.caller();
    let kind = params.r#type.filter(|kind| !kind.is_empty()).map(|kind| kind.parse()).transpose();
    let kind: Option<ActionKind> = kind.map_err(|error| V2Error::BadRequest(format!("type: {error}")))?;
    let filter = ActionFilter { kind, all: caller.is_admin, limit: LIMIT, ..ActionFilter::default() };
    let actions = ctx.app.checkpoints.list_actions(caller, filter).await?;
    let reported = ctx.app.reports.reported_actions(caller).await?;
    let entries = ctx.app.reports.list(caller, None).await?;
    let reason_of = |checkpoint: CheckpointId| {
        let ours = entries.iter().find(|entry| entry.id == checkpoint)?.ours.as_ref()?;
        ours.row.reason.clone()
    };
    let shown = |action: view::ActionView| {
        let reason = if action.kind == ActionKind::Checkpoint { reason_of(action.checkpoint) } else { None };
        let reported = reported.get(&action.id);
        ActionView::new(&ctx.app, action, reason, reported)
    };
    Ok(Json(actions.into_iter().map(shown).collect::<Vec<_>>()))
}

params! { OfPod { id: String } }

/// Also of a deleted pod, by its id or its name; and of one that only an agent knows.
pub async fn of_pod(ctx: Ctx, params: OfPod) -> Result<String, V2Error> {
    let caller = ctx.caller();
    if let Some(action) = newest_here(&ctx.app, caller, &params.id).await? {
        return Ok(action.id.to_string());
    }
    let reported = ctx.app.reports.action_of_told_pod(caller, plain_id(&params.id)).await?;
    let not_found = || V2Error::NotFound(format!("you have no action of a pod {}", clipped(&params.id)));
    Ok(reported.ok_or_else(not_found)?.to_string())
}

/// The newest action of a pod of this host.
async fn newest_here(app: &App, caller: &Caller, pod: &str) -> Result<Option<view::ActionView>, V2Error> {
    let mut filter = ActionFilter { all: caller.is_admin, limit: 1, ..ActionFilter::default() };
    match (pod.parse::<QuotedId<PodId>>(), pod.parse::<PodRef>()) {
        (Ok(QuotedId(id)), _) => filter.pod = Some(id),
        (_, Ok(wanted)) => match app.pods.name_of(caller, &wanted) {
            Ok(name) => filter.container_name = Some(name),
            Err(_) => return Ok(None),
        },
        (Err(_), Err(_)) => return Ok(None),
    }
    Ok(app.checkpoints.list_actions(caller, filter).await?.pop())
}

/// An id in its canonical spelling; other names unchanged.
fn plain_id(id: &str) -> String {
    id.parse::<QuotedId<Uuid>>().map_or_else(|_| id.to_owned(), |QuotedId(id)| id.to_string())
}

/// What an agent reports of an action.
#[derive(Deserialize, ToSchema)]
pub struct Upload {
    #[schema(value_type = String)]
    action_id: QuotedId<ActionId>,
    status: String,
    pod_id: Option<String>,
    pod_spec: Option<Value>,
    pod_metadata_spec: Option<Value>,
    persistent_volume_claim: Option<Value>,
}

/// The named pod belongs to the action from then on.
pub async fn upload(ctx: Ctx, (_, Body(body)): (NoParams, Body<Upload>)) -> Result<String, V2Error> {
    let pod = body.pod_id.filter(|id| !id.is_empty()).map(|id| plain_id(&id));
    ensure_plain("status", &body.status)?;
    if let Some(pod) = &pod {
        ensure_plain("pod_id", pod)?;
    }
    let fields = [
        ("status", Some(body.status.into())),
        ("pod_id", pod.map(Value::from)),
        ("pod_spec", body.pod_spec),
        ("pod_metadata_spec", body.pod_metadata_spec),
        ("persistent_volume_claim", body.persistent_volume_claim),
    ];
    let upload = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    ctx.app.reports.tell(ctx.caller(), body.action_id.0, |reported| reported.upload = Some(upload)).await?;
    Ok("Success".to_owned())
}

params! { One { action_id: String } }

#[derive(Serialize)]
struct Status {
    status: &'static str,
    details: Option<String>,
}

/// What is not an id is answered like an unknown action: the editions know no 400 here.
pub async fn status(ctx: Ctx, params: One) -> Result<Json<impl Serialize>, V2Error> {
    let id = params.action_id.parse::<QuotedId<ActionId>>();
    let QuotedId(id) = id.map_err(|_| CheckpointError::NoAction(clipped(&params.action_id)))?;
    let action = ctx.app.checkpoints.action(ctx.caller(), id).await?;
    let details = match (&action.error, action.status) {
        (Some(error), _) => Some(error.clone()),
        (None, ActionStatus::Running) => Some(action.phase.to_string()),
        (None, _) => (!action.losses.is_empty()).then(|| action.losses.join("; ")),
    };
    Ok(Json(Status { status: step(&action).as_str(), details }))
}

super::reasons! { Heartbeat = "heartbeat", Manual = "manual" }

/// The fields of all editions.
#[derive(Deserialize, ToSchema)]
pub struct Save {
    cluster_id: Option<String>,
    pod_id: Option<String>,
    pod_name: Option<String>,
    namespace: Option<String>,
    runc_root: Option<String>,
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    kind: EmptyAsNone<Kind>,
    #[schema(inline, value_type = Option<Reason>)]
    #[serde(default)]
    reason: EmptyAsNone<Reason>,
    #[schema(inline)]
    #[serde(default, deserialize_with = "super::object")]
    overrides: Option<Overrides>,
}

#[derive(Default, Deserialize, ToSchema)]
struct Overrides {
    asynchronous: Option<bool>,
    compression: Option<String>,
    criu_opts: Option<String>,
    directory: Option<String>,
    streams: Option<i32>,
}

pub async fn save(ctx: Ctx, (_, Body(body)): (NoParams, Body<Save>)) -> Result<String, V2Error> {
    let (app, caller) = (&ctx.app, ctx.caller());
    ensure_this_host(app, body.cluster_id.as_deref())?;
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let pod = match (named(&body.pod_id), named(&body.pod_name)) {
        (Some(id), _) => match id.parse::<QuotedId<PodId>>() {
            Ok(QuotedId(id)) => app.pods.find_by_id(caller, id)?,
            Err(_) => app.pods.find(caller, &pod_ref(&id, None)?)?,
        },
        (None, Some(name)) => app.pods.find(caller, &pod_ref(&name, named(&body.namespace).as_deref())?)?,
        (None, None) => {
            return Err(V2Error::BadRequest("name the pod: pod_id, or pod_name and its owner as namespace".to_owned()));
        }
    };
    if let Some(root) = named(&body.runc_root) {
        ensure_runc_root(&root, &pod)?;
    }
    let overrides = body.overrides.unwrap_or_default();
    ensure_directory(app, overrides.directory.as_deref())?;
    if let Some(streams) = overrides.streams.filter(|streams| !(0..=MAX_STREAMS).contains(streams)) {
        return Err(V2Error::BadRequest(format!("overrides.streams must be 0 to {MAX_STREAMS}, not {streams}")));
    }
    let options = CriuOptions::parse(overrides.criu_opts.as_deref(), For::Checkpoint)?;
    let new = NewCheckpoint {
        kind: body.kind.0.unwrap_or(Kind::Rootfs),
        leave_running: if options.leave_running { LeaveRunning::Yes } else { LeaveRunning::No },
        compression: match overrides.compression.as_deref().unwrap_or_default() {
            "" => app.config.get().checkpoint.compression,
            // An uncompressed archive.
            "tar" => Compression::None,
            word => word.parse().map_err(|error| V2Error::BadRequest(format!("overrides.compression: {error}")))?,
        },
        name: None,
        reason: body.reason.0.map(|reason| reason.as_str().to_owned()),
        origin: Origin::Hand,
        remote: false,
        // 0 lets the host choose.
        streams: overrides.streams.and_then(|streams| usize::try_from(streams).ok()).filter(|streams| *streams > 0),
    };
    let wanted = PodRef { prefix: None, user: Some(pod.user.clone()), instance: pod.instance.clone() };
    let action = app.checkpoints.begin(caller, &wanted, new).await?;
    if overrides.asynchronous == Some(false) {
        wait_for_end(app, caller, action.id).await?;
    }
    Ok(action.id.to_string())
}

/// Waits for the end; the outcome is left to a request for its state.
async fn wait_for_end(app: &App, caller: &Caller, id: ActionId) -> Result<(), V2Error> {
    let wait = async {
        while app.checkpoints.action(caller, id).await?.status == ActionStatus::Running {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    tokio::time::timeout(LONGEST_WAIT, wait).await.unwrap_or(Ok(()))
}

/// The host finds runc's root of a container by itself. A root that is given must be that one.
fn ensure_runc_root(root: &str, pod: &Pod) -> Result<(), V2Error> {
    let path = Path::new(root);
    let is_plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    let holds = |pod: &Pod| {
        let container = pod.container.as_ref()?;
        Some(path.join(container.as_str()).join("state.json").exists())
    };
    if is_plain && holds(pod) == Some(true) {
        return Ok(());
    }
    Err(V2Error::BadRequest(
        "runc_root is not where this host keeps the pod; leave it out, the host finds it".to_owned(),
    ))
}

/// Checkpoints contain memory: the host decides where they are kept.
fn ensure_directory(app: &App, wanted: Option<&str>) -> Result<(), V2Error> {
    match wanted {
        None | Some("") => Ok(()),
        Some(path) if Path::new(path) == app.reports.store() => Ok(()),
        Some(_) => Err(V2Error::BadRequest(
            "overrides.directory: this host decides where checkpoints are kept; leave it out".to_owned(),
        )),
    }
}

/// What options of CRIU are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Checkpoint,
    Restore,
}

/// Options of CRIU that a caller may choose. The host chooses the others, for all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CriuOptions {
    pub leave_running: bool,
    /// `None` = the default.
    pub connections: Option<Connections>,
}

impl CriuOptions {
    /// A JSON object of booleans, under CRIU's names in either spelling. What is done anyway is accepted, what cannot
    /// be honoured is refused with its reason.
    pub fn parse(text: Option<&str>, what: For) -> Result<Self, V2Error> {
        let mut options = Self { leave_running: true, connections: None };
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(options) };
        let bad = |why: String| V2Error::BadRequest(format!("criu_opts: {why}"));
        let found: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| bad(format!("it is not a JSON object: {}", sentence(&error))))?;
        for (name, value) in found {
            let plain = name.to_ascii_lowercase().replace(['_', '-'], "");
            let refused = match (plain.as_str(), value.as_bool(), what) {
                ("leaverunning", Some(leave), For::Checkpoint) => {
                    options.leave_running = leave;
                    continue;
                }
                ("tcpclose", Some(true), For::Restore) => {
                    options.connections = Some(Connections::Close);
                    continue;
                }
                ("tcpestablished", Some(true), For::Restore) if options.connections.is_none() => {
                    options.connections = Some(Connections::Keep);
                    continue;
                }
                // As done anyway.
                ("tcpestablished" | "filelocks" | "linkremap" | "shelljob", Some(true), _) => continue,
                ("tcpclose" | "tcpskipinflight" | "extunixsk" | "externalunixsk" | "lazypages", Some(false), _) => {
                    continue;
                }
                ("leaverunning", Some(_), For::Restore) => {
                    "it is for checkpoints; a restore leaves nothing else running"
                }
                ("tcpclose", Some(true), For::Checkpoint) => {
                    "connections are always saved; close them at the restore, with tcp_close there"
                }
                ("tcpestablished", Some(false), _) => {
                    "connections are always saved; tcp_close with a restore closes them"
                }
                ("filelocks", Some(false), _) => "file locks are always saved and restored",
                ("linkremap", Some(false), _) => "open files that were unlinked are always saved",
                ("shelljob", Some(false), _) => "terminals of a pod are always saved with it",
                ("extunixsk" | "externalunixsk", Some(true), _) => {
                    "connections to sockets outside the pod cannot be saved; close them first"
                }
                ("ghostlimit", _, _) => "this host sets it as [checkpoint] deleted_file_limit",
                _ => {
                    "this host decides it; you can choose leave_running, and tcp_close or tcp_established for a restore"
                }
            };
            return Err(bad(format!("{:?}: {refused}", clipped(&name))));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_options_of_criu_are_taken() {
        let of = |text, what| CriuOptions::parse(Some(text), what).ok();
        let leaves = |text| of(text, For::Checkpoint).map(|options| options.leave_running);
        assert_eq!(leaves(""), Some(true));
        assert_eq!(leaves(r#"{"leave_running": false}"#), Some(false));
        assert_eq!(leaves(r#"{"leaveRunning": false, "tcpEstablished": true}"#), Some(false));
        assert_eq!(leaves(r#"{"shell_job": true, "file-locks": true, "tcp_close": false}"#), Some(true));
        let connections = |text| of(text, For::Restore).and_then(|options| options.connections);
        assert_eq!(connections(r#"{"tcp_close": true}"#), Some(Connections::Close));
        assert_eq!(connections(r#"{"tcp_established": true}"#), Some(Connections::Keep));
        // CRIU also closes them when both are given.
        assert_eq!(connections(r#"{"tcp_close": true, "tcp_established": true}"#), Some(Connections::Close));
        assert_eq!(connections(r#"{"tcp_established": true, "tcp_close": true}"#), Some(Connections::Close));
        for bad in [
            "--action-script=/bin/sh",
            r#"{"action_script": "/bin/sh"}"#,
            r#"{"leave_running": "no"}"#,
            r#"{"external": ["mnt[]:m"]}"#,
            "[]",
            r#"{"tcp_established": false}"#,
            r#"{"ghost_limit": 1}"#,
            r#"{"ext_unix_sk": true}"#,
            r#"{"file_locks": false}"#,
        ] {
            for what in [For::Checkpoint, For::Restore] {
                let error = CriuOptions::parse(Some(bad), what).expect_err(bad).to_string();
                assert!(error.starts_with("criu_opts: "), "{error}");
            }
        }
        assert_eq!(of(r#"{"tcp_close": true}"#, For::Checkpoint), None);
        assert_eq!(of(r#"{"leave_running": true}"#, For::Restore), None);
    }
}
