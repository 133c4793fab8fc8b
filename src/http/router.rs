//! Every route, in one list.
//!
//! The list feeds the router, `/help` and `/openapi.json`, so they cannot differ. [`dispatch`] does what is the same
//! for all routes: identity, parameters, limits, the log line; a handler gets parsed values and the domain.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{ConnectInfo, FromRequestParts, RawPathParams, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter},
};
use futures_util::{StreamExt, stream};
use utoipa::PartialSchema;

use super::{
    cedana::{self, V2Error, V2ErrorBody},
    endpoint::{Access, Answer, Ctx, Dialect, Route, route},
    error::ApiError,
    identity::{identify, refuse_other_sites},
    params::{BodyUse, Input},
    pody::{self, ErrorBody},
};
use crate::{
    app::App,
    db::{DbError, on_behalf},
    engine::Health,
    model::{authority::Lapse, names::clipped},
};

/// Largest body that is read into memory, bytes.
const MAX_BODY: usize = 1 << 20;

/// Largest query, bytes: 414 beyond it.
const MAX_QUERY: usize = 32 << 10;

/// Responses from the inventory carry this header, in seconds, while the engine does not respond.
const AGE_HEADER: HeaderName = HeaderName::from_static("x-pody-inventory-age");

/// Shorthand: the method names are the first word of each row below.
macro_rules! table {
    ($($method:ident $access:ident $path:literal $handler:path, $summary:literal;)*) => {
        vec![$(route(dialect_of($path), Method::$method, $path, Access::$access, $summary, $handler),)*]
    };
}

/// The dialects. The longest prefix that matches a path decides.
static DIALECTS: [Dialect; 2] = [
    Dialect {
        prefix: "/v2",
        refuse: |error| V2Error::from(error).into_response(),
        error: ("V2Error", V2ErrorBody::schema),
        ignores_last_slash: true,
        knows_422: false,
    },
    Dialect {
        prefix: "",
        refuse: ApiError::into_response,
        error: ("Error", ErrorBody::schema),
        ignores_last_slash: false,
        knows_422: true,
    },
];

fn dialect_of(path: &str) -> &'static Dialect {
    let owners = DIALECTS.iter().filter(|dialect| dialect.owns(path));
    owners.max_by_key(|dialect| dialect.prefix.len()).expect("one has no prefix")
}

