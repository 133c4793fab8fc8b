//! `/v2/checkpoints…`, `/v2/checkpoint/…`, `/v2/actions…`, `/v2/restore…` without pods. The tests with pods and CRIU
//! are with the other tests of checkpoints.

use std::time::Duration;

use serde_json::{Value, json};

use super::{message, send_json, server, uuid};
use crate::common::{Client, Server, eventually};

const NOTHING: &str = "11111111-1111-4111-8111-111111111111";

fn list(client: &Client, ids: &str) -> Vec<Value> {
    client.get(&format!("/v2/checkpoints{ids}")).ok().json().as_array().unwrap().clone()
}

#[test]
fn an_agent_registers_its_own_checkpoint() {
    let server = Server::builder().without_docker().config("[checkpoint]\ndeprecated_seconds = 2").start().unwrap();
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    let id = uuid(&alice.post("/v2/checkpoints"));
    let second = uuid(&alice.post("/v2/checkpoints"));
    let shown = |fields: &[&str]| -> Value {
        let entry = &list(&alice, &format!("?ids={id}"))[0];
        fields.iter().map(|field| entry[*field].clone()).collect()
    };
    assert_eq!(shown(&["id", "status", "gpu", "platform", "source"]), json!([id, "initializing", "", "", "agent"]));

    let info = json!({"gpu": "H100", "platform": "linux/amd64", "info": {"size": 3}});
    assert_eq!(uuid(&send_json(&alice, "PUT", &format!("/v2/checkpoints/info/{id}"), &info)), id);
    let fields = ["status", "gpu", "platform", "info"];
    assert_eq!(shown(&fields), json!(["updated_info", "H100", "linux/amd64", {"size": 3}]));
    let place = json!({"restore_path": "s3://bucket/x"});
    // Clients also send ids with quotes.
    assert_eq!(uuid(&send_json(&alice, "POST", &format!("/v2/checkpoints/uploaded/%22{id}%22"), &place)), id);
    assert_eq!(shown(&["status", "path"]), json!(["ready", "s3://bucket/x"]));
    let path = |client: &Client, query: &str| client.get(&format!("/v2/checkpoint/path?{query}"));
    assert_eq!(path(&alice, &format!("checkpoint_id={id}")).ok().text(), "s3://bucket/x");
    assert_eq!(path(&alice, &format!("checkpoint_id=%22{id}%22&name=")).ok().text(), "s3://bucket/x");
    // A checkpoint of no pod, an incomplete one, or one that the caller may not see.
    for none in [format!("checkpoint_id={id}&pod_name=main"), format!("checkpoint_id={second}")] {
        assert_eq!(path(&alice, &none).status, 404, "{none}");
    }
    assert_eq!(path(&bob, &format!("checkpoint_id={id}")).status, 404);
    // Its agent may have reported no path.
    for nowhere in [json!({"restore_path": null}), json!({"restore_path": ""})] {
        uuid(&send_json(&alice, "POST", &format!("/v2/checkpoints/uploaded/{id}"), &nowhere));
        assert_eq!(shown(&["status", "path"]), json!(["ready", null]));
        let answer = path(&alice, &format!("checkpoint_id={id}"));
        assert_eq!((answer.status, message(&answer).contains("reported no restore_path")), (404, true), "{answer}");
    }

    // Selected by ids, newest first; others' checkpoints are not listed.
    let ids =
        |entries: Vec<Value>| -> Vec<String> { entries.iter().map(|e| e["id"].as_str().unwrap().into()).collect() };
    assert_eq!(ids(list(&alice, "")), [second.clone(), id.clone()]);
    assert_eq!(ids(list(&alice, &format!("?ids={id},%22{second}%22,{NOTHING}"))), [second.clone(), id.clone()]);
    for both in [format!("?ids={id}&ids={second}"), format!("?ids={second},%20{id},"), "?ids=,".to_owned()] {
        assert_eq!(ids(list(&alice, &both)), [second.clone(), id.clone()], "{both}");
    }
    assert_eq!(ids(list(&alice, &format!("?ids={id},&ids="))), [id.as_str()]);
    assert!(list(&alice, &format!("?ids={NOTHING}")).is_empty());
    assert!(list(&bob, "").is_empty() && list(&bob, &format!("?ids={id}")).is_empty());
    assert_eq!(list(&admin, "").len(), 2);
    assert_eq!(alice.get("/v2/checkpoints?ids=").ok().json().as_array().unwrap().len(), 2);

    // Another user's checkpoint gives the same response as an unknown id.
    for (method, path, body) in
        [("PUT", "info", info.clone()), ("POST", "uploaded", place.clone()), ("PATCH", "deprecate", json!({}))]
    {
        let ask = |id: &str| send_json(&bob, method, &format!("/v2/checkpoints/{path}/{id}"), &body);
        let (there, not_there) = (ask(&id), ask(NOTHING));
        assert_eq!((there.status, not_there.status), (404, 404), "{path}");
        assert_eq!(message(&there).replace(&id, "ID"), message(&not_there).replace(NOTHING, "ID"));
    }
    // It cannot be restored: this host has not saved it.
    let restore = send_json(&alice, "POST", "/v2/restore/pod", &json!({"action_id": id, "reason": "manual"}));
    assert_eq!(restore.status, 404, "{restore}");

    assert_eq!(uuid(&alice.send("PATCH", &format!("/v2/checkpoints/deprecate/{id}"), &[])), id);
    assert_eq!(shown(&["status"]), json!(["deprecated"]));
    eventually(Duration::from_secs(12), "it is deleted", || list(&alice, "").len() == 1);
    let events = alice.get("/v2/events?resource_type=checkpoint").ok().json();
    let seen: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["operation"].as_str().unwrap()).collect();
    assert_eq!(seen, ["deprecate", "uploaded", "uploaded", "uploaded", "info", "tell", "tell"]);
    admin.post("/admin/user/delete?username=alice").ok();
    assert_eq!(server.count("SELECT count(*) FROM told_checkpoints"), 0);
}

