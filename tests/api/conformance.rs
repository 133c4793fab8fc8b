//! Every operation of `/openapi.json`, tested by schemathesis (from PyPI): no request causes an internal error, and
//! each response has the described shape.

use std::process::{Command, Stdio};

use crate::common::{Client, Server, need::Need};

/// Random cases per operation, in addition to those derived from its description.
const EXAMPLES: &str = "12";
/// Fixed, so that every run tries the same cases.
const SEED: &str = "20";

/// Excluded: operations that could end the caller's account or token, disabled ones (501), and those without a plain
/// response.
const LEFT_OUT: &str = "^/(user/ch-passwd|user/tokens/revoke|user_api/.*|pod/shell|metrics)$";

fn holds(server: &Server, token: &str, description: &str) {
    let mut command = Command::new(std::env::var_os("PODY_TEST_SCHEMATHESIS").expect("it was checked"));
    command.current_dir(&server.home).stdin(Stdio::null());
    command.args(["run", description, "--url", &server.base(), "--header", &format!("Authorization: Bearer {token}")]);
    command.args(["--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", SEED]);
    command.args(["--exclude-path-regex", LEFT_OUT, "--no-color"]);
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Test cases:"), "it tried nothing: {text}");
}

#[test]
fn every_response_matches_its_description() {
    if !Need::Schemathesis.is_there() {
        return;
    }
    let Some(server) = Server::start() else { return };
    let token = server.member("alice").post("/user/tokens/create?expires=1h").ok().json()["token"].clone();
    let token = token.as_str().expect("a token");
    let alice = server.anon().with_authorization(&Client::bearer(token));
    let description = server.home.join("openapi.json");
    std::fs::write(&description, alice.get("/openapi.json").ok().text()).expect("our own directory");
    holds(&server, token, &description.display().to_string());
    // The server and the account are still the same.
    alice.get("/user/info").ok();
}
