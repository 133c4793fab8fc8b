//! An engine that does not have the runtime of pods: a pod that was checkpointed and stopped could not be restored.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    common::{Client, RUNTIME, eventually, settings_with_runtime},
    help::{create, delete, exec},
    private::PrivateDocker,
};

/// Waits for an action that was begun.
#[track_caller]
fn end(client: &Client, begun: &str) -> Value {
    let id = client.post(begun).ok().json()["id"].as_str().expect("an id").to_owned();
    let mut action = Value::Null;
    eventually(Duration::from_secs(60), "the action ends", || {
        action = client.get(&format!("/action/status?id={id}")).ok().json();
        action["status"] != "running"
    });
    action
}

#[test]
fn checkpoints_are_refused_with_the_remedy_and_pods_of_before_are_restored_under_the_runtime() {
    let Some(mut docker) = PrivateDocker::start() else { return };
    let Some(server) = docker.server().start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    for answer in [alice.post("/pod/checkpoint?ins=main&leave_running=false"), alice.get("/checkpoint/check?ins=main")]
    {
        assert_eq!(answer.status, 501, "{answer}");
        let said = answer.detail();
        assert!(
            said.contains(&format!("Docker has no runtime \"{RUNTIME}\"")) && said.contains("daemon.json"),
            "{answer}"
        );
    }
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    // Checkpoints of files alone do not need it.
    alice.get("/checkpoint/check?ins=main&kind=rootfsonly").ok();

    let doctor =
        server.command(&["doctor", "--json"]).env("DOCKER_HOST", docker.host()).output().expect("the binary runs");
    let findings: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let first = findings.as_array().expect("a list").iter().find(|finding| finding["check"] == "runtime");
    let found = first.expect("it is checked");
    assert_eq!(found["level"], "fail", "{findings}");
    assert!(found["mend"].as_str().expect("a text").contains("install.sh"), "{findings}");

    // Fixed as the message says, without a restart of the daemon.
    docker.kill();
    docker.set(&settings_with_runtime());
    docker.start_again();
    eventually(Duration::from_secs(30), "the engine supports it now", || {
        alice.get("/checkpoint/check?ins=main").status == 200
    });

    // The pod was made under runc: it comes back in a container of the runtime, under its name, with its files and log.
    exec(&alice, "main", "echo kept > /root/kept; mkdir /root/folder; rm /etc/motd", 10).ok();
    let log = docker.docker(&["logs", &server.container("alice", "main")]).stdout;
    for kind in ["rootfs", "simple"] {
        let saved = end(&alice, &format!("/pod/checkpoint?ins=main&leave_running=false&kind={kind}"));
        assert_eq!(saved["status"], "done", "{saved}");
        let restored = end(&alice, "/pod/restore?ins=main");
        assert_eq!(restored["status"], "done", "{restored}");
        let found = exec(&alice, "main", "cat /root/kept; ls -d /root/folder; test -e /etc/motd || echo gone", 10).ok();
        let found = found.json().to_string().replace("\\r", "");
        assert!(found.contains("kept\\n/root/folder\\ngone"), "{found}");
    }
    let shown = |format: &str| {
        let shown = docker.docker(&["inspect", "--format", format, &server.container("alice", "main")]).stdout;
        String::from_utf8_lossy(&shown).trim().to_owned()
    };
    assert_eq!(shown("{{.HostConfig.Runtime}}"), RUNTIME);
    let log_now = docker.docker(&["logs", &server.container("alice", "main")]).stdout;
    assert!(log_now.starts_with(&log), "{}", String::from_utf8_lossy(&log_now));
    let all = docker.docker(&["ps", "--all", "--quiet"]).stdout;
    assert_eq!(String::from_utf8_lossy(&all).lines().count(), 1, "the container of before is gone");
    assert!(!Path::new("/run/pody-runc").join(shown("{{.Id}}")).exists(), "nothing is left for the runtime");
    let checkpoints = alice.get("/pod/checkpoints").ok().json();
    for checkpoint in checkpoints.as_array().expect("a list") {
        alice.post(&format!("/checkpoint/delete?checkpoint={}", checkpoint["id"].as_str().expect("an id"))).ok();
    }
    delete(&alice, "main").ok();
    assert!(fs::read_dir(server.home.join("checkpoints")).map_or(true, |mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.')))
    }));
}
