//! Which GPUs a pod gets, all the way to its container, on an engine that can assign them.

use serde_json::{Value, json};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
    },
    engine::{Engine, TINY},
    put_on_gpu, wait_for,
};

/// Creates a pod and returns what was requested of the engine, and what the pod's processes read in NVIDIA's variable.
fn create(server: &Server, engine: &Engine, instance: &str, gpus: Option<&str>) -> (Value, String, Value) {
    let parameter = gpus.map(|gpus| format!("&gpus={gpus}")).unwrap_or_default();
    let made = server.member("alice").post(&format!("/pod/create?ins={instance}&image={TINY}{parameter}")).ok().json();
    let name = server.container("alice", instance);
    let requests: Value =
        serde_json::from_str(&engine.docker(&["inspect", &name, "--format", "{{json .HostConfig.DeviceRequests}}"]))
            .expect("JSON");
    let visible = engine.docker(&["exec", &name, "/bin/sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES"]).trim().to_owned();
    (requests[0].clone(), visible, made["info"]["gpu_ids"].clone())
}

fn delete(server: &Server, instance: &str) {
    server.member("alice").post(&format!("/pod/delete?ins={instance}")).ok();
}

#[test]
fn a_pod_gets_the_requested_gpus_within_the_quota_whatever_its_image_says() {
    let Some(engine) = Engine::start() else { return };
    let gpus = Gpus::new(State::with_gpus(4));
    let Some(server) = engine.server().config(FAST).gpus(&gpus).start() else { return };
    let alice = server.member("alice");
    server.pody(&["quota", "update", "alice", "--gpus", "all"]);
    let capabilities = json!([["compute", "utility", "graphics"]]);

    // By index.
    let (request, visible, shown) = create(&server, &engine, "ids", Some("3,1"));
    assert_eq!((request["Driver"].clone(), request["DeviceIDs"].clone()), (json!("nvidia"), json!(["1", "3"])));
    assert_eq!((request["Capabilities"].clone(), visible.as_str(), shown), (capabilities, "1,3", json!([1, 3])));
    delete(&server, "ids");

    // None, although the image requests all.
    for none in ["0", "none"] {
        let (request, visible, shown) = create(&server, &engine, "without", Some(none));
        assert_eq!((request, visible.as_str(), shown), (Value::Null, "void", json!([])), "{none}");
        delete(&server, "without");
    }

    // For a count, the least used: two processes are on 0, one on 2.
    let mut sleepers: Vec<_> =
        (0..3).map(|_| std::process::Command::new("sleep").arg("4713").spawn().expect("sleep exists")).collect();
    put_on_gpu(&gpus, 0, &[(sleepers[0].id(), 1), (sleepers[1].id(), 1)]);
    put_on_gpu(&gpus, 2, &[(sleepers[2].id(), 1)]);
    let on =
        |gpu: usize| server.admin().get("/host/gpus").ok().json()["gpus"][gpu]["processes"].as_array().map(Vec::len);
    wait_for("the processes", || (on(0), on(2)), |seen| *seen == (Some(2), Some(1)));
    let (_, visible, shown) = create(&server, &engine, "two", Some("2"));
    assert_eq!((visible.as_str(), shown), ("1,3", json!([1, 3])));
    let (_, _, shown) = create(&server, &engine, "three", Some("3"));
    assert_eq!(shown, json!([1, 2, 3]));
    delete(&server, "two");
    delete(&server, "three");
    // A GPU that is assigned to another pod is chosen after one that is not, although both are idle.
    assert_eq!(create(&server, &engine, "first", Some("1")).2, json!([1]));
    assert_eq!(create(&server, &engine, "second", Some("1")).2, json!([3]));
    // It stays the same when the pod is restarted.
    alice.post("/pod/restart?ins=second").ok();
    assert_eq!(alice.get("/pod/inspect?ins=second").ok().json()["gpu_ids"], json!([3]));
    delete(&server, "first");
    delete(&server, "second");

    // A request without GPUs gets those that the quota allows.
    let (request, visible, shown) = create(&server, &engine, "all", None);
    assert_eq!((request["Count"].clone(), visible.as_str(), shown), (json!(-1), "all", Value::Null));
    delete(&server, "all");
    server.pody(&["quota", "update", "alice", "--gpus", "0,2"]);
    let (request, visible, shown) = create(&server, &engine, "some", None);
    assert_eq!((request["DeviceIDs"].clone(), visible.as_str(), shown), (json!(["0", "2"]), "0,2", json!([0, 2])));
    delete(&server, "some");
    assert_eq!(create(&server, &engine, "count", Some("1")).2, json!([2]), "the less used of the two");
    delete(&server, "count");

    // The quota's limits, with rule, numbers and next step; a refused create leaves nothing behind.
    let refused = |gpus: &str| {
        let answer = alice.post(&format!("/pod/create?ins=no&image={TINY}&gpus={gpus}"));
        (answer.status, answer.detail())
    };
    assert_eq!(
        refused("1,"),
        (
            403,
            "your quota lets your pods see the GPUs 0,2 and you ask for 1; choose among those, or ask an admin".into()
        )
    );
    assert_eq!(refused("3"), (403, "you ask for 3 GPUs and your pods may see 2 of this host's".into()));
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    assert_eq!(refused("2"), (403, "gpu_count is 1 and you ask for 2 GPUs; ask for fewer, or ask an admin".into()));
    server.pody(&["quota", "update", "alice", "--gpus", "none"]);
    let (request, visible, shown) = create(&server, &engine, "none", None);
    assert_eq!((request, visible.as_str(), shown), (Value::Null, "void", json!([])));
    delete(&server, "none");
    assert_eq!(engine.docker(&["ps", "-aq"]), "");

    for sleeper in &mut sleepers {
        sleeper.kill().expect("our own child");
        sleeper.wait().expect("our own child");
    }
}
