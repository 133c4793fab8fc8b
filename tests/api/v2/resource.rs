//! `/v2/pods`, `/v2/nodes`, `/v2/jobs`: the pods of this host.

use serde_json::{Value, json};

use crate::common::Server;

#[test]
fn pods_and_jobs_are_the_callers_pods() {
    let Some(server) = Server::start() else { return };
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    alice.post("/pod/create?ins=main&image=pody-base").ok();
    alice.post("/pod/create?ins=second&image=pody-base").ok();
    bob.post("/pod/create?ins=main&image=pody-base").ok();

    let pods = alice.get("/v2/pods").ok().json();
    let names = |pods: &Value| {
        let name = |pod: &Value| format!("{}/{}", pod["namespace"], pod["name"]).replace('"', "");
        let mut names: Vec<String> = pods.as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(names(&pods), ["alice/main", "alice/second"]);
    let main = &pods[0];
    let host = alice.get("/v2/cluster").ok().json()[0].clone();
    assert_eq!(
        json!(["status", "ready", "restarts", "monitored_by_policies", "source"].map(|key| &main[key])),
        json!(["Running", "1/1", 0, [], "pody"])
    );
    assert_eq!((&main["node"], &main["cluster_id"]), (&host["name"], &host["id"]));
    assert!(main["start_time"].as_str().unwrap().starts_with("20"), "{main}");
    assert!(main["age"].as_str().unwrap().ends_with('s'), "{main}");
    assert_eq!(names(&admin.get("/v2/pods").ok().json()), ["alice/main", "alice/second", "bob/main"]);

    // By its own id, with and without quotes; by the cluster's id; another user's is not found.
    let id = main["id"].as_str().unwrap();
    let by = |client: &crate::common::Client, id: &str| names(&client.get(&format!("/v2/pods?id={id}")).ok().json());
    assert_eq!(by(&alice, id), ["alice/main"]);
    assert_eq!(by(&alice, &format!("%22{id}%22")), ["alice/main"]);
    assert_eq!(by(&alice, host["id"].as_str().unwrap()), ["alice/main", "alice/second"]);
    assert!(by(&bob, id).is_empty());

    alice.post("/pod/stop?ins=second").ok();
    let pods = alice.get("/v2/pods").ok().json();
    let second = pods.as_array().unwrap().iter().find(|pod| pod["name"] == "second").unwrap();
    assert_eq!((&second["status"], &second["ready"]), (&json!("Stopped"), &json!("0/1")));
    assert_eq!(alice.get("/v2/pods/count").ok().json(), json!({"total_count": 2}));

    // A job is a running pod, under the name that outlives it.
    let jobs = alice.get("/v2/jobs").ok().json();
    assert_eq!(names(&jobs), ["alice/main"]);
    assert_eq!(
        json!(["jid", "type", "status", "pod_ids", "policy_count"].map(|key| &jobs[0][key])),
        json!([server.container("alice", "main"), "docker", "Running", [id], 0])
    );
    assert_eq!(alice.get("/v2/jobs/count").ok().json(), json!({"total_count": 1}));
    assert_eq!(names(&admin.get("/v2/jobs").ok().json()), ["alice/main", "bob/main"]);

    for (client, ins) in [(&alice, "main"), (&alice, "second"), (&bob, "main")] {
        client.post(&format!("/pod/delete?ins={ins}")).ok();
    }
    assert_eq!(admin.get("/v2/pods").ok().json(), json!([]));
}

#[test]
fn the_node_is_this_host() {
    let server = super::server();
    let nodes = server.member("alice").get("/v2/nodes").ok().json();
    let host = server.member("alice").get("/v2/cluster").ok().json()[0].clone();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    assert_eq!(
        json!(["id", "name", "cluster_name", "status", "region", "source"].map(|key| &nodes[0][key])),
        json!([host["id"], host["name"], host["name"], "Ready", "local", "pody"])
    );
}

#[test]
fn a_node_with_gpus_is_shown_as_one() {
    let gpus = crate::common::Gpus::new(crate::common::gpus::State::with_gpus(2));
    let server = Server::builder().without_docker().gpus(&gpus).start().expect("no requirements");
    crate::common::eventually(std::time::Duration::from_secs(10), "the GPUs are seen", || {
        server.member("alice").get("/v2/nodes").ok().json()[0]["compute_type"] == "gpu"
    });
}
