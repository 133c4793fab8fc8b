//! Commands and output that try the daemon's patience.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Client, Server, docker, eventually},
    door::{Held, assert_given_back},
    help::{assert_reads_fast, assert_settled, container_id, create, delete, exec, runs, state},
};

#[test]
fn output_at_full_speed_with_a_timeout() {
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
    eventually(Duration::from_secs(5), "the command is ended", || !runs(&alice, "main", "yes pody-flood"));
    assert_given_back(&server, before);
    delete(&alice, "main").ok();
}

#[test]
fn a_client_that_leaves_in_the_middle() {
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
    assert!(runs(&alice, "main", "sleep 4321"), "a command goes on when its client leaves, until its time is over");
    eventually(Duration::from_secs(8), "it is ended at its timeout", || !runs(&alice, "main", "sleep 4321"));
    delete(&alice, "main").ok();
}

/// A client that leaves in the middle of a create or a delete changes nothing about it.
#[test]
fn a_client_that_leaves_in_the_middle_of_a_create() {
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
        // Before that it may go unheard: a request whose client is gone is not begun.
        eventually(Duration::from_secs(5), "it is begun", || state(&server, "alice", &format!("p{number}")).is_some());
    }
    eventually(Duration::from_secs(8), "all of them are made", || {
        alice.get("/pod/list").ok().json().as_array().map(Vec::len) == Some(5)
    });
    assert_settled(&server);
    for number in 0..5 {
        delete(&alice, &format!("p{number}")).ok();
    }
}

#[test]
fn a_pod_without_a_process_to_spare() {
    let Some(server) = Server::builder().config("[default_quota]\npids_limit = 24\n").start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main").ok();
    create(&bob, "main").ok();
    // It takes all that there are, and keeps them.
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
    eventually(Duration::from_secs(5), "no process is to spare", || stats() >= 22);
    // The engine lets a command in past the limit, but it cannot start anything; a plain refusal is as good.
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
    // The way out that the answer names.
    alice.post("/pod/restart?ins=main").ok();
    exec(&alice, "main", "true", 5).ok();
    assert_eq!(container_id(&server, "alice", "main"), id);
    delete(&alice, "main").ok();
    delete(&bob, "main").ok();
}

#[test]
fn a_hundred_megabytes_of_output() {
    let Some(server) = Server::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main").ok();
    let before = Held::by(&server);
    // To the terminal of the pod's own process, which is what the engine keeps as its log.
    let id = container_id(&server, "alice", "main");
    docker(&[
        "exec",
        &id,
        "bash",
        "-c",
        "yes '0123456789012345678901234567890123456789012345678901234567890123456789' | head -c 100000000 > /proc/1/fd/1; echo the-last-line > /proc/1/fd/1",
    ]);
    // The engine writes it down behind the one who said it.
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
        // After five seconds the answer is what was read by then.
        let is_cut = path.contains("since") || took > Duration::from_secs(5);
        assert!(
            is_cut || log.trim_end().ends_with("the-last-line"),
            "{path} ends with {:?}",
            &log[log.len().saturating_sub(80)..]
        );
    }
    // Followers that leave, while it goes on.
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
    assert_given_back(&server, before);
    delete(&alice, "main").ok();
}
