//! Compared with the client of pody 0.4.1: the same command lines send the same requests, and print the same JSON with
//! `--raw`.

use std::process::Command;

use serde_json::{Value, json};

use super::{
    fake::{Ended, Fake, ended},
    need::{Need, python},
};

fn original(fake: &Fake, program: &str, args: &[&str], stdin: &str) -> Ended {
    let mut command = Command::new(python(program).unwrap());
    command.args(args).env("PODY_API_BASE", &fake.base).env("PODY_USERNAME", "alice").env("PODY_PASSWORD", "secret");
    ended(command.env("HOME", fake.home.path()), stdin)
}

#[test]
fn requests_and_raw_answers_are_the_same() {
    if !Need::PythonClient.is_there() {
        return;
    }
    let fake = Fake::start();
    fake.on("/help", json!([{"path": "/pod/stop", "methods": ["POST"], "params": []}]));
    fake.on("/pod/stop", json!({"log": "ü\n"})).on("/pod/inspect", json!({"b": null, "a": [1, 2.5, "x"]}));
    fake.on_status("/pod/exec", 504, json!({"detail": "late"}));
    fake.on_status(
        "/pod/start",
        422,
        json!({"detail": [{"type": "missing", "loc": ["query", "ins"], "msg": "Field required"}]}),
    );
    for (args, stdin) in [
        (vec!["get", "/pod/inspect", "ins:main", "--raw"], ""),
        (vec!["get", "pod/inspect", "ins=a:b", "x:y=z", "--raw"], ""),
        (vec!["post", "pod/stop", "ins:main", "--raw"], ""),
        (vec!["post", "pod/exec", "ins:main", "cmd:", "--raw"], " echo 'a b' & \n"),
        (vec!["post", "pod/start", "--raw"], ""),
        (vec!["fetch", "pod/stop", "ins:main", "--raw"], ""),
        (vec!["get", "pod/inspect", "nonsense", "--raw"], ""),
    ] {
        let theirs = original(&fake, "pody", &args, stdin);
        let their_requests = fake.seen();
        let ours = ended(&mut fake.pody(&args), stdin);
        assert_eq!(fake.seen(), their_requests, "{args:?}");
        assert_eq!(ours.code, theirs.code, "{args:?}");
        assert_eq!(without_url(ours.json()), without_url(theirs.json()), "{args:?}");
    }
}

/// Log messages, written by its own handler.
const LOG: &str = r#"
import logging, sys
from pody.eng.log import SQLiteFileHandler
handler = SQLiteFileHandler(sys.argv[1])
for number, (level, message) in enumerate([(20, "first"), (30, "careful"), (40, "broken\nbadly"), (20, "last")]):
    record = logging.LogRecord("default", level, "", 0, message, (), None)
    record.created = 1700000000 + number
    handler.emit(record)
handler.close()
"#;

/// Its `pody-log`, which does not start with newer versions of rich because of a missing import.
const SHOW: &str = "import rich.console; from pody.cli.log import app; app()";

#[test]
fn log_files_are_read_and_shrunk_alike() {
    if !Need::PythonServer.is_there() {
        return;
    }
    let fake = Fake::start();
    let file = fake.home.path().join("default.log.db");
    let file = file.to_str().unwrap();
    assert_eq!(original(&fake, "python", &["-c", LOG, file], "").code, 0);
    for options in [&[][..], &["--level", "warning"], &["--limit", "2"], &["--limit", "1", "--offset", "1"]] {
        let theirs = original(&fake, "python", &[&["-c", SHOW, "show", file], options].concat(), "");
        let ours = fake.run(&[&["log", "show", file], options].concat());
        assert_eq!((ours.code, &ours.stdout), (0, &theirs.stdout), "{options:?}");
    }
    let json = fake.run(&["log", "show", file, "--level", "ERROR", "--json"]).json();
    assert_eq!(json[0]["message"], "broken\nbadly");

    let shrunk = fake.run(&["log", "shrink", file, "--keep", "1"]);
    assert_eq!((shrunk.code, shrunk.stdout.as_str()), (0, "3 messages deleted\n"));
    assert!(original(&fake, "python", &["-c", SHOW, "show", file], "").stdout.ends_with("[INFO] last\n"));
    let missing = fake.run(&["log", "show", &format!("{file}.none")]);
    assert_eq!(missing.code, 1);
}

/// Equivalent URLs may be spelled differently; the requests themselves are compared.
fn without_url(mut answer: Value) -> Value {
    if let Some(url) = answer.pointer_mut("/context/URL") {
        *url = Value::Null;
    }
    answer
}
