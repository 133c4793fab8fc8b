//! `/v2/cluster`, `/v2/cluster/sync`, `/v2/k8s/sync`

use serde_json::{Value, json};

use super::{message, send_json, server, uuid};
use crate::common::{Client, Server};

fn create(client: &Client, name: &str) -> String {
    uuid(&send_json(client, "POST", "/v2/cluster", &json!({"cluster_name": name})))
}

fn clusters(client: &Client) -> Vec<Value> {
    client.get("/v2/cluster").ok().json().as_array().unwrap().clone()
}

fn pod(name: &str) -> Value {
    json!({
        "type": "Pod",
        "metadata": {"name": name, "namespace": "ml", "creationTimestamp": "2026-01-01T00:00:00Z",
                     "ownerReferences": [{"kind": "Job", "name": "train"}]},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:05Z", "containerStatuses": [
            {"ready": true, "restartCount": 2}, {"ready": false, "restartCount": 1}]},
    })
}

#[test]
fn this_host_is_a_cluster_with_a_stable_id() {
    let mut server = server();
    let alice = server.member("alice");
    let before = clusters(&alice);
    assert_eq!(before.len(), 1);
    let id = before[0]["id"].as_str().unwrap().to_owned();
    assert_eq!((&before[0]["status"], &before[0]["metadata"]["source"]), (&json!("active"), &json!("pody")));
    server.restart();
    assert_eq!(clusters(&alice)[0]["id"], *id);
    assert_eq!(clusters(&server.member("bob"))[0]["id"], *id);
    // A create with its name returns it and creates nothing.
    assert_eq!(create(&alice, before[0]["name"].as_str().unwrap()), id);
    assert_eq!(server.count("SELECT count(*) FROM clusters"), 0);
}

