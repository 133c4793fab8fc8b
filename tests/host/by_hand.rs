//! Changes made by hand with `docker`, and programs that take a resource that was free a moment ago.

use std::{net::TcpListener, process::Command, thread, time::Duration};

use crate::{
    common::{IMAGE, Server, docker, eventually, pause},
    help::{
        Foreign, Proxied, RECOVERY, assert_recovered, begin, container_id, create, create_path, delete, exec, inspect,
        state,
    },
    proxy::Fault,
};

#[test]
fn a_container_removed_by_hand_ends_its_pod() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    docker(&["rm", "-f", &container_id(&server, "alice", "main")]);
    eventually(RECOVERY, "the pod is gone", || alice.get("/pod/inspect?ins=main").status == 404);
    assert_recovered(&server);
    assert_eq!(server.count("SELECT count(*) FROM events WHERE action = 'pod.lost'"), 1);
    // Its owner can read what happened.
    assert!(alice.get("/events").ok().text().contains("removed outside pody"));
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

#[test]
fn a_container_removed_by_hand_during_a_delete() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let id = container_id(&server, "alice", "main");
    let held = server.proxy.once("DELETE /containers/*", Fault::Hold);
    let request = begin(&alice, "/pod/delete?ins=main");
    held.wait_hit();
    docker(&["rm", "-f", &id]);
    held.lift();
    assert_eq!(request.answer().0.status, 200);
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("deleted"));
}

