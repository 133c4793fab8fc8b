//! Access rights: every route × every kind of caller. A route without a row here fails the test.

use std::time::Duration;

use pody::http::{
    endpoint::{Access, Route},
    params::BodyUse,
    router::routes,
};
use serde_json::Value;

use crate::common::{Answer, Client, Server, eventually, with_query};

/// An id that does not exist.
const NO_ID: &str = "00000000-0000-4000-8000-000000000000";

/// Who owns the object of a route.
#[derive(Clone, Copy)]
enum Object {
    /// Nobody, or the caller: the request cannot name another user's.
    None,
    /// A query that names an object of alice's, and one that names none. Another member gets the same status and,
    /// except for the name, the same message for both.
    Alices { there: &'static str, not_there: &'static str, status: u16 },
}

const fn alices(there: &'static str, not_there: &'static str, status: u16) -> Object {
    Object::Alices { there, not_there, status }
}

const POD: Object = alices("ins=alice-main", "ins=alice-nope", 404);
const QUOTA: Object = alices("username=alice&max_pods=1", "username=nobody&max_pods=1", 403);
const USER: Object = alices("username=alice&admin=true&password=x", "username=nobody&admin=true&password=x", 403);

const NO_CLUSTER: Object =
    alices("cluster_id=11111111-1111-4111-8111-111111111111", "cluster_id=22222222-2222-4222-8222-222222222222", 404);

const NO_ACTION: &str = "action_id=22222222-2222-4222-8222-222222222222&status=x";
const NO_SUCH_ACTION: Object =
    alices("action_id=11111111-1111-4111-8111-111111111111", "action_id=22222222-2222-4222-8222-222222222222", 404);
const NO_SUCH_ID: Object =
    alices("id=11111111-1111-4111-8111-111111111111", "id=22222222-2222-4222-8222-222222222222", 404);
const FILES: Object = alices("user=alice", "user=nobody", 403);
const LINK: Object =
    alices("user=alice&expires=9999999999&signature=00", "user=nobody&expires=9999999999&signature=00", 403);

