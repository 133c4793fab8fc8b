//! Commands and output that put the daemon under strain.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Client, Server, docker, eventually},
    door::{Held, assert_released},
    help::{assert_reads_fast, assert_recovered, container_id, create, delete, exec, runs, state},
};

#[test]
fn a_command_that_floods_its_output_is_killed_at_its_timeout() {
    let Some(server) = Server::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main").ok();
    let before = Held::by(&server);
    let flood = thread::spawn({
        let alice = alice.clone();
        move || {
            let begun = Instant::now();
            (exec(&alice, "main", "yes pody-flood", 4), begun.elapsed())
        }
    });
    thread::sleep(Duration::from_millis(500));
    assert_reads_fast(&bob, &["/pod/list", "/user/info"]);
    let during = Held::by(&server);
    assert!(during.memory < before.memory + 24 * 1024, "before {before:?}, during {during:?}");
    let (answer, took) = flood.join().expect("an answer");
    let answer = answer.ok().json();
    assert_eq!(answer["log"], "Timeout", "{answer:.200}");
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(20), "{took:?}");
    assert!(answer["output"].as_str().is_some_and(|output| output.len() <= (1 << 20) + 100));
    eventually(Duration::from_secs(5), "the command is killed", || !runs(&alice, "main", "yes pody-flood"));
    assert_released(&server, before);
    delete(&alice, "main").ok();
}

#[test]
fn a_command_whose_client_leaves_runs_until_its_timeout() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let authorization = Client::basic("alice", "alice-secret");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
    write!(
        stream,
        "POST /pod/exec?ins=main&cmd=exec+sleep+4321&timeout=3 HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
    )
    .expect("a connection");
    eventually(Duration::from_secs(3), "the command runs", || runs(&alice, "main", "sleep 4321"));
    drop(stream);
    thread::sleep(Duration::from_millis(300));
    assert!(runs(&alice, "main", "sleep 4321"), "a command keeps running after its client has left, until its timeout");
    eventually(Duration::from_secs(8), "it is killed at its timeout", || !runs(&alice, "main", "sleep 4321"));
    delete(&alice, "main").ok();
}

/// A client that leaves during a create does not change its outcome.
#[test]
fn a_create_whose_client_leaves_is_completed() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let authorization = Client::basic("alice", "alice-secret");
    for number in 0..5_u8 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
        write!(
            stream,
            "POST /pod/create?ins=p{number}&image=pody-base HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
        )
        .expect("a connection");
        // Earlier, the request may be dropped: a request whose client is gone is not begun.
        eventually(Duration::from_secs(5), "it is begun", || state(&server, "alice", &format!("p{number}")).is_some());
    }
    eventually(Duration::from_secs(8), "all of them are created", || {
        alice.get("/pod/list").ok().json().as_array().map(Vec::len) == Some(5)
    });
    assert_recovered(&server);
    for number in 0..5 {
        delete(&alice, &format!("p{number}")).ok();
    }
}

#[test]
fn a_pod_at_its_process_limit_can_be_restarted() {
    let Some(server) = Server::builder().config("[default_quota]\npids_limit = 24\n").start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main").ok();
    create(&bob, "main").ok();
    // It uses up all processes, and keeps them.
    let bomb = r"exec </dev/null >/dev/null 2>&1; python3 -c '
import os, time
if os.fork() == 0:
    os.setsid()
    try:
        while os.fork(): pass
    except OSError: pass
    time.sleep(987)
time.sleep(2)'";
    exec(&alice, "main", bomb, 10).ok();
    let id = container_id(&server, "alice", "main");
    let stats = || alice.get("/pod/stats?ins=main").ok().json()["pids"].as_u64().expect("a number");
    eventually(Duration::from_secs(5), "no process is left", || stats() >= 22);
    // The engine starts a command beyond the limit, but the command cannot start anything; a plain refusal is just as
    // good.
    let begun = Instant::now();
    let answer = exec(&alice, "main", "ls / | cat", 3);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    match answer.status {
        200 => {
            let json = answer.json();
            assert_ne!(json["exit_code"], 0, "{answer}");
            assert!(answer.text().contains("Resource temporarily unavailable"), "{answer}");
        }
        status => assert!(status == 409 && answer.detail().contains("pids_limit of 24"), "{answer}"),
    }
    assert_reads_fast(&alice, &["/pod/list", "/pod/ps", "/pod/inspect?ins=main"]);
    exec(&bob, "main", "true", 5).ok();
    // The remedy that the answer names.
    alice.post("/pod/restart?ins=main").ok();
    exec(&alice, "main", "true", 5).ok();
    assert_eq!(container_id(&server, "alice", "main"), id);
    delete(&alice, "main").ok();
    delete(&bob, "main").ok();
}

#[test]
fn a_hundred_megabytes_of_output_are_served_in_bounded_time_and_memory() {
    let Some(server) = Server::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main").ok();
    let before = Held::by(&server);
    // To the terminal of the pod's own process, which the engine keeps as its log.
    let id = container_id(&server, "alice", "main");
    docker(&[
        "exec",
        &id,
        "bash",
        "-c",
        "yes '0123456789012345678901234567890123456789012345678901234567890123456789' | head -c 100000000 > /proc/1/fd/1; echo the-last-line > /proc/1/fd/1",
    ]);
    // The engine writes the log asynchronously.
    eventually(Duration::from_secs(20), "all of it is in the log", || {
        alice.get("/pod/logs?ins=main&tail=1").ok().text().contains("the-last-line")
    });
    for path in ["/pod/logs?ins=main", "/pod/logs?ins=main&tail=100000000", "/pod/logs?ins=main&since=1h"] {
        let begun = Instant::now();
        let answer = alice.get(path).ok();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "{path} took {took:?}");
        assert!(answer.body.len() < 6 << 20, "{path}: {} bytes", answer.body.len());
        let log = answer.json()["log"].as_str().expect("a log").to_owned();
        // After five seconds the answer is what has been read so far.
        let is_cut = path.contains("since") || took > Duration::from_secs(5);
        assert!(
            is_cut || log.trim_end().ends_with("the-last-line"),
            "{path} ends with {:?}",
            &log[log.len().saturating_sub(80)..]
        );
    }
    // Followers that leave while output continues.
    let noisy = thread::spawn({
        let id = id.clone();
        move || docker(&["exec", &id, "bash", "-c", "timeout 3 yes noise > /proc/1/fd/1; true"])
    });
    let authorization = Client::basic("alice", "alice-secret");
    for _ in 0..10 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
        write!(
            stream,
            "GET /pod/logs?ins=main&follow=true HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
        )
        .expect("a connection");
        thread::sleep(Duration::from_millis(100));
    }
    assert_reads_fast(&bob, &["/pod/list"]);
    noisy.join().expect("docker");
    assert_released(&server, before);
    delete(&alice, "main").ok();
}