/// The list.
pub fn routes() -> Vec<Route> {
    use cedana as v2;
    use pody::{
        action, admin, checkpoint, drain, event, host, image, meta, pod, schedule, ssh_key, stat, token, user, user_api,
    };
    let mut routes = table![
        GET  Open   "/version"               meta::version,          "version of the API that this server speaks";
        GET  Open   "/healthz"               meta::health,           "whether server, database and Docker work";
        GET  Member "/help"                  meta::help,             "routes with their parameters; a path that ends in / is a prefix";
        GET  Member "/openapi.json"          meta::openapi,          "these routes as OpenAPI";
        GET  Admin  "/metrics"               meta::metrics,          "numbers for Prometheus";
        GET  Member "/events"                event::list,            "who did what, newest first; members see their own";

        GET  Member "/user/info"             user::info,             "your account and quota";
        GET  Member "/user/list"             user::list,             "names of all users";
        POST Member "/user/ch-passwd"        user::change_password,  "change your password";
        GET  Member "/user/tokens"           token::list,            "your bearer tokens";
        POST Member "/user/tokens/create"    token::create,          "create a bearer token; it is shown once";
        POST Member "/user/tokens/revoke"    token::revoke,          "revoke a bearer token";
        GET  Member "/user/ssh-keys"         ssh_key::list,          "your SSH public keys";
        POST Member "/user/ssh-keys/add"     ssh_key::add,           "add an SSH public key, also to your pods";
        POST Member "/user/ssh-keys/delete"  ssh_key::delete,        "delete an SSH public key, also from your pods";

        GET  Member "/pod/list"              pod::list,              "names of your pods";
        GET  Admin  "/pod/listall"           pod::list_all,          "container names of everybody's pods";
        GET  Member "/pod/ps"                pod::ps,                "your pods with their state; all=true: everybody's, for admins";
        GET  Member "/pod/inspect"           pod::inspect,           "one pod";
        GET  Member "/pod/info"              pod::inspect,           "one pod (older name of /pod/inspect)";
        POST Member "/pod/create"            pod::create,            "create and start a pod";
        POST Member "/pod/delete"            pod::delete,            "delete a pod; its volumes stay";
        POST Member "/pod/start"             pod::start,             "start a stopped pod";
        POST Member "/pod/stop"              pod::stop,              "stop a pod";
        POST Member "/pod/restart"           pod::restart,           "stop and start a pod";
        POST Member "/pod/exec"              pod::exec,              "run a command line in a pod as root; timeout in seconds; detach=true: in the background";
        POST Member "/pod/commit"            pod::commit,            "create an image from a pod";
        GET  Member "/pod/logs"              pod::logs,              "output of a pod; tail in lines, since as a duration, follow=true to stream";
        GET  Member "/pod/stats"             pod::stats,             "CPU, memory, processes and disks of a pod";
        GET  Member "/pod/shell"             pod::shell,             "a terminal in a pod (WebSocket); session: reattach to that one";
        GET  Member "/pod/sessions"          pod::sessions,          "detached terminals and background commands in a pod";

        POST Member "/pod/checkpoint"        checkpoint::create,     "save a running pod; kind is simple, rootfs or rootfsonly, compression none, zstd, lz4 or gzip; answers with the action";
        POST Member "/pod/restore"           checkpoint::restore,    "restore a pod from its newest checkpoint, or from the one named, in place or under another name; answers with the action";
        GET  Member "/pod/checkpoints"       checkpoint::list,       "your checkpoints, or of one pod, newest first; all=true: everybody's, for admins";
        POST Member "/pod/schedule"          schedule::set,          "save a pod at an interval: every as 6h, keep as a count; off=true ends the schedule";
        GET  Member "/pod/schedules"         schedule::list,         "schedules of your pods, with the next and the last time; all=true: everybody's, for admins";
        GET  Member "/checkpoint/inspect"    checkpoint::inspect,    "one checkpoint and what it consists of";
        POST Member "/checkpoint/delete"     checkpoint::delete,     "delete a checkpoint";
        GET  Member "/checkpoint/remote"     checkpoint::list_remote, "your checkpoints in the remote store, including those that this host does not know; user, for admins";
        POST Member "/checkpoint/fetch"      checkpoint::fetch,      "register a checkpoint found in the remote store; its files are downloaded when it is restored";
        GET  Member "/checkpoint/check"      checkpoint::check,      "whether a pod can be saved, process by process; nothing is changed";
        GET  Member "/action/status"         action::status,         "progress of a checkpoint or restore";
        GET  Member "/action/list"           action::list,           "checkpoints and restores, newest first; type is checkpoint or restore";

        GET  Member "/image/list"            image::list,            "images that you may use";
        GET  Member "/host/images"           image::list,            "images that you may use (older name of /image/list)";
        GET  Member "/image/inspect"         image::inspect,         "one image";
        POST Member "/image/delete"          image::delete,          "delete one of your own commits";

        GET  Member "/host/gpu-ps"           host::gpu_processes,    "processes on the GPUs; id like 0,1";
        GET  Member "/host/gpus"             host::gpus,             "the GPUs, their health, and who uses them";
        GET  Member "/host/spec"             host::spec,             "versions of pody, Docker and the NVIDIA driver";
        GET  Member "/stat/cputime"          stat::cpu_time,         "CPU seconds per user; user as a comma list, t as a duration";
        GET  Member "/stat/gputime"          stat::gpu_time,         "GPU seconds per user; user as a comma list, t as a duration";

        GET  Member "/stat/usage"            stat::usage,            "usage by user,pod,gpu,hour,day; t as a duration; format json or csv";
        GET  Member "/pod/series"            stat::pod_series,       "cores, memory and GPUs of a pod over time; t as a duration";
        GET  Member "/host/series"           stat::host_series,      "the GPUs over time; t as a duration";

        GET  Admin  "/admin/user/list"       admin::list_users,      "all accounts";
        POST Admin  "/admin/user/add"        admin::add_user,        "add an account; without a password one is generated and shown once";
        POST Admin  "/admin/user/update"     admin::update_user,     "change password, admin, disabled of an account";
        POST Admin  "/admin/user/delete"     admin::delete_user,     "delete an account that has no pods";
        POST Admin  "/admin/user/purge"      admin::purge_user,      "delete an account and its pods";
        GET  Admin  "/admin/quota/list"      admin::list_quotas,     "limits of all users, or of one";
        POST Admin  "/admin/quota/update"    admin::update_quota,    "set limits of a user; default removes one, unlimited lifts it";
        POST Admin  "/admin/quota/reset"     admin::reset_quota,     "remove all limits of a user: the defaults apply";

        POST Admin  "/admin/drain"           drain::begin,           "save and stop every pod that runs, for maintenance; reason is shown to members, force=true stops what cannot be saved; answers at once";
        POST Admin  "/admin/undrain"         drain::end,             "restore what the drain has stopped; answers at once";

        POST Node   "/user_api/add_user"     user_api::add,          "add a user, for other nodes";
        POST Node   "/user_api/update_user"  user_api::update,       "change a user, for other nodes";
        POST Node   "/user_api/delete_user"  user_api::delete,       "delete a user, for other nodes";
        GET  Node   "/user_api/get_user"     user_api::get,          "one user, for other nodes";
        GET  Node   "/user_api/check_user"   user_api::check,        "whose credential this is, for other nodes";
        GET  Node   "/user_api/list_users"   user_api::list,         "all users, for other nodes";

        GET  Member "/v2/actions"            v2::action::list,       "checkpoints and restores, newest first; type is checkpoint or restore";
        GET  Member "/v2/actions/from_pod/{id}" v2::action::of_pod,  "id of the newest action of a pod";
        POST Member "/v2/actions/upload"     v2::action::upload,     "attach details to an action (e.g. its pod's spec)";
        POST Member "/v2/checkpoint/pod"     v2::action::save,       "save a pod, by pod_id, or by pod_name with its owner as namespace; answers with the action's id";
        GET  Member "/v2/checkpoint/status/{action_id}" v2::action::status, "progress of an action";
        GET  Member "/v2/checkpoint/path"    v2::checkpoint::path,   "path of the newest checkpoint of a name, an action or a pod";
        GET  Member "/v2/checkpoints"        v2::checkpoint::list,   "your checkpoints, ours and those that agents report; ids separated by commas";
        PATCH Member "/v2/checkpoints/deprecate/{id}" v2::checkpoint::deprecate, "have a checkpoint deleted after a while";
        PUT  Member "/v2/checkpoints/info/{id}" v2::checkpoint::put_info, "attach details to a checkpoint";
        POST Member "/v2/checkpoints/uploaded/{id}" v2::checkpoint::uploaded, "report that an agent's checkpoint is where it can be restored from";
        POST Member "/v2/restore/pod"        v2::restore::restore,   "restore the pod of an action's checkpoint; answers with the action's id";
        PUT  Member "/v2/restores/info/{id}" v2::restore::put_info,  "attach details to a restore";
        GET  Member "/v2/files/{path}"       v2::file::sign_read,    "a signed URL to read one of your files; user: another's, for admins";
        GET  Member "/v2/files/dir"          v2::file::list_all,     "names in your folder of files";
        GET  Member "/v2/files/dir/{path}"   v2::file::list,         "names in a folder below it";
        GET  SignedUrl    "/v2/transfer/{user}/{path}" v2::file::read,     "the bytes of a file, or a part of them (Range)";
        GET  Member "/v2/user"               v2::user::find,         "whose token this is";
        GET  Member "/v2/pods"               v2::resource::list_pods,  "your pods, and those that your agents report; id of a pod or cluster";
        GET  Member "/v2/pods/count"         v2::resource::count_pods, "number of those pods";
        GET  Member "/v2/nodes"              v2::resource::list_nodes, "this host, and nodes that your agents report; id of a node or cluster";
        GET  Member "/v2/jobs"               v2::resource::list_jobs,  "your running pods, and jobs that your agents report";
        GET  Member "/v2/jobs/count"         v2::resource::count_jobs, "number of those jobs";
        GET  Member "/v2/events"             v2::event::list,        "who did what in the last `time` seconds, newest first; members see their own";
        GET  Member "/v2/cluster"            v2::cluster::list,      "this host, and clusters that your agents report";
        POST Member "/v2/cluster/sync"       v2::cluster::sync,      "record a pod, node or job of your cluster";
        POST Member "/v2/k8s/sync"           v2::cluster::sync_text, "record a pod, node or job (the path of an older edition)";
    ];
    // Second methods of paths above. `/help` shows one method per path.
    let second = table![
        GET    Member "/user/ch-passwd"      user::change_password,  "change your password (the method of an older edition)";
        GET    Member "/pod/schedule"        schedule::find,         "the schedule of a pod";
        GET    Admin  "/admin/drain"         drain::status,          "progress of a drain or undrain, pod by pod";
        POST   Member "/image/inspect"       image::inspect,         "one image (the method of an older edition)";
        POST   Member "/v2/checkpoints"      v2::checkpoint::create, "register an agent's checkpoint without files";
        PUT    Member "/v2/files/{path}"     v2::file::sign_write,   "a signed URL to write one of your files";
        DELETE Member "/v2/files/{path}"     v2::file::delete,       "delete one of your files, or an empty folder";
        PUT    SignedUrl    "/v2/transfer/{user}/{path}" v2::file::write,  "write a file, or a part of it (Content-Range)";
        POST   Member "/v2/cluster"          v2::cluster::create,    "register a cluster that an agent reports";
    ];
    routes.extend(second.into_iter().map(|route| Route { listed: false, ..route }));
    for route in &mut routes {
        // Called by other nodes, or by a URL that is handed out whole: nothing for members to type.
        route.listed &= !matches!(route.access, Access::Node | Access::SignedUrl);
    }
    routes
}