/// Rows by method and path.
const ROWS: &[(&str, &str, Object)] = &[
    ("GET", "/version", Object::None),
    ("GET", "/healthz", Object::None),
    ("GET", "/help", Object::None),
    ("GET", "/openapi.json", Object::None),
    ("GET", "/metrics", Object::None),
    ("GET", "/events", alices("user=alice", "user=nobody", 403)),
    ("GET", "/user/info", Object::None),
    // Names are not secret: the processes on GPUs show the pods of others.
    ("GET", "/user/list", Object::None),
    ("POST", "/user/ch-passwd", Object::None),
    ("GET", "/user/ch-passwd", Object::None),
    ("GET", "/user/tokens", Object::None),
    ("POST", "/user/tokens/create", Object::None),
    ("POST", "/user/tokens/revoke", alices("id=1", "id=9", 404)),
    ("GET", "/user/ssh-keys", Object::None),
    ("POST", "/user/ssh-keys/add", Object::None),
    ("POST", "/user/ssh-keys/delete", alices("id=1", "id=9", 404)),
    ("GET", "/pod/list", Object::None),
    ("GET", "/pod/listall", Object::None),
    ("GET", "/pod/ps", alices("user=alice", "user=nobody", 403)),
    ("GET", "/pod/inspect", POD),
    ("GET", "/pod/info", POD),
    ("POST", "/pod/create", alices("ins=alice-main&image=pody-base", "ins=alice-nope&image=pody-base", 400)),
    ("POST", "/pod/delete", POD),
    ("POST", "/pod/start", POD),
    ("POST", "/pod/stop", POD),
    ("POST", "/pod/restart", POD),
    ("POST", "/pod/exec", alices("ins=alice-main&cmd=id", "ins=alice-nope&cmd=id", 404)),
    ("POST", "/pod/commit", POD),
    ("GET", "/pod/logs", POD),
    ("GET", "/pod/stats", POD),
    ("GET", "/pod/series", POD),
    ("GET", "/pod/sessions", POD),
    // Not a WebSocket here; `pod::shell` tests that.
    ("GET", "/pod/shell", alices("ins=alice-main", "ins=alice-nope", 400)),
    ("POST", "/pod/checkpoint", POD),
    ("POST", "/pod/restore", POD),
    // For others' pods the list is empty, whether the pod exists or not.
    ("GET", "/pod/checkpoints", alices("user=alice", "user=nobody", 403)),
    (
        "GET",
        "/checkpoint/inspect",
        alices("checkpoint=CHECKPOINT", "checkpoint=01930000-0000-7000-8000-000000000000", 404),
    ),
    (
        "POST",
        "/checkpoint/delete",
        alices("checkpoint=CHECKPOINT", "checkpoint=01930000-0000-7000-8000-000000000000", 404),
    ),
    ("GET", "/checkpoint/check", POD),
    ("POST", "/pod/schedule", POD),
    ("GET", "/pod/schedule", POD),
    ("GET", "/pod/schedules", alices("user=alice", "user=nobody", 403)),
    ("GET", "/checkpoint/remote", alices("user=alice", "user=nobody", 403)),
    ("POST", "/checkpoint/fetch", alices("checkpoint=CHECKPOINT&user=alice", "checkpoint=CHECKPOINT&user=nobody", 403)),
    ("GET", "/action/status", alices("id=ACTION", "id=01930000-0000-7000-8000-000000000000", 404)),
    ("GET", "/action/list", alices("ins=alice-main", "ins=alice-nope", 404)),
    ("GET", "/image/list", Object::None),
    ("GET", "/host/images", Object::None),
    ("GET", "/image/inspect", alices("image=alice", "image=nope", 400)),
    ("POST", "/image/inspect", alices("image=alice", "image=nope", 400)),
    ("POST", "/image/delete", alices("image=alice", "image=nope", 400)),
    ("GET", "/host/gpu-ps", Object::None),
    // Everybody sees whose processes run and their usage; command lines only if the config allows it.
    ("GET", "/host/gpus", Object::None),
    ("GET", "/host/series", Object::None),
    ("GET", "/host/spec", Object::None),
    // Everybody sees everybody's usage.
    ("GET", "/stat/cputime", Object::None),
    ("GET", "/stat/gputime", Object::None),
    ("GET", "/stat/usage", Object::None),
    ("GET", "/admin/user/list", Object::None),
    ("POST", "/admin/user/add", USER),
    ("POST", "/admin/user/update", USER),
    ("POST", "/admin/user/delete", USER),
    ("POST", "/admin/user/purge", USER),
    ("GET", "/admin/quota/list", QUOTA),
    ("POST", "/admin/quota/update", QUOTA),
    ("POST", "/admin/quota/reset", QUOTA),
    ("POST", "/admin/drain", Object::None),
    ("GET", "/admin/drain", Object::None),
    ("POST", "/admin/undrain", Object::None),
    ("POST", "/user_api/add_user", Object::None),
    ("POST", "/user_api/update_user", Object::None),
    ("POST", "/user_api/delete_user", Object::None),
    ("GET", "/user_api/get_user", Object::None),
    ("GET", "/user_api/check_user", Object::None),
    ("GET", "/user_api/list_users", Object::None),
    ("GET", "/v2/actions", Object::None),
    ("GET", "/v2/actions/from_pod/{id}", alices("id=alice-main", "id=alice-nope", 404)),
    // Objects that only an id names: `v2::checkpoint` and the tests of checkpoints try another user's.
    ("POST", "/v2/actions/upload", alices("action_id=11111111-1111-4111-8111-111111111111&status=x", NO_ACTION, 404)),
    ("POST", "/v2/checkpoint/pod", alices("pod_name=alice-main", "pod_name=alice-nope", 404)),
    ("GET", "/v2/checkpoint/status/{action_id}", NO_SUCH_ACTION),
    ("GET", "/v2/checkpoint/path", alices("pod_name=main&namespace=alice", "pod_name=nope&namespace=alice", 404)),
    ("GET", "/v2/checkpoints", Object::None),
    ("POST", "/v2/checkpoints", Object::None),
    ("PATCH", "/v2/checkpoints/deprecate/{id}", NO_SUCH_ID),
    (
        "PUT",
        "/v2/checkpoints/info/{id}",
        alices(
            "id=11111111-1111-4111-8111-111111111111&gpu=x&platform=y",
            "id=22222222-2222-4222-8222-222222222222&gpu=x&platform=y",
            404,
        ),
    ),
    ("POST", "/v2/checkpoints/uploaded/{id}", NO_SUCH_ID),
    (
        "POST",
        "/v2/restore/pod",
        alices("action_id=11111111-1111-4111-8111-111111111111", "action_id=22222222-2222-4222-8222-222222222222", 404),
    ),
    ("PUT", "/v2/restores/info/{id}", NO_SUCH_ID),
    // Each user's own directory; members may not name another user at all.
    ("GET", "/v2/files/{path}", FILES),
    ("PUT", "/v2/files/{path}", FILES),
    ("DELETE", "/v2/files/{path}", FILES),
    ("GET", "/v2/files/dir", FILES),
    ("GET", "/v2/files/dir/{path}", FILES),
    // `v2::file` tries almost correct URLs.
    ("GET", "/v2/transfer/{user}/{path}", LINK),
    ("PUT", "/v2/transfer/{user}/{path}", LINK),
    ("GET", "/v2/user", Object::None),
    ("GET", "/v2/pods", Object::None),
    ("GET", "/v2/pods/count", Object::None),
    ("GET", "/v2/nodes", Object::None),
    ("GET", "/v2/jobs", Object::None),
    ("GET", "/v2/jobs/count", Object::None),
    ("GET", "/v2/events", Object::None),
    ("GET", "/v2/cluster", Object::None),
    ("POST", "/v2/cluster", Object::None),
    // Only an id names a cluster; `v2::cluster` tries another user's.
    ("POST", "/v2/cluster/sync", NO_CLUSTER),
    ("POST", "/v2/k8s/sync", NO_CLUSTER),
];

