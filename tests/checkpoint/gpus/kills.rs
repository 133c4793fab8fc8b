//! SIGKILL of the daemon around the phases of GPUs; the next start finds out the state of each program and recovers it,
//! even if GPU checkpoints have been disabled meanwhile.

use std::{thread, time::Duration};

use super::cuda::{Cuda, count, keeps_computing};
use crate::{
    common::{Client, Need, Server, eventually},
    help::{assert_clean, create, delete, delete_checkpoints, done, engine_says, save, status},
    kills::{last_action, wait_at},
};

fn start(cuda: &Cuda, point: &str) -> Option<(Server, Client)> {
    if !Need::Failpoints.is_there() {
        return None;
    }
    let server = cuda.start(|builder| {
        let builder = builder.env("TOKIO_WORKER_THREADS", "8");
        if point.is_empty() { builder } else { builder.env("FAILPOINTS", format!("{point}=pause")) }
    })?;
    let alice = server.member("alice");
    create(&alice, "main");
    Some((server, alice))
}

/// Kills the daemon when the action is stopped before the phase, disables GPU checkpoints, and starts it again.
fn kill_at(server: &mut Server, phase: &str) {
    wait_at(server, phase);
    end_and_start(server);
}

fn end_and_start(server: &mut Server) {
    server.reconfigure("[checkpoint]\ngpu = \"off\"\ncuda_checkpoint = \"\"");
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    assert_clean(server);
}

fn killed_in_checkpoint(phase: &str, leave_running: bool) {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, &format!("checkpoint-{phase}")) else { return };
    let identities = ["one", "two"].map(|name| {
        cuda.run(&server, &alice, "main", name, 0);
        count(&alice, "main", name).1
    });
    alice.post(&format!("/pod/checkpoint?ins=main&leave_running={leave_running}")).ok();
    kill_at(&mut server, phase);
    let (action, error) = last_action(&server);
    assert_eq!(action, "error");
    assert!(error.starts_with(&format!("{phase}: pody was stopped while it")) && !error.contains("without"), "{error}");
    eventually(Duration::from_secs(10), "it is running", || status(&alice, "main") == "running");
    for (name, identity) in ["one", "two"].into_iter().zip(&identities) {
        keeps_computing(&alice, "main", name, identity);
    }
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    // It can be checkpointed again.
    server.reconfigure(&cuda.config());
    save(&alice, "ins=main");
    keeps_computing(&alice, "main", "one", &identities[0]);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

macro_rules! kills_in_checkpoint {
    ($($name:ident: $phase:literal, $leave_running:literal;)*) => {
        $(#[test]
        fn $name() {
            killed_in_checkpoint($phase, $leave_running);
        })*
    };
}

kills_in_checkpoint! {
    killed_before_memory_leaves_the_gpus: "gpu-off", true;
    killed_before_the_pause: "pause", true;
    killed_before_the_dump_of_a_pod_to_be_stopped: "dump", false;
    killed_before_the_resume: "resume", true;
    killed_before_the_gpus_are_given_back: "gpu-on", true;
    killed_before_the_hashes: "hash", true;
    killed_before_the_commit_of_a_pod_to_be_stopped: "commit", false;
}

/// During a call: the call continues by itself, and the next start waits for its end before it checks the state.
fn killed_in_a_call(action: &str, leave_running: bool) {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, "") else { return };
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    cuda.fault(action, "slow");
    alice.post(&format!("/pod/checkpoint?ins=main&leave_running={leave_running}")).ok();
    eventually(Duration::from_secs(60), action, || cuda.was_called(&format!("{action} {pid} begins")));
    cuda.clear_fault(action);
    end_and_start(&mut server);
    assert_eq!(last_action(&server).0, "error");
    eventually(Duration::from_secs(10), "it is running", || status(&alice, "main") == "running");
    keeps_computing(&alice, "main", "one", &identity);
    let calls = cuda.calls();
    assert!(!calls.iter().any(|call| call.ends_with("failed")), "{calls:?}");
    assert_eq!(calls.last(), Some(&format!("unlock {pid}")), "{calls:?}");
    delete(&alice, "main");
}

#[test]
fn a_kill_while_programs_are_locked_is_recovered() {
    killed_in_a_call("lock", true);
}

