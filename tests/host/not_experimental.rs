//! An engine that is not set up for checkpoints: a pod that was checkpointed and stopped could not be restored.

use std::time::Duration;

use serde_json::Value;

use crate::{
    common::eventually,
    help::{create, delete},
    private::PrivateDocker,
};

#[test]
fn checkpoints_are_refused_with_the_remedy() {
    let Some(mut docker) = PrivateDocker::start() else { return };
    let Some(server) = docker.server().start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    for answer in [alice.post("/pod/checkpoint?ins=main&leave_running=false"), alice.get("/checkpoint/check?ins=main")]
    {
        assert_eq!(answer.status, 501, "{answer}");
        let said = answer.detail();
        assert!(
            said.contains("Docker must run with \"experimental\": true") && said.contains("daemon.json"),
            "{answer}"
        );
    }
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    // Checkpoints of files alone do not need it.
    alice.get("/checkpoint/check?ins=main&kind=rootfsonly").ok();

    let doctor =
        server.command(&["doctor", "--json"]).env("DOCKER_HOST", docker.host()).output().expect("the binary runs");
    let findings: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let findings = findings.as_array().expect("a list");
    let at = findings.iter().position(|finding| finding["check"] == "experimental").expect("it is checked");
    assert_eq!(findings[at]["level"], "warn");
    assert!(findings[at]["found"].as_str().expect("a text").contains("no checkpoints"));
    assert!(findings[at]["mend"].as_str().expect("a text").contains("daemon.json"));
    let before = findings[..at].iter().filter(|finding| finding["level"] == "warn").count();
    assert!(findings[..at].iter().all(|finding| finding["level"] != "ok") && before == 0, "{findings:?}");

    // Fixed as the message says, without a restart of the daemon.
    docker.kill();
    docker.set("{\"experimental\": true}");
    docker.start_again();
    eventually(Duration::from_secs(30), "the engine supports it now", || {
        alice.get("/checkpoint/check?ins=main").status == 200
    });
    delete(&alice, "main").ok();
}
