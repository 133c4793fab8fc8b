//! `pody doctor` on a machine where nothing is as it should be.

use std::fs;

use serde_json::{Value, json};

use super::fake::{Fake, ended};

#[test]
fn each_finding_that_is_not_good_says_how_to_mend_it() {
    let fake = Fake::start();
    fake.on("/healthz", json!({"status": "degraded", "docker": "down"}));
    let home = fake.home.path().join("pody-home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("config.toml"), "available_ports = \"70000\"\n").unwrap();
    let mut command = fake.pody(&["doctor", "--json"]);
    let sick = ended(command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock"), "");
    assert_eq!(sick.code, 1);
    let findings = sick.json();
    let of =
        |check: &str| findings.as_array().unwrap().iter().find(|finding| finding["check"] == check).unwrap().clone();
    assert_eq!(of("docker")["level"], "fail");
    assert_eq!(of("config")["level"], "fail");
    assert_eq!(of("daemon")["level"], "warn");
    for finding in findings.as_array().unwrap() {
        assert_eq!(finding["level"] == "ok", finding["mend"] == Value::Null, "{finding}");
    }

    let people = ended(fake.pody(&["doctor"]).env("DOCKER_HOST", "unix:///nonexistent/docker.sock"), "");
    assert!(
        people.stdout.contains("fail  docker") && people.stdout.contains("\n                       -> "),
        "{people:?}"
    );
}