#[test]
fn a_kill_while_memory_is_copied_is_recovered() {
    killed_in_a_call("checkpoint", false);
}

#[test]
fn a_kill_while_memory_is_copied_back_is_recovered() {
    killed_in_a_call("restore", true);
}

/// Killed, and again when the next start is about to give the GPUs back.
#[test]
fn a_kill_in_the_recovery_before_the_gpus_are_given_back_is_recovered() {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, "checkpoint-commit") else { return };
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    let query = "SELECT count(*) FROM actions WHERE status = 'running' AND phase = 'commit'";
    eventually(Duration::from_secs(60), "commit", || server.count(query) == 1);
    server.kill();
    server.set_env("FAILPOINTS", Some("recover-checkpoint-gpus=pause"));
    server.start_again();
    // It thaws the pod before that.
    eventually(Duration::from_secs(30), "it is thawed", || {
        engine_says(&server, "alice", "main", "{{.State.Paused}}") == "false"
    });
    thread::sleep(Duration::from_millis(300));
    assert_eq!(cuda.calls(), [format!("lock {pid}"), format!("checkpoint {pid}")]);
    end_and_start(&mut server);
    assert_eq!(cuda.calls(), [format!("restore {pid}"), format!("unlock {pid}")]);
    keeps_computing(&alice, "main", "one", &identity);
    delete(&alice, "main");
}

/// A daemon that receives SIGTERM does not leave programs without their GPUs until its next start, if possible.
#[test]
fn sigterm_while_memory_is_copied_gives_the_gpus_back() {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, "") else { return };
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    cuda.fault("checkpoint", "slow");
    alice.post("/pod/checkpoint?ins=main").ok();
    eventually(Duration::from_secs(60), "it is copied", || cuda.was_called(&format!("checkpoint {pid} begins")));
    cuda.clear_fault("checkpoint");
    server.terminate();
    server.start_again();
    assert_clean(&server);
    assert_eq!(cuda.calls().last(), Some(&format!("unlock {pid}")));
    assert_eq!(status(&alice, "main"), "running");
    keeps_computing(&alice, "main", "one", &identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

fn killed_in_restore(phase: &str, instance: &str) {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, &format!("restore-{phase}")) else { return };
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    let id = save(&alice, "ins=main&leave_running=false");
    cuda.gpus.change(|state| state.devices[0].processes.clear());
    cuda.calls();
    alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as={instance}")).ok();
    kill_at(&mut server, phase);
    let (action, error) = last_action(&server);
    assert_eq!(action, "done", "{error}");
    assert_eq!(cuda.calls(), [format!("restore {pid}"), format!("unlock {pid}")]);
    keeps_computing(&alice, instance, "one", &identity);
    assert_clean(&server);
    for name in alice.get("/pod/list").ok().json().as_array().unwrap() {
        delete(&alice, name.as_str().unwrap());
    }
    delete_checkpoints(&alice);
}

#[test]
fn a_kill_before_a_restored_pod_gets_its_gpus_is_recovered() {
    killed_in_restore("gpu-on", "main");
}

#[test]
fn a_kill_before_a_twin_gets_its_gpus_is_recovered() {
    killed_in_restore("gpu-on", "twin");
}

#[test]
fn a_kill_before_the_check_of_a_restored_pod_is_recovered() {
    killed_in_restore("check", "main");
}

/// The programs do not get their GPUs: the restored processes are killed, and the files are as before.
#[test]
fn a_kill_after_which_the_gpus_cannot_be_given_back_is_rolled_back() {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice)) = start(&cuda, "restore-gpu-on") else { return };
    cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    save(&alice, "ins=main&leave_running=false");
    alice.post("/pod/restore?ins=main").ok();
    cuda.fault("restore", "fail");
    kill_at(&mut server, "gpu-on");
    let (action, error) = last_action(&server);
    assert_eq!(action, "error");
    assert!(error.starts_with("gpu-on: cuda-checkpoint cannot restore python3["), "{error}");
    assert_eq!(status(&alice, "main"), "exited");
    cuda.clear_fault("restore");
    server.reconfigure(&cuda.config());
    done(&alice, "/pod/restore?ins=main");
    keeps_computing(&alice, "main", "one", &identity);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
