//! Requests for a pod, and changes to it, during a checkpoint or restore.

use std::time::Duration;

use crate::{
    common::{Need, Server, docker, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, keeps_counting, run_python, start_with,
        status, wait,
    },
};

fn start_slowly(points: &str) -> Option<Server> {
    if !Need::Failpoints.is_there() {
        return None;
    }
    start_with(|builder| builder.env("FAILPOINTS", points).env("TOKIO_WORKER_THREADS", "8"))
}

/// A paused pod resumes by itself after a moment: requests wait, and get no misleading answer.
#[test]
fn a_command_waits_for_a_checkpoint_or_restore_to_finish() {
    let Some(server) = start_slowly("checkpoint-rootfs=sleep(2500);restore-start=sleep(2500)") else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let paused = || docker(&["inspect", "-f", "{{.State.Paused}}", &server.container("alice", "main")]) == "true";
    // On a busy host it takes longer than requests wait: the answer says so, and not to start the pod.
    let ask = |path: &str| loop {
        let answer = if path.starts_with("/pod/exec") { alice.post(path) } else { alice.get(path) };
        if answer.status != 409 {
            break answer.ok();
        }
        assert!(answer.detail().contains("an operation on it is in progress: see `pody actions`"), "{path}: {answer}");
    };
    let ask_everything = || {
        let command = ask("/pod/exec?ins=main&cmd=echo%20here").json();
        assert_eq!((command["exit_code"].as_i64(), command["log"].as_str()), (Some(0), Some("here\r\n")));
        for path in ["/pod/exec?ins=main&detach=true&cmd=true", "/pod/stats?ins=main", "/pod/sessions?ins=main"] {
            ask(path);
        }
    };
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    eventually(Duration::from_secs(30), "it is paused", paused);
    let asked = alice.get("/checkpoint/check?ins=main");
    assert!(asked.status == 409 && asked.detail().contains("is already in progress"), "{asked}");
    ask_everything();
    assert_eq!(wait(&alice, &begun)["status"], "done");

    // Stopped by its checkpoint: requests do not wait then.
    let begun = alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    assert_eq!(wait(&alice, &begun)["status"], "done");
    let refused = alice.post("/pod/exec?ins=main&cmd=true");
    assert!(refused.status == 409 && refused.detail().contains("pody start"), "{refused}");

    let begun = alice.post("/pod/restore?ins=main").ok();
    ask_everything();
    assert_eq!(wait(&alice, &begun)["status"], "done");
    let (from, _) = count(&alice, "main");
    keeps_counting(&alice, "main", from);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Its dump would not be of one moment, and the files would not match the processes.
#[test]
fn a_checkpoint_fails_if_its_pod_is_unpaused_by_others() {
    for rest in ["", "&leave_running=false"] {
        let Some(server) = start_slowly("checkpoint-rootfs=sleep(2500)") else { return };
        let alice = server.member("alice");
        create(&alice, "main");
        run_python(&alice, "main", "counter", COUNTER);
        // tar complains too, about files that disappear while it reads them.
        let busy = "print('ready')\nwhile True:\n    for n in range(50): tell('/root/%d' % n, '')";
        run_python(&alice, "main", "busy", busy);
        let container = server.container("alice", "main");
        let begun = alice.post(&format!("/pod/checkpoint?ins=main{rest}")).ok();
        let paused = || docker(&["inspect", "-f", "{{.State.Paused}}", &container]) == "true";
        eventually(Duration::from_secs(30), "it is paused", paused);
        let in_rootfs = || {
            let action = alice.get(&format!("/action/status?id={}", begun.json()["id"].as_str().unwrap())).ok().json();
            action["phase"] == "rootfs"
        };
        eventually(Duration::from_secs(30), "its processes are dumped", in_rootfs);
        docker(&["unpause", &container]);
        let action = wait(&alice, &begun);
        let why = action["error"].as_str().unwrap_or_default();
        assert!(why.starts_with("rootfs: ") && why.contains("was unpaused during the checkpoint"), "{action}");
        let (from, _) = count(&alice, "main");
        keeps_counting(&alice, "main", from);
        assert_eq!(docker(&["inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", &container]), "always");
        assert_clean(&server);
        done(&alice, "/pod/checkpoint?ins=main&kind=simple");
        delete(&alice, "main");
        delete_checkpoints(&alice);
    }
}

/// CRIU itself would report only the files that disappeared.
#[test]
fn a_checkpoint_whose_pod_is_killed_reports_that() {
    for end in [&["kill"][..], &["rm", "-f"], &["restart", "-t", "0"]] {
        let Some(server) = start_slowly("checkpoint-dump=sleep(2500)") else { return };
        let alice = server.member("alice");
        create(&alice, "main");
        let container = server.container("alice", "main");
        let begun = alice.post("/pod/checkpoint?ins=main").ok();
        let paused = || docker(&["inspect", "-f", "{{.State.Paused}}", &container]) == "true";
        eventually(Duration::from_secs(30), "it is paused", paused);
        docker(&[end, &[container.as_str()]].concat());
        let action = wait(&alice, &begun);
        let why = action["error"].as_str().unwrap_or_default();
        assert!(why.contains("ended while it was saved"), "{end:?}: {action}");
        assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
        assert_clean(&server);
        if end == ["restart", "-t", "0"] {
            eventually(Duration::from_secs(30), "it is running", || status(&alice, "main") == "running");
            done(&alice, "/pod/checkpoint?ins=main");
            delete_checkpoints(&alice);
        }
        // A removed one is forgotten by itself after a moment.
        let gone = alice.post("/pod/delete?ins=main");
        assert!(gone.status == 200 || gone.status == 404, "{gone}");
    }
}
