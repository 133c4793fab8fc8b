//! `/version`, `/healthz`, `/help`, `/openapi.json`, `/metrics`, and paths that are no route.

use std::collections::{BTreeMap, BTreeSet};

use insta::assert_snapshot;
use pody::http::{
    endpoint::{Access, Route},
    router::routes,
};
use serde_json::{Value, json};

use crate::common::Server;

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

#[test]
fn the_version_is_open_and_is_that_of_the_api() {
    assert_snapshot!(server().anon().get("/version"), @r#"
    200
    [
      0,
      4,
      1
    ]
    "#);
}

#[test]
fn health_is_open_and_reports_docker_and_database() {
    let Some(server) = Server::start() else { return };
    let health = server.anon().get("/healthz").ok().json();
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!((&health["docker"], &health["database"]), (&json!("ok"), &json!("ok")));
    assert_eq!(health["version"], pody::VERSION);
    assert!(health["inventory_age"].as_f64().is_some_and(|age| age < 60.0), "{health}");
}

#[test]
fn without_docker_health_is_degraded_and_reads_work() {
    let server = Server::builder().without_docker().env("DOCKER_HOST", "unix:///nowhere/docker.sock").start().unwrap();
    crate::common::eventually(std::time::Duration::from_secs(5), "Docker is reported down", || {
        server.anon().get("/healthz").ok().json()["docker"] == "down"
    });
    assert_eq!(server.anon().get("/healthz").json()["status"], "degraded");
    let alice = server.member("alice");
    assert_eq!(alice.get("/pod/list").ok().json(), json!([]));
    assert_eq!(alice.get("/image/list").ok().json(), json!([]));
    let answer = alice.post("/pod/delete?ins=main");
    assert_eq!(answer.status, 404, "{answer}");
}

#[test]
fn help_lists_all_routes() {
    let server = server();
    let help = server.member("alice").get("/help").ok().json();
    let shown: Vec<(String, Value, Value)> = help
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["path"].as_str().unwrap().to_owned(), row["methods"].clone(), row["params"].clone()))
        .collect();
    let listed: Vec<(String, Value, Value)> = routes()
        .iter()
        .filter(|route| route.listed)
        .map(|route| {
            let params = route.params.iter().map(|param| json!({"name": param.name, "optional": param.optional}));
            (route.path.to_owned(), json!([route.method.as_str()]), params.collect())
        })
        .collect();
    assert_eq!(shown, listed);
}

