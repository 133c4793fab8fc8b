//! `pody get`, `post`, `fetch`, `help`, `stat`.

use serde_json::json;

use super::fake::{BASIC, Fake, ended, named};

#[test]
fn get_sends_a_query_as_the_user_of_the_environment() {
    let fake = Fake::start();
    fake.on("/host/gpu-ps", json!({"0": []}));
    assert_eq!(fake.run(&["get", "host/gpu-ps", "id:0,1", "x=a:b", "--raw"]).ok(), "{\"0\":[]}\n");
    let seen = fake.seen_one();
    assert_eq!(seen.line, "GET /host/gpu-ps?id=0,1&x=a:b");
    assert_eq!((seen.form.as_str(), seen.authorization.as_str()), ("", BASIC));
}

#[test]
fn a_leading_slash_makes_no_difference() {
    let fake = Fake::start();
    fake.on("/pod/list", json!(["b", "a"]));
    assert_eq!(fake.run(&["get", "/pod/list"]).ok(), "[\n  \"b\",\n  \"a\"\n]\n");
    assert_eq!(fake.seen_one().line, "GET /pod/list");
}

#[test]
fn post_sends_a_query_but_secrets_and_long_values_in_the_body() {
    let fake = Fake::start();
    fake.on("/user/ch-passwd", json!({"message": "Password updated"})).on("/pod/exec", json!({}));
    fake.run(&["post", "user/ch-passwd", "passwd:top secret"]).ok();
    let seen = fake.seen_one();
    assert_eq!((seen.line.as_str(), seen.form.as_str()), ("POST /user/ch-passwd", "passwd=top secret"));

    let script = format!("cmd:echo {}", "x".repeat(5000));
    fake.run(&["post", "pod/exec", "ins:main", &script]).ok();
    let seen = fake.seen_one();
    assert_eq!(seen.line, "POST /pod/exec?ins=main");
    assert!(seen.form.starts_with("cmd=echo xxx"));

    fake.run(&["post", "pod/exec", "ins:main", "cmd:echo a&b"]).ok();
    assert_eq!(fake.seen_one().line, "POST /pod/exec?ins=main&cmd=echo a&b");
}

#[test]
fn an_empty_last_value_is_read_from_the_standard_input() {
    let fake = Fake::start();
    fake.on("/pod/exec", json!({"exit_code": 0}));
    ended(&mut fake.pody(&["post", "pod/exec", "ins:main", "cmd:"]), "ls\nid\n").ok();
    assert_eq!(fake.seen_one().line, "POST /pod/exec?ins=main&cmd=ls\nid");

    let refused = fake.run(&["post", "pod/exec", "ins:", "cmd:ls"]);
    assert_eq!(refused.code, 1);
    assert_eq!(refused.stderr, "Error - Invalid argument: ins, only last argument can be read from stdin\n");
    assert!(fake.seen().is_empty());
}

#[test]
fn errors_are_the_messages_of_the_server() {
    let fake = Fake::start();
    fake.on_status("/pod/create", 403, json!({"detail": "max_pods is 1 and you have 1: alice-main"}));
    let refused = fake.run(&["post", "pod/create", "ins:x", "image:y"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert_eq!(refused.stderr, "Error - max_pods is 1 and you have 1: alice-main\n");

    let missing = json!({"detail": [
        {"type": "missing", "loc": ["query", "ins"], "msg": "Field required", "input": null},
        {"type": "missing", "loc": ["query", "image"], "msg": "Field required", "input": null},
    ]});
    fake.on_status("/pod/create", 422, missing);
    assert_eq!(fake.run(&["post", "pod/create"]).stderr, "Error - Missing query parameters: ins, image\n");

    fake.on_text("/pod/create", 502, "<h1>Bad Gateway</h1>");
    assert_eq!(fake.run(&["post", "pod/create"]).stderr, "Error - <h1>Bad Gateway</h1>\n");
}

#[test]
fn raw_errors_are_json_on_the_standard_output() {
    let fake = Fake::start();
    fake.on_status("/pod/start", 404, json!({"detail": "no pod x"}));
    let refused = fake.run(&["post", "pod/start", "ins:x", "passwd:y", "--raw"]);
    assert_eq!((refused.code, refused.stderr.as_str()), (1, ""));
    let url = format!("{}/pod/start?ins=x", fake.base);
    assert_eq!(
        refused.json(),
        json!({
            "error_code": 404, "message": "no pod x",
            "context": {"METHOD": "POST", "URL": url, "PARAMS": {"ins": "x", "passwd": "***"}},
        })
    );
    let wrong = fake.run(&["get", "pod/list", "nonsense", "--raw"]);
    assert_eq!((wrong.code, &wrong.json()["error_code"]), (1, &json!(-1)));
}

#[test]
fn fetch_asks_for_the_method_first() {
    let fake = Fake::start();
    fake.on(
        "/help",
        json!([{"path": "/pod/stop", "methods": ["POST"], "params": [{"name": "ins", "optional": false}]}]),
    );
    fake.on("/pod/stop", json!({"log": "stopped"}));
    assert_eq!(named(&mut fake.pody(&["pod/stop", "ins:main", "--raw"]), "podx").ok(), "{\"log\":\"stopped\"}\n");
    let lines: Vec<_> = fake.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["GET /help?path=/pod/stop", "POST /pod/stop?ins=main"]);

    fake.on("/help", json!([]));
    assert!(fake.run(&["fetch", "pod/nope"]).stderr.starts_with("Error - Path not found: /pod/nope\n"));
}

#[test]
fn a_trailing_slash_lists_the_routes_below() {
    let fake = Fake::start();
    let params = json!([{"name": "ins", "optional": false}, {"name": "tag", "optional": true}]);
    fake.on("/help", json!([{"path": "/pod/commit", "methods": ["POST"], "params": params}]));
    let table = "Path         Methods  Params     What\n/pod/commit  POST     ins, tag?\n";
    assert_eq!(fake.run(&["get", "pod/"]).ok(), table);
    assert_eq!(fake.seen_one().line, "GET /help?path=/pod/");
    assert_eq!(fake.run(&["help", "pod/commit"]).ok(), table);
    assert_eq!(fake.seen_one().line, "GET /help?path=/pod/commit");
    fake.run(&["help", "/"]).ok();
    assert_eq!(fake.seen_one().line, "GET /help?path=/");
    // A word that is not a command is a route, as in pody 0.4.1.
    assert_eq!(fake.run(&["help", "healthz"]).ok(), table);
    assert_eq!(fake.seen()[1].line, "GET /help?path=/healthz");
}

#[test]
fn stat_draws_bars() {
    let fake = Fake::start();
    fake.on("/stat/gputime", json!({"bob": 10.0, "alice": 7200, "eve": 0}));
    let table = fake.run(&["stat", "gputime", "1w"]).ok();
    assert_eq!(fake.seen_one().line, "GET /stat/gputime?t=1w");
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0], "User   Time      Chart");
    assert_eq!(lines[1], format!("alice  2h 0m 0s  {}", "█".repeat(30)));
    assert_eq!(lines[2], "bob    10s");
    assert_eq!(lines[3], "eve    0s");
}
