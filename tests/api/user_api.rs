//! `/user_api/…`: this node's accounts for other nodes.

use insta::assert_snapshot;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{Client, Server, password};

fn server(service: &str) -> Server {
    let config = format!("[remote_user_profile.service]\naccess_token = \"between-nodes\"\n{service}");
    Server::builder().without_docker().config(&config).start().unwrap()
}

fn node(server: &Server) -> Client {
    server.anon().with_authorization("Bearer between-nodes")
}

fn credential(user: &str, password: &str) -> String {
    hex::encode(Sha256::digest(format!("{user}:{password}")))
}

#[test]
fn it_is_off_unless_enabled() {
    let server = server("enabled = false");
    assert_snapshot!(node(&server).get("/user_api/list_users"), @r#"
    501
    {
      "code": "user_service_disabled",
      "detail": "Remote user profile service is not enabled"
    }
    "#);
    assert_snapshot!(server.anon().get("/user_api/list_users"), @r#"
    501
    {
      "code": "user_service_disabled",
      "detail": "Remote user profile service is not enabled"
    }
    "#);
}

#[test]
fn only_nodes_with_the_token_are_admitted() {
    let server = server("enabled = true");
    assert_snapshot!(server.anon().get("/user_api/list_users"), @r#"
    401
    {
      "code": "no_access_token",
      "detail": "Missing or invalid Authorization header"
    }
    "#);
    assert_snapshot!(server.admin().get("/user_api/list_users"), @r#"
    401
    {
      "code": "no_access_token",
      "detail": "Missing or invalid Authorization header"
    }
    "#);
    assert_snapshot!(server.anon().with_authorization("Bearer between-node").get("/user_api/list_users"), @r#"
    403
    {
      "code": "invalid_access_token",
      "detail": "Invalid access token"
    }
    "#);
    let own = server.admin().post("/user/tokens/create").ok().json()["token"].as_str().unwrap().to_owned();
    assert_eq!(server.anon().with_authorization(&Client::bearer(&own)).get("/user_api/list_users").status, 403);
    // The token gives no other access.
    assert_eq!(node(&server).get("/user/info").status, 401);
}

#[test]
fn users_are_read() {
    let server = server("enabled = true");
    let node = node(&server);
    assert_snapshot!(node.get("/user_api/list_users"), @r#"
    200
    [
      {
        "is_admin": true,
        "name": "boss",
        "userid": 1
      },
      {
        "is_admin": false,
        "name": "alice",
        "userid": 2
      },
      {
        "is_admin": false,
        "name": "bob",
        "userid": 3
      }
    ]
    "#);
    assert_snapshot!(node.get("/user_api/list_users?usernames=alice,nobody"), @r#"
    200
    [
      {
        "is_admin": false,
        "name": "alice",
        "userid": 2
      }
    ]
    "#);
    assert_snapshot!(node.get("/user_api/get_user?username=alice"), @r#"
    200
    {
      "is_admin": false,
      "name": "alice",
      "userid": 2
    }
    "#);
    assert_eq!(
        node.get("/user_api/get_user?user_id=2").ok().text(),
        node.get("/user_api/get_user?username=alice").text()
    );
    assert_snapshot!(node.get("/user_api/get_user?username=nobody"), @r#"
    200
    {
      "is_admin": false,
      "name": "",
      "userid": 0
    }
    "#);
    assert_snapshot!(node.get("/user_api/get_user"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "Either user_id or username must be provided"
    }
    "#);
    assert_snapshot!(node.get("/user_api/get_user?user_id=1&username=alice"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "Only one of user_id or username should be provided"
    }
    "#);
    assert_snapshot!(node.get("/user_api/get_user?user_id=x"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "x",
          "loc": [
            "query",
            "user_id"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ]
    }
    "#);
}

#[test]
fn a_credential_identifies_its_user() {
    let server = server("enabled = true");
    let node = node(&server);
    let check = |credential: &str| node.get(&format!("/user_api/check_user?credential={credential}"));
    assert_snapshot!(check(&credential("alice", &password("alice"))), @r#"
    200
    {
      "is_admin": false,
      "name": "alice",
      "userid": 2
    }
    "#);
    assert_snapshot!(check(&credential("boss", &password("boss"))), @r#"
    200
    {
      "is_admin": true,
      "name": "boss",
      "userid": 1
    }
    "#);
    assert_snapshot!(check(&credential("alice", "wrong")), @r#"
    200
    {
      "is_admin": false,
      "name": "",
      "userid": 0
    }
    "#);
    assert_snapshot!(node.get("/user_api/check_user"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "credential"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    // With the name, as our own nodes send it.
    let named = |name: &str| {
        node.get(&format!(
            "/user_api/check_user?credential={}&username={name}",
            credential("alice", &password("alice"))
        ))
    };
    assert_eq!(named("alice").ok().json()["name"], "alice");
    assert_eq!(named("bob").ok().json()["userid"], 0);
    // Other nodes do not see disabled users.
    server.admin().post("/admin/user/update?username=alice&disabled=true").ok();
    assert_eq!(check(&credential("alice", &password("alice"))).ok().json()["userid"], 0);
}

#[test]
fn it_is_read_only_unless_writing_is_enabled() {
    let server = server("enabled = true");
    assert_snapshot!(node(&server).post("/user_api/add_user?username=carol&password=x"), @r#"
    423
    {
      "code": "user_service_read_only",
      "detail": "User profile service is in read-only mode"
    }
    "#);
    for change in ["update_user?username=alice&is_admin=true", "delete_user?username=alice"] {
        assert_eq!(node(&server).post(&format!("/user_api/{change}")).status, 423);
    }
    assert_eq!(server.member("alice").get("/user/list").ok().json(), json!(["boss", "alice", "bob"]));
}

#[test]
fn users_are_changed() {
    let server = server("enabled = true\nreadonly = false");
    let node = node(&server);
    assert_snapshot!(node.post("/user_api/add_user?username=carol&password=word"), @r#"
    200
    {
      "message": "User 'carol' added successfully"
    }
    "#);
    assert_eq!(node.post("/user_api/add_user?username=carol&password=word").status, 409);
    assert_eq!(node.post("/user_api/add_user?username=a-b&password=word").status, 400);
    server.client("carol", "word").get("/user/info").ok();
    assert_snapshot!(node.post("/user_api/update_user?username=carol&is_admin=true&password=other"), @r#"
    200
    {
      "message": "User 'carol' updated successfully"
    }
    "#);
    server.client("carol", "other").get("/admin/user/list").ok();
    assert_snapshot!(node.post("/user_api/update_user?username=carol"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "No fields to update"
    }
    "#);
    assert_eq!(node.post("/user_api/update_user?username=nobody&is_admin=true").status, 404);
    assert_snapshot!(node.post("/user_api/delete_user?username=carol"), @r#"
    200
    {
      "message": "User 'carol' deleted successfully"
    }
    "#);
    assert_eq!(node.post("/user_api/delete_user?username=carol").status, 404);
    assert_eq!(node.post("/user_api/delete_user?username=boss").status, 409);
}
