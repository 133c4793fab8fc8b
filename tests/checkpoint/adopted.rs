//! Containers that a person created and pody adopted: settings that prevent a checkpoint are named before anything is
//! touched.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::{
    common::{Client, IMAGE, Server, docker, eventually},
    help::{assert_clean, delete, delete_checkpoints, done, save, start, status},
};

/// Runs a container by hand, and waits until it is alice's pod. Removed by the harness if it has the server's prefix.
fn take_over(server: &Server, alice: &Client, instance: &str, options: &[&str], command: &[&str]) -> bool {
    let mut run = Command::new("docker");
    run.args(["run", "-d", "--name", &server.container("alice", instance)]).args(options);
    run.args(["--entrypoint", command[0], IMAGE]).args(&command[1..]);
    if !run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success() {
        docker(&["rm", "-f", &server.container("alice", instance)]);
        return false;
    }
    eventually(Duration::from_secs(20), "it is a pod", || {
        alice.get("/pod/list").ok().json().as_array().unwrap().contains(&json!(instance))
    });
    true
}

/// Whether this machine can start a container with these options.
fn can_start(options: &[&str]) -> bool {
    let mut run = Command::new("docker");
    run.args(["run", "--rm"]).args(options).args(["--entrypoint", "true", IMAGE]);
    run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn settings_of_a_container_that_prevent_a_checkpoint_are_named() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("file"), &link).unwrap();
    let bind = format!("{}:/mnt/file", link.display());
    let made_with =
        |what: &str| format!("it was created with {what}, which cannot be restored; create it again with pody");
    let rows: &[(&str, &[&str], String)] = &[
        ("init", &["--init"], made_with("Docker's own init")),
        ("ipc", &["--ipc", "shareable"], made_with("shared IPC")),
        ("hostipc", &["--ipc", "host"], made_with("shared IPC")),
        ("hostpid", &["--pid", "host"], made_with("another's PID namespace")),
        ("hostnet", &["--network", "host"], made_with("the host's network")),
        ("rm", &["--rm"], made_with("--rm")),
        ("privileged", &["--privileged"], made_with("--privileged")),
        (
            "link",
            &["-v", &bind],
            format!(
                "its mount of {} is a symbolic link, which cannot be restored; create it again with the resolved path",
                link.display()
            ),
        ),
    ];
    for (instance, options, sentence) in rows {
        if !take_over(&server, &alice, instance, options, &["sleep", "10000"]) {
            assert!(!can_start(options), "{options:?}");
            eprintln!("this machine starts no container with {options:?}");
            continue;
        }
        let verdict = alice.get(&format!("/checkpoint/check?ins={instance}")).ok().json();
        assert_eq!(verdict["can_be_saved"], false, "{options:?}: {verdict}");
        assert!(verdict["problems"].as_array().unwrap().contains(&json!(sentence)), "{options:?}: {verdict}");
        let refused = alice.post(&format!("/pod/checkpoint?ins={instance}&leave_running=false"));
        assert_eq!(refused.status, 409, "{options:?}: {refused}");
        assert!(refused.detail().contains(sentence), "{options:?}: {refused}");
        assert_eq!(status(&alice, instance), "running", "{options:?}");
        assert_eq!(alice.get("/pod/checkpoints").ok().json(), json!([]));
        // Its files can be saved.
        save(&alice, &format!("ins={instance}&kind=rootfsonly"));
        delete(&alice, instance);
        delete_checkpoints(&alice);
    }
    assert_clean(&server);
}

/// PID 1 runs as another user than root, if the host allows it.
#[test]
fn a_container_of_a_normal_user_is_checkpointed_or_refused_with_the_reason() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    assert!(take_over(&server, &alice, "user", &["--user", "1000:1000"], &["sleep", "10000"]));
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    if u64::from_str_radix(capabilities, 16).unwrap() >> 24 & 1 == 1 {
        let id = save(&alice, "ins=user&leave_running=false");
        done(&alice, &format!("/pod/restore?ins=user&checkpoint={id}"));
    } else {
        let refused = alice.post("/pod/checkpoint?ins=user");
        assert_eq!(refused.status, 409, "{refused}");
        let said = refused.detail();
        assert!(
            said.contains(
                "sleep[1] runs as a normal user, and saving it needs CAP_SYS_RESOURCE, which this host does not grant"
            ),
            "{said}"
        );
    }
    assert_eq!(status(&alice, "user"), "running");
    delete(&alice, "user");
    delete_checkpoints(&alice);
}

/// A read-only file system, a mount below a symbolic link in the image, with or without a terminal: such containers are
/// restored, and the log continues where it was.
#[test]
fn containers_that_pody_would_not_create_are_restored_too() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    let rows: &[(&str, &[&str])] =
        &[("readonly", &["--read-only", "--tmpfs", "/tmp"]), ("terminal", &["-t"]), ("shm", &["--shm-size", "128m"])];
    for (instance, options) in rows {
        let volume = tempfile::tempdir().unwrap();
        let bind = format!("{}:/lib/pody-test", volume.path().display());
        let count = "n=0; while :; do n=$((n+1)); echo $n >/lib/pody-test/new; mv /lib/pody-test/new /lib/pody-test/count; \
                     echo line $n; sleep 0.1; done";
        let options: Vec<&str> = options.iter().copied().chain(["-v", &bind]).collect();
        assert!(take_over(&server, &alice, instance, &options, &["sh", "-c", count]), "{options:?}");
        let file = volume.path().join("count");
        let counted = || read_number(&file);
        eventually(Duration::from_secs(20), "it counts", || counted() > 3);
        let id = save(&alice, &format!("ins={instance}&leave_running=false"));
        let before = counted();
        done(&alice, &format!("/pod/restore?ins={instance}&checkpoint={id}"));
        eventually(Duration::from_secs(30), "it keeps counting", || counted() > before + 3);
        let log = docker(&["logs", &server.container("alice", instance)]);
        let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
        for number in [1, before - 1, before + 2] {
            assert!(lines.contains(&format!("line {number}").as_str()), "{options:?}: no line {number}: {log}");
        }
        assert_eq!(lines.iter().filter(|line| **line == "line 1").count(), 1, "it started from scratch: {log}");
        delete(&alice, instance);
    }
    assert_clean(&server);
    delete_checkpoints(&alice);
}

fn read_number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
