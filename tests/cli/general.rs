//! What all commands have in common: exit codes, hints, `--json`, colours, names, help, completions.

use pody::model::event::Event;
use serde_json::json;

use super::{
    fake::{Fake, ended, named},
    views,
};

#[test]
fn an_unreachable_server_is_exit_code_3() {
    let fake = Fake::start();
    let gone = ended(fake.pody(&["ps"]).env("PODY_API_BASE", "http://127.0.0.1:1"), "");
    assert_eq!((gone.code, gone.stdout.as_str()), (3, ""));
    assert!(gone.stderr.starts_with("error: cannot reach http://127.0.0.1:1: "), "{gone:?}");
    assert!(gone.stderr.contains("\nhint: is `pody serve` running there?"), "{gone:?}");
}

#[test]
fn refused_credentials_are_exit_code_4() {
    let fake = Fake::start();
    fake.on_status("/pod/ps", 401, json!({"detail": "invalid username or password"}));
    let refused = fake.run(&["ps"]);
    assert_eq!(refused.code, 4);
    assert!(refused.stderr.starts_with("error: invalid username or password\nhint: log in with `pody login`"));

    let half = ended(fake.pody(&["ps"]).env_remove("PODY_PASSWORD"), "");
    assert_eq!(half.code, 4);
    assert!(half.stderr.contains("$PODY_USERNAME is set, but $PODY_PASSWORD is not"));
}

#[test]
fn other_refusals_are_exit_code_1_with_retry_after_as_a_hint() {
    let fake = Fake::start();
    fake.on_status("/pod/ps", 503, json!({"detail": "Docker does not answer", "code": "docker_unavailable"}));
    let refused = fake.run(&["ps"]);
    assert_eq!(refused.code, 1);
    assert_eq!(refused.stderr, "error: Docker does not answer\nhint: try again in 7 s\n");
    let refused = fake.run(&["ps", "--json"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    let shown = r#"{"error":"Docker does not answer","code":"docker_unavailable","hint":"try again in 7 s"}"#;
    assert_eq!(refused.stderr, format!("{shown}\n"));

    // A proxy, or an older server.
    fake.on_text("/pod/ps", 502, "Bad Gateway");
    let refused = fake.run(&["ps", "--json"]);
    assert_eq!(refused.stderr, "{\"error\":\"Bad Gateway\",\"code\":null,\"hint\":null}\n");
}

#[test]
fn usage_errors_are_exit_code_2() {
    let fake = Fake::start();
    for args in [&["create", "main"][..], &["nonsense"], &["logs", "main", "--since", "yesterday"], &[]] {
        assert_eq!(fake.run(args).code, 2, "{args:?}");
    }
    let help = fake.run(&["--help"]).ok();
    assert!(help.contains("Exit codes:") && help.contains("PODY_TOKEN"));
}

#[test]
fn a_token_in_the_environment_is_a_bearer() {
    let fake = Fake::start();
    fake.on("/image/list", json!(["pody-base:latest", "alice"]));
    let mut command = fake.stranger(&["images"]);
    let images = ended(command.env("PODY_API_BASE", &fake.base).env("PODY_TOKEN", "pody_abc"), "");
    assert_eq!(images.ok(), "pody-base:latest\nalice\n");
    assert_eq!(fake.seen_one().authorization, "Bearer pody_abc");
}

#[test]
fn no_colours_in_a_pipe_or_with_no_color() {
    let fake = Fake::start();
    fake.on(
        "/user/tokens",
        json!([{"id": 1, "name": "ci", "created_at": "2020-01-01T00:00:00Z", "expires_at": "2030-01-01T00:00:00Z"}]),
    );
    assert!(!fake.run(&["token", "list"]).ok().contains('\x1b'));
    let on_terminal = |no_color: &str| {
        let line = format!("{} token list", env!("CARGO_BIN_EXE_pody"));
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", "xterm");
        command.env("PODY_API_BASE", &fake.base).env("PODY_TOKEN", "t").env("HOME", fake.home.path());
        ended(&mut command, "").ok()
    };
    assert!(on_terminal("").contains("\x1b["));
    let plain = on_terminal("1");
    assert!(plain.contains("NAME") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn control_characters_of_others_do_not_reach_the_terminal() {
    let fake = Fake::start();
    let detail = Some("\u{1b}]0;owned\u{7}".to_owned());
    fake.on("/events", [Event { detail, ..views::event() }]);
    let shown = fake.run(&["events", "--user", "eve", "-n", "5"]).ok();
    assert!(!shown.contains('\x1b') && shown.contains("owned"), "{shown:?}");
    assert_eq!(fake.seen_one().line, "GET /events?limit=5&user=eve");
}

#[test]
fn the_old_names_are_commands() {
    let fake = Fake::start();
    for (name, word) in [
        ("podx", "pody fetch"),
        ("pody-serve", "pody serve"),
        ("pody-user", "pody user"),
        ("pody-quota", "pody quota"),
        ("pody-util", "pody util"),
        ("pody-log", "pody log"),
    ] {
        let help = named(&mut fake.stranger(&["--help"]), name).ok();
        assert!(help.contains(&format!("Usage: {word}")), "{name}: {help}");
    }
}

#[test]
fn help_of_a_command_is_the_same_with_and_without_dashes() {
    let fake = Fake::start();
    for words in [&["create"][..], &["checkpoint", "rm"], &["user", "delete"], &["exec"], &["help"], &[]] {
        let with_dashes = fake.run(&[words, &["--help"]].concat()).ok();
        assert_eq!(fake.run(&[&["help"], words].concat()).ok(), with_dashes, "{words:?}");
        assert!(with_dashes.contains("Usage: pody") && !with_dashes.contains('\x1b'), "{with_dashes}");
    }
    assert!(fake.seen().is_empty());
    // Neither a command nor a route of the server.
    fake.on("/help", json!([]));
    let unknown = fake.run(&["help", "crate"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.starts_with("error: there is no command or route \"crate\"\nhint: `pody --help`"));
    assert_eq!(fake.run(&["help", "user", "crate"]).code, 2);
}

#[test]
fn completions_know_the_commands() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish"] {
        let script = fake.run(&["completions", shell]).ok();
        assert!(script.contains("copy-id") && script.contains("doctor"), "{shell}");
    }
}

#[test]
fn version_works_without_a_server() {
    let fake = Fake::start();
    fake.on("/version", json!([0, 4, 1]));
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(fake.run(&["version"]).ok(), format!("Client version: {ours}\nServer API version: 0.4.1\n"));
    let alone = ended(fake.pody(&["version"]).env("PODY_API_BASE", "http://127.0.0.1:1"), "").ok();
    assert!(alone.starts_with(&format!("Client version: {ours}\nFailed to fetch the server's version: ")), "{alone}");
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let fake = Fake::start();
    fake.on("/image/list", json!(vec!["x".repeat(100); 10_000]));
    let line = format!("{} images | head -n 1", env!("CARGO_BIN_EXE_pody"));
    let mut command = std::process::Command::new("bash");
    command.args(["-o", "pipefail", "-c", &line]).env("PODY_API_BASE", &fake.base).env("PODY_TOKEN", "t");
    let first = ended(command.env("HOME", fake.home.path()), "");
    assert_eq!((first.code, first.stderr.as_str()), (0, ""));
}
