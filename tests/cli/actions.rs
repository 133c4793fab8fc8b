//! `pody actions`, and how `pody checkpoint` and `restore` wait: what they show, that Ctrl-C stops only the waiting,
//! and a server that restarts.

use std::{process::Stdio, time::Duration};

use pody::model::view::{action::ActionView, checkpoint::CopyView};
use serde_json::json;

use super::{
    fake::Fake,
    terminal::Terminal,
    views::{ACTION, CHECKPOINT, action, copy},
};

fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn the_list_shows_progress_and_errors() {
    let fake = Fake::start();
    let running = ActionView { total_bytes: Some(4 << 30), ..action("checkpoint", "running", "dump") };
    fake.on("/action/list", [running, action("restore", "done", "clean")]);
    let table = fake.run(&["actions", "main"]).ok();
    let rows = words(&table);
    assert_eq!(rows[0], ["ID", "TYPE", "POD", "STATUS", "PHASE", "DONE", "FROZEN", "STARTED"]);
    assert_eq!(
        rows[1][..10],
        [ACTION, "checkpoint", "alice-main", "running", "dump", "1.0G", "of", "4.0G", "1.2", "s"]
    );
    assert_eq!(rows[2][..6], [ACTION, "restore", "alice-main", "done", "clean", "1.0G"]);
    assert_eq!(fake.seen_one().line, "GET /action/list?ins=main");

    // A copy and a failure have columns of their own.
    let remote = CopyView { bytes: Some(512 << 20), total_bytes: Some(1 << 30), ..copy("copying") };
    let copying = ActionView { remote: Some(remote), ..action("checkpoint", "done", "commit") };
    let error = Some("dump: the disk\u{1b}[2J is full".to_owned());
    let failed = ActionView { error, ..action("checkpoint", "error", "dump") };
    fake.on("/action/list", [copying, failed]);
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
    assert_eq!(saved, format!("alice-main saved as {CHECKPOINT} (1.0G); it was frozen for 1.2 s\n"));
    assert_eq!(fake.seen_one().line, "GET /action/status?id=a1");
    fake.on("/action/status", action("restore", "done", "clean"));
    let restored = fake.run(&["actions", "--follow", "a1"]).ok();
    assert_eq!(restored, format!("alice-main restored from {CHECKPOINT}\n"));
    fake.on(
        "/action/status",
        ActionView { error: Some("start: no".to_owned()), ..action("restore", "error", "start") },
    );
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
        assert!(shown.contains(&format!("`pody actions --follow {ACTION}` waits for it again")), "{shown:?}");
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
        format!("main saved as {CHECKPOINT} (1.0G); it was frozen for 1.2 s\n"),
        "{ended:?}"
    );
    assert!(ended.status.success());
}