/// The router over the list.
pub fn router(app: App) -> Router {
    let mut paths: Vec<(String, MethodRouter)> = Vec::new();
    let routes: Arc<[Route]> = routes().into();
    for (number, route) in routes.iter().enumerate() {
        let pattern = route.pattern();
        let at = paths.iter().position(|(path, _)| *path == pattern).unwrap_or_else(|| {
            paths.push((pattern, MethodRouter::new()));
            paths.len() - 1
        });
        let filter = MethodFilter::try_from(route.method.clone()).expect("a method that axum knows");
        let (app, routes, path) = (app.clone(), routes.clone(), &mut paths[at].1);
        let handler = move |request: Request| dispatch(app.clone(), routes.clone(), number, request);
        *path = std::mem::take(path).on(filter, handler);
    }
    let mut router = Router::new();
    for (path, methods) in paths {
        // Clients of such a dialect may end a path with a slash. A route that takes the rest of the path gives it a
        // meaning of its own.
        if dialect_of(&path).ignores_last_slash && !path.ends_with("{*path}") {
            router = router.route(&format!("{path}/"), methods.clone());
        }
        router = router.route(&path, methods);
    }
    router
        .fallback(async |uri: Uri| (dialect_of(uri.path()).refuse)(ApiError::NoRoute))
        .method_not_allowed_fallback(async |uri: Uri| (dialect_of(uri.path()).refuse)(ApiError::MethodNotAllowed))
}

