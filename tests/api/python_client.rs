//! The client of pody 0.4.1, as it comes from PyPI, against this server.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::common::{Need, Server, password, python};

/// Runs a program of pody 0.4.1 as alice.
fn original(server: &Server, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(python(program).unwrap());
    command.args(arguments).stdin(Stdio::null()).env("PODY_API_BASE", server.base());
    command.env("PODY_USERNAME", "alice").env("PODY_PASSWORD", password("alice"));
    // Wide, so that no line is wrapped.
    command.env("COLUMNS", "500").env("NO_COLOR", "1").env("HOME", &server.home).output().unwrap()
}

#[track_caller]
fn says(server: &Server, program: &str, arguments: &[&str]) -> String {
    let output = original(server, program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[track_caller]
fn raw(server: &Server, program: &str, arguments: &[&str]) -> Value {
    let text = says(server, program, &[arguments, &["--raw"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_life_of_a_pod() {
    let Some(server) = Server::start() else { return };
    if !Need::PythonClient.is_there() {
        return;
    }
    let created = raw(&server, "pody", &["post", "/pod/create", "ins:main", "image:pody-base"]);
    assert_eq!(created["info"]["status"], "running", "{created}");
    assert_eq!(raw(&server, "pody", &["get", "pod/list"]), json!(["main"]));
    // It looks up the method in /help.
    assert_eq!(raw(&server, "pody", &["fetch", "pod/exec", "ins:main", "cmd:echo hello"])["log"], "hello\r\n");
    assert_eq!(raw(&server, "podx", &["pod/exec", "ins=main", "cmd=exit 3"])["exit_code"], 3);
    let key = server.home.join("id_ed25519.pub");
    std::fs::write(&key, format!("{}\n", crate::user::KEY)).unwrap();
    says(&server, "pody", &["copy-id", "main", key.to_str().unwrap()]);
    let keys = raw(&server, "podx", &["pod/exec", "ins:main", "cmd:cat /root/.ssh/authorized_keys"]);
    assert!(keys["log"].as_str().unwrap().contains(crate::user::KEY), "{keys}");
    for action in ["stop", "start", "restart"] {
        raw(&server, "podx", &[&format!("/pod/{action}"), "ins:main"]);
    }
    raw(&server, "podx", &["pod/commit", "ins:main", "tag:one", "msg:a message"]);
    assert_eq!(raw(&server, "podx", &["image/list"]), json!(["alice-one", "pody-base:latest"]));
    raw(&server, "podx", &["image/inspect", "image:alice-one"]);
    raw(&server, "podx", &["image/delete", "image:alice-one"]);
    raw(&server, "podx", &["pod/delete", "ins:main"]);
    assert_eq!(raw(&server, "podx", &["pod/list"]), json!([]));
}

#[test]
fn its_output_and_its_errors() {
    let server = Server::builder().without_docker().start().unwrap();
    if !Need::PythonClient.is_there() {
        return;
    }
    assert_eq!(raw(&server, "podx", &["user/info"])["user"], json!({"name": "alice", "is_admin": 0}));
    // Its own number format, from our fields.
    server.admin().post("/admin/quota/update?username=alice&memory_limit=2g").ok();
    let shown = says(&server, "pody", &["fetch", "user/info"]);
    assert!(shown.contains("2.0GB (2147483648)") || shown.contains("(2147483648)"), "{shown}");
    let help = says(&server, "pody", &["help", "/pod/"]);
    assert!(help.contains("/pod/create") && help.contains("/pod/exec"), "{help}");
    assert!(says(&server, "pody", &["help"]).contains("/user/info"));
    assert!(says(&server, "pody", &["version"]).contains("0.4.1"));
    for kind in ["cputime", "gputime"] {
        says(&server, "pody", &["stat", kind, "1d"]);
        says(&server, "pody", &["stat", kind]);
    }
    let fails = |arguments: &[&str]| {
        let output = original(&server, "pody", arguments);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let missing = fails(&["post", "pod/create", "ins:main"]);
    assert!(missing.contains("Missing query parameters: image"), "{missing}");
    let refused = fails(&["get", "pod/inspect", "ins:nothing"]);
    assert!(refused.contains("there is no pod nothing"), "{refused}");
    assert!(fails(&["fetch", "no/such/route"]).contains("Path not found"));
}
