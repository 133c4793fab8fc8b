//! SIGKILL of the daemon before each phase of a checkpoint and of a restore, and of CRIU during a dump.

use std::{net::TcpStream, process::Command, thread, time::Duration};

use crate::{
    common::{Need, Server, eventually},
    help::{
        COUNTER, address, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec,
        keeps_counting, run_python, save, start_with, status,
    },
};

fn server_stopped_at(point: &str) -> Option<Server> {
    if !Need::Failpoints.is_there() {
        return None;
    }
    start_with(|builder| builder.env("FAILPOINTS", format!("{point}=pause")).env("TOKIO_WORKER_THREADS", "8"))
}

/// Returns when the action is stopped before the phase.
pub fn wait_at(server: &Server, phase: &str) {
    let query = format!("SELECT count(*) FROM actions WHERE status = 'running' AND phase = '{phase}'");
    eventually(Duration::from_secs(60), phase, || server.count(&query) == 1);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(server.count(&query), 1, "it did not stop at {phase}");
}

/// Kills the daemon when the action is stopped before the phase, and starts it again.
fn kill_at(server: &mut Server, phase: &str) {
    wait_at(server, phase);
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    assert_clean(server);
}

pub fn last_action(server: &Server) -> (String, String) {
    let query = "SELECT status, coalesce(error, '') FROM actions ORDER BY started_at DESC LIMIT 1";
    server.database().query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("an action")
}

fn assert_network(server: &Server, instance: &str) {
    let pid = engine_says(server, "alice", instance, "{{.State.Pid}}");
    let rules = Command::new("nsenter").args(["-t", &pid, "-n", "iptables-save"]).output().expect("nsenter");
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(!rules.contains("CRIU"), "{rules}");
    assert_reachable(&address(server, instance));
}

/// Data that the kernel accepts for a frozen pod that is then stopped are lost, and the sender believes that they
/// arrived.
#[test]
fn nothing_arrives_at_a_pod_that_is_about_to_be_stopped() {
    let Some(mut server) = server_stopped_at("checkpoint-hash") else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let address = address(&server, "main");
    assert_reachable(&address);
    alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    wait_at(&server, "hash");
    assert!(!takes_connections(&address));
    kill_at(&mut server, "hash");
    eventually(Duration::from_secs(5), "it is running", || status(&alice, "main") == "running");
    assert_reachable(&address);
    delete(&alice, "main");
}

fn takes_connections(address: &str) -> bool {
    TcpStream::connect_timeout(&format!("{address}:22").parse().expect("an address"), Duration::from_secs(1)).is_ok()
}

fn assert_reachable(address: &str) {
    eventually(Duration::from_secs(30), "packets get through", || takes_connections(address));
}

