//! An engine that keeps its images in containerd: it takes a limit of storage and ignores it.

use serde_json::Value;

use crate::{
    help::{Proxied, assert_recovered, create},
    proxy::Fault,
};

/// Docker 28 with `containerd-snapshotter`, on a kernel without limits of memory. Nobody answers at that address.
const INFO: &str = r#"{"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "DockerRootDir": "/var/lib/docker", "CgroupVersion": "2", "CgroupDriver": "systemd",
    "Containerd": {"Address": "/run/none/containerd.sock", "Namespaces": {"Containers": "moby"}},
    "Warnings": ["WARNING: No memory limit support", "WARNING: No swap limit support"]}"#;

#[test]
fn a_storage_limit_that_would_not_hold_is_refused() {
    let Some(server) = Proxied::start_with(|builder| builder.config("[default_quota]\nstorage_size = \"1g\"")) else {
        return;
    };
    let _info = server.proxy.on("GET /info*", Fault::Answer(200, INFO));
    let creates = server.proxy.on("POST /containers/create*", Fault::Answer(201, "{}"));
    let alice = server.member("alice");
    let answer = create(&alice, "main");
    assert_eq!((answer.status, answer.code().as_str()), (500, "storage_size_unsupported"), "{answer}");
    assert_eq!(creates.hits(), 0, "the engine was asked for a pod without its limit");
    creates.lift();
    assert_recovered(&server);

    let doctor = server.command(&["doctor", "--json"]).env("DOCKER_HOST", server.proxy.docker_host()).output();
    let findings: Value = serde_json::from_slice(&doctor.expect("the binary runs").stdout).expect("JSON");
    let found = |check: &str| {
        let mut findings = findings.as_array().expect("a list").iter();
        let finding = findings.find(|finding| finding["check"] == check).expect("it is checked");
        (finding["level"].clone(), finding["found"].as_str().expect("a text").to_owned())
    };
    let (level, text) = found("storage driver");
    assert_eq!(level, "warn");
    assert!(text.contains("ignores the quota storage_size"), "{text}");
    let (level, text) = found("docker warnings");
    assert_eq!((level, text.as_str()), (Value::from("warn"), "No memory limit support; No swap limit support"));
}
