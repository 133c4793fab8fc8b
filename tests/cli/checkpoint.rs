//! `pody checkpoint`, `restore`, `checkpoints`, `schedule`, `drain`: requests, waiting, and output.

use pody::model::{checkpoint::Origin, view::action::ActionView};
use serde_json::json;

use super::{
    fake::{Fake, ended},
    terminal::Terminal,
    views::{self, ACTION, CHECKPOINT},
};

fn action(status: &str, phase: &str, error: Option<&str>) -> ActionView {
    ActionView {
        total_bytes: Some(2 << 30),
        losses: vec!["sleep[9] was started by an exec".to_owned()],
        error: error.map(str::to_owned),
        ..views::action("checkpoint", status, phase)
    }
}

#[test]
fn save_and_restore_wait_for_the_end_and_report_losses() {
    let fake = Fake::start();
    fake.on("/pod/checkpoint", action("running", "pause", None)).on("/pod/restore", action("running", "verify", None));
    fake.on("/action/status", action("done", "commit", None));
    let saved =
        fake.run(&["checkpoint", "main", "--stop", "--kind", "simple", "--compression", "zstd", "--label", "x"]);
    let said = format!("main saved as {CHECKPOINT} (1.0G) and stopped; `pody restore main` resumes it\n");
    assert_eq!(saved.stdout, said);
    assert_eq!(saved.stderr, "warning: sleep[9] was started by an exec\n");
    let seen = fake.seen();
    assert_eq!(seen[0].form, "ins=main&leave_running=false&kind=simple&compression=zstd&name=x");
    assert_eq!(seen[1].line, format!("GET /action/status?id={ACTION}"));
    let saved = fake.run(&["checkpoint", "main"]).stdout;
    assert_eq!(saved, format!("main saved as {CHECKPOINT} (1.0G); it was frozen for 1.2 s\n"));
    assert_eq!(fake.seen()[0].form, "ins=main&leave_running=true");
    let restored = fake.run(&["restore", "main", "--from", "c1", "--as", "twin"]);
    assert_eq!(restored.stdout, format!("twin restored from {CHECKPOINT}\n"));
    assert_eq!(fake.seen()[0].form, "ins=main&checkpoint=c1&as=twin");
    assert_eq!(fake.run(&["restore", "main", "--json"]).json()["checkpoint"], CHECKPOINT);
}

#[test]
fn a_failed_action_is_an_error_with_its_reason() {
    let fake = Fake::start();
    fake.on("/pod/checkpoint", action("running", "dump", None));
    fake.on("/action/status", action("error", "dump", Some("dump: the disk is full")));
    let failed = fake.run(&["checkpoint", "main"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (1, "error: dump: the disk is full\n"));
    assert_eq!(fake.run(&["checkpoint"]).code, 2);
}

#[test]
fn check_lists_each_process_and_exits_with_the_verdict() {
    let fake = Fake::start();
    fake.on("/checkpoint/check", views::verdict(true));
    let good = fake.run(&["checkpoint", "check", "main"]);
    assert_eq!(good.code, 0);
    assert!(
        good.stdout.contains("alice-main can be saved: about 1.0G of memory and 1.0M of files; frozen for about 2.5 s"),
        "{good:?}"
    );
    assert_eq!(fake.seen_one().line, "GET /checkpoint/check?ins=main");
    fake.on("/checkpoint/check", views::verdict(false));
    let bad = fake.run(&["checkpoint", "check", "main"]);
    assert_eq!(bad.code, 1);
    assert!(
        bad.stdout.contains("41   node") && bad.stdout.contains("cannot be saved") && bad.stdout.ends_with("- why\n"),
        "{bad:?}"
    );
}

#[test]
fn the_list_is_a_table_and_rm_asks() {
    let fake = Fake::start();
    fake.on("/pod/checkpoints", [views::checkpoint()]);
    let table = fake.run(&["checkpoints", "main"]).ok();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["ID", "POD", "KIND", "SIZE", "PACKED", "STATUS", "LABEL", "CREATED"]);
    assert_eq!(words[1][..7], [CHECKPOINT, "main", "rootfs", "1.0G", "none", "ready", "-"]);
    assert_eq!(fake.seen_one().line, "GET /pod/checkpoints?ins=main");
    fake.on("/checkpoint/delete", json!({"log": "Checkpoint c1 deleted"}));
    assert_eq!(fake.run(&["checkpoint", "rm", "c1"]).code, 1);
    assert_eq!(fake.run(&["checkpoint", "rm", "c1", "-y"]).ok(), "checkpoint c1 deleted\n");
    assert_eq!(fake.seen_one().form, "checkpoint=c1");
}

#[test]
fn schedules_are_set_shown_and_removed() {
    let fake = Fake::start();
    fake.on("/pod/schedule", views::schedule()).on("/pod/schedules", [views::schedule()]);
    // Quoted or not.
    for rule in [&["every 6h keep 4"][..], &["every", "360m", "keep", "4"]] {
        for command in [&["schedule", "set", "main"][..], &["checkpoint", "schedule", "main"]] {
            let said = fake.run(&[command, rule].concat()).ok();
            assert_eq!(said, "main is saved every 6h (keep 4); next checkpoint: now\n");
            assert_eq!(fake.seen_one().form, "ins=main&every=6h&keep=4");
        }
    }
    for bad in ["every day", "every 6h keep 0", "every 6 keep 4"] {
        let refused = fake.run(&["schedule", "set", "main", bad]);
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains("for example"), "{refused:?}");
    }
    assert_eq!(fake.run(&["checkpoint", "schedule", "main", "--off", "every 6h keep 4"]).code, 2);
    for arguments in [
        &["schedule", "show", "main"][..],
        &["schedule", "list"],
        &["schedule", "ls"],
        &["checkpoint", "schedule", "main"],
        &["checkpoint", "schedules"],
    ] {
        let table = fake.run(arguments).ok();
        let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["POD", "SCHEDULE", "NEXT", "LAST", "PROBLEM"]);
        assert_eq!(
            words[1],
            ["main", "every", "6h", "keep", "4", "now", "-", "skipped:", "alice-main", "is", "exited"]
        );
    }
    fake.seen();
    fake.on("/pod/schedule", json!({"message": "Schedule of main ended"}));
    for arguments in [&["schedule", "rm", "main"][..], &["checkpoint", "schedule", "main", "--off"]] {
        assert_eq!(fake.run(arguments).ok(), "schedule of main removed; its checkpoints stay\n");
        assert_eq!(fake.seen_one().form, "ins=main&off=true");
    }
    fake.on("/pod/schedules", json!([]));
    assert!(fake.run(&["schedule", "list", "--all"]).ok().starts_with("no schedules; "));
    assert_eq!(fake.seen_one().line, "GET /pod/schedules?all=true");
}

