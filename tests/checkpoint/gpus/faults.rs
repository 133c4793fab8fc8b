//! Faults while memory moves off the GPUs and back: the pod keeps running, with all of its programs on their GPUs.

use super::cuda::{Cuda, count, keeps_computing};
use crate::{
    common::{Client, Need, Server, eventually},
    help::{assert_clean, create, delete, delete_checkpoints, done, engine_says, fails, save, status},
};

/// Short, so that hung calls are killed soon; enough for CRIU on a slow machine.
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
        keeps_computing(client, "main", name, identity);
    }
    assert_eq!(engine_says(server, "alice", "main", "{{.State.Paused}}"), "false");
    assert_eq!(engine_says(server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    assert_clean(server);
}

/// While moving off the GPUs: the checkpoint fails with the cause, whether the pod was to be stopped or not.
fn fails_on_the_way(action: &str, how: &str, said: &str) {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    for leave_running in ["true", "false"] {
        cuda.fault(action, how);
        let error = fails(&alice, &format!("/pod/checkpoint?ins=main&leave_running={leave_running}"));
        assert!(error.starts_with(&format!("gpu-off: cuda-checkpoint cannot {action} python3[")), "{error}");
        assert!(error.contains(said) && !error.contains("still without"), "{error}");
        cuda.clear_fault(action);
        all_compute(&server, &alice, &identities);
    }
    save(&alice, "ins=main");
    all_compute(&server, &alice, &identities);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn a_lock_that_fails_fails_the_checkpoint() {
    fails_on_the_way("lock", "fail", "out of memory");
}

#[test]
fn a_lock_that_hangs_fails_the_checkpoint() {
    fails_on_the_way("lock", "hang", "it did not end within 17 s and was ended");
}

#[test]
fn a_copy_that_fails_fails_the_checkpoint() {
    fails_on_the_way("checkpoint", "fail", "out of memory");
}

#[test]
fn a_copy_that_hangs_fails_the_checkpoint() {
    fails_on_the_way("checkpoint", "hang", "and was ended");
}

/// While moving back onto the GPUs: a step that fails once is retried; the checkpoint is valid in any case.
#[test]
fn a_step_back_onto_the_gpus_that_fails_or_hangs_once_is_retried() {
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

/// A program that does not get its GPU back at all can be recovered from the checkpoint.
#[test]
fn a_program_that_stays_without_its_gpu_is_reported() {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    cuda.fault("restore", "fail");
    let saved = done(&alice, "/pod/checkpoint?ins=main");
    let losses = saved["losses"].to_string();
    assert!(losses.contains("still without their GPUs") && losses.contains("out of memory"), "{saved}");
    cuda.clear_fault("restore");
    assert_clean(&server);
    alice.post("/pod/stop?ins=main").ok();
    done(&alice, "/pod/restore?ins=main");
    all_compute(&server, &alice, &identities);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The GPUs are given back after a later step fails, when the pod resumes.
#[test]
fn a_dump_that_fails_gives_the_gpus_back() {
    if !Need::Failpoints.is_there() {
        return;
    }
    for point in ["checkpoint-pause=return", "checkpoint-dump=return", "checkpoint-commit=return"] {
        let cuda = Cuda::new("570.86.10");
        let Some((server, alice, identities)) = start(&cuda, point) else { return };
        let leave_running = if point.contains("commit") { "false" } else { "true" };
        let error = fails(&alice, &format!("/pod/checkpoint?ins=main&leave_running={leave_running}"));
        assert!(error.contains("pody was stopped while") && !error.contains("still without"), "{point}: {error}");
        all_compute(&server, &alice, &identities);
        delete(&alice, "main");
    }
}

/// Programs exit and start while others are being copied.
#[test]
fn programs_may_start_and_exit_meanwhile() {
    let cuda = Cuda::new("570.86.10");
    let Some((server, alice, identities)) = start(&cuda, "") else { return };
    cuda.fault("lock", "slow");
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    let pid = identities[0].split(' ').next_back().unwrap().to_owned();
    eventually(std::time::Duration::from_secs(20), "it is being locked", || {
        cuda.was_called(&format!("lock {pid} begins"))
    });
    // The first is killed while it is being locked.
    let one = super::cuda::host_pid(&server, "main", "one");
    assert!(std::process::Command::new("kill").args(["-9", &one.to_string()]).status().unwrap().success());
    let action = crate::help::wait(&alice, &begun);
    assert_eq!(action["status"], "done", "{action}");
    cuda.clear_fault("lock");
    keeps_computing(&alice, "main", "two", &identities[1]);
    assert_clean(&server);
    alice.post("/pod/stop?ins=main").ok();
    done(&alice, "/pod/restore?ins=main");
    keeps_computing(&alice, "main", "two", &identities[1]);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
