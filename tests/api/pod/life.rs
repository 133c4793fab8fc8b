//! The life cycle of a pod: create, inspect, stop, start, delete.

use insta::assert_snapshot;
use serde_json::json;

use super::{create, delete, engine_says, exec, try_create};
use crate::common::{Server, docker, pause};

#[test]
fn from_create_to_delete() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let created = try_create(&alice, "main").ok();
    assert_eq!(created.json()["info"], alice.get("/pod/inspect?ins=main").ok().json());
    assert!(created.json()["log"].is_string(), "{created}");
    // Every route shows the new pod at once.
    assert_snapshot!(alice.get("/pod/inspect?ins=main"), @r#"
    200
    {
      "container_id": "[container id]",
      "created_at": "[time]",
      "gpu_ids": [],
      "image": "pody-base:latest",
      "instance": "main",
      "memory_limit": -1,
      "name": "[prefix]-alice-main",
      "networks": [
        "bridge"
      ],
      "port_mapping": [
        "[port]:22"
      ],
      "shm_size": 67108864,
      "status": "running",
      "user": "alice"
    }
    "#);
    assert_eq!(alice.get("/pod/info?ins=main").text(), alice.get("/pod/inspect?ins=main").text());
    assert_eq!(alice.get("/pod/ps").ok().json(), json!([alice.get("/pod/inspect?ins=main").json()]));
    assert_snapshot!(alice.get("/pod/list"), @r#"
    200
    [
      "main"
    ]
    "#);
    assert_snapshot!(server.admin().get("/pod/listall"), @r#"
    200
    [
      "[prefix]-alice-main"
    ]
    "#);
    assert_snapshot!(server.member("bob").get("/pod/list"), @r#"
    200
    []
    "#);
    let id = created.json()["info"]["container_id"].as_str().unwrap().to_owned();
    assert!(engine_says(&server, "alice", "main")["Id"].as_str().unwrap().starts_with(&id));

    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=echo+hello"), @r#"
    200
    {
      "exit_code": 0,
      "log": "hello\r\n",
      "truncated": false
    }
    "#);
    let stopped = alice.post("/pod/stop?ins=main").ok().json();
    assert!(stopped["log"].is_string(), "{stopped}");
    assert_snapshot!(alice.get("/pod/inspect?ins=main"), @r#"
    200
    {
      "container_id": "[container id]",
      "created_at": "[time]",
      "gpu_ids": [],
      "image": "pody-base:latest",
      "instance": "main",
      "memory_limit": -1,
      "name": "[prefix]-alice-main",
      "networks": [
        "bridge"
      ],
      "port_mapping": [],
      "shm_size": 67108864,
      "status": "exited",
      "user": "alice"
    }
    "#);
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true"), @r#"
    409
    {
      "code": "pod_not_running",
      "detail": "[prefix]-alice-main is exited; start it with `pody start`"
    }
    "#);
    assert_snapshot!(alice.get("/pod/stats?ins=main"), @r#"
    409
    {
      "code": "pod_not_running",
      "detail": "[prefix]-alice-main is exited; start it with `pody start`"
    }
    "#);
    assert_eq!(alice.get("/pod/list").ok().json(), json!(["main"]));
    // Stopping or starting twice is not an error, as in the engine.
    alice.post("/pod/stop?ins=main").ok();
    alice.post("/pod/start?ins=main").ok();
    alice.post("/pod/start?ins=main").ok();
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    exec(&alice, "main", "touch /root/kept");
    alice.post("/pod/restart?ins=main").ok();
    exec(&alice, "main", "test -e /root/kept");
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["container_id"], id);

    assert_snapshot!(try_create(&alice, "main"), @r#"
    409
    {
      "code": "pod_exists",
      "detail": "pod [prefix]-alice-main already exists; choose another name, or delete it with `pody rm [prefix]-alice-main`"
    }
    "#);
    assert_snapshot!(alice.post("/pod/delete?ins=main"), @r#"
    200
    {
      "log": "Container [prefix]-alice-main deleted"
    }
    "#);
    assert_snapshot!(alice.post("/pod/delete?ins=main"), @r#"
    404
    {
      "code": "pod_not_found",
      "detail": "there is no pod main"
    }
    "#);
    assert_eq!(alice.get("/pod/list").ok().json(), json!([]));
    assert_eq!(server.containers().len(), 0);
    let actions = alice.get("/events").ok().json();
    let actions: Vec<(&str, &str)> = actions
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["action"].as_str().unwrap(), event["outcome"].as_str().unwrap()))
        .collect();
    let restarts =
        ["pod.create", "pod.exec", "pod.stop", "pod.stop", "pod.start", "pod.start", "pod.exec", "pod.restart"];
    let expected = ["user.add"].into_iter().chain(restarts).chain(["pod.exec", "pod.delete"]).rev();
    assert_eq!(actions, expected.map(|action| (action, "ok")).collect::<Vec<_>>());
}

#[test]
fn a_pod_keeps_running_while_the_daemon_is_down() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "setsid -f sleep 4321 >/dev/null 2>&1; sleep 0.5; touch /root/kept");
    let seen = alice.get("/pod/inspect?ins=main").ok().json();
    let pid = engine_says(&server, "alice", "main")["State"]["Pid"].clone();
    assert!(server.terminate().success());
    assert_eq!(engine_says(&server, "alice", "main")["State"]["Pid"], pid);
    server.start_again();
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json(), seen);
    assert_eq!(exec(&alice, "main", "test -e /root/kept && pgrep -xc sleep"), "1");
    server.kill();
    server.start_again();
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json(), seen);
    delete(&alice, "main");
}

#[test]
fn a_name_can_be_reused_after_a_delete() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let first = create(&alice, "main")["info"]["container_id"].clone();
    exec(&alice, "main", "touch /root/of-the-first");
    delete(&alice, "main");
    assert_ne!(create(&alice, "main")["info"]["container_id"], first);
    assert_eq!(exec(&alice, "main", "ls /root"), "");
    // Two users, one name.
    let bob = server.member("bob");
    create(&bob, "main");
    assert_eq!(server.containers(), [server.container("alice", "main"), server.container("bob", "main")]);
    delete(&bob, "main");
    exec(&alice, "main", "true");
    delete(&alice, "main");
}

