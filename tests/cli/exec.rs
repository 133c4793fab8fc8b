//! `pody exec`: words, exit codes, output.

use pody::model::view::pod::ExecView;
use serde_json::json;

use super::{
    fake::Fake,
    views::{SESSION, ended},
};

#[test]
fn one_argument_is_a_command_line_and_several_are_words() {
    let fake = Fake::start();
    fake.on("/pod/exec", ended(0, "hi\r\n"));
    for (args, cmd) in [
        (&["exec", "main", "--", "echo $HOME | wc"][..], "echo $HOME | wc"),
        (&["exec", "main", "--", "echo", "$HOME", "it's"], r#"echo '$HOME' "it's""#),
        (&["exec", "main", "ls", "-la", "--json"], "ls -la --json"),
    ] {
        assert_eq!(fake.run(args).ok(), "hi\r\n");
        let seen = fake.seen_one();
        assert_eq!((seen.line.as_str(), seen.form), ("POST /pod/exec", format!("ins=main&cmd={cmd}")));
    }
    fake.run(&["exec", "--timeout", "5", "main", "--", "true"]).ok();
    assert_eq!(fake.seen_one().form, "ins=main&cmd=true&timeout=5");
    fake.run(&["exec", "main", "--timeout", "5", "--", "true"]).ok();
    assert_eq!(fake.seen_one().form, "ins=main&cmd=true&timeout=5");
}

#[test]
fn the_exit_code_is_the_commands() {
    let fake = Fake::start();
    fake.on("/pod/exec", ended(42, ""));
    assert_eq!(fake.run(&["exec", "main", "false"]).code, 42);
    let json = fake.run(&["exec", "--json", "main", "false"]);
    assert_eq!(json.code, 42);
    assert_eq!(json.json(), json!({"exit_code": 42, "log": "", "truncated": false}));
}

#[test]
fn a_timeout_is_exit_code_124_with_the_output_so_far() {
    let fake = Fake::start();
    fake.on("/pod/exec", ExecView { output: Some("half".to_owned()), ..ended(-1, "Timeout") });
    let late = fake.run(&["exec", "main", "sleep 99"]);
    assert_eq!((late.code, late.stdout.as_str()), (124, "half"));
    assert!(late.stderr.starts_with("warning: the command exceeded its time limit"), "{late:?}");
}

#[test]
fn truncated_output_is_a_warning() {
    let fake = Fake::start();
    fake.on("/pod/exec", ExecView { truncated: true, ..ended(0, "x") });
    assert!(fake.run(&["exec", "main", "yes"]).stderr.starts_with("warning: the output is longer"));
}

#[test]
fn a_background_command_says_how_to_attach_to_it() {
    let fake = Fake::start();
    fake.on("/pod/exec", ExecView { session: Some(SESSION.parse().unwrap()), ..ended(0, "") });
    let begun = fake.run(&["exec", "--detach", "main", "--", "sleep 9"]).ok();
    assert!(begun.contains(&format!("pody shell main --attach {SESSION}")), "{begun}");
    assert_eq!(fake.seen_one().form, "ins=main&cmd=sleep 9&detach=true");
    assert_eq!(fake.run(&["--json", "exec", "-d", "main", "sleep 9"]).json()["session"], SESSION);
}
