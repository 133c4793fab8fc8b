//! Users of one node on another: in both directions with a node of pody 0.4.1, and between two of ours.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;

use crate::common::{Need, Server, eventually, original::OriginalNode, password};

const OFF: &str = "enabled = false\nendpoint = \"\"\naccess_token = \"\"";
const NO_SERVICE: &str = "enabled = false\nreadonly = true\naccess_token = \"\"";

fn provider(endpoint: &str) -> String {
    format!("enabled = true\nendpoint = \"{endpoint}\"\naccess_token = \"between-nodes\"")
}

fn serving(readonly: bool) -> Server {
    let config = format!(
        "[remote_user_profile.service]\nenabled = true\nreadonly = {readonly}\naccess_token = \"between-nodes\""
    );
    Server::builder().without_docker().config(&config).start().unwrap()
}

/// A node of ours that uses the users of another.
fn using(endpoint: &str) -> Server {
    let mut server = Server::builder().without_docker().start().unwrap();
    server.reconfigure(&format!("[remote_user_profile.provider]\n{}", provider(endpoint)));
    server
}

#[test]
fn our_users_on_a_node_of_pody_0_4_1() {
    if !Need::PythonServer.is_there() {
        return;
    }
    let server = serving(true);
    let node = OriginalNode::start(server.spare_port(), &provider(&server.base()), NO_SERVICE);
    let info = node.client("alice", &password("alice")).get("/user/info").ok().json();
    assert_eq!(info["user"], json!({"name": "alice", "is_admin": false}));
    assert_eq!(node.client("boss", &password("boss")).get("/user/info").ok().json()["user"]["is_admin"], true);
    assert_eq!(node.client("alice", "wrong").get("/user/info").status, 403);
    assert_eq!(node.client("alice", &password("alice")).get("/user/list").ok().json(), json!(["boss", "alice", "bob"]));
    assert!(node.run("pody-user", &["list"]).contains("bob"));
    // Disabled here, refused there.
    server.admin().post("/admin/user/update?username=alice&disabled=true").ok();
    assert_eq!(node.client("alice", &password("alice")).get("/user/info").status, 403);
}

#[test]
fn a_node_of_pody_0_4_1_changes_our_users() {
    if !Need::PythonServer.is_there() {
        return;
    }
    let server = serving(false);
    let node = OriginalNode::start(server.spare_port(), &provider(&server.base()), NO_SERVICE);
    node.run("pody-user", &["add", "carol", "word", "--admin"]);
    server.client("carol", "word").get("/admin/user/list").ok();
    node.run("pody-user", &["update", "carol", "--password", "other", "--no-admin"]);
    assert_eq!(server.client("carol", "other").get("/admin/user/list").status, 403);
    node.client("alice", &password("alice")).post("/user/ch-passwd?passwd=changed").ok();
    server.client("alice", "changed").get("/user/info").ok();
    node.run("pody-user", &["delete", "carol"]);
    assert_eq!(server.client("carol", "other").get("/user/info").status, 401);
}