/// Handles every request.
async fn dispatch(app: App, routes: Arc<[Route]>, number: usize, request: Request) -> Response {
    let route = &routes[number];
    let begun = Instant::now();
    let ConnectInfo(peer) =
        request.extensions().get::<ConnectInfo<SocketAddr>>().copied().unwrap_or(ConnectInfo(([0, 0, 0, 0], 0).into()));
    let mut user = None;
    let answer = answer(&app, &routes, route, peer, request, &mut user).await;
    let mut response = answer.unwrap_or_else(route.dialect.refuse);
    if let Health::Down(_) = app.engine.health()
        && let Some(age) = app.engine.inventory().age()
        && let Ok(value) = HeaderValue::from_str(&format!("{:.1}", age.as_secs_f64()))
    {
        response.headers_mut().insert(AGE_HEADER, value);
    }
    let seconds = begun.elapsed().as_secs_f64();
    app.metrics.count(route.path, response.status().as_u16(), seconds);
    let (status, milliseconds, user) = (response.status().as_u16(), seconds * 1000.0, user.as_deref().unwrap_or("-"));
    // Never the query: it may hold passwords.
    if route.method == Method::GET && status < 400 {
        tracing::debug!(method = %route.method, path = route.path, user, %peer, status, milliseconds, "request");
    } else {
        tracing::info!(method = %route.method, path = route.path, user, %peer, status, milliseconds, "request");
    }
    response
}

