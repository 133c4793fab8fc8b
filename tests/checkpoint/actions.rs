//! Actions as clients see them: the progress of a copy, a pod's history under its name, after a restart of the daemon,
//! and while others are in progress.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    common::{Client, Need, eventually},
    help::{
        COUNTER, assert_clean, create, delete, delete_checkpoints, done, exec, fails, run_python, save, start,
        start_with, status, wait,
    },
};

const PATIENCE: Duration = Duration::from_secs(90);

fn ids(answer: &Value) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|action| action["id"].as_str().unwrap()).collect()
}

/// The state of a copy, everywhere it is shown: with the action, in both lists of actions, with the checkpoint and in
/// its list.
fn shown_everywhere(client: &Client, action: &str, checkpoint: &str) -> [Value; 6] {
    let of = |at: &Value| json!([at["remote"], at["remote_bytes"], at["remote_total_bytes"]]);
    let get = |path: &str| client.get(path).ok().json();
    [
        of(&get(&format!("/action/status?id={action}"))),
        of(&get("/action/list")[0]),
        of(&get("/v2/actions")[0]["details"]),
        of(&get(&format!("/checkpoint/inspect?checkpoint={checkpoint}"))),
        of(&get("/pod/checkpoints")[0]),
        of(&get(&format!("/v2/checkpoints?ids={checkpoint}"))[0]["pody"]),
    ]
}

#[test]
fn the_progress_of_a_copy_is_shown_everywhere() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let store = tempfile::Builder::new().prefix("pody-test-store-").tempdir().unwrap();
    let config = format!("[checkpoint]\nstreams = 1\n[checkpoint.remote]\nurl = \"file://{}\"", store.path().display());
    // At this point some files are in the store, and some are not.
    let slow = |builder: crate::common::Builder| {
        builder.config(&config).env("FAILPOINTS", "copy-file=5*off->1*sleep(10000)->off")
    };
    let Some(server) = start_with(slow) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let action = done(&alice, "/pod/checkpoint?ins=main&remote=true");
    let (id, checkpoint) = (action["id"].as_str().unwrap(), action["checkpoint"].as_str().unwrap());
    let bytes = || alice.get(&format!("/action/status?id={id}")).ok().json()["remote_bytes"].as_u64();
    eventually(PATIENCE, "part of it is there", || bytes().is_some_and(|bytes| bytes > 0));
    // All show the same once it makes no progress.
    let mut shown = shown_everywhere(&alice, id, checkpoint);
    eventually(PATIENCE, "the same everywhere", || {
        shown = shown_everywhere(&alice, id, checkpoint);
        shown.iter().all(|view| *view == shown[0])
    });
    let (state, bytes, total) = (&shown[0][0], shown[0][1].as_u64().unwrap(), shown[0][2].as_u64().unwrap());
    assert!(*state == "copying" && 0 < bytes && bytes < total, "{shown:?}");
    let size = alice.get("/pod/checkpoints").ok().json()[0]["size"].as_u64().unwrap();
    assert_eq!(total, size);
    eventually(PATIENCE, "it is copied", || {
        shown_everywhere(&alice, id, checkpoint).iter().all(|view| *view == json!(["copied", null, null]))
    });
    delete(&alice, "main");
    delete_checkpoints(&alice);
    eventually(PATIENCE, "the copy is deleted", || server.count("SELECT count(*) FROM copies") == 0);
}

#[test]
fn a_pods_history_is_found_by_its_name() {
    let Some(mut server) = start() else { return };
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    create(&alice, "main");
    let pod = alice.get("/v2/pods").ok().json()[0]["id"].as_str().unwrap().to_owned();
    let first = done(&alice, "/pod/checkpoint?ins=main&kind=rootfsonly");
    let id = first["id"].as_str().unwrap();
    let listed = |client: &Client, query: &str| client.get(&format!("/action/list?{query}")).ok().json();
    assert_eq!(ids(&listed(&alice, "ins=main")), [id]);
    delete(&alice, "main");
    // The pod is deleted; its history is kept.
    assert_eq!(ids(&listed(&alice, "ins=main")), [id]);
    assert_eq!(ids(&listed(&alice, &format!("ins={}", server.container("alice", "main")))), [id]);
    assert_eq!(alice.get(&format!("/v2/actions/from_pod/{pod}")).ok().text(), id);
    // It is restored as another pod of that name, and the daemon restarts.
    let second = done(&alice, "/pod/restore?ins=main");
    assert_ne!(second["pod"], first["pod"]);
    let both = [second["id"].as_str().unwrap(), id];
    assert_eq!(ids(&listed(&alice, "ins=main")), both);
    server.restart();
    assert_eq!(ids(&listed(&alice, "ins=main")), both);
    assert_eq!(ids(&listed(&alice, "ins=main&type=restore")), both[..1]);
    for (action, before) in [(&first, "checkpoint"), (&second, "restore")] {
        let id = action["id"].as_str().unwrap();
        let now = alice.get(&format!("/action/status?id={id}")).ok().json();
        assert_eq!(now, *action, "{before}");
        assert_eq!(alice.get(&format!("/v2/checkpoint/status/{id}")).ok().json()["status"], "ready");
    }
    // Other members do not see it, admins do.
    for query in ["ins=alice-main", "ins=main"] {
        assert_eq!(bob.get(&format!("/action/list?{query}")).status, 404, "{query}");
    }
    assert_eq!(ids(&listed(&admin, "ins=alice-main")), both);
    assert_eq!(admin.get("/action/list?ins=main").status, 404);
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert_clean(&server);
}

