//! Whatever goes wrong on the way off the GPUs and back: the pod runs on, with all of its programs on theirs.

use super::cuda::{Cuda, computes_on, count};
use crate::{
    common::{Client, Need, Server, eventually},
    help::{assert_clean, create, delete, delete_checkpoints, done, engine_says, fails, save, status},
};

/// Short, so that what hangs is ended soon; enough for CRIU on a slow machine.
const SHORT: &str = "[checkpoint]\ntimeout_seconds = 12\n";

fn start(cuda: &Cuda, points: &str) -> Option<(Server, Client, [String; 2])> {
    let server = cuda.start(|builder| builder.config(SHORT).env("FAILPOINTS", points))?;
    let alice = server.member("alice");
    create(&alice, "main");
    let identities = ["one", "two"].map(|name| {
        cuda.run(&server, &alice, "main", name, 0);
        count(&alice, "main", name).1
    });
    Some((server, alice, identities))
}

#[track_caller]
fn all_compute(server: &Server, client: &Client, identities: &[String; 2]) {
    assert_eq!(status(client, "main"), "running");
    for (name, identity) in ["one", "two"].into_iter().zip(identities) {
        computes_on(client, "main", name, identity);
    }
    assert_eq!(engine_says(server, "alice", "main", "{{.State.Paused}}"), "false");
    assert_eq!(engine_says(server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    assert_clean(server);
}

/// Off the GPUs: the checkpoint fails with the cause, whether the pod was to be stopped or not.
fn fails_on_the_way(action: &str, how: &str, said: &str) {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    for leave_running in ["true", "false"] {
        cuda.fault(action, how);
        let error = fails(&alice, &format!("/pod/checkpoint?ins=main&leave_running={leave_running}"));
        assert!(error.starts_with(&format!("gpu-off: cuda-checkpoint cannot {action} python3[")), "{error}");
        assert!(error.contains(said) && !error.contains("still without"), "{error}");
        cuda.mend(action);
        all_compute(&server, &alice, &identities);
    }
    save(&alice, "ins=main");
    all_compute(&server, &alice, &identities);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn the_lock_fails() {
    fails_on_the_way("lock", "fail", "out of memory");
}

#[test]
fn the_lock_hangs() {
    fails_on_the_way("lock", "hang", "it did not end within 17 s and was ended");
}

#[test]
fn the_copy_fails() {
    fails_on_the_way("checkpoint", "fail", "out of memory");
}

#[test]
fn the_copy_hangs() {
    fails_on_the_way("checkpoint", "hang", "and was ended");
}

/// Back on the GPUs: what fails once is done again; the checkpoint is good in any case.
#[test]
fn the_way_back_fails_or_hangs_once() {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    for (action, how) in
        [("restore", "fail-once"), ("unlock", "fail-once"), ("restore", "hang-once"), ("unlock", "hang-once")]
    {
        cuda.fault(action, how);
        let saved = done(&alice, "/pod/checkpoint?ins=main");
        assert_eq!(saved["losses"].as_array().map(Vec::len), Some(0), "{action} {how}: {saved}");
        all_compute(&server, &alice, &identities);
    }
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A program that does not get its GPU back at all: the checkpoint is what it can be saved by.
#[test]
fn a_program_stays_without_its_gpu() {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    cuda.fault("restore", "fail");
    let saved = done(&alice, "/pod/checkpoint?ins=main");
    let losses = saved["losses"].to_string();
    assert!(losses.contains("still without their GPUs") && losses.contains("out of memory"), "{saved}");
    cuda.mend("restore");
    assert_clean(&server);
    alice.post("/pod/stop?ins=main").ok();
    done(&alice, "/pod/restore?ins=main");
    all_compute(&server, &alice, &identities);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The GPUs come back after a failure of what follows, when the pod goes on.
#[test]
fn the_dump_fails() {
    if !Need::Failpoints.is_there() {
        return;
    }
    for point in ["checkpoint-pause=return", "checkpoint-dump=return", "checkpoint-commit=return"] {
        let cuda = Cuda::new("570.86.10");
        let Some((server, alice, identities)) = start(&cuda, point) else { return };
        let leave_running = if point.contains("commit") { "false" } else { "true" };
        let error = fails(&alice, &format!("/pod/checkpoint?ins=main&leave_running={leave_running}"));
        assert!(error.contains("pody was ended while") && !error.contains("still without"), "{point}: {error}");
        all_compute(&server, &alice, &identities);
        delete(&alice, "main");
    }
}

/// Programs that end, and begin, while others are being copied.
#[test]
fn programs_come_and_go_meanwhile() {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    cuda.fault("lock", "slow");
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    let pid = identities[0].split(' ').next_back().unwrap().to_owned();
    eventually(std::time::Duration::from_secs(20), "it is being locked", || {
        cuda.was_called(&format!("lock {pid} begins"))
    });
    // The first is ended under the lock's hands.
    let one = super::cuda::host_pid(&server, "main", "one");
    assert!(std::process::Command::new("kill").args(["-9", &one.to_string()]).status().unwrap().success());
    let action = crate::help::wait(&alice, &begun);
    assert_eq!(action["status"], "done", "{action}");
    cuda.mend("lock");
    computes_on(&alice, "main", "two", &identities[1]);
    assert_clean(&server);
    alice.post("/pod/stop?ins=main").ok();
    done(&alice, "/pod/restore?ins=main");
    computes_on(&alice, "main", "two", &identities[1]);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