async fn answer(
    app: &App,
    routes: &Arc<[Route]>,
    route: &Route,
    peer: SocketAddr,
    mut request: Request,
    user: &mut Option<String>,
) -> Result<Response, ApiError> {
    if route.method != Method::GET {
        refuse_other_sites(request.headers(), request.uri())?;
    }
    let signed_in = identify(app, route.access, request.headers(), peer).await?;
    *user = signed_in.as_ref().map(|signed_in| signed_in.caller.user.to_string());
    let query = request.uri().query().unwrap_or_default().to_owned();
    if query.len() > MAX_QUERY {
        return Err(ApiError::TooLong { part: "query", max: MAX_QUERY });
    }
    let mut input = Input::new(&query);
    let is_read = route.method == Method::GET;
    let body;
    match route.body {
        BodyUse::Bytes => {}
        BodyUse::Json(_) => {
            // Read before it may be refused, too: see below.
            body = read_body(app, std::mem::take(request.body_mut())).await?;
            refuse_other_bodies(request.headers())?;
            input.set_json(&body);
        }
        // An unwanted body is read too: left unread, it would end the connection before the client has read the
        // response.
        BodyUse::Form => {
            let is_form = is_form(request.headers());
            if is_form || !is_read {
                body = read_body(app, std::mem::take(request.body_mut())).await?;
                if is_form {
                    input.extend(&body);
                }
            }
        }
    }
    if route.path.contains('{') {
        let (mut parts, body) = request.into_parts();
        for (name, value) in path_params(&mut parts).await?.iter() {
            input.push(name.to_owned(), value.to_owned());
        }
        request = Request::from_parts(parts, body);
    }
    let (caller, authority) = signed_in.map(|signed_in| (signed_in.caller, signed_in.authority)).unzip();
    // The body may have come slowly. Work that changes no row has only this look; see `db::on_behalf` for the other.
    if let Some(authority) = &authority {
        app.accounts.check_authority(authority).map_err(DbError::from)?;
    }
    let ctx = Ctx { app: app.clone(), peer, caller, authority: authority.clone(), routes: routes.clone(), request };
    let work = (route.handler)(ctx, &input);
    let work: Answer = match authority.clone() {
        Some(authority) => Box::pin(on_behalf(authority, work)),
        None => work,
    };
    let response = match is_read {
        true => work.await,
        // A change runs to its end when the client leaves.
        false => tokio::spawn(work).await.map_err(|error| ApiError::internal(&error))?,
    };
    Ok(match authority {
        Some(authority) if response.body().size_hint().exact().is_none() => {
            end_with(response, app.accounts.lapse(authority))
        }
        _ => response,
    })
}

/// Breaks a stream off when its caller may not act any more.
fn end_with(response: Response, lapse: impl Future<Output = Lapse> + Send + 'static) -> Response {
    response.map(|body| {
        let open = Some((body.into_data_stream(), Box::pin(lapse)));
        Body::from_stream(stream::unfold(open, |open| async {
            let (mut pieces, mut lapse) = open?;
            tokio::select! {
                lapse = &mut lapse => Some((Err(axum::Error::new(lapse)), None)),
                piece = pieces.next() => piece.map(|piece| (piece, Some((pieces, lapse)))),
            }
        }))
    })
}

