//! `/v2/…`: the shapes of the dialect, authentication, and one module per resource.

mod checkpoint;
mod cluster;
mod event;
mod file;
mod resource;

use insta::assert_snapshot;
use pody::http::{endpoint::Access, params::Param, router::routes};
use serde_json::{Value, json};

use crate::common::{Answer, Client, Server, password};

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

#[track_caller]
fn send_json(client: &Client, method: &str, path: &str, body: &Value) -> Answer {
    client.send_body(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Changes the database as if time had passed or many requests had been made.
#[track_caller]
fn sql(server: &Server, text: &str) {
    server.database().execute_batch(text).unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[track_caller]
fn message(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body["code"], answer.status.to_string(), "{body}");
    body["message"].as_str().unwrap_or_else(|| panic!("no message in {body}")).to_owned()
}

#[track_caller]
fn uuid(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer}");
    assert!(answer.header("content-type").unwrap_or_default().starts_with("text/plain"), "{:?}", answer.headers);
    let text = answer.text();
    assert!(text.parse::<pody::model::ids::PodId>().is_ok() && text.len() == 36, "{text:?} is not a UUID");
    text
}

fn token(client: &Client) -> String {
    client.post("/user/tokens/create?expires=1h").ok().json()["token"].as_str().unwrap().to_owned()
}

#[test]
fn the_user_has_the_same_id_for_password_and_token() {
    let server = server();
    let alice = server.member("alice");
    let id = uuid(&alice.get("/v2/user"));
    let by_token = server.anon().with_authorization(&Client::bearer(&token(&alice)));
    assert_eq!(uuid(&by_token.get("/v2/user")), id);
    assert_ne!(uuid(&server.member("bob").get("/v2/user")), id);
}

/// A new account with a freed name is a different user.
#[test]
fn an_account_created_again_has_another_id() {
    let server = server();
    let admin = server.admin();
    let add = || admin.post("/admin/user/add?username=carol&password=x").ok();
    add();
    let carol = server.client("carol", "x");
    let id = uuid(&carol.get("/v2/user"));
    admin.post("/admin/user/delete?username=carol").ok();
    add();
    assert_ne!(uuid(&carol.get("/v2/user")), id);
}

#[test]
fn errors_have_the_shape_of_the_dialect() {
    let server = server();
    assert_snapshot!(server.anon().get("/v2/user"), @r#"
    401
    {
      "code": "401",
      "details": null,
      "message": "Not authenticated",
      "reason": "not_authenticated"
    }
    "#);
    assert_snapshot!(server.client("alice", "wrong").get("/v2/pods"), @r#"
    401
    {
      "code": "401",
      "details": null,
      "message": "invalid username or password",
      "reason": "invalid_credentials"
    }
    "#);
    assert_snapshot!(server.member("alice").get("/v2/nothing"), @r#"
    404
    {
      "code": "404",
      "details": null,
      "message": "Not Found",
      "reason": "no_route"
    }
    "#);
    assert_snapshot!(server.member("alice").get("/v2/pods?id=x"), @r#"
    400
    {
      "code": "400",
      "details": null,
      "message": "id: \"x\" is not a UUID",
      "reason": "bad_request"
    }
    "#);
    assert_snapshot!(server.member("alice").get("/v2/events?time=yesterday"), @r#"
    400
    {
      "code": "400",
      "details": [
        {
          "input": "yesterday",
          "loc": [
            "query",
            "time"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ],
      "message": "time: Input should be a valid integer, unable to parse string as an integer",
      "reason": "invalid_parameters"
    }
    "#);
}

#[test]
fn wrong_passwords_are_throttled_here_too() {
    let config = "[throttle]\naccount_failures = 2\naddress_failures = 100\nforget_seconds = 3600";
    let server = Server::builder().without_docker().config(config).start().unwrap();
    let wrong = server.client("alice", "wrong");
    for _ in 0..2 {
        assert_eq!(wrong.get("/v2/user").status, 401);
    }
    let answer = server.client("alice", &password("alice")).get("/v2/user");
    assert_eq!(answer.status, 429, "{answer}");
    assert!(answer.header("retry-after").is_some() && message(&answer).contains("too many wrong passwords"));
}

#[test]
fn bodies_must_be_json_of_the_right_types_and_size() {
    let server = server();
    let alice = server.member("alice");
    let post = |kind: &str, body: &[u8]| alice.send_body("POST", "/v2/cluster", &[("content-type", kind)], body);
    let json = "application/json";
    let cases: [(&str, &[u8], u16, &str); 10] = [
        (json, b"", 400, "it is empty; send a JSON object with cluster_name"),
        (json, b"{", 400, "EOF"),
        (json, b" [1]", 400, "it is not a JSON object; send one with cluster_name"),
        (json, br#"{}"#, 400, "body: missing field `cluster_name`"),
        (json, br#"{"cluster_name": "a"} x"#, 400, "body: trailing characters at line 1 column 23"),
        (json, br#"{"cluster_name": 3}"#, 400, "cluster_name: invalid type: integer `3`, expected a string"),
        (json, br#"{"cluster_name": null}"#, 400, "cluster_name: invalid type: null, expected a string"),
        (json, b"\xff\xfe", 400, "expected value"),
        ("text/plain", br#"{"cluster_name": "a"}"#, 400, "application/json"),
        ("application/x-www-form-urlencoded", b"cluster_name=a", 400, "application/json"),
    ];
    for (kind, body, status, words) in cases {
        let answer = post(kind, body);
        assert_eq!(answer.status, status, "{kind} {body:?}: {answer}");
        assert!(message(&answer).contains(words), "{kind} {body:?}: {answer}");
    }
    let deep = format!("{{\"metadata\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = alice.send_body("POST", "/v2/cluster/sync", &[("content-type", json)], deep.as_bytes());
    assert_eq!((answer.status, message(&answer).contains("recursion limit")), (400, true), "{answer}");
    // Other JSON content types, a parameter after the type, unknown fields.
    let good = br#"{"cluster_name": "good", "more": [1]}"#;
    for kind in ["application/json; charset=utf-8", "application/merge-patch+json", ""] {
        uuid(&post(kind, good));
    }
}

/// Clients send paths with and without a slash at the end.
#[test]
fn a_slash_at_the_end_of_a_path_is_ignored() {
    let server = server();
    let alice = server.member("alice");
    let nothing = "11111111-1111-4111-8111-111111111111";
    let ours = routes().into_iter().filter(|route| route.path.starts_with("/v2/") && !route.path.ends_with("{path}"));
    for route in ours {
        let path = route.path.replace("{id}", nothing).replace("{action_id}", nothing);
        let ask = |path: &str| alice.send(route.method.as_str(), path, &[]);
        let (plain, slashed) = (ask(&path), ask(&format!("{path}/")));
        assert_eq!(plain.status, slashed.status, "{} {path}: {slashed}", route.method);
        if plain.status != 200 {
            assert_eq!(plain.text(), slashed.text(), "{} {path}", route.method);
        }
    }
    assert_eq!(alice.get("/v2/pods/?id=x").status, 400);
    for none in ["/v2/", "/v2/nothing/", "/v2/pods//", "/v2//pods"] {
        assert_eq!(alice.get(none).status, 404, "{none}");
    }
}

/// In both dialects: an id of many kilobytes in an error helps nobody.
#[test]
fn long_input_is_not_repeated_in_errors() {
    let server = server();
    let (alice, admin) = (server.member("alice"), server.admin());
    // With spaces and quotes, as in a long text; and for the parsers of numbers and lists.
    let texts = ["x%20%22".repeat(1000), "7".repeat(3000), "a,".repeat(1500)];
    let (mut refused, mut echoed) = (0, Vec::new());
    let mut look = |answer: Answer, what: &str| {
        refused += usize::from(answer.status == 404);
        if answer.status != 200 && answer.body.len() > 2000 {
            echoed.push(format!("{what}: {}", answer.text().chars().take(200).collect::<String>()));
        }
    };
    for route in routes().iter().filter(|route| route.path != "/user/ch-passwd") {
        let client = if route.access == Access::Admin { &admin } else { &alice };
        for text in &texts {
            let path = route
                .params
                .iter()
                .fold(route.path.to_owned(), |path, param| path.replace(&format!("{{{}}}", param.name), text));
            let pair = |param: &Param| format!("{}={text}", param.name);
            let queried = || route.params.iter().filter(|param| !route.is_in_path(param.name));
            let required: Vec<String> = queried().filter(|param| !param.optional).map(pair).collect();
            for query in queried().map(pair).chain([required.join("&")]) {
                let what = format!("{} {} {}", route.method, route.path, &query[..query.len().min(20)]);
                look(client.send(route.method.as_str(), &format!("{path}?{query}"), &[]), &what);
            }
        }
        let long = "x \"".repeat(30_000);
        for (field, _) in route.body.fields() {
            let fields = route.body.fields();
            let required = fields.iter().filter(|(_, optional)| !optional).map(|(name, _)| (name.clone(), json!(long)));
            for value in [json!(long), json!([long]), json!({"criu_opts": long, "compression": long, "pod_name": long})]
            {
                let mut body: Value = required.clone().collect();
                body[&field] = value;
                let path = route.path.replace("{id}", "11111111-1111-4111-8111-111111111111");
                let what = format!("{} {} {field}", route.method, route.path);
                look(send_json(&alice, route.method.as_str(), &path, &body), &what);
            }
        }
    }
    assert!(echoed.is_empty(), "{echoed:#?}");
    assert!(refused > 10, "{refused}");
}

#[test]
fn another_site_cannot_change_anything() {
    let server = server();
    let headers = [("content-type", "application/json"), ("origin", "http://evil.example")];
    let answer = server.member("alice").send_body("POST", "/v2/cluster", &headers, br#"{"cluster_name": "x"}"#);
    assert_eq!(answer.status, 403, "{answer}");
    assert!(message(&answer).contains("another web site"));
    assert_eq!(server.count("SELECT count(*) FROM clusters"), 0);
}
