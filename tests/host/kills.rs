//! SIGKILL between any two steps of create, delete, rollback and commit, at random under load, and SIGTERM under load.
//!
//! The daemon is stopped at a fail point (feature `failpoints`), killed there and started again without it.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Client, Server, eventually},
    help::{Proxied, assert_recovered, begin, create, create_path, delete, exec, inspect, state},
    proxy::Fault,
};

/// How long to wait for a fail point to be reached.
const REACHED: Duration = Duration::from_secs(10);

/// Whether the binary has fail points. Without them, as in a plain `cargo test`, these tests cannot run.
fn has_points() -> bool {
    if cfg!(feature = "failpoints") {
        return true;
    }
    let required = std::env::var_os("PODY_TESTS_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "required here: --features failpoints");
    let _ = writeln!(std::io::stderr(), "skipped: kill tests need --features failpoints");
    false
}

/// A server that stops at a fail point. A stopped step blocks a thread of the runtime, so there are some extra ones.
fn server_stopped_at(point: &str) -> Option<Proxied> {
    if !has_points() {
        return None;
    }
    Proxied::start_with(|builder| builder.env("FAILPOINTS", format!("{point}=pause")).env("TOKIO_WORKER_THREADS", "8"))
}

/// Waits until the daemon is stopped at the fail point, which shows as a state that does not change.
#[track_caller]
fn wait_at_point(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(REACHED, what, &mut holds);
    thread::sleep(Duration::from_millis(300));
    assert!(holds(), "it did not stop where {what}");
}

fn kill_and_start(server: &mut Server) {
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
}

fn status(server: &Server, instance: &str) -> String {
    inspect(&server.container("alice", instance), "{{.State.Status}}")
}

/// Creates, kills at the fail point, starts again and expects the pod in the state; then the name is free or in use
/// accordingly.
fn kill_in_create(point: &str, at_point: (&str, &str), settled: &str) {
    let Some(mut server) = server_stopped_at(point) else { return };
    let alice = server.member("alice");
    let request = begin(&alice, &create_path("main"));
    wait_at_point(point, || {
        (state(&server, "alice", "main").as_deref(), status(&server, "main").as_str()) == (Some(at_point.0), at_point.1)
    });
    kill_and_start(&mut server);
    request.forget();

    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some(settled));
    if settled == "running" {
        assert_eq!(status(&server, "main"), "running");
        assert!(exec(&alice, "main", "echo here", 10).ok().text().contains("here"));
        assert_eq!(create(&alice, "main").status, 409);
        delete(&alice, "main").ok();
    }
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
    assert_recovered(&server);
}

#[test]
fn a_kill_after_the_row_of_a_create_is_recovered() {
    kill_in_create("create-reserved", ("creating", ""), "failed");
}

#[test]
fn a_kill_after_the_container_was_created_is_recovered() {
    kill_in_create("create-made", ("creating", "created"), "running");
}

#[test]
fn a_kill_after_the_container_was_started_is_recovered() {
    kill_in_create("create-built", ("creating", "running"), "running");
}

#[test]
fn a_kill_before_the_answer_to_a_create_is_recovered() {
    kill_in_create("create-finished", ("running", "running"), "running");
}

/// A create that is finished after a kill must include the steps that the killed daemon had not done yet.
#[test]
fn a_create_finished_after_a_kill_has_the_keys_of_its_owner() {
    let Some(mut server) = server_stopped_at("create-made") else { return };
    let alice = server.member("alice");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice@laptop";
    alice.post_with("/user/ssh-keys/add", &[("key", key)]).ok();
    let request = begin(&alice, &create_path("main"));
    wait_at_point("the container is created", || status(&server, "main") == "created");
    kill_and_start(&mut server);
    request.forget();
    assert_recovered(&server);
    let keys = exec(&alice, "main", "cat /root/.ssh/authorized_keys", 10).ok().text();
    assert!(keys.contains(key.split(' ').nth(1).expect("a body")), "{keys}");
    delete(&alice, "main").ok();
}

fn kill_in_delete(point: &str, at_point: (&str, &str)) {
    let Some(mut server) = server_stopped_at(point) else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let request = begin(&alice, "/pod/delete?ins=main");
    wait_at_point(point, || {
        (state(&server, "alice", "main").as_deref(), status(&server, "main").as_str()) == (Some(at_point.0), at_point.1)
    });
    kill_and_start(&mut server);
    request.forget();

    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("deleted"));
    assert_eq!(server.count("SELECT count(*) FROM events WHERE action = 'pod.delete' AND outcome = 'ok'"), 1);
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