#[test]
fn help_finds_one_route_or_a_prefix() {
    let server = server();
    let alice = server.member("alice");
    assert_snapshot!(alice.get("/help?path=/pod/create"), @r#"
    200
    [
      {
        "methods": [
          "POST"
        ],
        "params": [
          {
            "name": "ins",
            "optional": false
          },
          {
            "name": "image",
            "optional": false
          },
          {
            "name": "gpus",
            "optional": true
          }
        ],
        "path": "/pod/create",
        "summary": "create and start a pod"
      }
    ]
    "#);
    assert_snapshot!(alice.get("/help?path=user/tokens/"), @r#"
    200
    [
      {
        "methods": [
          "POST"
        ],
        "params": [
          {
            "name": "name",
            "optional": true
          },
          {
            "name": "expires",
            "optional": true
          }
        ],
        "path": "/user/tokens/create",
        "summary": "create a bearer token; it is shown once"
      },
      {
        "methods": [
          "POST"
        ],
        "params": [
          {
            "name": "id",
            "optional": false
          }
        ],
        "path": "/user/tokens/revoke",
        "summary": "revoke a bearer token"
      }
    ]
    "#);
    assert_eq!(alice.get("/help?path=pod/exec?ins=x").ok().json()[0]["path"], "/pod/exec");
    assert_snapshot!(alice.get("/help?path=nothing"), @r#"
    200
    []
    "#);
    assert_snapshot!(alice.get("/help?path=user_api/"), @r#"
    200
    []
    "#);
    assert_snapshot!(server.anon().get("/help"), @r#"
    401
    {
      "code": "not_authenticated",
      "detail": "Not authenticated"
    }
    "#);
}

#[test]
fn openapi_describes_all_routes() {
    let document = server().member("alice").get("/openapi.json").ok().json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{}", document["openapi"]);
    let mut shown: BTreeMap<(String, String), BTreeSet<(String, bool)>> = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            let name = if path.starts_with("/v2/") { "V2Error" } else { "Error" };
            for (status, response) in operation["responses"].as_object().unwrap().iter().filter(|(s, _)| *s != "200") {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, &json!(format!("#/components/schemas/{name}")), "{method} {path} {status}");
            }
            let params = operation["parameters"].as_array().cloned().unwrap_or_default();
            let params = params.iter().map(|param| {
                let name = param["name"].as_str().unwrap();
                assert_eq!(param["in"], if path.contains(&format!("{{{name}}}")) { "path" } else { "query" });
                (param["name"].as_str().unwrap().to_owned(), param["required"] != true)
            });
            shown.insert((method.to_uppercase(), path.clone()), params.collect());
            let is_open = |route: &Route| matches!(route.access, Access::Open | Access::SignedUrl);
            let open = routes().iter().any(|route| route.path == path && is_open(route));
            assert_eq!(operation["security"].is_null(), open, "{method} {path}: {}", operation["security"]);
        }
    }
    let listed = routes().into_iter().map(|route: Route| {
        let params = route.params.iter().map(|param| (param.name.to_owned(), param.optional));
        ((route.method.to_string(), route.path.to_owned()), params.collect())
    });
    assert_eq!(shown, listed.collect());
    let required = |name: &str| document["components"]["schemas"][name]["required"].clone();
    assert_eq!(required("Error"), json!(["detail", "code"]));
    assert_eq!(required("V2Error"), json!(["message", "code", "details", "reason"]));
}

#[test]
fn metrics_parse_and_count() {
    let server = server();
    server.member("alice").get("/user/info").ok();
    server.member("alice").get("/pod/inspect?ins=nothing");
    let answer = server.admin().get("/metrics").ok();
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let text = answer.text();
    let (metrics, end) = text.rsplit_once("# EOF").expect("OpenMetrics ends with # EOF");
    assert_eq!(end, "\n");
    let mut families = BTreeSet::new();
    let mut samples: BTreeMap<String, f64> = BTreeMap::new();
    for line in metrics.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(["TYPE", "HELP", "UNIT"].contains(&kind), "{line}");
            families.insert(name.to_owned());
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            let family = name.split('{').next().unwrap();
            let known = |suffix: &str| family.strip_suffix(suffix).is_some_and(|base| families.contains(base));
            assert!(["", "_total", "_bucket", "_sum", "_count"].into_iter().any(known), "no TYPE before {line}");
            assert!(samples.insert(name.to_owned(), value).is_none(), "twice: {name}");
        }
    }
    let requests = |route: &str, status: u16| {
        let name = |a: &str| format!("pody_requests_total{{{a}}}");
        samples.get(&name(&format!("route=\"{route}\",status=\"{status}\""))).copied().unwrap_or_default()
    };
    assert!(requests("/user/info", 200) >= 1.0, "{text}");
    assert!(requests("/pod/inspect", 404) >= 1.0, "{text}");
    assert!(samples.contains_key("pody_docker_up"), "{text}");
}

#[test]
fn what_is_no_route_is_404_and_another_method_405() {
    let server = server();
    assert_snapshot!(server.anon().get("/nothing"), @r#"
    404
    {
      "code": "no_route",
      "detail": "Not Found"
    }
    "#);
    assert_snapshot!(server.anon().get("/pod/list/"), @r#"
    404
    {
      "code": "no_route",
      "detail": "Not Found"
    }
    "#);
    assert_snapshot!(server.anon().get("/pod/../user/info"), @r#"
    404
    {
      "code": "no_route",
      "detail": "Not Found"
    }
    "#);
    for route in routes() {
        let methods: Vec<String> =
            routes().iter().filter(|other| other.path == route.path).map(|route| route.method.to_string()).collect();
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            if !methods.iter().any(|known| known == method) {
                // A path parameter may have any value.
                let path = route.path.replace(['{', '}'], "");
                let answer = server.anon().send(method, &path, &[]);
                assert_eq!(answer.status, 405, "{method} {path}: {answer}");
                let expected = match path.starts_with("/v2/") {
                    true => {
                        json!({"message": "Method Not Allowed", "code": "405", "details": null, "reason": "method_not_allowed"})
                    }
                    false => json!({"detail": "Method Not Allowed", "code": "method_not_allowed"}),
                };
                assert_eq!(answer.json(), expected);
                let allow = answer.header("allow").unwrap_or_default().to_owned();
                assert!(methods.iter().all(|known| allow.contains(known.as_str())), "{}: {allow:?}", route.path);
            }
        }
    }
}