#[test]
fn reports_of_agents_are_limited() {
    let server = server();
    let alice = server.member("alice");
    let id = uuid(&alice.post("/v2/checkpoints"));
    let put = |body: Value| send_json(&alice, "PUT", &format!("/v2/checkpoints/info/{id}"), &body);
    assert_eq!(put(json!({"gpu": "x", "platform": "y", "info": "z".repeat(70_000)})).status, 413);
    assert_eq!(put(json!({"gpu": "x".repeat(5000), "platform": "y"})).status, 413);
    assert_eq!(put(json!({"gpu": 1, "platform": "y"})).status, 400);
    assert_eq!(put(json!({"platform": "y"})).status, 400);
    let uploaded = |path: String| {
        send_json(&alice, "POST", &format!("/v2/checkpoints/uploaded/{id}"), &json!({"restore_path": path}))
    };
    assert_eq!(uploaded("x".repeat(5000)).status, 413);
    let upload = |field: &str| {
        let mut body = json!({"action_id": NOTHING, "status": "ready"});
        body[field] = "a\u{0}b".into();
        send_json(&alice, "POST", "/v2/actions/upload", &body)
    };
    for (answer, field) in [
        (uploaded("a\u{0}b".to_owned()), "restore_path"),
        (uploaded("a\nb".to_owned()), "restore_path"),
        (put(json!({"gpu": "a\u{0}b", "platform": "y"})), "gpu"),
        (put(json!({"gpu": "x", "platform": "a\u{7f}b"})), "platform"),
        (upload("status"), "status"),
        (upload("pod_id"), "pod_id"),
    ] {
        let rule = format!("{field} must not contain control characters; leave them out");
        assert_eq!((answer.status, message(&answer)), (400, rule), "{answer}");
    }
    super::sql(
        &server,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
         INSERT INTO told_checkpoints SELECT id || i, user, own, status, gpu, platform, info, restore_path, deprecated_at
         FROM told_checkpoints, n",
    );
    super::sql(
        &server,
        "UPDATE told_checkpoints SET id = printf('%08d-0000-4000-8000-000000000000', rowid) WHERE length(id) > 36",
    );
    let answer = alice.post("/v2/checkpoints");
    assert_eq!((answer.status, message(&answer).contains("1000")), (403, true), "{answer}");
    assert_eq!(server.count("SELECT count(*) FROM told_checkpoints"), 1000);
}