fn object(route: &Route) -> Object {
    let row = ROWS.iter().find(|(method, path, _)| route.method.as_str() == *method && route.path == *path);
    row.unwrap_or_else(|| panic!("{} {} has no row in the matrix: add one", route.method, route.path)).2
}

#[test]
fn every_route_has_exactly_one_row() {
    let mut rows: Vec<(&str, &str)> = ROWS.iter().map(|(method, path, _)| (*method, *path)).collect();
    let all = routes();
    let mut listed: Vec<(&str, &str)> = all.iter().map(|route| (route.method.as_str(), route.path)).collect();
    rows.sort_unstable();
    listed.sort_unstable();
    assert_eq!(rows, listed);
}

/// The response to a request without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Permitted: 200, or an error about parameters.
    In,
    Refused(u16),
}

fn expected(access: Access, who: &str) -> Expected {
    use Expected::{In, Refused};
    match (access, who) {
        (Access::Open, _) => In,
        (Access::Member, "bob" | "boss" | "bob's token") => In,
        (Access::Member | Access::Admin, "disabled" | "disabled's token") => Refused(403),
        (Access::Admin, "boss") => In,
        (Access::Admin, "bob" | "bob's token") => Refused(403),
        (Access::Member | Access::Admin, _) => Refused(401),
        (Access::Node, "node") => In,
        // A bearer token that is not a node's.
        (Access::Node, "bob's token" | "disabled's token" | "expired token" | "revoked token" | "made-up token") => {
            Refused(403)
        }
        (Access::Node, _) => Refused(401),
        // Nobody has a signed URL here.
        (Access::SignedUrl, _) => Refused(403),
    }
}

/// Sends the parameters of a row: in the path, the query, or a JSON body. Parts of the path that the row does not name
/// are filled with names that do not exist.
fn ask(client: &Client, route: &Route, query: &str) -> Answer {
    let mut path = route.path.to_owned();
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        if route.is_in_path(name) {
            path = path.replace(&format!("{{{name}}}"), value);
        } else {
            rest.push((name, value));
        }
    }
    for (name, nothing) in [("{id}", NO_ID), ("{action_id}", NO_ID), ("{user}", "nobody"), ("{path}", "nothing")] {
        path = path.replace(name, nothing);
    }
    if let BodyUse::Json(_) = route.body {
        let body: serde_json::Map<_, _> =
            rest.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        let body = Value::Object(body).to_string();
        return client.send_body(
            route.method.as_str(),
            &path,
            &[("content-type", "application/json")],
            body.as_bytes(),
        );
    }
    client.send(route.method.as_str(), &with_query(&path, &rest), &[])
}

/// The message of an error, in either dialect.
fn sentence(answer: &Answer) -> Value {
    let mut body = answer.json();
    let dialect = if body["message"].is_null() { "detail" } else { "message" };
    body[dialect].take()
}

/// All state that a request could have changed.
fn state(server: &Server) -> Vec<i64> {
    let tables = [
        "users",
        "tokens",
        "ssh_keys",
        "quotas",
        "pods",
        "ports",
        "events",
        "checkpoints",
        "actions",
        "schedules",
        "drain",
        "clusters",
        "resources",
    ];
    let mut counts: Vec<i64> =
        tables.iter().map(|table| server.count(&format!("SELECT count(*) FROM {table}"))).collect();
    counts.push(server.count("SELECT count(*) FROM pods WHERE state = 'running'"));
    counts
}