#[test]
fn checkpoints_not_made_by_hand_show_their_origin() {
    let fake = Fake::start();
    let row = |name: Option<&str>, origin| {
        let mut checkpoint = views::checkpoint();
        (checkpoint.row.name, checkpoint.row.origin) = (name.map(|name| name.parse().unwrap()), origin);
        checkpoint
    };
    fake.on(
        "/pod/checkpoints",
        [row(Some("mine"), Origin::Hand), row(None, Origin::Hand), row(None, Origin::Schedule)],
    );
    let table = fake.run(&["checkpoints"]).ok();
    let labels: Vec<&str> = table.lines().skip(1).map(|line| line.split_whitespace().nth(6).unwrap()).collect();
    assert_eq!(labels, ["mine", "-", "(schedule)"]);
}

/// A drain needs the daemon of this host.
#[test]
fn a_drain_without_a_daemon_is_refused() {
    let fake = Fake::start();
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| ended(fake.pody(arguments).env("PODY_HOME", home.path()), "");
    for arguments in [&["drain"][..], &["drain", "--force", "--reason", "x"], &["undrain"]] {
        let refused = run(arguments);
        assert_eq!((refused.code, refused.stdout.as_str()), (3, ""), "{refused:?}");
        assert!(refused.stderr.starts_with("error: no daemon is running on this host\nhint: start it"), "{refused:?}");
    }
    assert_eq!(run(&["drain", "--status"]).ok(), "nothing is drained\n");
    assert_eq!(run(&["drain", "--shutdown"]).ok(), "before_shutdown is off: pods are not saved\n");
    assert_eq!(run(&["drain", "--status", "--force"]).code, 2);
    let unit = run(&["util", "systemd-unit"]).ok();
    // Settings that imply a seccomp filter (systemd.exec(5)), under which CRIU cannot save programs.
    for setting in [
        "SystemCall",
        "Restrict",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "ProtectKernel",
        "ProtectClock",
        "ProtectHostname",
        "PrivateDevices",
        "DynamicUser",
    ] {
        assert!(!unit.lines().any(|line| line.starts_with(setting)), "{unit}");
    }
    let unit = run(&["util", "systemd-unit", "--drain"]).ok();
    assert!(unit.contains("After=network-online.target docker.service pody.service"), "{unit}");
    assert!(
        unit.contains("systemctl is-system-running)\" != stopping ] || exec ") && unit.contains("drain --shutdown'")
    );
}

/// On a terminal the progress is shown, and erased at the end.
#[test]
fn a_terminal_shows_phase_bytes_and_seconds_frozen() {
    let fake = Fake::start();
    fake.on("/pod/checkpoint", action("running", "dump", None)).on("/action/status", action("done", "commit", None));
    let terminal = Terminal::start(&fake, "$PODY checkpoint main");
    let shown = terminal.end();
    assert!(shown.contains("saving: dump      ████████████░░░░░░░░░░░░ 1.0G of 2.0G  frozen 1.2 s"), "{shown:?}");
}

#[test]
fn copies_are_requested_listed_and_registered() {
    let fake = Fake::start();
    fake.on("/pod/checkpoint", action("done", "commit", None));
    fake.run(&["checkpoint", "main", "--remote"]).ok();
    assert_eq!(fake.seen_one().form, "ins=main&leave_running=true&remote=true");
    let row = |state: Option<&str>| {
        let mut checkpoint = views::checkpoint();
        checkpoint.remote = state.map(views::copy);
        checkpoint
    };
    fake.on("/pod/checkpoints", [row(Some("failed: no\u{1b}[2J room")), row(None)]);
    let table = fake.run(&["checkpoints"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].ends_with("REMOTE") && !table.contains('\u{1b}'), "{table}");
    assert!(lines[1].contains("failed: no") && lines[2].trim_end().ends_with('-'), "{table}");
    fake.on("/checkpoint/remote", views::remote_checkpoints());
    let table = fake.run(&["checkpoint", "remote", "--user", "alice"]).ok();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["ID", "POD", "KIND", "SIZE", "HERE", "CREATED", "PROBLEM"]);
    assert_eq!(words[1][..5], [CHECKPOINT, "main", "rootfs", "1.0G", "no"]);
    assert_eq!(words[2], [CHECKPOINT, "-", "-", "-", "yes", "-", "it", "is", "bob's"]);
    fake.seen();
    fake.on("/checkpoint/fetch", row(Some("copied")));
    let taken = fake.run(&["checkpoint", "fetch", "c1"]).ok();
    assert_eq!(taken, "c1 registered; `pody restore main --from c1` downloads its files and restores the pod\n");
    assert_eq!(fake.seen_one().form, "checkpoint=c1");
}
