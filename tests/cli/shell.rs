//! `pody shell`: frames, exit code, and a terminal that is as before.

use std::process::Command;

use serde_json::{Value, json};

use super::{
    fake::{Fake, ended},
    terminal::Terminal,
};

#[test]
fn a_pipe_is_carried_both_ways_and_the_exit_code_passes() {
    let fake = Fake::start();
    let shell = ended(&mut fake.pody(&["shell", "main"]), "hello\n");
    assert_eq!((shell.code, shell.stdout.as_str()), (7, "[ins=main&rows=24&cols=80]\r\nHELLO\n"));
    assert_eq!(fake.seen_one().line, "GET /pod/shell?ins=main&rows=24&cols=80");
    ended(&mut fake.pody(&["shell", "main", "--", "htop", "-d", "5 5"]), "");
    assert_eq!(fake.seen_one().line, "GET /pod/shell?ins=main&rows=24&cols=80&cmd=htop -d '5 5'");
}

#[test]
fn refusals_and_lost_connections_are_errors() {
    let fake = Fake::start();
    let missing = fake.run(&["shell", "missing"]);
    assert_eq!((missing.code, missing.stderr.as_str()), (1, "error: no pod missing\n"));
    let gone = fake.run(&["shell", "gone"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.starts_with("error: the connection to the pod was lost"), "{gone:?}");
}

/// Let go for a checkpoint, it comes back by itself: also while the pod is paused at first.
#[test]
fn a_session_that_was_let_go_is_come_back_to() {
    let fake = Fake::start();
    let shell = ended(&mut fake.pody(&["shell", "saved"]), "");
    assert_eq!((shell.code, shell.stdout.as_str()), (7, "[ins=saved&rows=24&cols=80&session=s1]\r\n"), "{shell:?}");
    assert!(shell.stderr.contains("coming back to s1") && shell.stderr.contains("back]"), "{shell:?}");
    let lines: Vec<String> = fake.seen().into_iter().map(|seen| seen.line).collect();
    let again = "GET /pod/shell?ins=saved&rows=24&cols=80&session=s1";
    assert_eq!(lines, ["GET /pod/shell?ins=saved&rows=24&cols=80", again, again]);
}

#[test]
fn what_goes_on_without_anybody_is_listed_and_come_back_to() {
    let fake = Fake::start();
    let session = |id: &str, attached: bool, code: Value| json!({"session": id, "command": "/bin/bash -l", "started": 1, "attached": attached, "exit_code": code});
    fake.on("/pod/sessions", json!([session("s0", true, json!(null)), session("s1", false, json!(3))]));
    let list = fake.run(&["shell", "main", "--list"]).ok();
    assert!(list.contains("somebody is at it") && list.contains("ended with 3"), "{list}");
    assert_eq!(fake.seen_one().line, "GET /pod/sessions?ins=main");
    // The only one that nobody is at, or the one that is named.
    assert_eq!(ended(&mut fake.pody(&["shell", "main", "--attach"]), "").code, 7);
    assert_eq!(fake.seen()[1].line, "GET /pod/shell?ins=main&rows=24&cols=80&session=s1");
    assert_eq!(ended(&mut fake.pody(&["shell", "main", "--attach", "s0"]), "").code, 7);
    assert_eq!(fake.seen_one().line, "GET /pod/shell?ins=main&rows=24&cols=80&session=s0");
    assert_eq!(fake.run(&["shell", "saved", "--attach", "s2"]).stderr, "error: no session s2\n");
    fake.on("/pod/sessions", json!([session("s0", false, json!(null)), session("s1", false, json!(3))]));
    let many = fake.run(&["shell", "main", "--attach"]);
    assert!(
        many.code == 1 && many.stderr.contains("more than one session") && many.stderr.contains("--list"),
        "{many:?}"
    );
    fake.on("/pod/sessions", json!([]));
    let none = fake.run(&["shell", "main", "--attach"]);
    assert!(none.code == 1 && none.stderr.contains("no session to come back to"), "{none:?}");
}

/// Runs shell words on a terminal, and types when the pod has greeted.
fn on_terminal(fake: &Fake, words: &str, typed: &[u8]) -> String {
    let mut terminal = Terminal::start(fake, words);
    terminal.wait_for("]");
    terminal.type_in(typed);
    terminal.end()
}

#[test]
fn the_terminal_is_raw_meanwhile_and_as_before_afterwards() {
    let fake = Fake::start();
    let words = "before=$(stty -g); $PODY shell main; echo code $?; [ \"$before\" = \"$(stty -g)\" ] && echo restored";
    // Raw: Ctrl-C is a byte for the pod and no signal here.
    let shown = on_terminal(&fake, words, b"ab\x03c\x04");
    assert!(shown.contains("[ins=main&rows=30&cols=100]"), "{shown:?}");
    assert!(shown.contains("code 7") && shown.contains("restored"), "{shown:?}");
}

#[test]
fn the_terminal_is_restored_when_the_program_is_terminated() {
    let fake = Fake::start();
    // A shell without job control gives a command of its background /dev/null, unless it is told otherwise.
    let words = "before=$(stty -g); $PODY shell main < /dev/tty & echo pid=$!.; wait $!; echo code $?; \
                 [ \"$before\" = \"$(stty -g)\" ] && echo restored";
    let mut terminal = Terminal::start(&fake, words);
    let greeted = terminal.wait_for("]");
    let (_, pid) = greeted.split_once("pid=").expect("the shell has said whom it started");
    let (pid, _) = pid.split_once('.').unwrap();
    assert!(Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    let shown = terminal.end();
    assert!(shown.contains("code 143") && shown.contains("restored"), "{shown:?}");
}