/// Changes made by hand with `docker` are visible at once, and removing a container frees its name.
#[test]
fn changes_by_hand_are_visible() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let name = server.container("alice", "main");
    let becomes = |status: &str| {
        crate::common::eventually(std::time::Duration::from_secs(3), status, || {
            alice.get("/pod/inspect?ins=main").json()["status"] == status
        });
    };
    pause(&name);
    becomes("paused");
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true"), @r#"
    409
    {
      "code": "pod_not_running",
      "detail": "[prefix]-alice-main is paused; ask an admin to resume it with `docker unpause`"
    }
    "#);
    docker(&["unpause", &name]);
    becomes("running");
    docker(&["stop", "-t", "1", &name]);
    becomes("exited");
    docker(&["rm", "-f", &name]);
    crate::common::eventually(std::time::Duration::from_secs(5), "the row is closed", || {
        alice.get("/pod/inspect?ins=main").status == 404
    });
    create(&alice, "main");
    delete(&alice, "main");
}

#[test]
fn an_admin_sees_and_manages_everybodys_pods() {
    let Some(server) = Server::start() else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    let all = admin.get("/pod/ps?all=true").ok().json();
    assert_eq!((&all[0]["user"], &all[0]["instance"]), (&json!("alice"), &json!("main")));
    assert_eq!(admin.get("/pod/ps?user=alice").ok().json(), all);
    assert_eq!(admin.get("/pod/ps").ok().json(), json!([]));
    assert_snapshot!(alice.get("/pod/ps?all=true"), @r#"
    403
    {
      "code": "admins_only",
      "detail": "only admins may do this"
    }
    "#);
    admin.post("/pod/exec?ins=alice-main&cmd=true").ok();
    admin.post("/pod/delete?ins=alice-main").ok();
}
