//! `/host/…`

use std::collections::BTreeSet;

use insta::assert_snapshot;

use crate::common::{Server, docker};

#[test]
fn the_spec_shows_versions() {
    let Some(server) = Server::start() else { return };
    let spec = server.member("alice").get("/host/spec").ok().json();
    let keys: BTreeSet<&str> = spec.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["docker_version", "nvidia_ctk_version", "nvidia_driver_version", "pody_version"].into());
    assert_eq!(spec["pody_version"], pody::VERSION);
    assert_eq!(spec["docker_version"], docker(&["version", "--format", "{{.Server.Version}}"]));
}

#[test]
fn gpus_are_selected_by_index() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    assert_eq!(alice.get("/host/gpu-ps").status, 200);
    for bad in ["x", "-1", "0,x", "1.5", "99999999999"] {
        let answer = alice.get_with("/host/gpu-ps", &[("id", bad)]);
        assert_eq!(answer.status, 400, "{bad}: {answer}");
    }
    assert_snapshot!(alice.get("/host/gpu-ps?id=x"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "id: \"x\" is not a GPU index; write 0 or 0,1"
    }
    "#);
    assert_snapshot!(server.anon().get("/host/gpu-ps"), @r#"
    401
    {
      "code": "not_authenticated",
      "detail": "Not authenticated"
    }
    "#);
}

/// The documentation of an older version uses `gpu-id` in one example.
#[test]
fn both_names_of_the_gpu_parameter_work() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    assert_eq!(alice.get("/host/gpu-ps?gpu-id=x").status, 400);
    assert_eq!(alice.get("/host/gpu-ps?gpu-id=0").text(), alice.get("/host/gpu-ps?id=0").text());
}
