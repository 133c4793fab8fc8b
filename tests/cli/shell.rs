//! `pody shell`: frames, exit codes, and a terminal that is restored.

use std::process::Command;

use serde_json::json;

use super::{
    fake::{Fake, ended},
    terminal::Terminal,
    views::session,
};

#[test]
fn a_pipe_works_both_ways_and_the_exit_code_is_passed_on() {
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

/// Also if the pod is still paused at the first attempt.
#[test]
fn a_session_detached_for_a_checkpoint_is_reattached() {
    let fake = Fake::start();
    let shell = ended(&mut fake.pody(&["shell", "saved"]), "");
    assert_eq!((shell.code, shell.stdout.as_str()), (7, "[ins=saved&rows=24&cols=80&session=s1]\r\n"), "{shell:?}");
    assert!(shell.stderr.contains("reattaching to s1") && shell.stderr.contains("reattached]"), "{shell:?}");
    let lines: Vec<String> = fake.seen().into_iter().map(|seen| seen.line).collect();
    let again = "GET /pod/shell?ins=saved&rows=24&cols=80&session=s1";
    assert_eq!(lines, ["GET /pod/shell?ins=saved&rows=24&cols=80", again, again]);
}

#[test]
fn sessions_are_listed_and_attached_to() {
    let fake = Fake::start();
    fake.on("/pod/sessions", [session("s0", true, None), session("s1", false, Some(3))]);
    let list = fake.run(&["shell", "main", "--list"]).ok();
    assert!(list.contains("attached") && list.contains("exited with 3"), "{list}");
    assert_eq!(fake.seen_one().line, "GET /pod/sessions?ins=main");
    // The only detached one, or the named one.
    assert_eq!(ended(&mut fake.pody(&["shell", "main", "--attach"]), "").code, 7);
    assert_eq!(fake.seen()[1].line, "GET /pod/shell?ins=main&rows=24&cols=80&session=s1");
    assert_eq!(ended(&mut fake.pody(&["shell", "main", "--attach", "s0"]), "").code, 7);
    assert_eq!(fake.seen_one().line, "GET /pod/shell?ins=main&rows=24&cols=80&session=s0");
    assert_eq!(fake.run(&["shell", "saved", "--attach", "s2"]).stderr, "error: no session s2\n");
    fake.on("/pod/sessions", [session("s0", false, None), session("s1", false, Some(3))]);
    let many = fake.run(&["shell", "main", "--attach"]);
    assert!(
        many.code == 1 && many.stderr.contains("more than one detached session") && many.stderr.contains("--list"),
        "{many:?}"
    );
    fake.on("/pod/sessions", json!([]));
    let none = fake.run(&["shell", "main", "--attach"]);
    assert!(none.code == 1 && none.stderr.contains("no detached session is running in main"), "{none:?}");
}

/// Runs shell words on a terminal, and types once the pod has printed its greeting.
fn on_terminal(fake: &Fake, words: &str, typed: &[u8]) -> String {
    let mut terminal = Terminal::start(fake, words);
    terminal.wait_for("]");
    terminal.type_in(typed);
    terminal.end()
}

#[test]
fn the_terminal_is_raw_while_connected_and_then_restored() {
    let fake = Fake::start();
    let words = "before=$(stty -g); $PODY shell main; echo code $?; [ \"$before\" = \"$(stty -g)\" ] && echo restored";
    // Raw: Ctrl-C is a byte for the pod, not a signal here.
    let shown = on_terminal(&fake, words, b"ab\x03c\x04");
    assert!(shown.contains("[ins=main&rows=30&cols=100]"), "{shown:?}");
    assert!(shown.contains("code 7") && shown.contains("restored"), "{shown:?}");
}

#[test]
fn the_terminal_is_restored_on_a_signal() {
    let fake = Fake::start();
    // A shell without job control gives background commands /dev/null as standard input, unless redirected.
    let words = "before=$(stty -g); $PODY shell main < /dev/tty & echo pid=$!.; wait $!; echo code $?; \
                 [ \"$before\" = \"$(stty -g)\" ] && echo restored";
    let mut terminal = Terminal::start(&fake, words);
    let greeted = terminal.wait_for("]");
    let (_, pid) = greeted.split_once("pid=").expect("the shell printed the pid");
    let (pid, _) = pid.split_once('.').unwrap();
    assert!(Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    let shown = terminal.end();
    assert!(shown.contains("code 143") && shown.contains("restored"), "{shown:?}");
}
