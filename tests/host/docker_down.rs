//! Docker is down: at the start, later, frozen, killed and started again.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    common::{Server, eventually},
    help::{
        DEADLINE, Proxied, RECOVERY, assert_reads_fast, assert_recovered, assert_unavailable, begin, create,
        create_path, delete,
    },
    private::PrivateDocker,
};

fn docker_word(server: &Server) -> String {
    server.anon().get("/healthz").ok().json()["docker"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_daemon_starts_while_docker_is_down() {
    let Some(mut server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    server.terminate();
    server.proxy.vanish();

    let begun = Instant::now();
    server.start_unready();
    assert_eq!(server.anon().get("/version").ok().text(), "[0,4,1]");
    let took = begun.elapsed();
    // A call to an engine may take three seconds: the answer waited for none.
    assert!(took < Duration::from_secs(2), "/version answers after {took:?}");
    eventually(Duration::from_secs(2), "it is reported", || docker_word(&server) == "down");
    assert_eq!(server.anon().get("/healthz").ok().json()["status"], "degraded");

    assert_reads_fast(&alice, &["/pod/list", "/user/info", "/image/list", "/pod/ps", "/pod/inspect?ins=main"]);
    assert_eq!(alice.get("/pod/list").ok().text(), "[\"main\"]");
    for path in [
        create_path("second"),
        "/pod/delete?ins=main".to_owned(),
        "/pod/stop?ins=main".to_owned(),
        "/pod/start?ins=main".to_owned(),
        "/pod/restart?ins=main".to_owned(),
        "/pod/commit?ins=main&tag=v1".to_owned(),
        "/pod/exec?ins=main&cmd=true".to_owned(),
    ] {
        let (answer, took) = begin(&alice, &path).answer();
        assert_unavailable(&answer, took);
    }
    let log = alice.get("/pod/logs?ins=main");
    assert_eq!(log.status, 503, "{log}");

    server.proxy.appear();
    eventually(RECOVERY, "it recovers by itself", || docker_word(&server) == "ok");
    assert_recovered(&server);
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
}

#[test]
fn the_daemon_recovers_when_docker_comes_back() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    for _ in 0..3 {
        let command = begin(&alice, "/pod/exec?ins=main&cmd=sleep+30&timeout=60");
        thread::sleep(Duration::from_millis(300));
        server.proxy.vanish();
        eventually(DEADLINE, "it is noticed", || docker_word(&server) == "down");
        let (answer, _) = command.answer();
        assert_eq!(answer.status, 503, "{answer}");
        let (answer, took) = begin(&alice, &create_path("second")).answer();
        assert_unavailable(&answer, took);
        let shown = alice.get("/pod/inspect?ins=main").ok();
        assert_eq!(shown.json()["status"], "running");
        assert!(shown.header("x-pody-inventory-age").is_some());
        assert_reads_fast(&alice, &["/pod/ps"]);
        server.proxy.appear();
        eventually(RECOVERY, "it is back", || docker_word(&server) == "ok");
        assert_eq!(alice.get("/pod/inspect?ins=main").ok().header("x-pody-inventory-age"), None);
    }
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
    assert_recovered(&server);
}

#[test]
fn a_real_engine_that_is_frozen_or_killed_is_noticed_and_recovered() {
    let Some(mut docker) = PrivateDocker::start() else { return };
    let Some(server) = docker.server().start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();

    docker.signal(Signal::SIGSTOP);
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    eventually(DEADLINE, "the frozen engine is noticed", || docker_word(&server) == "down");
    assert_reads_fast(&alice, &["/pod/list", "/pod/ps", "/pod/inspect?ins=main", "/user/info"]);
    docker.signal(Signal::SIGCONT);
    eventually(RECOVERY, "the engine is back", || docker_word(&server) == "ok");
    eventually(RECOVERY, "only one container is left", || {
        String::from_utf8_lossy(&docker.docker(&["ps", "-aq"]).stdout).lines().count() == 1
    });

    docker.kill();
    eventually(DEADLINE, "the killed engine is noticed", || docker_word(&server) == "down");
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    docker.start_again();
    eventually(RECOVERY, "the engine is back", || docker_word(&server) == "ok");
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
    assert_eq!(server.count("SELECT count(*) FROM pods WHERE state NOT IN ('deleted', 'failed')"), 0);
    assert_eq!(server.count("SELECT count(*) FROM events WHERE outcome = 'pending'"), 0);
    drop(server);
}