#[test]
fn a_kill_after_the_row_of_a_delete_is_recovered() {
    kill_in_delete("delete-written", ("deleting", "running"));
}

#[test]
fn a_kill_after_the_container_was_removed_is_recovered() {
    kill_in_delete("delete-removed", ("deleting", ""));
}

#[test]
fn a_kill_during_the_rollback_of_a_create_is_recovered() {
    let Some(mut server) = server_stopped_at("undo-written") else { return };
    let alice = server.member("alice");
    let broken =
        server.proxy.once("POST /containers/*/start*", Fault::Answer(500, r#"{"message":"a broken runtime"}"#));
    let request = begin(&alice, &create_path("main"));
    wait_at_point("the rollback is recorded", || {
        (state(&server, "alice", "main").as_deref(), status(&server, "main").as_str()) == (Some("deleting"), "created")
    });
    kill_and_start(&mut server);
    request.forget();
    assert_eq!(broken.hits(), 1);
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("failed"));
    assert_eq!(server.count("SELECT count(*) FROM events WHERE action = 'pod.create' AND outcome = 'failed'"), 1);
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

/// The daemon that recovers from a kill is killed itself.
#[test]
fn a_kill_during_the_recovery_is_recovered() {
    let Some(mut server) = server_stopped_at("create-reserved") else { return };
    let alice = server.member("alice");
    let request = begin(&alice, &create_path("main"));
    wait_at_point("the row is recorded", || state(&server, "alice", "main").as_deref() == Some("creating"));
    server.kill();
    request.forget();
    server.set_env("FAILPOINTS", Some("undo-written=pause"));
    server.start_again();
    wait_at_point("the rollback is recorded", || state(&server, "alice", "main").as_deref() == Some("deleting"));
    kill_and_start(&mut server);
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("failed"));
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

fn kill_in_commit(point: &str, is_made: bool) {
    let Some(mut server) = server_stopped_at(point) else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let image = format!("{}:alice-v1", server.commit_name());
    let request = begin(&alice, "/pod/commit?ins=main&tag=v1");
    wait_at_point(point, || {
        server.count("SELECT count(*) FROM commits") == 1 && server.commits().contains(&image) == is_made
    });
    kill_and_start(&mut server);
    request.forget();
    assert_recovered(&server);
    let listed = alice.get("/image/list").ok().text().contains("alice-v1");
    assert_eq!(listed, is_made, "{}", alice.get("/image/list"));
    let outcome = if is_made { "ok" } else { "interrupted" };
    let query = format!("SELECT count(*) FROM events WHERE action = 'pod.commit' AND outcome = '{outcome}'");
    assert_eq!(server.count(&query), 1);
    // The name is free if nothing was created, and taken if something was.
    let again = alice.post("/pod/commit?ins=main&tag=v1");
    assert_eq!(again.status, if is_made { 409 } else { 200 }, "{again}");
    alice.post("/image/delete?image=alice-v1").ok();
    delete(&alice, "main").ok();
}

#[test]
fn a_kill_after_a_commit_was_recorded_is_recovered() {
    kill_in_commit("commit-reserved", false);
}

#[test]
fn a_kill_after_a_commit_was_made_is_recovered() {
    kill_in_commit("commit-done", true);
}

/// The engine continues with a killed daemon's request after the next daemon has recovered its row.
#[test]
fn a_container_that_the_engine_creates_after_the_recovery_is_removed() {
    let Some(mut server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/create*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    server.kill();
    request.forget();
    server.start_again();
    eventually(Duration::from_secs(5), "the row is recovered", || {
        state(&server, "alice", "main").as_deref() == Some("failed")
    });
    held.lift();
    eventually(Duration::from_secs(5), "the engine creates it", || {
        !server.containers().is_empty() || server.log().contains("leftover container")
    });
    assert_recovered(&server);
    assert_eq!(server.containers(), Vec::<String>::new());
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

/// The last answer to each worker: the daemon may be killed at any time, but must never contradict what it answered.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Told {
    Made,
    Gone,
    /// A request had no answer, or was refused temporarily.
    Nothing,
}

fn work(client: &Client, instance: &str, stop: &AtomicBool, told: &Mutex<BTreeMap<String, Told>>) {
    let tell = |word| {
        told.lock().expect("no thread panics with it").insert(instance.to_owned(), word);
    };
    // A failed request says nothing: the pod may exist or not.
    let post = |path: String, success: Told| {
        tell(Told::Nothing);
        match client.try_send("POST", &path, &[], b"") {
            Ok(answer) if answer.status == 200 => tell(success),
            Ok(answer) => assert!(matches!(answer.status, 404 | 409 | 503), "{path}: {answer}"),
            // Killed, or not up again yet.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    while !stop.load(Ordering::SeqCst) {
        post(create_path(instance), Told::Made);
        let _ = client.try_send("POST", &format!("/pod/exec?ins={instance}&cmd=true&timeout=5"), &[], b"");
        if !stop.load(Ordering::SeqCst) || rand::random() {
            post(format!("/pod/delete?ins={instance}"), Told::Gone);
        }
    }
}

#[test]
fn acknowledged_work_survives_ten_kills_under_load() {
    let Some(mut server) = Server::start() else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let workers: Vec<_> = (0..4)
        .map(|number| {
            let client = server.member(if number % 2 == 0 { "alice" } else { "bob" });
            let (stop, told) = (stop.clone(), told.clone());
            thread::spawn(move || work(&client, &format!("w{number}"), &stop, &told))
        })
        .collect();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(300 + u64::from(rand::random::<u16>() % 2200)));
        server.kill();
        server.start_again();
    }
    thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.join().expect("every answer is one of those expected");
    }
    assert_recovered(&server);

    let count = |action: &str| {
        server.count(&format!("SELECT count(*) FROM events WHERE action = '{action}' AND outcome = 'ok'"))
    };
    assert!(count("pod.create") >= 10 && count("pod.delete") >= 10, "too little happened for a meaningful test");
    for (instance, word) in told.lock().expect("the workers ended").iter() {
        let user = if instance == "w0" || instance == "w2" { "alice" } else { "bob" };
        let client = server.member(user);
        let is_there = client.get(&format!("/pod/inspect?ins={instance}")).status == 200;
        assert!(
            *word == Told::Nothing || is_there == (*word == Told::Made),
            "{instance}: answered {word:?}, exists: {is_there}"
        );
        if is_there {
            delete(&client, instance).ok();
        }
    }
}

/// However early SIGTERM arrives, as soon as the daemon answers or prints its first line it exits as at any other time.
#[test]
fn sigterm_during_the_start_ends_the_daemon_cleanly() {
    let Some(mut server) = Server::builder().without_docker().start() else { return };
    for _ in 0..30 {
        let ended = server.terminate();
        assert!(ended.success(), "{ended}");
        server.start_unready();
    }
}

#[test]
fn sigterm_under_load_ends_the_daemon_within_ten_seconds_and_leaves_pods_untouched() {
    let Some(mut server) = Server::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "steady").ok();
    let started =
        |server: &Server| inspect(&server.container("alice", "steady"), "{{.State.StartedAt}} {{.State.Pid}}");
    let before = started(&server);
    // A command, a stream and creates are in progress.
    let long = begin(&alice, "/pod/exec?ins=steady&cmd=sleep+120&timeout=300");
    let stream = thread::spawn({
        let alice = alice.clone();
        move || drop(alice.try_send("GET", "/pod/logs?ins=steady&follow=true", &[], b""))
    });
    let creates: Vec<_> = (0..6).map(|number| begin(&bob, &create_path(&format!("l{number}")))).collect();
    thread::sleep(Duration::from_millis(400));
    assert!(!long.is_finished());
    let begun = Instant::now();
    let ended = server.terminate();
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(ended.success(), "{ended}");
    assert_eq!(started(&server), before, "a pod must not be affected");
    long.forget();
    stream.join().expect("a thread of ours");
    let answered: Vec<bool> =
        creates.into_iter().map(|create| create.answer_if_any().is_some_and(|answer| answer.status == 200)).collect();

    server.start_again();
    assert_recovered(&server);
    for (number, was_acknowledged) in answered.into_iter().enumerate() {
        let is_there = bob.get(&format!("/pod/inspect?ins=l{number}")).status == 200;
        assert!(is_there || !was_acknowledged, "l{number} was acknowledged and is gone");
        if is_there {
            delete(&bob, &format!("l{number}")).ok();
        }
    }
    delete(&alice, "steady").ok();
}
