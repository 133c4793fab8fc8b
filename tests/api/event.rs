//! `/events`: who did what.

use insta::assert_snapshot;

use crate::common::Server;

#[test]
fn members_read_their_own_events_and_admins_all() {
    let server = Server::builder().without_docker().start().unwrap();
    let (alice, admin) = (server.member("alice"), server.admin());
    alice.post("/user/ch-passwd?passwd=a-very-secret-word").ok();
    let alice = server.client("alice", "a-very-secret-word");
    server.member("bob").post("/user/tokens/create?name=laptop").ok();
    admin.post("/admin/quota/update?username=alice&max_pods=2").ok();
    admin.post("/admin/user/update?username=bob&disabled=true").ok();
    assert_snapshot!(alice.get("/events"), @r#"
    200
    [
      {
        "action": "quota.update",
        "actor": "boss",
        "at": "[time]",
        "detail": null,
        "id": 6,
        "object": "alice",
        "outcome": "ok",
        "source": "127.0.0.1"
      },
      {
        "action": "user.update",
        "actor": "alice",
        "at": "[time]",
        "detail": "password",
        "id": 4,
        "object": "alice",
        "outcome": "ok",
        "source": "127.0.0.1"
      },
      {
        "action": "user.add",
        "actor": "root",
        "at": "[time]",
        "detail": null,
        "id": 2,
        "object": "alice",
        "outcome": "ok",
        "source": "local"
      }
    ]
    "#);
    assert_snapshot!(admin.get("/events?user=bob"), @r#"
    200
    [
      {
        "action": "user.update",
        "actor": "boss",
        "at": "[time]",
        "detail": "disabled",
        "id": 7,
        "object": "bob",
        "outcome": "ok",
        "source": "127.0.0.1"
      },
      {
        "action": "token.create",
        "actor": "bob",
        "at": "[time]",
        "detail": "laptop",
        "id": 5,
        "object": "1",
        "outcome": "ok",
        "source": "127.0.0.1"
      },
      {
        "action": "user.add",
        "actor": "root",
        "at": "[time]",
        "detail": null,
        "id": 3,
        "object": "bob",
        "outcome": "ok",
        "source": "local"
      }
    ]
    "#);
    assert_snapshot!(alice.get("/events?user=bob"), @r#"
    403
    {
      "code": "admins_only",
      "detail": "only admins may do this"
    }
    "#);
    let all = admin.get("/events").ok();
    assert!(all.json().as_array().unwrap().len() >= 7, "{all}");
    assert!(!all.text().contains("secret"), "{all}");
    assert!(!server.log().contains("a-very-secret-word"));
}

#[test]
fn events_come_in_pages_newest_first() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    for number in 0..5 {
        alice.post(&format!("/user/tokens/create?name=t{number}")).ok();
    }
    let ids = |path: &str| -> Vec<i64> {
        alice.get(path).ok().json().as_array().unwrap().iter().map(|event| event["id"].as_i64().unwrap()).collect()
    };
    let all = ids("/events");
    assert!(all.is_sorted_by(|a, b| a > b), "{all:?}");
    let first = ids("/events?limit=2");
    assert_eq!(first, all[..2]);
    assert_eq!(ids(&format!("/events?limit=2&before={}", first[1])), all[2..4]);
    assert_snapshot!(alice.get("/events?limit=many"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "many",
          "loc": [
            "query",
            "limit"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ]
    }
    "#);
    assert_snapshot!(alice.get("/events?limit=-1"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "-1",
          "loc": [
            "query",
            "limit"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ]
    }
    "#);
}

#[test]
fn a_refused_change_leaves_no_event() {
    let server = Server::builder().without_docker().start().unwrap();
    let before = server.count("SELECT count(*) FROM events");
    let alice = server.member("alice");
    alice.post("/user/ch-passwd?passwd=");
    alice.post("/user/tokens/revoke?id=7");
    alice.post("/pod/create?ins=a-b-c&image=x");
    alice.post("/admin/user/delete?username=bob");
    server.client("alice", "wrong").get("/user/info");
    assert_eq!(server.count("SELECT count(*) FROM events"), before);
}
