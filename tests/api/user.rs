//! `/user/…`: account, password, tokens, SSH keys.

use std::time::Duration;

use insta::assert_snapshot;
use serde_json::json;

use crate::common::{Client, Server, eventually, password};

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

#[test]
fn info_shows_account_and_quota() {
    let server = server();
    assert_snapshot!(server.member("alice").get("/user/info"), @r#"
    200
    {
      "quota": {
        "checkpoint_count": -1,
        "checkpoint_size": -1,
        "commit_count": -1,
        "commit_size_limit": -1,
        "cpu_limit": -1.0,
        "gpu_count": -1,
        "gpus": "none",
        "max_pods": -1,
        "memory_limit": -1,
        "pids_limit": 8192,
        "shm_size": -1,
        "storage_size": -1,
        "tmpfs_size": 0,
        "total_memory": -1
      },
      "user": {
        "is_admin": 0,
        "name": "alice"
      }
    }
    "#);
    assert_eq!(server.admin().get("/user/info").ok().json()["user"], json!({"name": "boss", "is_admin": 1}));
    assert_snapshot!(server.anon().get("/user/info"), @r#"
    401
    {
      "code": "not_authenticated",
      "detail": "Not authenticated"
    }
    "#);
}

#[test]
fn info_shows_the_configured_defaults_and_an_admins_limits() {
    let server = Server::builder()
        .without_docker()
        .config("[default_quota]\nmax_pods = 3\ngpus = \"none\"\nmemory_limit = \"2g\"\ncpu_limit = 1.5\ntmpfs_size = \"none\"\ncommit_count = 0")
        .start()
        .unwrap();
    server.admin().post("/admin/quota/update?username=alice&max_pods=7&memory_limit=unlimited&gpus=0,2").ok();
    assert_snapshot!(server.member("alice").get("/user/info"), @r#"
    200
    {
      "quota": {
        "checkpoint_count": -1,
        "checkpoint_size": -1,
        "commit_count": 0,
        "commit_size_limit": -1,
        "cpu_limit": 1.5,
        "gpu_count": -1,
        "gpus": "0,2",
        "max_pods": 7,
        "memory_limit": -1,
        "pids_limit": 8192,
        "shm_size": -1,
        "storage_size": -1,
        "tmpfs_size": 0,
        "total_memory": -1
      },
      "user": {
        "is_admin": 0,
        "name": "alice"
      }
    }
    "#);
    assert_eq!(server.member("bob").get("/user/info").ok().json()["quota"]["max_pods"], 3);
}

#[test]
fn the_list_names_everybody() {
    let server = server();
    assert_snapshot!(server.member("alice").get("/user/list"), @r#"
    200
    [
      "boss",
      "alice",
      "bob"
    ]
    "#);
}

#[test]
fn a_changed_password_applies_at_once() {
    let server = server();
    let alice = server.member("alice");
    // A verified password is cached for a minute; a change drops it from the cache.
    alice.get("/user/info").ok();
    alice.get("/user/info").ok();
    assert_snapshot!(alice.post("/user/ch-passwd?passwd=another+one"), @r#"
    200
    {
      "message": "Password updated"
    }
    "#);
    assert_snapshot!(alice.get("/user/info"), @r#"
    401
    {
      "code": "invalid_credentials",
      "detail": "invalid username or password"
    }
    "#);
    let alice = server.client("alice", "another one");
    alice.get("/user/info").ok();
    // The method in the documentation of an older version.
    alice.get("/user/ch-passwd?passwd=a:third").ok();
    assert_eq!(alice.get("/user/info").status, 401);
    server.client("alice", "a:third").get("/user/info").ok();
    // A form body keeps it out of URLs.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    server.client("alice", "a:third").send_body("POST", "/user/ch-passwd", &form, "passwd=p%C3%A4ss+w".as_bytes()).ok();
    server.client("alice", "päss w").get("/user/info").ok();
}

#[test]
fn an_admin_command_on_the_host_changes_a_password_at_once() {
    let server = server();
    let alice = server.member("alice");
    alice.get("/user/info").ok();
    server.pody(&["user", "update", "alice", "--password", "from-the-host"]);
    assert_eq!(alice.get("/user/info").status, 401);
    server.client("alice", "from-the-host").get("/user/info").ok();
}

#[test]
fn a_password_has_1_to_1024_bytes() {
    let server = server();
    let alice = server.member("alice");
    assert_snapshot!(alice.post("/user/ch-passwd"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "passwd"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(alice.post("/user/ch-passwd?passwd="), @r#"
    400
    {
      "code": "password_length",
      "detail": "a password has 1 to 1024 bytes"
    }
    "#);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let long = |length| format!("passwd={}", "x".repeat(length));
    assert_eq!(alice.send_body("POST", "/user/ch-passwd", &form, long(1025).as_bytes()).status, 400);
    alice.send_body("POST", "/user/ch-passwd", &form, long(1024).as_bytes()).ok();
    server.client("alice", &"x".repeat(1024)).get("/user/info").ok();
}

#[test]
fn missing_or_wrong_credentials_get_401_with_a_challenge() {
    let server = server();
    let anon = server.anon();
    let empty = Client::basic("", "");
    let long = Client::basic(&"x".repeat(300), &"y".repeat(5000));
    let wrong = Client::basic("alice", "wrong");
    let nobody = Client::basic("nobody", "wrong");
    for authorization in
        ["", "Basic", "Basic !!!", "Basic YWxpY2U=", "Digest x", "Bearer", "Bearer x", &empty, &long, &wrong, &nobody]
    {
        let answer = anon.with_authorization(authorization).get("/user/info");
        assert_eq!(answer.status, 401, "{authorization:?}: {answer}");
        assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"pody\", charset=\"UTF-8\""));
    }
    // The response for a wrong password is the same as for an unknown user.
    assert_snapshot!(anon.with_authorization(&wrong).get("/user/info"), @r#"
    401
    {
      "code": "invalid_credentials",
      "detail": "invalid username or password"
    }
    "#);
    assert_eq!(
        anon.with_authorization(&wrong).get("/user/info").text(),
        anon.with_authorization(&nobody).get("/user/info").text()
    );
}

#[test]
fn tokens_are_created_used_and_revoked() {
    let server = server();
    let alice = server.member("alice");
    assert_snapshot!(alice.get("/user/tokens"), @r#"
    200
    []
    "#);
    let made = alice.post("/user/tokens/create?name=laptop&expires=1h").ok();
    assert_snapshot!(made, @r#"
    200
    {
      "created_at": "[time]",
      "expires_at": "[time]",
      "id": 1,
      "name": "laptop",
      "token": "[token]"
    }
    "#);
    let token = made.json()["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("pody_") && token.len() == 5 + 43, "{token}");
    assert_snapshot!(alice.get("/user/tokens"), @r#"
    200
    [
      {
        "created_at": "[time]",
        "expires_at": "[time]",
        "id": 1,
        "name": "laptop"
      }
    ]
    "#);

    let by_token = server.anon().with_authorization(&Client::bearer(&token));
    assert_eq!(by_token.get("/user/info").ok().json()["user"]["name"], "alice");
    assert_eq!(server.anon().with_authorization(&Client::bearer(&token[..40])).get("/user/info").status, 401);
    // It does not work as a password.
    assert_eq!(server.client("alice", &token).get("/user/info").status, 401);
    // A password change does not affect it; revoking it does.
    alice.post("/user/ch-passwd?passwd=changed").ok();
    by_token.get("/user/info").ok();
    assert_snapshot!(by_token.post("/user/tokens/revoke?id=1"), @r#"
    200
    {
      "message": "Token 1 revoked"
    }
    "#);
    assert_snapshot!(by_token.get("/user/info"), @r#"
    401
    {
      "code": "invalid_token",
      "detail": "this token is invalid or has expired"
    }
    "#);
    // Only its hash is stored.
    let database = std::fs::read(server.home.join("pody.db")).unwrap();
    assert!(!String::from_utf8_lossy(&database).contains(&token[5..]));
    assert!(!server.log().contains(&token[5..]));
}

#[test]
fn a_token_expires() {
    let server = server();
    let alice = server.member("alice");
    let token = alice.post("/user/tokens/create?expires=1s").ok().json()["token"].as_str().unwrap().to_owned();
    let by_token = server.anon().with_authorization(&Client::bearer(&token));
    by_token.get("/user/info").ok();
    eventually(Duration::from_secs(3), "the token ends", || by_token.get("/user/info").status == 401);
}

#[test]
fn tokens_of_others_and_bad_parameters_are_refused() {
    let server = server();
    server.member("alice").post("/user/tokens/create").ok();
    let bob = server.member("bob");
    assert_snapshot!(bob.post("/user/tokens/revoke?id=1"), @r#"
    404
    {
      "code": "token_not_found",
      "detail": "you have no token 1"
    }
    "#);
    assert_eq!(
        bob.post("/user/tokens/revoke?id=99").detail(),
        bob.post("/user/tokens/revoke?id=1").detail().replace('1', "99")
    );
    assert_snapshot!(bob.post("/user/tokens/revoke"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "id"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(bob.post("/user/tokens/revoke?id=x"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "x",
          "loc": [
            "query",
            "id"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ]
    }
    "#);
    assert_snapshot!(bob.post("/user/tokens/create?expires=soon"), @r#"
    400
    {
      "code": "bad_request",
      "detail": "expires: \"soon\" is not a duration; write 1y, 1w, 1d, 1h, 1m, 1s or a number of seconds"
    }
    "#);
    assert_eq!(bob.post("/user/tokens/create?expires=-1").status, 400);
    assert_eq!(bob.post("/user/tokens/create?expires=nan").status, 400);
}

#[test]
fn tokens_end_with_their_account() {
    let server = server();
    let token = |user: &str| server.member(user).post("/user/tokens/create").ok().json()["token"].clone();
    let (alice, bob) = (token("alice"), token("bob"));
    let by_token = |token: &serde_json::Value| {
        server.anon().with_authorization(&Client::bearer(token.as_str().unwrap())).get("/user/info")
    };
    let admin = server.admin();
    admin.post("/admin/user/update?username=alice&disabled=true").ok();
    assert_snapshot!(by_token(&alice), @r#"
    403
    {
      "code": "account_disabled",
      "detail": "this account is disabled"
    }
    "#);
    admin.post("/admin/user/update?username=alice&disabled=false").ok();
    by_token(&alice).ok();
    // A new account of the same name does not inherit it.
    admin.post("/admin/user/delete?username=bob").ok();
    assert_eq!(by_token(&bob).status, 401);
    admin.post_with("/admin/user/add", &[("username", "bob"), ("password", &password("bob"))]).ok();
    assert_eq!(by_token(&bob).status, 401);
    assert_eq!(server.member("bob").get("/user/tokens").ok().json(), json!([]));
}

pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJVbTpAcPB7dqXnNF0WYDoHZ8Sx7sZHSOhyVIn8P4tg alice@laptop";

#[test]
fn ssh_keys_are_added_listed_and_removed() {
    let server = server();
    let alice = server.member("alice");
    assert_eq!(alice.get("/user/ssh-keys").ok().json(), json!([]));
    assert_snapshot!(alice.post_with("/user/ssh-keys/add", &[("key", KEY)]), @r#"
    200
    {
      "comment": "alice@laptop",
      "created_at": "[time]",
      "fingerprint": "SHA256:PSB647cLrEvOswj8NBKgLpN1BgzR5wFE/agbaz8DXxQ",
      "id": 1,
      "key_type": "ssh-ed25519"
    }
    "#);
    // Adding a key twice stores it once.
    alice.post_with("/user/ssh-keys/add", &[("key", KEY)]).ok();
    assert_eq!(alice.get("/user/ssh-keys").ok().json().as_array().unwrap().len(), 1);
    assert_eq!(server.member("bob").get("/user/ssh-keys").ok().json(), json!([]));
    assert_snapshot!(server.member("bob").post("/user/ssh-keys/delete?id=1"), @r#"
    404
    {
      "code": "ssh_key_not_found",
      "detail": "you have no SSH key 1"
    }
    "#);
    assert_snapshot!(alice.post("/user/ssh-keys/delete?id=1"), @r#"
    200
    {
      "message": "SSH key 1 deleted"
    }
    "#);
    assert_eq!(alice.get("/user/ssh-keys").ok().json(), json!([]));
}

#[test]
fn invalid_ssh_keys_are_refused() {
    let server = server();
    let alice = server.member("alice");
    assert_snapshot!(alice.post("/user/ssh-keys/add"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "key"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(alice.post_with("/user/ssh-keys/add", &[("key", "hello")]), @r#"
    400
    {
      "code": "bad_request",
      "detail": "key: a public key is one line: TYPE BASE64 [COMMENT], as in ~/.ssh/id_ed25519.pub"
    }
    "#);
    assert_snapshot!(alice.post_with("/user/ssh-keys/add", &[("key", "-----BEGIN OPENSSH PRIVATE KEY-----\nx")]), @r#"
    400
    {
      "code": "bad_request",
      "detail": "key: this is a private key; send its .pub file instead, and create a new key pair, because this one has been exposed"
    }
    "#);
    assert_snapshot!(alice.post_with("/user/ssh-keys/add", &[("key", &format!("command=\"x\" {KEY}"))]), @r#"
    400
    {
      "code": "bad_request",
      "detail": "key: \"command=\\\"x\\\"\" is not a key type that sshd accepts"
    }
    "#);
    for bad in [&format!("{KEY}\n{KEY}"), &KEY.replace("ed25519 ", "rsa "), &format!("{KEY}\0")] {
        assert_eq!(alice.post_with("/user/ssh-keys/add", &[("key", bad)]).status, 400, "{bad:?}");
    }
    assert_eq!(alice.get("/user/ssh-keys").ok().json(), json!([]));
}