#[test]
fn reports_of_an_agent_are_stored_and_listed() {
    let server = server();
    let alice = server.member("alice");
    let id = create(&alice, "east");
    assert_eq!(create(&alice, "east"), id);
    let sync = |resource: Value| {
        let body = json!({"cluster_id": id, "metadata": {"agent": "1.0"}, "resource": resource});
        send_json(&alice, "POST", "/v2/cluster/sync", &body).ok().json()
    };
    let answer = sync(pod("train-0"));
    let pod_id = answer["message"].as_str().unwrap().to_owned();
    assert_eq!(answer["code"], "200");
    // A repeated report gives the same id.
    assert_eq!(sync(pod("train-0"))["message"], *pod_id);
    let uid = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let node = json!({"type": "Node", "metadata": {"name": "n1", "uid": uid, "labels":
                          {"node.kubernetes.io/instance-type": "p5", "topology.kubernetes.io/region": "eu"}},
                      "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(sync(node)["message"], uid);
    let job = json!({"type": "Job", "metadata": {"name": "train", "namespace": "ml"}, "spec": {"completions": 3},
                     "status": {"conditions": [{"type": "Complete", "status": "True"}]}});
    sync(job);
    // A heartbeat.
    assert_eq!(sync(json!({"type": "None"}))["message"], *id);

    let pods = alice.get("/v2/pods").ok().json();
    let told = &pods[0];
    assert_eq!(pods.as_array().unwrap().len(), 1);
    let shown =
        ["id", "name", "namespace", "status", "ready", "restarts", "node", "start_time", "cluster_id", "source"];
    assert_eq!(
        json!(shown.map(|key| &told[key])),
        json!([pod_id, "train-0", "ml", "Running", "1/2", 3, "n1", "2026-01-01T00:00:05Z", id, "agent"])
    );
    let nodes = alice.get(&format!("/v2/nodes?id={id}")).ok().json();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    let shown = ["id", "name", "status", "cluster_name", "compute_type", "instance_type", "region", "source"];
    assert_eq!(json!(shown.map(|key| &nodes[0][key])), json!([uid, "n1", "Ready", "east", "cpu", "p5", "eu", "agent"]));
    let jobs = alice.get("/v2/jobs").ok().json();
    assert_eq!(
        json!(["jid", "status", "completions", "pod_ids", "source"].map(|key| &jobs[0][key])),
        json!(["train", "Complete", 3, [pod_id], "agent"])
    );
    assert_eq!(alice.get("/v2/pods/count").ok().json(), json!({"total_count": 1}));
    assert_eq!(alice.get("/v2/jobs/count").ok().json(), json!({"total_count": 1}));
    let east = &clusters(&alice)[1];
    assert_eq!(
        json!(["name", "status", "metadata"].map(|key| &east[key])),
        json!(["east", "active", {"source": "agent", "user": "alice", "agent": {"agent": "1.0"}}])
    );
    assert!(east["last_sync"].is_string());

    // Without a report for five minutes: not listed; for a day: deleted at the next report.
    super::sql(&server, "UPDATE resources SET synced_at = synced_at - 301000 WHERE kind = 'pod'");
    assert_eq!(alice.get("/v2/pods/count").ok().json(), json!({"total_count": 0}));
    super::sql(&server, "UPDATE resources SET synced_at = synced_at - 86400000");
    sync(pod("train-1"));
    assert_eq!(server.count("SELECT count(*) FROM resources"), 1);
}

#[test]
fn the_sync_of_the_older_api_answers_with_text() {
    let server = server();
    let alice = server.member("alice");
    // As in its documentation.
    let ping = json!({"cluster_id": null, "metadata": null, "org_id": null, "resource": {"type": "None"}});
    let id = uuid(&send_json(&alice, "POST", "/v2/k8s/sync", &ping));
    assert_eq!(clusters(&alice)[1]["id"], *id);
    assert_eq!(clusters(&alice)[1]["name"], "default");
    // An empty id means none.
    for path in ["/v2/k8s/sync", "/v2/cluster/sync"] {
        let body = json!({"cluster_id": "", "resource": {"type": "None"}});
        assert!(send_json(&alice, "POST", path, &body).ok().text().contains(&id), "{path}");
    }
    // Ids are accepted as they were shown, with or without quotes.
    let quoted = json!({"cluster_id": format!("\"{id}\""), "resource": pod("a")});
    let pod_id = uuid(&send_json(&alice, "POST", "/v2/k8s/sync", &quoted));
    let list = alice.get(&format!("/v2/pods?id=%22{pod_id}%22")).ok().json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert!(alice.get(&format!("/v2/pods?id={}", super::uuid(&alice.get("/v2/user")))).ok().json() == json!([]));
}

/// Clients read 32-bit numbers.
#[test]
fn numbers_in_reports_are_limited_to_32_bits() {
    let server = server();
    let alice = server.member("alice");
    let sync = |resource: Value| send_json(&alice, "POST", "/v2/cluster/sync", &json!({"resource": resource})).ok();
    let most = i32::MAX;
    for (counts, restarts) in [
        (json!([2, 1]), 3),
        (json!([most, 1]), most),
        (json!([u64::MAX, i64::MAX]), most),
        (json!([i64::MIN, -7]), 0),
        (json!([1e300, "5", null]), most),
    ] {
        let statuses = counts.as_array().unwrap().iter().map(|count| json!({"ready": true, "restartCount": count}));
        sync(json!({"type": "Pod", "metadata": {"name": "p"},
                    "status": {"containerStatuses": statuses.collect::<Vec<_>>()}}));
        assert_eq!(alice.get("/v2/pods").ok().json()[0]["restarts"], restarts, "{counts}");
    }
    for (told, completions) in [
        (json!(3), json!(3)),
        (json!(u64::MAX), json!(most)),
        (json!(-1), json!(0)),
        (json!("3"), json!(null)),
        (json!(null), json!(null)),
    ] {
        sync(json!({"type": "Job", "metadata": {"name": "j"}, "spec": {"completions": told}}));
        assert_eq!(alice.get("/v2/jobs").ok().json()[0]["completions"], completions, "{told}");
    }
}

#[test]
fn another_users_cluster_is_not_found() {
    let server = server();
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    let id = create(&alice, "east");
    let body = json!({"cluster_id": id, "resource": pod("mine")});
    send_json(&alice, "POST", "/v2/cluster/sync", &body).ok();
    let there = send_json(&bob, "POST", "/v2/cluster/sync", &body);
    let nothing = "11111111-1111-4111-8111-111111111111";
    let not_there = send_json(&bob, "POST", "/v2/cluster/sync", &json!({"cluster_id": nothing, "resource": pod("x")}));
    assert_eq!((there.status, not_there.status), (404, 404));
    assert_eq!(message(&there).replace(&id, "ID"), message(&not_there).replace(nothing, "ID"));
    assert_eq!((clusters(&bob).len(), bob.get("/v2/pods").ok().json()), (1, json!([])));
    // Each user has their own names.
    assert_ne!(create(&bob, "east"), id);
    // Admins see all clusters and may report for all.
    assert_eq!(clusters(&admin).len(), 3);
    send_json(&admin, "POST", "/v2/cluster/sync", &body).ok();
    assert_eq!(admin.get("/v2/pods/count").ok().json()["total_count"], 1);
    // This host reports itself.
    let host = clusters(&bob)[0]["id"].clone();
    let answer = send_json(&bob, "POST", "/v2/cluster/sync", &json!({"cluster_id": host, "resource": pod("x")}));
    assert_eq!(answer.status, 403, "{answer}");
    // Deleting the account deletes its reports.
    admin.post("/admin/user/delete?username=alice").ok();
    assert_eq!(server.count("SELECT count(*) FROM resources"), 0);
    assert_eq!(server.count("SELECT count(*) FROM clusters"), 1);
}

#[test]
fn agents_are_limited() {
    let server: Server = server();
    let alice = server.member("alice");
    let refused = |body: Value, status: u16, words: &str| {
        let answer = send_json(&alice, "POST", "/v2/cluster/sync", &body);
        assert_eq!(answer.status, status, "{answer}");
        assert!(message(&answer).contains(words), "{answer}");
    };
    let large = json!({"type": "Pod", "metadata": {"name": "x", "notes": "y".repeat(70_000)}});
    refused(json!({"resource": large}), 413, "65536 bytes");
    refused(json!({"metadata": "y".repeat(70_000)}), 413, "65536 bytes");
    refused(json!({"resource": {"type": "Secret", "metadata": {"name": "x"}}}), 400, "None, Pod, Node or Job");
    refused(json!({"resource": {"type": "Pod"}}), 400, "metadata.name");
    refused(json!({"resource": {"type": "Pod", "metadata": {"name": "a\u{0}b"}}}), 400, "metadata.name");
    refused(json!({"resource": 5}), 400, "invalid type");
    refused(json!({"cluster_id": "../x"}), 400, "not a UUID");
    // The refused requests left nothing behind.
    assert_eq!(server.count("SELECT count(*) FROM clusters"), 0);

    for number in 0..16 {
        create(&alice, &format!("c{number}"));
    }
    for name in ["c16", "", "a\u{7}"] {
        let answer = send_json(&alice, "POST", "/v2/cluster", &json!({"cluster_name": name}));
        assert_eq!(answer.status, if name == "c16" { 403 } else { 400 }, "{answer}");
    }
    send_json(&alice, "POST", "/v2/cluster/sync", &json!({"cluster_id": create(&alice, "c0"), "resource": pod("a")}))
        .ok();
    // As if it had reported many.
    super::sql(
        &server,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1999)
         INSERT INTO resources SELECT cluster, kind, namespace, 'x' || i, id, body, synced_at FROM resources, n",
    );
    refused(json!({"cluster_id": create(&alice, "c0"), "resource": pod("b")}), 403, "2000 resources");
    // An existing one may still change.
    send_json(&alice, "POST", "/v2/cluster/sync", &json!({"cluster_id": create(&alice, "c0"), "resource": pod("a")}))
        .ok();
}