#[test]
fn every_route_permits_and_refuses_the_right_callers() {
    let config = "[throttle]\naccount_failures = 100000\naddress_failures = 100000\n\
                  [remote_user_profile.service]\nenabled = true\nreadonly = false\naccess_token = \"between-nodes\"";
    let Some(server) = Server::builder().member("disabled").config(config).start() else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    let token = |client: &Client, expires: &str| {
        let made = client.post(&format!("/user/tokens/create?expires={expires}")).ok().json();
        (made["id"].as_i64().unwrap(), made["token"].as_str().unwrap().to_owned())
    };
    let bearer = |token: &str| server.anon().with_authorization(&Client::bearer(token));

    // One object of alice's of each kind; each is her first.
    token(&alice, "1h");
    alice.post_with("/user/ssh-keys/add", &[("key", crate::user::KEY)]).ok();
    alice.post("/pod/create?ins=main&image=pody-base").ok();
    alice.post("/pod/commit?ins=main").ok();
    // A checkpoint of the files only, which needs no CRIU.
    let action = alice.post("/pod/checkpoint?ins=main&kind=rootfsonly").ok().json();
    let id = |key: &str| action[key].as_str().unwrap().to_owned();
    let (checkpoint, action) = (id("checkpoint"), id("id"));
    eventually(Duration::from_secs(20), "it is saved", || {
        alice.get(&format!("/action/status?id={action}")).json()["status"] == "done"
    });
    let named = |query: &str| query.replace("CHECKPOINT", &checkpoint).replace("ACTION", &action);

    let expired = bearer(&token(&alice, "1s").1);
    let (id, revoked) = token(&alice, "1h");
    alice.post(&format!("/user/tokens/revoke?id={id}")).ok();
    let disabled = token(&server.member("disabled"), "1h").1;
    admin.post("/admin/user/update?username=disabled&disabled=true").ok();
    eventually(Duration::from_secs(3), "the token ends", || expired.get("/user/info").status == 401);

    let bobs = token(&server.member("bob"), "1h").1;
    let everybody = [
        ("anon", server.anon()),
        ("wrong password", server.client("alice", "wrong")),
        ("nobody", server.client("nobody", "wrong")),
        ("disabled", server.member("disabled")),
        ("disabled's token", bearer(&disabled)),
        ("expired token", expired),
        ("revoked token", bearer(&revoked)),
        ("made-up token", bearer("pody_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
        ("bob", server.member("bob")),
        ("bob's token", bearer(&bobs)),
        ("boss", server.admin()),
        ("node", bearer("between-nodes")),
    ];

    // Refused callers get the same message whatever they name, and nothing changes.
    let before = state(&server);
    for route in routes() {
        for (who, client) in &everybody {
            let Expected::Refused(status) = expected(route.access, who) else { continue };
            let bare = ask(client, &route, "");
            assert_eq!(bare.status, status, "{} {} by {who}: {bare}", route.method, route.path);
            assert!(sentence(&bare).is_string(), "{} {} by {who}: {bare}", route.method, route.path);
            if let Object::Alices { there, not_there, .. } = object(&route) {
                for query in [there, not_there] {
                    let answer = ask(client, &route, &named(query));
                    assert_eq!((answer.status, answer.text()), (status, bare.text()), "{} by {who}", route.path);
                }
            }
        }
    }
    assert_eq!(state(&server), before);

    // Another member with alice's objects.
    for route in routes().into_iter().filter(|route| route.access == Access::Member) {
        let Object::Alices { there, not_there, status } = object(&route) else { continue };
        let (there, not_there) = (&*named(there), &*named(not_there));
        for who in ["bob", "bob's token"] {
            let (_, client) = everybody.iter().find(|(name, _)| *name == who).unwrap();
            let answers = [there, not_there].map(|query| ask(client, &route, query));
            assert_eq!(
                answers.each_ref().map(|answer| answer.status),
                [status; 2],
                "{} by {who}: {answers:?}",
                route.path
            );
            let neutral = |answer: &Answer, query: &str| {
                let name = query.split('&').next().unwrap().split_once('=').unwrap().1;
                answer.text().replace(name, "NAME")
            };
            assert_eq!(neutral(&answers[0], there), neutral(&answers[1], not_there), "{}", route.path);
        }
    }
    assert_eq!(state(&server), before);

    // Permitted callers.
    for route in routes() {
        for (who, client) in &everybody {
            if expected(route.access, who) == Expected::In {
                let answer = ask(client, &route, "");
                let required = route.params.iter().any(|param| !param.optional);
                let wanted: &[u16] = match route.path.starts_with("/v2/") {
                    true => &[200, 400, 404],
                    false if required => &[422],
                    false => &[200, 400],
                };
                assert!(wanted.contains(&answer.status), "{} {} by {who}: {answer}", route.method, route.path);
            }
        }
    }
    alice.post("/pod/delete?ins=main").ok();
    alice.post("/image/delete?image=alice").ok();
    alice.post(&format!("/checkpoint/delete?checkpoint={checkpoint}")).ok();
}
