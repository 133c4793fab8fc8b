//! Containers that pody 0.4.1 or a person created: those named like pods of known users are adopted, others are left
//! alone.

use std::time::Duration;

use serde_json::json;

use super::{create, delete, exec, try_create};
use crate::common::{IMAGE, Server, docker, eventually};

/// Runs a container by hand. The harness removes it if it has the server's prefix.
fn by_hand(name: &str, options: &[&str]) -> String {
    let mut arguments = vec!["run", "-d", "--name", name];
    arguments.extend(options);
    arguments.push(IMAGE);
    docker(&arguments)
}

#[test]
fn a_container_of_a_known_user_is_adopted() {
    let Some(server) = Server::builder().config("[default_quota]\nmax_pods = 2").start() else { return };
    let alice = server.member("alice");
    let name = server.container("alice", "old");
    let port = server.spare_port();
    let id = by_hand(&name, &["-p", &format!("{port}:22"), "--memory", "256m"]);
    eventually(Duration::from_secs(5), "it is listed", || alice.get("/pod/list").ok().json() == json!(["old"]));
    let pod = alice.get("/pod/inspect?ins=old").ok().json();
    assert_eq!(pod["container_id"], id[..12]);
    assert_eq!((&pod["status"], &pod["memory_limit"]), (&json!("running"), &json!(256 << 20)));
    assert_eq!(pod["port_mapping"], json!([format!("{port}:22")]));
    // It is a pod like any other: it counts, its name is taken, it can be managed.
    assert_eq!(try_create(&alice, "old").status, 409);
    create(&alice, "new");
    assert_eq!(try_create(&alice, "more").status, 403);
    exec(&alice, "old", "true");
    alice.post("/pod/restart?ins=old").ok();
    alice.get("/pod/logs?ins=old").ok();
    alice.get("/pod/stats?ins=old").ok();
    assert_eq!(server.member("bob").get("/pod/inspect?ins=alice-old").status, 404);
    let event = alice.get("/events").ok().json();
    assert!(event.as_array().unwrap().iter().any(|event| event["action"] == "pod.adopt"), "{event}");
    delete(&alice, "old");
    delete(&alice, "new");
}

#[test]
fn a_container_older_than_the_daemon_is_adopted() {
    let Some(mut server) = Server::start() else { return };
    server.terminate();
    by_hand(&server.container("alice", "old"), &[]);
    docker(&["stop", "-t", "1", &server.container("alice", "old")]);
    server.start_again();
    let alice = server.member("alice");
    eventually(Duration::from_secs(5), "it is listed", || alice.get("/pod/list").ok().json() == json!(["old"]));
    assert_eq!(alice.get("/pod/inspect?ins=old").ok().json()["status"], "exited");
    alice.post("/pod/start?ins=old").ok();
    exec(&alice, "old", "true");
    delete(&alice, "old");
}

#[test]
fn other_containers_are_left_alone() {
    let Some(server) = Server::start() else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    delete(&alice, "main");
    let (pod, op) = server
        .database()
        .query_row("SELECT id, op FROM pods", [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .unwrap();
    let labels = [format!("pody.pod={pod}"), format!("pody.op={op}"), "pody.user=alice".to_owned()];
    let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();
    let foreign = [
        // An unknown user, an invalid name, another prefix, our labels on an unrelated container.
        server.container("nobody", "main"),
        format!("{}-alice", server.prefix),
        format!("{}-alice-a-b", server.prefix),
        format!("{}-Alice-main", server.prefix),
        format!("x{}-alice-main", server.prefix),
    ];
    for name in &foreign {
        by_hand(name, &labels);
    }
    std::thread::sleep(Duration::from_secs(3));
    let listed = admin.get("/pod/listall").ok().json();
    let running: Vec<String> = foreign
        .iter()
        .filter(|name| docker(&["inspect", "--format", "{{.State.Running}}", name]) == "true")
        .cloned()
        .collect();
    for name in &foreign {
        docker(&["rm", "-f", name]);
    }
    assert_eq!(listed, json!([]));
    assert_eq!(running, foreign);
}

/// A container of a user who is added later is adopted then.
#[test]
fn a_container_of_a_future_user_is_adopted_when_the_user_is_added() {
    let Some(server) = Server::start() else { return };
    by_hand(&server.container("carol", "old"), &[]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.admin().get("/pod/listall").ok().json(), json!([]));
    server.add_user("carol", &[]);
    let carol = server.member("carol");
    eventually(Duration::from_secs(5), "it is listed", || carol.get("/pod/list").ok().json() == json!(["old"]));
    delete(&carol, "old");
}