#[test]
fn users_of_pody_0_4_1_on_a_node_of_ours() {
    if !Need::PythonServer.is_there() {
        return;
    }
    let mut server = Server::builder().without_docker().start().unwrap();
    let node = OriginalNode::start(
        server.spare_port(),
        OFF,
        "enabled = true\nreadonly = false\naccess_token = \"between-nodes\"",
    );
    node.run("pody-user", &["add", "chief", "chief-word", "--admin"]);
    node.run("pody-user", &["add", "carol", "carol-word"]);
    server.reconfigure(&format!("[remote_user_profile.provider]\n{}", provider(&node.endpoint())));
    let (chief, carol) = (server.client("chief", "chief-word"), server.client("carol", "carol-word"));
    assert_eq!(carol.get("/user/info").ok().json()["user"], json!({"name": "carol", "is_admin": 0}));
    assert_eq!(chief.get("/user/info").ok().json()["user"]["is_admin"], 1);
    assert_snapshot!(server.client("carol", "wrong").get("/user/info"), @r#"
    401
    {
      "code": "invalid_credentials",
      "detail": "invalid username or password"
    }
    "#);
    // Local users are unknown now.
    assert_eq!(server.member("alice").get("/user/info").status, 401);
    assert_eq!(carol.get("/user/list").ok().json(), json!(["chief", "carol"]));
    // Quotas and tokens are this node's.
    chief.post("/admin/quota/update?username=carol&max_pods=3").ok();
    assert_eq!(carol.get("/user/info").ok().json()["quota"]["max_pods"], 3);
    let token = carol.post("/user/tokens/create").ok().json()["token"].as_str().unwrap().to_owned();
    server.anon().with_authorization(&format!("Bearer {token}")).get("/user/info").ok();
    // Changes are sent there.
    chief.post("/admin/user/add?username=dave&password=dave-word").ok();
    assert!(node.run("pody-user", &["list"]).contains("dave"));
    server.client("dave", "dave-word").get("/user/info").ok();
    carol.post("/user/ch-passwd?passwd=changed").ok();
    assert_eq!(carol.get("/user/info").status, 401);
    server.client("carol", "changed").get("/user/info").ok();
    chief.post("/admin/user/delete?username=dave").ok();
    assert_eq!(server.client("dave", "dave-word").get("/user/info").status, 401);
}

#[test]
fn users_are_shared_between_two_nodes_of_ours() {
    let home = serving(false);
    let server = using(&home.base());
    let (alice, boss) = (server.member("alice"), server.admin());
    assert_eq!(alice.get("/user/info").ok().json()["user"], json!({"name": "alice", "is_admin": 0}));
    assert_eq!(boss.get("/admin/user/list").ok().json().as_array().unwrap().len(), 3);
    assert_eq!(server.client("alice", "wrong").get("/user/info").status, 401);
    alice.post("/user/ch-passwd?passwd=changed").ok();
    home.client("alice", "changed").get("/user/info").ok();
    server.client("alice", "changed").get("/user/info").ok();
    assert_eq!(alice.get("/user/info").status, 401);
    let said = |answer: crate::common::Answer| answer.to_string().replace(&home.base(), "[home]");
    assert_snapshot!(said(boss.post("/admin/user/add?username=alice&password=x")), @r#"
    409
    {
      "code": "accounts_node_refused",
      "detail": "the node at [home] answered 409: user alice already exists"
    }
    "#);
    assert_snapshot!(said(boss.post("/admin/user/delete?username=nobody")), @r#"
    404
    {
      "code": "accounts_node_refused",
      "detail": "the node at [home] answered 404: there is no user nobody"
    }
    "#);
}

#[test]
fn a_node_without_write_access_says_so() {
    let home = serving(true);
    let server = using(&home.base());
    let answer = server.admin().post("/admin/user/add?username=carol&password=x").to_string();
    assert_snapshot!(answer.replace(&home.base(), "[home]"), @r#"
    502
    {
      "code": "accounts_node_read_only",
      "detail": "the node at [home] serves its users read-only; change them there"
    }
    "#);
}

/// While the home node is down, recently authenticated users keep working and others get the reason; later all work
/// again.
#[test]
fn a_home_node_that_is_down() {
    let mut home = serving(true);
    let server = using(&home.base());
    server.member("alice").get("/user/info").ok();
    home.terminate();
    server.member("alice").get("/user/info").ok();
    let answer = server.member("bob").get("/user/info");
    assert_eq!(answer.status, 503, "{answer}");
    assert!(answer.header("retry-after").is_some());
    assert!(answer.detail().starts_with("cannot reach the node that keeps the accounts: "), "{answer}");
    home.start_again();
    eventually(Duration::from_secs(5), "bob is accepted", || server.member("bob").get("/user/info").status == 200);
}

#[test]
fn a_wrong_token_between_nodes_is_reported() {
    let home = serving(true);
    let mut server = Server::builder().without_docker().start().unwrap();
    server.reconfigure(&format!(
        "[remote_user_profile.provider]\n{}",
        provider(&home.base()).replace("between-nodes", "not-that-one")
    ));
    let answer = server.member("alice").get("/user/info");
    assert_eq!(answer.status, 503, "{answer}");
    assert!(answer.detail().contains("rejects our access token"), "{answer}");
    assert!(!server.log().contains("not-that-one"));
}

/// Pods belong to a user name, so the account of another node finds them.
#[test]
fn pods_of_a_remote_user() {
    let home = serving(true);
    let Some(mut server) = Server::start() else { return };
    server.reconfigure(&format!("[remote_user_profile.provider]\n{}", provider(&home.base())));
    let alice = server.member("alice");
    alice.post("/pod/create?ins=main&image=pody-base").ok();
    assert_eq!(alice.get("/pod/list").ok().json(), json!(["main"]));
    assert_eq!(server.member("bob").get("/pod/inspect?ins=alice-main").status, 404);
    // While the node that keeps the accounts is down, admins and the daemon can still manage pods.
    server.restart();
    alice.get("/pod/inspect?ins=main").ok();
    alice.post("/pod/delete?ins=main").ok();
}
