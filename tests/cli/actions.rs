//! `pody actions`, and how `pody checkpoint` and `restore` wait: what they show, that Ctrl-C stops only the waiting,
//! and a server that restarts.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};

use super::{fake::Fake, terminal::Terminal};

fn action(kind: &str, status: &str, phase: &str) -> Value {
    json!({
        "id": "a1", "type": kind, "user": "alice", "pod": "p", "container_name": "alice-main", "checkpoint": "c1",
        "status": status, "phase": phase, "bytes": 1u64 << 30, "frozen_ms": 1234, "losses": [], "error": null,
        "started_at": "2020-01-01T00:00:00Z", "ended_at": null,
    })
}

fn with(mut action: Value, more: Value) -> Value {
    action.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    action
}

fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn the_list_shows_progress_and_errors() {
    let fake = Fake::start();
    let running = with(action("checkpoint", "running", "dump"), json!({"total_bytes": 4u64 << 30}));
    fake.on("/action/list", json!([running.clone(), action("restore", "done", "clean")]));
    let table = fake.run(&["actions", "main"]).ok();
    let rows = words(&table);
    assert_eq!(rows[0], ["ID", "TYPE", "POD", "STATUS", "PHASE", "DONE", "FROZEN", "STARTED"]);
    assert_eq!(rows[1][..10], ["a1", "checkpoint", "alice-main", "running", "dump", "1.0G", "of", "4.0G", "1.2", "s"]);
    assert_eq!(rows[2][..6], ["a1", "restore", "alice-main", "done", "clean", "1.0G"]);
    assert_eq!(fake.seen_one().line, "GET /action/list?ins=main");

    // A copy and a failure have columns of their own.
    let copying = with(
        action("checkpoint", "done", "commit"),
        json!({"remote": "copying", "remote_bytes": 512u64 << 20, "remote_total_bytes": 1u64 << 30}),
    );
    let failed = with(action("checkpoint", "error", "dump"), json!({"error": "dump: the disk\u{1b}[2J is full"}));
    fake.on("/action/list", json!([copying, failed]));
    let table = fake.run(&["actions", "--all"]).ok();
    assert_eq!(words(&table)[0][8..], ["REMOTE", "PROBLEM"]);
    assert!(table.contains("copying 512.0M of 1.0G") && !table.contains('\u{1b}'), "{table}");
    assert_eq!(fake.seen_one().line, "GET /action/list?all=true");
    assert_eq!(fake.run(&["actions", "--json"]).json()[0]["remote_bytes"], 512u64 << 20);
    fake.on("/action/list", json!([]));
    assert!(fake.run(&["actions"]).ok().contains("`pody checkpoint NAME` starts one"));
    // NAME and --follow exclude each other.
    assert_eq!(fake.run(&["actions", "main", "--follow", "a1"]).code, 2);
}

#[test]
fn follow_waits_for_an_action_again() {
    let fake = Fake::start();
    fake.on("/action/status", action("checkpoint", "done", "commit"));
    let saved = fake.run(&["actions", "--follow", "a1"]).ok();
    assert_eq!(saved, "alice-main saved as c1 (1.0G); it was frozen for 1.2 s\n");
    assert_eq!(fake.seen_one().line, "GET /action/status?id=a1");
    fake.on("/action/status", action("restore", "done", "clean"));
    assert_eq!(fake.run(&["actions", "--follow", "a1"]).ok(), "alice-main restored from c1\n");
    fake.on("/action/status", with(action("restore", "error", "start"), json!({"error": "start: no"})));
    let failed = fake.run(&["actions", "--follow", "a1"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (1, "error: start: no\n"));
    fake.on_status("/action/status", 404, json!({"detail": "there is no action a1"}));
    assert_eq!(fake.run(&["actions", "--follow", "a1"]).code, 1);
}

/// The server does the work; the hint says how to wait for it again.
#[test]
fn ctrl_c_stops_only_the_waiting() {
    for command in ["checkpoint main", "restore main"] {
        let fake = Fake::start();
        fake.on("/pod/checkpoint", action("checkpoint", "running", "dump"));
        fake.on("/pod/restore", action("restore", "running", "start"));
        fake.on("/action/status", action("checkpoint", "running", "dump"));
        let mut terminal = Terminal::start(&fake, &format!("trap : INT; $PODY {command}; echo code $?"));
        terminal.wait_for("1.0G of 1.0G");
        terminal.type_in(b"\x03");
        let shown = terminal.end();
        assert!(shown.contains("stopped waiting; the server continues the work"), "{shown:?}");
        assert!(shown.contains("`pody actions --follow a1` waits for it again"), "{shown:?}");
        assert!(shown.contains("code 130"), "{shown:?}");
    }
}

/// A restarted daemon continues its actions, and the client waits for it.
#[test]
fn a_server_that_restarts_is_waited_for() {
    let fake = Fake::start();
    fake.on("/pod/checkpoint", action("checkpoint", "running", "dump"));
    fake.on_status("/action/status", 503, json!({"detail": "the daemon starts"}));
    let mut command = fake.pody(&["checkpoint", "main"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    let polls = || fake.seen().iter().filter(|seen| seen.line.starts_with("GET /action/status")).count();
    while polls() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never polls");
        std::thread::sleep(Duration::from_millis(20));
    }
    fake.on("/action/status", action("checkpoint", "done", "commit"));
    let ended = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&ended.stdout),
        "main saved as c1 (1.0G); it was frozen for 1.2 s\n",
        "{ended:?}"
    );
    assert!(ended.status.success());
}
