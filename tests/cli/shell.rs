//! `pody shell`: frames, exit code, and a terminal that is as before.

use std::process::Command;

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
