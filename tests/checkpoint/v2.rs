//! The same through the `/v2` dialect: checkpoint, inspect, restore under another name, deprecate.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{
    common::{Answer, Client, Server, docker, eventually},
    help::{COUNTER, count, create, delete, delete_checkpoints, exec, keeps_counting, run_python, start_with},
};

const WORDS: [&str; 5] = ["initialized", "processing", "checkpoint_created", "ready", "error"];

#[track_caller]
fn send(client: &Client, method: &str, path: &str, body: &Value) -> Answer {
    client.send_body(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

fn post(client: &Client, path: &str, body: &Value) -> Answer {
    send(client, "POST", path, body)
}

/// Waits for the end of an action.
#[track_caller]
fn wait(client: &Client, action: &str) -> Value {
    let ask = || client.get(&format!("/v2/checkpoint/status/{action}")).ok().json();
    eventually(Duration::from_secs(90), "the action ends", || {
        let status = ask()["status"].as_str().unwrap().to_owned();
        assert!(WORDS.contains(&status.as_str()), "{status}");
        ["ready", "error"].contains(&status.as_str())
    });
    ask()
}

fn entry(client: &Client, id: &str) -> Value {
    client.get(&format!("/v2/checkpoints?ids={id}")).ok().json()[0].clone()
}

/// The runc root that holds this pod's container.
fn runc_root(server: &Server, user: &str, instance: &str) -> String {
    let container = docker(&["inspect", "--format", "{{.Id}}", &server.container(user, instance)]);
    let roots = ["/run/docker/runtime-runc/moby", "/var/run/docker/runtime-runc/moby"];
    let holds = |root: &&&str| Path::new(root).join(container.trim()).join("state.json").exists();
    (*roots.iter().find(holds).expect("runc keeps the container")).to_owned()
}

#[test]
fn a_pod_is_checkpointed_and_restored_in_this_dialect() {
    let Some(server) = start_with(|builder| builder.config("[checkpoint]\ndeprecated_seconds = 1")) else { return };
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let host = alice.get("/v2/cluster").ok().json()[0]["id"].clone();
    let pod = alice.get("/v2/pods").ok().json()[0]["id"].as_str().unwrap().to_owned();

    // Details that do not concern the caller.
    let named = |more: Value| {
        let mut body = json!({"pod_name": "main", "namespace": "alice"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, words) in [
        (json!({"runc_root": "/run/containerd/runc/k8s.io"}), "runc_root"),
        (json!({"runc_root": "../../etc"}), "runc_root"),
        (json!({"overrides": {"directory": "/etc"}}), "directory"),
        (json!({"overrides": {"criu_opts": "{\"action_script\": \"/bin/sh\"}"}}), "criu_opts"),
        (json!({"overrides": {"compression": "rar"}}), "compression"),
        (json!({"overrides": {"streams": -1}}), "streams"),
    ] {
        let answer = post(&alice, "/v2/checkpoint/pod", &named(more));
        assert_eq!(answer.status, 400, "{answer}");
        assert!(answer.json()["message"].as_str().unwrap().contains(words), "{answer}");
    }
    for body in [named(json!({})), json!({"pod_id": pod}), json!({"pod_id": server.container("alice", "main")})] {
        assert_eq!(post(&bob, "/v2/checkpoint/pod", &body).status, 404);
    }
    assert_eq!(server.count("SELECT count(*) FROM actions"), 0);

    // As the oldest edition requests it: the answer comes when the action begins.
    let body = named(
        json!({"cluster_id": host, "runc_root": runc_root(&server, "alice", "main"), "reason": "heartbeat",
                            "overrides": {"compression": "zstd", "streams": 4, "criu_opts": "{\"leaveRunning\": true}"}}),
    );
    let first = post(&alice, "/v2/checkpoint/pod", &body).ok().text();
    assert_eq!(wait(&alice, &first)["status"], "ready");
    // As the newest edition requests it: the answer comes when the action is done.
    let body = json!({"pod_id": pod, "kind": "simple", "overrides": {"asynchronous": false}});
    let second = post(&alice, "/v2/checkpoint/pod", &body).ok().text();
    assert_eq!(alice.get(&format!("/v2/checkpoint/status/%22{second}%22")).ok().json()["status"], "ready");
    assert_eq!(alice.get(&format!("/v2/actions/from_pod/{pod}")).ok().text(), second);
    assert_eq!(alice.get("/v2/actions/from_pod/main").ok().text(), second);

    let actions = alice.get("/v2/actions?type=checkpoint").ok().json();
    assert_eq!(actions.as_array().unwrap().len(), 2);
    let shown = &actions[1];
    assert_eq!(
        json!(["action_id", "status", "type", "reason"].map(|key| &shown[key])),
        json!([first, "completed", "checkpoint", "heartbeat"])
    );
    assert!(shown["total_duration"].as_i64().unwrap() > 0 && shown["total_io"].as_i64().unwrap() > 0, "{shown}");
    assert!(shown["checkpoint_completed_timestamp"].is_string() && shown["details"]["frozen_ms"].is_u64(), "{shown}");
    let checkpoint = shown["checkpoint_id"].as_str().unwrap().to_owned();
    let found = entry(&alice, &checkpoint);
    assert_eq!(
        json!([found["status"], found["source"], found["pody"]["compression"], found["pody"]["kind"]]),
        json!(["ready", "pody", "zstd", "rootfs"])
    );
    assert_eq!(found["checksum"].as_str().unwrap().len(), 64);
    let path = alice.get(&format!("/v2/checkpoint/path?action_id={first}")).ok().text();
    assert!(Path::new(&path).join("manifest.json").exists() && path.ends_with(&checkpoint), "{path}");
    assert_eq!(found["path"], *path);
    // The pod is named as for a checkpoint, even if its container's name begins with a prefix.
    let container = server.container("alice", "main");
    let newest = alice.get(&format!("/v2/checkpoint/path?action_id={second}")).ok().text();
    for name in ["main", "alice-main", &container] {
        for by in ["pod_name", "pod_id"] {
            let asked = format!("/v2/checkpoint/path?{by}={name}");
            assert_eq!(alice.get(&asked).ok().text(), newest, "{asked}");
            assert_eq!(alice.get(&format!("{asked}&namespace=alice")).ok().text(), newest, "{asked}");
            assert_eq!(bob.get(&asked).status, 404, "{asked}");
        }
    }
    for none in ["other-alice-main", "alice-other", "bob-main", "a b"] {
        let asked = format!("/v2/checkpoint/path?pod_name={}", none.replace(' ', "%20"));
        assert_eq!(alice.get(&asked).status, 404, "{none}");
    }

    // More details are reported, which does not change the checkpoint itself.
    let more = json!({"gpu": "A100", "platform": "x", "info": [1]});
    send(&alice, "PUT", &format!("/v2/checkpoints/info/{checkpoint}"), &more).ok();
    let told = entry(&alice, &checkpoint);
    assert_eq!(json!([told["gpu"], told["info"], told["status"]]), json!(["A100", [1], "ready"]));
    let upload = json!({"action_id": first, "status": "ready", "pod_id": pod, "pod_spec": {"a": 1}});
    assert_eq!(post(&alice, "/v2/actions/upload", &upload).ok().text(), "Success");
    let actions = alice.get("/v2/actions").ok().json();
    assert_eq!(actions[1]["details"]["told"]["pod_spec"], json!({"a": 1}));
    assert_eq!(send(&alice, "PUT", &format!("/v2/restores/info/{first}"), &json!({})).status, 404);
    // A pod that only the agent knows is linked to the action; for a pod known here, the action has its own.
    assert_eq!(alice.get(&format!("/v2/actions/from_pod/{pod}")).ok().text(), second);
    let elsewhere = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    for told in [elsewhere.to_uppercase(), "ml/train-0".to_owned()] {
        let upload = json!({"action_id": first, "status": "ready", "pod_id": told, "pod_spec": {"a": 1}});
        post(&alice, "/v2/actions/upload", &upload).ok();
        let asked = format!("/v2/actions/from_pod/{}", told.to_lowercase().replace('/', "%2F"));
        assert_eq!(alice.get(&asked).ok().text(), first, "{asked}");
        assert_eq!(admin.get(&asked).ok().text(), first, "{asked}");
        assert_eq!(bob.get(&asked).status, 404, "{asked}");
    }
    let upload = json!({"action_id": second, "status": "ready", "pod_id": "ml/train-0"});
    post(&alice, "/v2/actions/upload", &upload).ok();
    assert_eq!(alice.get("/v2/actions/from_pod/ml%2Ftrain-0").ok().text(), second);

    // Bob sees none of it.
    for path in [format!("/v2/checkpoint/status/{first}"), format!("/v2/actions/from_pod/{pod}")] {
        assert_eq!(bob.get(&path).status, 404, "{path}");
    }
    assert_eq!(bob.get("/v2/actions").ok().json(), json!([]));
    assert_eq!(bob.get(&format!("/v2/checkpoints?ids={checkpoint}")).ok().json(), json!([]));
    assert_eq!(post(&bob, "/v2/actions/upload", &upload).status, 404);
    assert_eq!(post(&bob, "/v2/restore/pod", &json!({"action_id": first, "reason": "manual"})).status, 404);
    assert_eq!(send(&bob, "PATCH", &format!("/v2/checkpoints/deprecate/{checkpoint}"), &json!({})).status, 404);
    assert_eq!(admin.get("/v2/actions").ok().json().as_array().unwrap().len(), 2);

    // Under another name, while the first keeps running.
    let body = json!({"action_id": format!("\"{first}\""), "cluster_id": host, "reason": "nodeUnschedulable",
                      "overrides": {"pod_name": "again"}});
    let restore = post(&alice, "/v2/restore/pod", &body).ok().text();
    let ended = wait(&alice, &restore);
    assert_eq!(ended["status"], "ready", "{ended}");
    assert_eq!(count(&alice, "again").1, count(&alice, "main").1);
    for instance in ["main", "again"] {
        keeps_counting(&alice, instance, count(&alice, instance).0);
    }
    let info = json!({"error": null, "profiling": {"x": 1}, "total_duration": 5, "total_io": 6});
    assert_eq!(send(&alice, "PUT", &format!("/v2/restores/info/{restore}"), &info).ok().text(), restore);
    let shown = alice.get("/v2/actions?type=restore").ok().json()[0].clone();
    assert_eq!(
        json!([shown["reason"], shown["details"]["restore_info"]["profiling"], shown["checkpoint_id"]]),
        json!(["nodeUnschedulable", {"x": 1}, checkpoint])
    );

    // Any notation of the id.
    let plain = pod.replace('-', "");
    for id in [format!("\"{pod}\""), pod.to_uppercase(), plain, format!(" {pod} "), format!("urn:uuid:{pod}")] {
        let body = json!({"pod_id": id, "kind": "rootfsonly", "overrides": {"asynchronous": false}, "unknown": [1]});
        let action = post(&alice, "/v2/checkpoint/pod", &body).ok().text();
        assert_eq!(alice.get(&format!("/v2/actions/from_pod/{pod}")).ok().text(), action, "{id}");
        let shown = alice.get(&format!("/action/status?id={action}")).ok().json();
        alice.post(&format!("/checkpoint/delete?checkpoint={}", shown["checkpoint"].as_str().unwrap())).ok();
    }

    // It can no longer be restored, and then it is deleted from the disk.
    send(&alice, "PATCH", &format!("/v2/checkpoints/deprecate/{checkpoint}"), &json!({})).ok();
    let refused = post(&alice, "/v2/restore/pod", &json!({"action_id": first, "reason": "manual"}));
    assert!([404, 409].contains(&refused.status), "{refused}");
    eventually(Duration::from_secs(20), "it is deleted", || !Path::new(&path).exists());
    assert_eq!(alice.get(&format!("/v2/checkpoints?ids={checkpoint}")).ok().json(), json!([]));
    eventually(Duration::from_secs(20), "its row is too", || server.count("SELECT count(*) FROM checkpoints") == 1);
    delete(&alice, "main");
    delete(&alice, "again");
    delete_checkpoints(&alice);
}

/// Two ends of one connection inside the pod; reports when it breaks.
const CONNECTED: &str = r#"
import socket, time
listener = socket.create_server(('127.0.0.1', 5555))
near = socket.create_connection(('127.0.0.1', 5555))
far, _ = listener.accept()
print('ready')
n = 0
while True:
    n += 1
    try:
        near.sendall(b'x')
        state = 'open' if far.recv(1) else 'closed'
    except OSError:
        state = 'closed'
    tell('/root/state', '%s %d' % (state, n))
    time.sleep(0.05)
"#;

#[test]
fn connections_are_kept_or_closed_as_requested() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "connected", CONNECTED);
    let body = json!({"pod_name": "main", "namespace": "alice", "overrides": {"asynchronous": false, "streams": 1,
                      "criu_opts": "{\"leave_running\": false, \"shell_job\": true, \"tcp_established\": true}"}});
    // An option that only applies to a restore is refused with a reason.
    let mut early = body.clone();
    early["overrides"]["criu_opts"] = "{\"tcp_close\": true}".into();
    let refused = post(&alice, "/v2/checkpoint/pod", &early);
    assert_eq!(refused.status, 400, "{refused}");
    assert!(refused.json()["message"].as_str().unwrap().contains("with tcp_close there"), "{refused}");
    let action = post(&alice, "/v2/checkpoint/pod", &body).ok().text();
    assert_eq!(wait(&alice, &action)["status"], "ready");
    for (options, state, words) in [
        ("{\"tcp_close\": true}", "closed", "2 open TCP connections were closed: as requested"),
        ("{\"tcp_established\": true}", "open", ""),
    ] {
        let body = json!({"action_id": action, "reason": "manual", "overrides": {"criu_opts": options}});
        let restore = post(&alice, "/v2/restore/pod", &body).ok().text();
        let ended = wait(&alice, &restore);
        assert_eq!(ended["status"], "ready", "{ended}");
        assert!(ended["details"].as_str().unwrap_or_default().contains(words), "{ended}");
        exec(&alice, "main", "rm -f /root/state");
        eventually(Duration::from_secs(30), state, || {
            exec(&alice, "main", "cat /root/state 2>/dev/null; true").starts_with(state)
        });
        alice.post("/pod/stop?ins=main").ok();
    }
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