/// The parameters in the path, percent-decoded.
async fn path_params(parts: &mut Parts) -> Result<RawPathParams, ApiError> {
    let read = RawPathParams::from_request_parts(parts, &()).await;
    read.map_err(|_| ApiError::BadRequest("the path is not UTF-8 when decoded".to_owned()))
}

fn refuse_other_bodies(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind.is_empty() || kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json") {
        return Ok(());
    }
    let kind = clipped(&kind);
    Err(ApiError::BadRequest(format!("this route wants JSON, and the body came as {kind:?}; send application/json")))
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().starts_with("application/x-www-form-urlencoded"))
}

async fn read_body(app: &App, body: Body) -> Result<Vec<u8>, ApiError> {
    let limit = std::time::Duration::from_secs(app.config.get().server.body_timeout_seconds.max(1));
    let read = axum::body::to_bytes(body, MAX_BODY);
    match tokio::time::timeout(limit, read).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(_)) => Err(ApiError::TooLong { part: "body", max: MAX_BODY }),
        Err(_) => Err(ApiError::SlowBody),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fmt::Write as _};

    use super::*;
    use crate::{
        http::document,
        model::quota::{Limit, LimitValue, Quota, StoredQuota, Unit},
    };

    /// The table of routes in docs/API.md.
    fn table() -> String {
        let mut text = String::from("| route | who | parameters | what |\n| --- | --- | --- | --- |\n");
        for route in routes() {
            let params =
                route.params.iter().map(|param| format!("`{}{}`", param.name, if param.optional { "?" } else { "" }));
            let body = route.body.fields().into_iter().map(|(name, optional)| {
                let mark = if optional { "?" } else { "" };
                format!("`{name}{mark}`")
            });
            let body = body.collect::<Vec<_>>().join(" ");
            let who = match route.access {
                Access::Open => "anyone",
                Access::Member => "members",
                Access::Admin => "admins",
                Access::Node => "other nodes",
                Access::SignedUrl => "holders of a signed URL",
            };
            let params = params.collect::<Vec<_>>().join(" ");
            let params = match body.is_empty() {
                true => params,
                false if params.is_empty() => format!("JSON: {body}"),
                false => format!("{params}, JSON: {body}"),
            };
            let _ = writeln!(text, "| {} `{}` | {who} | {params} | {} |", route.method, route.path, route.summary);
        }
        text
    }

    /// The table of limits in docs/API.md.
    fn limits() -> String {
        let mut text = String::from("| limit | value | default | what |\n| --- | --- | --- | --- |\n");
        let default = StoredQuota::from(Quota::default());
        for limit in Limit::ALL {
            let value = match limit.unit {
                Unit::Count => "count",
                Unit::Bytes => "size",
                Unit::Cores => "cores",
                Unit::Gpus => "GPUs",
            };
            let default = match limit.get(&default).expect("a default") {
                LimitValue::Text(text) => text,
                LimitValue::Integer(..0) => "unlimited".to_owned(),
                LimitValue::Integer(0) if limit.unit == Unit::Bytes => "none".to_owned(),
                LimitValue::Integer(number) => number.to_string(),
            };
            let _ = writeln!(text, "| `{}` | {value} | {default} | {} |", limit.name, limit.description);
        }
        text
    }

    #[test]
    fn the_document_lists_every_route() {
        document::check("routes", &table());
    }

    #[test]
    fn the_document_lists_every_limit() {
        document::check("limits", &limits());
    }

    #[test]
    fn no_route_is_listed_twice() {
        let mut seen = HashSet::new();
        for route in routes() {
            assert!(seen.insert((route.method.clone(), route.path)), "{} {}", route.method, route.path);
        }
        // One method per path in /help: the client's fetch refuses several.
        let mut listed = HashSet::new();
        for route in routes().into_iter().filter(|route| route.listed) {
            assert!(listed.insert(route.path), "{}", route.path);
        }
    }
}