/// The other dialect also says what it expected, and where ids are found.
#[test]
fn an_invalid_id_and_an_unknown_id_get_different_errors() {
    let server = server();
    let alice = server.member("alice");
    for (method, path) in [
        ("GET", "/action/status?id="),
        ("GET", "/checkpoint/inspect?checkpoint="),
        ("POST", "/checkpoint/delete?checkpoint="),
        ("GET", "/action/list?checkpoint="),
    ] {
        let answer = alice.send(method, &format!("{path}latest"), &[]);
        assert_eq!(answer.status, 400, "{method} {path}: {answer}");
        assert!(answer.detail().contains("\"latest\" is not an id; an id looks like "), "{answer}");
    }
    assert_eq!(alice.get(&format!("/action/status?id={NOTHING}")).status, 404);
    for (path, status) in [("nothing", 404), ("bob-main", 404), ("a b", 400)] {
        assert_eq!(alice.get(&format!("/action/list?ins={}", path.replace(' ', "%20"))).status, status, "{path}");
    }
}

#[test]
fn invalid_ids_and_bodies_are_refused() {
    let server = server();
    let alice = server.member("alice");
    let many = vec![NOTHING; 501].join(",");
    for (method, path) in [
        ("GET", "/v2/checkpoints?ids=x".to_owned()),
        ("GET", format!("/v2/checkpoints?ids={NOTHING}&ids=x")),
        ("GET", format!("/v2/checkpoints?ids={many}")),
        ("GET", format!("/v2/checkpoints?ids={many}&ids=")),
        ("GET", "/v2/checkpoint/path".to_owned()),
        ("GET", "/v2/checkpoint/path?name=&pod_id=&action_id=&namespace=alice".to_owned()),
        ("GET", "/v2/checkpoint/path?action_id=x".to_owned()),
        ("GET", "/v2/actions?type=nothing".to_owned()),
        ("PATCH", "/v2/checkpoints/deprecate/x".to_owned()),
        ("POST", "/v2/actions/upload".to_owned()),
        ("POST", "/v2/checkpoint/pod".to_owned()),
        ("POST", "/v2/restore/pod".to_owned()),
        ("PUT", "/v2/restores/info/x".to_owned()),
        ("PUT", format!("/v2/checkpoints/info/{NOTHING}")),
    ] {
        let answer = alice.send(method, &path, &[]);
        assert_eq!(answer.status, 400, "{method} {path}: {answer}");
        message(&answer);
    }
    for (method, path) in [
        ("GET", format!("/v2/checkpoint/status/{NOTHING}")),
        ("GET", "/v2/checkpoint/status/nothing".to_owned()),
        ("GET", "/v2/checkpoint/status/..%2f..".to_owned()),
        ("GET", format!("/v2/actions/from_pod/{NOTHING}")),
        ("GET", "/v2/actions/from_pod/..%2f..%2fetc".to_owned()),
        ("GET", "/v2/actions/from_pod/nothing".to_owned()),
        ("GET", "/v2/checkpoint/path?name=nothing".to_owned()),
        ("GET", "/v2/checkpoint/path?pod_id=nothing".to_owned()),
        ("GET", "/v2".to_owned()),
    ] {
        let answer = alice.send(method, &path, &[]);
        assert_eq!(answer.status, 404, "{method} {path}: {answer}");
        message(&answer);
    }
    // Required fields are described.
    for (path, fields) in [
        ("/v2/actions/upload", "action_id, persistent_volume_claim?, pod_id?, pod_metadata_spec?, pod_spec?, status"),
        ("/v2/checkpoint/pod", "cluster_id?, kind?, namespace?, overrides?, pod_id?, pod_name?, reason?, runc_root?"),
        ("/v2/restore/pod", "action_id, cluster_id?, overrides?, reason?"),
        ("/v2/cluster/sync", "cluster_id?, metadata?, resource?"),
    ] {
        let hint = format!("body: it is empty; send a JSON object with {fields}");
        assert_eq!(message(&alice.post(path)), hint);
    }
    let described = alice.get("/openapi.json").ok().json()["paths"]["/v2/actions/upload"]["post"].clone();
    let schema = &described["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(schema["required"], json!(["action_id", "status"]));
    assert_eq!(send_json(&alice, "PUT", &format!("/v2/restores/info/{NOTHING}"), &json!({})).status, 404);
    assert_eq!(alice.get("/v2/actions").ok().json(), json!([]));
    assert_eq!(alice.get("/v2/actions?type=restore").ok().json(), json!([]));

    let host = alice.get("/v2/cluster").ok().json()[0].clone();
    let save = |body: Value| send_json(&alice, "POST", "/v2/checkpoint/pod", &body);
    for (body, status, words) in [
        (json!({"pod_name": "main"}), 404, "there is no pod"),
        (json!({"pod_id": NOTHING}), 404, "there is no pod"),
        (json!({"pod_id": format!("\"{NOTHING}\""), "cluster_id": host["id"]}), 404, "there is no pod"),
        (json!({"pod_name": "main", "cluster_id": host["name"]}), 404, "there is no pod"),
        (json!({"pod_name": "main", "namespace": "bob"}), 404, "there is no pod"),
        (json!({"pod_name": "bob-main", "namespace": "alice"}), 404, "there is no pod"),
        (json!({"pod_name": "../main"}), 404, "there is no pod"),
        (json!({"pod_name": "main", "cluster_id": NOTHING}), 400, "not this host"),
        (json!({"pod_name": "main", "kind": "", "reason": "", "cluster_id": ""}), 404, "there is no pod"),
        (json!({"pod_name": "main", "kind": null, "reason": null, "overrides": null}), 404, "there is no pod"),
        (json!({"pod_name": "main", "kind": "all"}), 400, "kind: \"all\" is not a valid kind of checkpoint"),
        (json!({"pod_name": "main", "kind": 5}), 400, "kind: \"5\" is not a valid kind of checkpoint"),
        (
            json!({"pod_name": "main", "reason": "mood"}),
            400,
            "\"mood\" is not a valid reason; expected one of: heartbeat, manual",
        ),
        (
            json!({"pod_name": "main", "reason": {"a": 1}}),
            400,
            "is not a valid reason; expected one of: heartbeat, manual",
        ),
        (
            json!({"pod_name": "main", "overrides": {"streams": "two"}}),
            400,
            "overrides.streams: invalid type: string \"two\", expected a 32-bit integer",
        ),
        (
            json!({"pod_name": "main", "overrides": [true, "none"]}),
            400,
            "overrides: invalid type: sequence, expected an object or null",
        ),
        (json!({"pod_name": "main", "overrides": ""}), 400, "expected an object or null"),
        (json!({"pod_name": 5}), 400, "pod_name: invalid type: integer `5`, expected a string"),
    ] {
        let answer = save(body.clone());
        assert_eq!(answer.status, status, "{body}: {answer}");
        assert!(message(&answer).contains(words), "{body}: {answer}");
    }
    // All notations of this host's id.
    let id = host["id"].as_str().unwrap();
    let plain = id.replace('-', "");
    for id in [id.to_uppercase(), plain, format!("\"{id}\""), format!(" {id} "), format!("urn:uuid:{id}")] {
        let answer = save(json!({"pod_name": "main", "cluster_id": id}));
        assert_eq!((answer.status, message(&answer).contains("there is no pod")), (404, true), "{id}: {answer}");
    }
    let restore = |body: Value| send_json(&alice, "POST", "/v2/restore/pod", &body);
    for (body, status, words) in [
        (json!({"action_id": "x", "reason": "manual"}), 400, "not a UUID"),
        (
            json!({"action_id": NOTHING, "reason": "mood"}),
            400,
            "reason: \"mood\" is not a valid reason; expected one of: nodeTermination, nodeUnschedulable, manual",
        ),
        (
            json!({"action_id": NOTHING, "reason": 5}),
            400,
            "reason: \"5\" is not a valid reason; expected one of: nodeTermination",
        ),
        (json!({"action_id": NOTHING, "reason": "", "cluster_id": ""}), 404, "no action"),
        (json!({"action_id": NOTHING, "overrides": ["", "x"]}), 400, "overrides: invalid type: sequence"),
        (json!({"action_id": NOTHING, "cluster_id": id.to_uppercase()}), 404, "no action"),
        (json!({"action_id": NOTHING, "cluster_id": NOTHING}), 400, "not this host"),
        (json!({"action_id": NOTHING, "overrides": {"pod_name": "../x"}}), 400, "pod_name"),
        (json!({"action_id": NOTHING, "overrides": {"criu_opts": "--action-script x"}}), 400, "criu_opts"),
        (json!({"action_id": format!("\"{NOTHING}\""), "reason": "nodeTermination"}), 404, "no action"),
    ] {
        let answer = restore(body.clone());
        assert_eq!(answer.status, status, "{body}: {answer}");
        assert!(message(&answer).contains(words), "{body}: {answer}");
    }
}