#[test]
fn a_container_removed_by_hand_during_a_create() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/*/start*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    docker(&["rm", "-f", &server.container("alice", "main")]);
    held.lift();
    let (answer, _) = request.answer();
    assert!((400..=599).contains(&answer.status), "{answer}");
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("failed"));
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

#[test]
fn a_pod_stopped_paused_or_renamed_by_hand_is_still_managed() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let id = container_id(&server, "alice", "main");
    let status = || alice.get("/pod/inspect?ins=main").ok().json()["status"].clone();

    pause(&id);
    eventually(RECOVERY, "the pause is seen", || status() == "paused");
    let refused = exec(&alice, "main", "true", 5);
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("paused"), "{refused}");
    // Docker cannot stop a paused container; the answer says so.
    for action in ["stop", "restart", "start"] {
        let answer = alice.post(&format!("/pod/{action}?ins=main"));
        assert!(matches!(answer.status, 200 | 409), "{action}: {answer}");
        if answer.status == 200 {
            break;
        }
        assert!(answer.detail().contains("paused"), "{action}: {answer}");
    }
    Command::new("docker").args(["unpause", &id]).output().expect("docker");

    docker(&["stop", "-t", "0", &id]);
    eventually(RECOVERY, "the stop is seen", || status() == "exited");
    assert_eq!(exec(&alice, "main", "true", 5).status, 409);
    alice.post("/pod/start?ins=main").ok();
    assert_eq!(status(), "running");

    // A container belongs to its pod under any name.
    let other = format!("{}-somebody-else", server.prefix);
    docker(&["rename", &id, &other]);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(status(), "running");
    exec(&alice, "main", "true", 5).ok();
    delete(&alice, "main").ok();
    assert_eq!(inspect(&other, "{{.Id}}"), "");
    assert_recovered(&server);
}

#[test]
fn a_paused_pod_can_be_deleted() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    pause(&container_id(&server, "alice", "main"));
    delete(&alice, "main").ok();
    assert_recovered(&server);
}

/// Renamed to the name of a future pod: its create is refused, and the container keeps its own pod.
#[test]
fn a_container_renamed_to_a_future_pods_name_blocks_its_create() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let id = container_id(&server, "alice", "main");
    docker(&["rename", &id, &server.container("alice", "second")]);
    eventually(RECOVERY, "the rename is seen", || create(&alice, "second").status == 409);
    assert_eq!(inspect(&id, "{{.State.Status}}"), "running");
    assert_recovered(&server);
    delete(&alice, "main").ok();
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
}

/// Labels alone do not make a container ours, no matter who set them.
#[test]
fn foreign_containers_with_our_labels_are_not_touched() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let id = container_id(&server, "alice", "main");
    let labels = inspect(&id, "{{range $key, $value := .Config.Labels}}{{$key}}={{$value}}\n{{end}}");
    let labels: Vec<&str> = labels.lines().filter(|label| label.starts_with("pody.")).collect();
    assert!(labels.len() >= 5, "{labels:?}");
    let options: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();
    let copy = Foreign::create(&format!("copy-{}", server.prefix), &options);
    // With an unknown user, and with a name of no pod.
    let unknown = Foreign::create(&format!("{}-nobody-main", server.prefix), &options);
    thread::sleep(Duration::from_millis(1500));
    assert!(!alice.get("/pod/ps").ok().text().contains("copy-"));
    assert_eq!(server.admin().get("/pod/listall").ok().json().as_array().map(Vec::len), Some(1));

    delete(&alice, "main").ok();
    thread::sleep(Duration::from_millis(2500));
    assert!(copy.is_there() && unknown.is_there(), "a foreign container was removed");
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
    server.member("alice").post("/pod/delete?ins=nothing");
    assert!(copy.is_there() && unknown.is_there(), "a foreign container was removed");
    drop((copy, unknown));
    assert_recovered(&server);
}

/// A foreign container takes the name between the check and the create.
#[test]
fn a_name_taken_by_a_foreign_container_meanwhile_is_refused() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/create*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    let foreign = Foreign::create(&server.container("alice", "main"), &["--label", "theirs=1"]);
    held.lift();
    let (answer, _) = request.answer();
    assert_eq!(answer.status, 409, "{answer}");
    thread::sleep(Duration::from_millis(1500));
    assert!(foreign.is_there());
    assert_eq!(inspect(&foreign.0, r#"{{index .Config.Labels "theirs"}}"#), "1");
    drop(foreign);
    assert_recovered(&server);
}

#[test]
fn an_image_removed_between_check_and_create_is_reported() {
    let Some(server) = Proxied::start_with(|builder| {
        builder.config("[[images]]\nname = \"pody-base\"\nports = [22]\n\n[[images]]\nname = \"pody-host-test-image\"\nports = []\n")
    }) else {
        return;
    };
    let alice = server.member("alice");
    let image = format!("pody-host-test-image:{}", server.prefix);
    docker(&["tag", IMAGE, &image]);
    eventually(RECOVERY, "the image is seen", || alice.get("/image/list").ok().text().contains(&image));
    let held = server.proxy.once("POST /containers/create*", Fault::Hold);
    let request = begin(&alice, &format!("/pod/create?ins=main&image={image}"));
    held.wait_hit();
    docker(&["rmi", &image]);
    held.lift();
    let (answer, _) = request.answer();
    assert_eq!(answer.status, 400, "{answer}");
    assert!(answer.detail().contains(&image), "{answer}");
    assert_recovered(&server);
    assert_eq!(server.containers(), Vec::<String>::new());
}

/// Another program listens on the port that was free when it was chosen: the pod gets another port.
#[test]
fn a_port_taken_between_choice_and_start_is_replaced() {
    let Some(server) = Proxied::start_with(|builder| builder.pod_ports(2)) else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/*/start*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    let port = u16::try_from(server.count("SELECT host_port FROM ports")).expect("a port");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port was free");
    held.lift();
    let (answer, _) = request.answer();
    assert_eq!(answer.status, 200, "{answer}");
    let given = u16::try_from(server.count("SELECT host_port FROM ports")).expect("a port");
    assert_ne!(given, port);
    assert_recovered(&server);
    let published = inspect(&server.container("alice", "main"), "{{json .NetworkSettings.Ports}}");
    assert!(published.contains(&given.to_string()), "{published}");
    // No port is left for another pod.
    let refused = create(&alice, "second");
    assert_eq!(refused.status, 409, "{refused}");
    assert_recovered(&server);
    drop(listener);
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
}

#[test]
fn the_only_port_taken_between_choice_and_start_is_a_refusal() {
    let Some(server) = Proxied::start_with(|builder| builder.pod_ports(1)) else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/*/start*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    let port = u16::try_from(server.count("SELECT host_port FROM ports")).expect("a port");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port was free");
    held.lift();
    let (answer, _) = request.answer();
    assert_eq!(answer.status, 409, "{answer}");
    assert!(answer.detail().contains("no free port"), "{answer}");
    assert_recovered(&server);
    assert_eq!(server.containers(), Vec::<String>::new());
    drop(listener);
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}
