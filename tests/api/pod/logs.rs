//! `/pod/logs` and `/pod/stats`.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use insta::assert_snapshot;
use serde_json::json;

use super::{create, delete, exec};
use crate::common::{Client, Server, eventually, password};

/// Writes a line where the pod's first process writes.
fn say(client: &Client, line: &str) {
    exec(client, "main", &format!("echo {line} > /proc/1/fd/1"));
}

#[test]
fn the_end_of_the_output_is_shown() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // A pod's output goes to a terminal.
    let tail = |query: &str| {
        let log = alice.get(&format!("/pod/logs?ins=main{query}")).ok().json()["log"].clone();
        log.as_str().unwrap().replace('\r', "")
    };
    // sshd's lines about its two addresses come first, and not in between.
    eventually(Duration::from_secs(10), "sshd listens", || tail("").contains("Server listening"));
    std::thread::sleep(Duration::from_millis(300));
    for number in 1..=3 {
        say(&alice, &format!("line {number}"));
    }
    eventually(Duration::from_secs(3), "the last line is there", || tail("").ends_with("line 1\nline 2\nline 3\n"));
    assert_eq!(tail("&tail=2"), "line 2\nline 3\n");
    assert_eq!(tail("&tail=0"), "");
    std::thread::sleep(Duration::from_millis(2100));
    say(&alice, "later");
    eventually(Duration::from_secs(3), "the later line is there", || tail("&since=1s") == "later\n");
    assert!(tail("&since=1h").contains("line 1\n"));
    assert_snapshot!(alice.get("/pod/logs?ins=main&since=then"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "since: \"then\" is not a duration; write 1y, 1w, 1d, 1h, 1m, 1s or a number of seconds"
    }
    "#);
    // Also of a stopped pod.
    alice.post("/pod/stop?ins=main").ok();
    assert!(tail("").contains("later\n"));
    // Much output: only its end.
    alice.post("/pod/start?ins=main").ok();
    exec(&alice, "main", "(head -c 3000000 /dev/zero | tr '\\0' x | fold -w 99; echo; echo the end) > /proc/1/fd/1");
    eventually(Duration::from_secs(5), "the end is there", || tail("&tail=1") == "the end\n");
    let much = tail("&tail=1000000");
    assert!(much.len() <= 4 << 20);
    assert!(much.ends_with("the end\n"));
    delete(&alice, "main");
}

#[test]
fn the_output_is_followed() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let basic = Client::basic("alice", &password("alice"));
    let head =
        format!("GET /pod/logs?ins=main&follow=true&tail=0 HTTP/1.1\r\nhost: x\r\nauthorization: {basic}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = String::new();
    let mut read_until = |wanted: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(wanted) {
            let count =
                stream.read(&mut buffer).unwrap_or_else(|error| panic!("{error} before {wanted:?} in {seen:?}"));
            assert!(count > 0, "the stream ended: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    read_until("\r\n\r\n");
    say(&alice, "first");
    read_until("first\r\n");
    say(&alice, "second");
    read_until("second\r\n");
    assert!(seen.starts_with("HTTP/1.1 200") && seen.contains("text/plain"), "{seen}");
    // The stream ends with the right to read it, and not as if the output had ended.
    server.admin().post("/admin/user/update?username=alice&disabled=true").ok();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"));
    server.admin().post("/admin/user/update?username=alice&disabled=false").ok();
    delete(&alice, "main");
}

#[test]
fn stats_show_a_pods_usage() {
    let Some(server) = Server::builder().config("[default_quota]\nmemory_limit = \"1g\"").start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // In its own session, after a moment to get there: closing a command's terminal ends the processes that are still
    // on it.
    exec(
        &alice,
        "main",
        "setsid -f python3 -c 'x = bytearray(100 << 20)\nwhile True: pass' >/dev/null 2>&1; sleep 0.5",
    );
    let mut stats = json!(null);
    eventually(Duration::from_secs(20), "its work is seen", || {
        stats = alice.get("/pod/stats?ins=main").ok().json();
        stats["memory_used"].as_u64().unwrap() > 100 << 20 && stats["cpu_cores"].as_f64().unwrap() > 0.1
    });
    assert!(stats["cpu_seconds"].as_f64().unwrap() > 0.0, "{stats}");
    assert!(stats["cpu_cores"].as_f64().unwrap() < 1.6, "{stats}");
    assert!(stats["memory_used"].as_u64().unwrap() < 400 << 20, "{stats}");
    assert!((2..20).contains(&stats["pids"].as_u64().unwrap()), "{stats}");
    // Direct writes are counted, unless the kernel has no counters; cgroup v2 always has.
    exec(&alice, "main", "dd if=/dev/zero of=/root/block bs=1M count=8 oflag=direct");
    match alice.get("/pod/stats?ins=main").ok().json()["disk_written"].as_u64() {
        Some(written) => assert!((8 << 20..256 << 20).contains(&written), "{written} bytes"),
        None => assert!(!std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "null on version 2"),
    }
    assert_eq!((&stats["memory_limit"], &stats["pids_limit"]), (&json!(1 << 30), &json!(8192)));
    delete(&alice, "main");
}
