//! `/v2/events`

use serde_json::Value;

use super::{send_json, server};

#[test]
fn events_are_found_by_time_operation_and_type() {
    let server = server();
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    alice.post("/user/tokens/create?name=one").ok();
    alice.post("/user/tokens/revoke?id=1").ok();
    bob.post("/user/tokens/create?name=two").ok();
    send_json(&alice, "POST", "/v2/cluster", &serde_json::json!({"cluster_name": "east"})).ok();

    let seen = |events: Value| -> Vec<String> {
        let words = |event: &Value| format!("{}.{}", event["resource_type"], event["operation"]).replace('"', "");
        events.as_array().unwrap().iter().map(words).collect()
    };
    let list = |query: &str| seen(alice.get(&format!("/v2/events{query}")).ok().json());
    assert_eq!(list(""), ["cluster.create", "token.revoke", "token.create", "user.add"]);
    assert_eq!(list("?operation=create"), ["cluster.create", "token.create"]);
    assert_eq!(list("?resource_type=token&operation="), ["token.revoke", "token.create"]);
    assert_eq!(list("?operation=create&resource_type=token"), ["token.create"]);
    assert!(list("?operation=nothing").is_empty());
    assert!(seen(admin.get("/v2/events?resource_type=token").ok().json()).len() == 3);

    // An event from an hour ago is outside the default window.
    super::sql(&server, "UPDATE events SET at = at - 3700000 WHERE action = 'token.create'");
    assert_eq!(list(""), ["cluster.create", "token.revoke", "user.add"]);
    assert_eq!(list("?time=86400"), ["cluster.create", "token.revoke", "token.create", "user.add"]);
    assert!(list("?time=0").is_empty());
    assert_eq!(list("?time="), list(""));
    for bad in ["-1", "2147483648", "1.5", "99999999999"] {
        assert_eq!(alice.get(&format!("/v2/events?time={bad}")).status, 400, "{bad}");
    }

    let event = &alice.get("/v2/events?resource_type=cluster").ok().json()[0];
    assert_eq!(event["status"], "ok");
    assert_eq!(event["source"], "127.0.0.1");
    assert_eq!(event["message"].as_str().unwrap().split(": ").next(), Some("alice cluster.create east"));
    assert_eq!((&event["metadata"]["actor"], &event["metadata"]["object"]), (&"alice".into(), &"east".into()));
    let at = event["timestamp"].as_i64().unwrap();
    assert!((at - pody::model::time::Millis::now().seconds()).abs() < 60, "{at}");
}