fn killed_in_checkpoint(phase: &str, leave_running: bool, complete: bool) {
    let Some(mut server) = server_stopped_at(&format!("checkpoint-{phase}")) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (from, identity) = count(&alice, "main");
    alice.post(&format!("/pod/checkpoint?ins=main&compression=zstd&leave_running={leave_running}")).ok();
    kill_at(&mut server, phase);

    let (action, error) = last_action(&server);
    let kept = alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len();
    if complete {
        assert_eq!((action.as_str(), kept), ("done", 1), "{error}");
    } else {
        assert_eq!((action.as_str(), kept), ("error", 0));
        assert!(error.starts_with(&format!("{phase}: pody was stopped while it")), "{error}");
    }
    if complete && !leave_running {
        assert_eq!(status(&alice, "main"), "exited");
        done(&alice, "/pod/restore?ins=main");
    }
    eventually(Duration::from_secs(5), "it is running", || status(&alice, "main") == "running");
    assert_eq!(count(&alice, "main").1, identity, "the same process as before");
    keeps_counting(&alice, "main", from);
    assert_network(&server, "main");
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    // It can be checkpointed again.
    save(&alice, "ins=main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

macro_rules! kills_in_checkpoint {
    ($($name:ident: $phase:literal, $leave_running:literal, $complete:literal;)*) => {
        $(#[test]
        fn $name() {
            killed_in_checkpoint($phase, $leave_running, $complete);
        })*
    };
}

kills_in_checkpoint! {
    killed_before_preflight: "preflight", true, false;
    killed_before_the_pause: "pause", true, false;
    killed_before_the_dump: "dump", true, false;
    killed_before_the_files_are_packed: "rootfs", true, false;
    killed_before_the_resume: "resume", true, false;
    killed_before_the_hashes: "hash", true, false;
    killed_before_the_commit: "commit", true, false;
    killed_before_the_compression: "compress", true, true;
    killed_before_the_pause_of_a_pod_to_be_stopped: "pause", false, false;
    killed_before_the_hashes_of_a_pod_to_be_stopped: "hash", false, false;
    killed_before_the_commit_of_a_pod_to_be_stopped: "commit", false, false;
    killed_before_the_stop: "stop", false, true;
    killed_before_the_compression_of_a_stopped_pod: "compress", false, true;
}

fn killed_in_restore(phase: &str, is_clone: bool, lives: bool) {
    let Some(mut server) = server_stopped_at(&format!("restore-{phase}")) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let id = save(&alice, "ins=main");
    exec(&alice, "main", "echo later > /root/later");
    let (_, identity) = count(&alice, "main");
    let name = if is_clone { "clone" } else { "main" };
    if !is_clone {
        alice.post("/pod/stop?ins=main").ok();
    }
    let to = if is_clone { "&as=clone" } else { "" };
    alice.post(&format!("/pod/restore?ins=main&checkpoint={id}{to}")).ok();
    kill_at(&mut server, phase);

    let (action, error) = last_action(&server);
    assert_eq!(action, if lives { "done" } else { "error" }, "{error}");
    if lives {
        assert_eq!(count(&alice, name).1, identity);
    } else if is_clone {
        assert_eq!(alice.get("/pod/inspect?ins=clone").status, 404);
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
    } else {
        // The files are as before: what was written after the checkpoint is still there.
        assert_eq!(status(&alice, "main"), "exited");
        alice.post("/pod/start?ins=main").ok();
        assert_eq!(exec(&alice, "main", "cat /root/later"), "later");
        alice.post("/pod/stop?ins=main").ok();
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    }
    assert_eq!(count(&alice, name).1, identity);
    assert_eq!(engine_says(&server, "alice", name, "{{.HostConfig.RestartPolicy.Name}}"), "always");
    assert_clean(&server);
    for name in alice.get("/pod/list").ok().json().as_array().unwrap() {
        delete(&alice, name.as_str().unwrap());
    }
    delete_checkpoints(&alice);
}

macro_rules! kills_in_restore {
    ($($name:ident: $phase:literal, $is_clone:literal, $lives:literal;)*) => {
        $(#[test]
        fn $name() {
            killed_in_restore($phase, $is_clone, $lives);
        })*
    };
}

kills_in_restore! {
    killed_before_the_verification: "verify", false, false;
    killed_before_the_files_are_restored: "prepare", false, false;
    killed_before_the_start: "start", false, false;
    killed_before_the_check: "check", false, true;
    killed_before_the_cleanup: "clean", false, true;
    killed_before_the_files_of_a_clone: "prepare", true, false;
    killed_before_the_start_of_a_clone: "start", true, false;
    killed_before_the_check_of_a_clone: "check", true, true;
    killed_before_the_cleanup_of_a_clone: "clean", true, true;
}

/// Sends over the network all the time, and exits at the first error: a closed network is one.
const TALKER: &str = "
import os, socket, time
l = socket.create_server(('127.0.0.1', 7030)); c = socket.create_connection(('127.0.0.1', 7030)); s, _ = l.accept()
print('ready')
n = 0
while True:
    n += 1
    c.sendall(b'x'); assert s.recv(1) == b'x'
    tell('/root/said', str(n))
";

/// Daemon and CRIU are killed while pages are written: the pod resumes, with its memory and its network.
#[test]
fn a_kill_of_daemon_and_criu_during_a_dump_leaves_the_pod_running() {
    let Some(mut server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = COUNTER.replace("os.urandom(4 << 20)", "os.urandom(1 << 20) * 700");
    run_python(&alice, "main", "counter", &program);
    run_python(&alice, "main", "talker", TALKER);
    let (from, identity) = count(&alice, "main");
    alice.post("/pod/checkpoint?ins=main").ok();
    let folder = server.home.join("checkpoints");
    eventually(Duration::from_secs(20), "pages are written", || {
        let under_way = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        under_way.into_iter().any(|entry| {
            let pages = entry.path().join("checkpoint");
            let sizes = std::fs::read_dir(pages).into_iter().flatten().flatten();
            sizes.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>() > 20 << 20
        })
    });
    server.kill();
    server.start_again();
    assert_clean(&server);
    assert_eq!(last_action(&server).0, "error");
    eventually(Duration::from_secs(5), "it is running", || status(&alice, "main") == "running");
    assert_eq!(count(&alice, "main").1, identity);
    keeps_counting(&alice, "main", from);
    assert_network(&server, "main");
    // The network was never closed while programs ran.
    let said = || exec(&alice, "main", "cat /root/said").parse::<u64>().unwrap();
    let before = said();
    eventually(Duration::from_secs(10), "it keeps sending", || said() > before);
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A kill leaves a pod in an intermediate state, and a new checkpoint of it begins before the recovery: the new
/// checkpoint does not mistake that state for the pod's own.
#[test]
fn a_new_checkpoint_first_recovers_from_a_kill() {
    let Some(mut server) = server_stopped_at("checkpoint-rootfs") else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (from, identity) = count(&alice, "main");
    alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    let query = "SELECT count(*) FROM actions WHERE status = 'running' AND phase = 'rootfs'";
    eventually(Duration::from_secs(20), "rootfs", || server.count(query) == 1);
    server.kill();
    // The recovery in the background never begins.
    server.set_env("FAILPOINTS", Some("recover-all=pause"));
    server.start_again();
    save(&alice, "ins=main&leave_running=false");
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "unless-stopped");
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    assert_eq!(count(&alice, "main").1, identity, "the same process as before");
    keeps_counting(&alice, "main", from);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Killed in a phase, and again while the next start recovers from that; the start after that succeeds.
fn killed_in_recovery(phase: &str, point: &str, is_restore: bool) {
    let action = if is_restore { "restore" } else { "checkpoint" };
    let Some(mut server) = server_stopped_at(&format!("{action}-{phase}")) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (from, identity) = count(&alice, "main");
    if is_restore {
        save(&alice, "ins=main");
        exec(&alice, "main", "echo later > /root/later");
        alice.post("/pod/stop?ins=main").ok();
        alice.post("/pod/restore?ins=main").ok();
    } else {
        alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    }
    let query = format!("SELECT count(*) FROM actions WHERE status = 'running' AND phase = '{phase}'");
    eventually(Duration::from_secs(20), phase, || server.count(&query) == 1);
    thread::sleep(Duration::from_millis(200));
    server.kill();

    server.set_env("FAILPOINTS", Some(&format!("{point}=pause")));
    server.start_again();
    // The recovery begins a second after the start.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(server.count("SELECT count(*) FROM actions WHERE status = 'running'"), 1, "it did not stop at {point}");
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    assert_clean(&server);

    assert_eq!(last_action(&server).0, "error");
    // The engine must not begin a pod again that was not restored.
    let policy = if is_restore { "no" } else { "always" };
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), policy);
    if is_restore {
        assert_eq!(status(&alice, "main"), "exited");
        alice.post("/pod/start?ins=main").ok();
        assert_eq!(exec(&alice, "main", "cat /root/later"), "later", "the same files as before");
        alice.post("/pod/stop?ins=main").ok();
        done(&alice, "/pod/restore?ins=main");
    } else {
        eventually(Duration::from_secs(5), "it is running", || status(&alice, "main") == "running");
        assert_network(&server, "main");
        keeps_counting(&alice, "main", from);
        save(&alice, "ins=main");
    }
    assert_eq!(count(&alice, "main").1, identity, "the same process as before");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

macro_rules! kills_in_recovery {
    ($($name:ident: $phase:literal, $point:literal, $is_restore:literal;)*) => {
        $(#[test]
        fn $name() {
            killed_in_recovery($phase, $point, $is_restore);
        })*
    };
}

kills_in_recovery! {
    killed_in_recovery_before_the_resume: "rootfs", "recover-checkpoint-ended", false;
    killed_in_recovery_after_the_resume: "rootfs", "recover-checkpoint-thawed", false;
    killed_in_recovery_after_the_directory_is_removed: "commit", "recover-checkpoint-removed", false;
    killed_in_recovery_before_the_files_are_rolled_back: "start", "recover-restore-ended", true;
    killed_in_recovery_after_the_files_are_rolled_back: "start", "recover-restore-put-back", true;
    killed_in_recovery_after_the_cleanup: "start", "recover-restore-cleaned", true;
}
