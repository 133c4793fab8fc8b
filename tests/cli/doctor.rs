//! `pody doctor` on a broken host.

use std::{fs, process::Command};

use serde_json::{Value, json};

use super::{
    fake::{Fake, ended},
    need::Need,
};

#[test]
fn each_finding_that_is_not_ok_has_a_fix() {
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

/// The findings about CRIU. Failures come before what is ok.
fn criu_findings(command: &mut Command) -> Vec<(String, String, String)> {
    let findings = ended(command, "").json();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = findings.as_array().unwrap();
    let levels: Vec<String> = findings.iter().map(|finding| text(finding, "level")).collect();
    let rank = |level: &String| ["fail", "warn", "ok"].iter().position(|known| known == level).unwrap();
    assert!(levels.is_sorted_by_key(rank), "{levels:?}");
    let first = findings.iter().position(|finding| text(finding, "check").starts_with("criu")).unwrap();
    let before = findings[..first].iter().filter(|finding| finding["level"] == findings[first]["level"]).count();
    assert_eq!(before, 0, "what prevents checkpoints comes first: {findings:?}");
    let all = findings.iter().filter(|finding| text(finding, "check").starts_with("criu"));
    all.map(|finding| (text(finding, "level"), text(finding, "found"), text(finding, "mend"))).collect()
}

#[test]
fn a_missing_old_or_unusable_criu_is_reported_first() {
    if !Need::Criu.is_there() {
        return;
    }
    let fake = Fake::start();
    // The administrator's directories are searched, too: hide them under empty mounts.
    let mut command = Command::new("unshare");
    let hide = "for d in /usr/local/sbin /usr/sbin /sbin /usr/local/bin; do \
                [ -e $d/criu ] && mount -t tmpfs none $d; done; exec \"$@\"";
    let doctor = fake.pody(&["doctor", "--json"]);
    command.args(["-m", "sh", "-c", hide, "sh"]).arg(doctor.get_program()).args(doctor.get_args()).env_clear();
    command.envs(doctor.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let [(level, found, fix)] = &criu_findings(&mut command)[..] else { panic!("one finding") };
    assert_eq!(level, "warn");
    assert!(found.starts_with("no checkpoints: criu: ") && fix.contains("install CRIU 4.2 or newer"), "{found} {fix}");

    let path = std::env::var("PATH").unwrap();
    for (script, expected) in [
        (
            "[ \"$1\" = --version ] && { echo 'Version: 3.10'; exit; }",
            "CRIU 3.10 is too old; install CRIU 4.2 or newer",
        ),
        ("[ \"$1\" = check ] && { echo 'no soft-dirty here' >&2; exit 1; }", "no soft-dirty here"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("criu");
        fs::write(&program, format!("#!/bin/sh\n{script}\n[ \"$1\" = --version ] && echo 'Version: 4.2.1'\nexit 0\n"))
            .unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = fake.pody(&["doctor", "--json"]);
        let findings = criu_findings(command.env("PATH", format!("{}:{path}", directory.path().display())));
        let (level, found, fix) = &findings[0];
        assert_eq!((level.as_str(), found.as_str()), ("fail", expected), "{findings:?}");
        assert!(fix.contains("install CRIU 4.2 or newer"), "{findings:?}");
    }
}
