//! `/pod/commit`, and commits under `/image/…`.

use insta::assert_snapshot;
use serde_json::json;

use super::{create, delete, engine_says, exec};
use crate::common::{Server, docker};

#[test]
fn a_commit_is_its_owners_image() {
    let Some(server) = Server::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    exec(&alice, "main", "echo mine > /root/mark");
    assert_snapshot!(alice.post("/pod/commit?ins=main"), @r#"
    200
    {
      "image_name": "[prefix]_commit:alice",
      "log": "Container [prefix]-alice-main committed to image: [prefix]_commit:alice"
    }
    "#);
    assert_snapshot!(alice.post_with("/pod/commit", &[("ins", "main"), ("tag", "two"), ("msg", "käse & co")]), @r#"
    200
    {
      "image_name": "[prefix]_commit:alice-two",
      "log": "Container [prefix]-alice-main committed to image: [prefix]_commit:alice-two"
    }
    "#);
    assert_snapshot!(alice.post("/pod/commit?ins=main&tag=two"), @r#"
    409
    {
      "code": "image_exists",
      "detail": "image [prefix]_commit:alice-two already exists; choose another tag, or delete it with `pody post image/delete image:[prefix]_commit:alice-two`"
    }
    "#);
    assert_snapshot!(alice.get("/image/list"), @r#"
    200
    [
      "alice",
      "alice-two",
      "pody-base:latest"
    ]
    "#);
    assert_eq!(alice.get("/image/inspect?image=alice-two").ok().json()["comment"], "käse & co");
    // Its full name works as well.
    let full = format!("{}:alice-two", server.commit_name());
    assert_eq!(alice.get_with("/image/inspect", &[("image", &full)]).ok().json()["name"], full.as_str());

    // Others, admins included, do not find it by any name.
    for who in [&bob, &server.admin()] {
        for image in ["alice", "alice-two", &full] {
            assert_eq!(who.get_with("/image/inspect", &[("image", image)]).status, 400, "{image}");
            assert_eq!(who.post_with("/image/delete", &[("image", image)]).status, 400, "{image}");
            assert_eq!(who.post_with("/pod/create", &[("ins", "x"), ("image", image)]).status, 400, "{image}");
        }
    }
    assert_eq!(bob.get("/image/list").ok().json(), json!(["pody-base:latest"]));

    // A pod of it has its files, and its own labels and rules.
    alice.post("/pod/create?ins=next&image=alice-two").ok();
    assert_eq!(exec(&alice, "next", "cat /root/mark; printenv NVIDIA_VISIBLE_DEVICES"), "mine\nvoid");
    let (first, next) = (engine_says(&server, "alice", "main"), engine_says(&server, "alice", "next"));
    assert_ne!(first["Config"]["Labels"]["pody.pod"], next["Config"]["Labels"]["pody.pod"]);
    assert_eq!(next["Config"]["Labels"]["pody.instance"], "next");
    assert_eq!(first["HostConfig"]["CapAdd"], next["HostConfig"]["CapAdd"]);
    assert_eq!(first["HostConfig"]["SecurityOpt"], next["HostConfig"]["SecurityOpt"]);

    assert_snapshot!(alice.post("/image/delete?image=alice-two"), @r#"
    409
    {
      "code": "image_in_use",
      "detail": "[prefix]_commit:alice-two is in use by [prefix]-alice-next; delete that first"
    }
    "#);
    delete(&alice, "next");
    assert_snapshot!(alice.post("/image/delete?image=alice-two"), @r#"
    200
    {
      "log": "Image [prefix]_commit:alice-two deleted"
    }
    "#);
    assert_snapshot!(alice.post("/image/delete?image=alice-two"), @r#"
    400
    {
      "code": "image_not_allowed",
      "detail": "alice-two is not an image that you may use; choose one of: alice, pody-base:latest"
    }
    "#);
    alice.post("/image/delete?image=alice").ok();
    assert_eq!(server.commits().len(), 0);
    delete(&alice, "main");
}

/// The engine pauses a pod while it is committed; afterwards the pod is shown as running.
#[test]
fn a_pod_runs_after_its_commit() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    for number in 0..8 {
        alice.post(&format!("/pod/commit?ins=main&tag=t{number}")).ok();
        assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
        exec(&alice, "main", "true");
    }
    for image in server.commits() {
        alice.post_with("/image/delete", &[("image", &image)]).ok();
    }
    delete(&alice, "main");
}

#[test]
fn commits_are_counted() {
    let Some(server) = Server::builder().config("[default_quota]\ncommit_count = 1").start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    alice.post("/pod/commit?ins=main&tag=one").ok();
    assert_snapshot!(alice.post("/pod/commit?ins=main&tag=two"), @r#"
    403
    {
      "code": "commit_count",
      "detail": "commit_count is 1 and you have 1: [prefix]_commit:alice-one; delete one with `pody post image/delete image:NAME`"
    }
    "#);
    alice.post("/image/delete?image=alice-one").ok();
    alice.post("/pod/commit?ins=main&tag=two").ok();
    alice.post("/image/delete?image=alice-two").ok();
    delete(&alice, "main");
}

#[test]
fn concurrent_commits_are_counted_too() {
    let Some(server) = Server::builder().config("[default_quota]\ncommit_count = 2").start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let commit = |tag: &str| alice.post(&format!("/pod/commit?ins=main&tag={tag}")).status;
    let mut statuses = std::thread::scope(|scope| {
        let threads = ["a", "b", "c", "d", "e"].map(|tag| scope.spawn(move || commit(tag)));
        threads.map(|thread| thread.join().unwrap())
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 403, 403, 403]);
    for image in server.commits() {
        alice.post_with("/image/delete", &[("image", &image)]).ok();
    }
    delete(&alice, "main");
}

#[test]
fn a_too_large_commit_is_refused() {
    let Some(server) = Server::builder().config("[default_quota]\ncommit_size_limit = \"2m\"").start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    alice.post("/pod/commit?ins=main&tag=small").ok();
    exec(&alice, "main", "head -c 5000000 /dev/zero > /root/large");
    let answer = alice.post("/pod/commit?ins=main&tag=large");
    assert_eq!(answer.status, 403, "{answer}");
    let detail = answer.detail();
    assert!(detail.starts_with("commit_size_limit is 2m and the pod has written "), "{detail}");
    assert!(detail.contains("; delete files in it"), "{detail}");
    alice.post("/image/delete?image=alice-small").ok();
    delete(&alice, "main");
}

#[test]
fn a_stopped_pod_is_committed_too() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    alice.post("/pod/stop?ins=main").ok();
    alice.post("/pod/commit?ins=main").ok();
    let image = format!("{}:alice", server.commit_name());
    let labels = docker(&["image", "inspect", &image, "--format", "{{index .Config.Labels \"pody.pod\"}}"]);
    assert_eq!(labels, "", "a commit does not inherit its pod's labels");
    alice.post("/image/delete?image=alice").ok();
    delete(&alice, "main");
}