/// Of two concurrent restores one is refused, with the command that shows the other; a checkpoint that is being read is
/// not removed, whether it is deleted or deprecated.
#[test]
fn a_restore_protects_its_checkpoint_and_excludes_a_second_restore() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let slow = |builder: crate::common::Builder| {
        builder.config("[checkpoint]\ndeprecated_seconds = 1").env("FAILPOINTS", "restore-verify=1*sleep(9000)->off")
    };
    let Some(server) = start_with(slow) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let id = save(&alice, "ins=main&leave_running=false");
    let begun = alice.post("/pod/restore?ins=main").ok();
    let action = begun.json()["id"].as_str().unwrap().to_owned();
    let second = alice.post("/pod/restore?ins=main");
    assert_eq!(second.status, 409, "{second}");
    assert!(second.detail().contains(&format!("`pody actions --follow {action}` shows its progress")), "{second}");
    let refused = alice.post(&format!("/checkpoint/delete?checkpoint={id}"));
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("in use by a checkpoint or restore in progress"), "{refused}");
    // Accepted at once, and carried out when nothing reads it any longer.
    assert_eq!(alice.send("PATCH", &format!("/v2/checkpoints/deprecate/{id}"), &[]).ok().text(), id);
    let shown = alice.get(&format!("/v2/checkpoints?ids={id}")).ok().json();
    assert_eq!(shown[0]["status"], "deprecated", "{shown}");
    let twin = alice.post("/pod/restore?ins=main&as=twin");
    assert_eq!(twin.status, 404, "a deprecated checkpoint cannot be restored: {twin}");
    assert_eq!(wait(&alice, &begun)["status"], "done");
    assert_eq!(status(&alice, "main"), "running");
    exec(&alice, "main", "cat /root/count");
    eventually(PATIENCE, "it is deleted", || server.count("SELECT count(*) FROM checkpoints") == 0);
    assert!(!server.home.join("checkpoints").join(&id).exists());
    delete(&alice, "main");
    assert_clean(&server);
}

/// The log of a CRIU that has filled the disk is cut off where the disk was full, in the middle of a word or before it
/// began: whatever is left of it, the cause is reported, with the place and the free space.
#[test]
fn a_criu_log_that_a_full_disk_cut_off_is_reported_as_a_full_disk() {
    let disk = crate::trouble::Disk::new("64m");
    let config = format!("[checkpoint]\nkeep_free = \"0\"\ndirectory = \"{}\"", disk.path().display());
    let real = std::env::split_paths(&std::env::var("PATH").unwrap())
        .map(|part| part.join("criu"))
        .find(|program| program.is_file());
    let Some(real) = real.filter(|_| Need::Docker.is_there()) else { return };
    let programs = tempfile::tempdir().unwrap();
    let left = programs.path().join("left");
    // Fills the disk except for this many bytes as soon as CRIU is to dump.
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = swrk ] && [ -n \"$PODY_ACTION\" ]; then\n\
         fallocate -l $(( $(stat -f -c '%f*%S' {disk}) - $(cat {left}) )) {disk}/filler\nfi\nexec {real} \"$@\"\n",
        disk = disk.path().display(),
        left = left.display(),
        real = real.display(),
    );
    std::fs::write(programs.path().join("criu"), script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(programs.path().join("criu"), mode).unwrap();
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    let Some(server) = start_with(|builder| builder.config(&config).env("PATH", path)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    for room in [0, 8 << 10, 100 << 10, 150 << 10, 600 << 10, 2 << 20] {
        std::fs::write(&left, room.to_string()).unwrap();
        let error = fails(&alice, "/pod/checkpoint?ins=main");
        let place = disk.path().display().to_string();
        // The remaining space may be enough for everything but the memory, which is written after the pod resumes.
        let (phase, cause) = error.split_once(": ").unwrap_or_default();
        assert!(matches!(phase, "dump" | "hash"), "{room}: {error}");
        assert!(cause.starts_with(&format!("the disk is full: {place}")), "{room}: {error}");
        assert!(error.contains("free space there"), "{room}: {error}");
        assert_eq!(status(&alice, "main"), "running");
        std::fs::remove_file(disk.path().join("filler")).unwrap();
    }
    std::fs::write(&left, (60 << 20).to_string()).unwrap();
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert_clean(&server);
}
