//! `/admin/…`: users and quotas.

use insta::assert_snapshot;
use serde_json::json;

use crate::common::{Server, password};

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

#[test]
fn users_are_added_listed_changed_and_deleted() {
    let server = server();
    let admin = server.admin();
    assert_snapshot!(admin.post("/admin/user/add?username=carol&password=word"), @r#"
    200
    {
      "message": "User carol added"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/add?username=carol&password=word"), @r#"
    409
    {
      "code": "user_exists",
      "detail": "user carol already exists"
    }
    "#);
    assert_snapshot!(admin.get("/admin/user/list"), @r#"
    200
    [
      {
        "disabled": false,
        "is_admin": true,
        "name": "boss"
      },
      {
        "disabled": false,
        "is_admin": false,
        "name": "alice"
      },
      {
        "disabled": false,
        "is_admin": false,
        "name": "bob"
      },
      {
        "disabled": false,
        "is_admin": false,
        "name": "carol"
      }
    ]
    "#);
    let carol = server.client("carol", "word");
    assert_eq!(carol.get("/admin/user/list").status, 403);
    assert_snapshot!(admin.post("/admin/user/update?username=carol&admin=true"), @r#"
    200
    {
      "message": "User carol updated"
    }
    "#);
    carol.get("/admin/user/list").ok();
    admin.post("/admin/user/update?username=carol&admin=false&password=other").ok();
    assert_eq!(carol.get("/user/info").status, 401);
    assert_snapshot!(server.client("carol", "other").get("/admin/user/list"), @r#"
    403
    {
      "code": "admins_only",
      "detail": "only admins may do this"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/delete?username=carol"), @r#"
    200
    {
      "message": "User carol deleted"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/delete?username=carol"), @r#"
    404
    {
      "code": "user_not_found",
      "detail": "there is no user carol"
    }
    "#);
    assert_eq!(server.client("carol", "other").get("/user/info").status, 401);
}

#[test]
fn a_user_added_without_a_password_gets_a_generated_one_that_is_shown_once() {
    let server = server();
    let answer = server.admin().post("/admin/user/add?username=carol").ok().json();
    let made_up = answer["password"].as_str().unwrap();
    assert!(made_up.len() >= 16, "{made_up}");
    server.client("carol", made_up).get("/user/info").ok();
    assert!(!server.log().contains(made_up));
    assert!(!server.admin().get("/events").ok().text().contains(made_up));
}

#[test]
fn bad_accounts_are_refused() {
    let server = server();
    let admin = server.admin();
    assert_snapshot!(admin.post("/admin/user/add"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "username"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/add?username=share"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "username: \"share\" is reserved"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/add?username=carol&password="), @r#"
    400
    {
      "code": "password_length",
      "detail": "a password has 1 to 1024 bytes"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/add?username=carol&admin=maybe"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "maybe",
          "loc": [
            "query",
            "admin"
          ],
          "msg": "Input should be a valid boolean, unable to interpret input",
          "type": "bool_parsing"
        }
      ]
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/update?username=carol&admin=true"), @r#"
    404
    {
      "code": "user_not_found",
      "detail": "there is no user carol"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/update?username=alice"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "nothing to change: name password, admin or disabled"
    }
    "#);
    assert_snapshot!(admin.post("/admin/user/purge?username=carol"), @r#"
    404
    {
      "code": "user_not_found",
      "detail": "there is no user carol"
    }
    "#);
}

#[test]
fn the_last_admin_cannot_be_removed() {
    let server = server();
    let admin = server.admin();
    assert_snapshot!(admin.post("/admin/user/update?username=boss&admin=false"), @r#"
    409
    {
      "code": "last_admin",
      "detail": "boss is the last admin that can sign in; make another user an admin first"
    }
    "#);
    for refused in ["update?username=boss&disabled=true", "delete?username=boss", "purge?username=boss"] {
        let answer = admin.post(&format!("/admin/user/{refused}"));
        assert_eq!(answer.status, 409, "{refused}: {answer}");
    }
    // A disabled admin cannot sign in and does not count.
    admin.post("/admin/user/update?username=alice&admin=true&disabled=true").ok();
    assert_eq!(admin.post("/admin/user/delete?username=boss").status, 409);
    admin.post("/admin/user/update?username=alice&disabled=false").ok();
    admin.post("/admin/user/delete?username=boss").ok();
    assert_eq!(admin.get("/user/info").status, 401);
    server.member("alice").get("/admin/user/list").ok();
}

/// Two admins who revoke each other's rights at the same time must not both succeed.
#[test]
fn the_last_admin_cannot_be_removed_in_a_race() {
    let server = server();
    server.admin().post("/admin/user/update?username=alice&admin=true").ok();
    let (boss, alice) = (server.admin(), server.member("alice"));
    alice.get("/user/info").ok();
    let statuses = std::thread::scope(|scope| {
        let one = scope.spawn(|| boss.post("/admin/user/update?username=alice&admin=false").status);
        let other = scope.spawn(|| alice.post("/admin/user/update?username=boss&admin=false").status);
        [one.join().unwrap(), other.join().unwrap()]
    });
    assert!(statuses.iter().filter(|&&status| status == 200).count() == 1, "{statuses:?}");
    assert_eq!(server.count("SELECT count(*) FROM users WHERE is_admin"), 1);
}

#[test]
fn a_disabled_user_loses_access_at_once_and_regains_it_when_enabled() {
    let server = server();
    let (admin, alice) = (server.admin(), server.member("alice"));
    alice.get("/user/info").ok();
    admin.post("/admin/user/update?username=alice&disabled=true").ok();
    assert_snapshot!(alice.get("/user/info"), @r#"
    403
    {
      "code": "account_disabled",
      "detail": "this account is disabled"
    }
    "#);
    // Without the right password the response does not reveal that the account is disabled.
    assert_eq!(server.client("alice", "wrong").get("/user/info").status, 401);
    assert_eq!(
        admin.get("/admin/user/list").ok().json()[1],
        json!({"name": "alice", "is_admin": false, "disabled": true})
    );
    admin.post("/admin/user/update?username=alice&disabled=false").ok();
    alice.get("/user/info").ok();
}

#[test]
fn quotas_are_set_reset_and_listed() {
    let server = server();
    let admin = server.admin();
    assert_snapshot!(
        admin.post("/admin/quota/update?username=alice&max_pods=2&memory_limit=1.5g&cpu_limit=0.5&gpus=none&tmpfs_size=none&total_memory=unlimited"),
        @r#"
    200
    {
      "message": "Quota of alice updated"
    }
    "#
    );
    assert_snapshot!(admin.get("/admin/quota/list?username=alice"), @r#"
    200
    [
      {
        "name": "alice",
        "quota": {
          "checkpoint_count": -1,
          "checkpoint_size": -1,
          "commit_count": -1,
          "commit_size_limit": -1,
          "cpu_limit": 0.5,
          "gpu_count": -1,
          "gpus": "none",
          "max_pods": 2,
          "memory_limit": 1610612736,
          "pids_limit": 8192,
          "shm_size": -1,
          "storage_size": -1,
          "tmpfs_size": 0,
          "total_memory": -1
        },
        "stored": {
          "checkpoint_count": null,
          "checkpoint_size": null,
          "commit_count": null,
          "commit_size_limit": null,
          "cpu_limit": 0.5,
          "gpu_count": null,
          "gpus": "none",
          "max_pods": 2,
          "memory_limit": 1610612736,
          "pids_limit": null,
          "shm_size": null,
          "storage_size": null,
          "tmpfs_size": 0,
          "total_memory": -1
        }
      }
    ]
    "#);
    assert_eq!(admin.get("/admin/quota/list").ok().json().as_array().unwrap().len(), 3);
    admin.post("/admin/quota/update?username=alice&max_pods=default&memory_limit=-1&cpu_limit=").ok();
    let stored = admin.get("/admin/quota/list?username=alice").ok().json()[0]["stored"].clone();
    assert_eq!(
        (&stored["max_pods"], &stored["memory_limit"], &stored["cpu_limit"]),
        (&json!(null), &json!(null), &json!(null))
    );
    assert_eq!(stored["gpus"], "none");
    assert_snapshot!(admin.post("/admin/quota/reset?username=alice"), @r#"
    200
    {
      "message": "Quota of alice reset"
    }
    "#);
    let row = admin.get("/admin/quota/list?username=alice").ok().json()[0].clone();
    assert!(row["stored"].as_object().unwrap().values().all(serde_json::Value::is_null), "{row}");
}

#[test]
fn bad_quotas_are_refused() {
    let server = server();
    let admin = server.admin();
    let update = |parameters: &str| admin.post(&format!("/admin/quota/update?username=alice{parameters}"));
    assert_snapshot!(update(""), @r#"
    400
    {
      "code": "bad_request",
      "detail": "nothing to change: name at least one limit, for example max_pods=5"
    }
    "#);
    assert_snapshot!(update("&max_pods=some"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "max_pods: \"some\" is not a count; write a whole number, \"default\" or \"unlimited\""
    }
    "#);
    assert_snapshot!(update("&memory_limit=64q"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "memory_limit: \"64q\" is not a size; write a size like 64g, \"default\", \"unlimited\" or \"none\" for zero"
    }
    "#);
    assert_snapshot!(update("&gpus=first"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "gpus: \"first\" is not a set of GPUs; write \"all\", \"none\", indices like \"0,1\" or \"default\""
    }
    "#);
    assert_snapshot!(update("&cpu_limit=0"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "cpu_limit: \"0\" is not a number of cores; write a number like 4 or 0.5, \"default\" or \"unlimited\""
    }
    "#);
    for bad in [
        "max_pods=-5",
        "max_pods=1.5",
        "max_pods=99999999999999999999",
        "memory_limit=99999999t",
        "cpu_limit=nan",
        "gpus=0;1",
    ] {
        assert_eq!(update(&format!("&{bad}")).status, 400, "{bad}");
    }
    assert_snapshot!(admin.post("/admin/quota/update?username=nobody&max_pods=1"), @r#"
    404
    {
      "code": "user_not_found",
      "detail": "there is no user nobody"
    }
    "#);
    assert_snapshot!(admin.get("/admin/quota/list?username=nobody"), @r#"
    404
    {
      "code": "user_not_found",
      "detail": "there is no user nobody"
    }
    "#);
    assert_snapshot!(admin.post("/admin/quota/reset?username=nobody"), @r#"
    200
    {
      "message": "Quota of nobody reset"
    }
    "#);
    assert_eq!(server.count("SELECT count(*) FROM quotas"), 0);
}

#[test]
fn purge_deletes_a_users_pods_and_delete_refuses_a_user_with_pods() {
    let Some(server) = Server::start() else { return };
    let (admin, alice, bob) = (server.admin(), server.member("alice"), server.member("bob"));
    alice.post("/pod/create?ins=one&image=pody-base").ok();
    alice.post("/pod/create?ins=two&image=pody-base").ok();
    bob.post("/pod/create?ins=one&image=pody-base").ok();
    assert_snapshot!(admin.post("/admin/user/delete?username=alice"), @r#"
    409
    {
      "code": "user_has_pods",
      "detail": "alice still has 2 pods: [prefix]-alice-one, [prefix]-alice-two; purge the user, or delete the pods first"
    }
    "#);
    alice.get("/pod/list").ok();
    assert_snapshot!(admin.post("/admin/user/purge?username=alice"), @r#"
    200
    {
      "message": "User alice deleted",
      "pods": [
        "[prefix]-alice-one",
        "[prefix]-alice-two"
      ]
    }
    "#);
    assert_eq!(server.containers(), [server.container("bob", "one")]);
    assert_eq!(alice.get("/user/info").status, 401);
    // Her data is gone with her: a new alice starts with none of it.
    admin.post_with("/admin/user/add", &[("username", "alice"), ("password", &password("alice"))]).ok();
    assert_eq!(alice.get("/pod/list").ok().json(), json!([]));
    bob.post("/pod/delete?ins=one").ok();
}
