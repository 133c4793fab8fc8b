//! `pody import` of an installation that pody 0.4.1 itself created.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::common::{Need, Server, original};

/// Writes, with its own code, what its monitor records for processes that ran for the given seconds.
const USAGE: &str = r#"
import sys
from pody.eng.resmon import ResourceMonitorDatabase
now = float(sys.argv[1])
db = ResourceMonitorDatabase()
rows = [
    ("carol", 100, now - 1000, 500, 250.0, 2),
    ("carol", 101, now - 90000, 600, 60.0, 0),
    ("dave", 102, now - 500, 100, 10.0, 1),
]
with db.transaction() as cursor:
    for user, pid, start, uptime, cputime, gpus in rows:
        cursor.execute(
            "INSERT INTO resource_usage (boot_id, pid, start_time, username, container_id, cmd, uptime, cputime, ngpus) VALUES (?,?,?,?,?,?,?,?,?)",
            ("boot", pid, start, user, "pd-" + user + "-main", "python train.py", uptime, cputime, gpus))
"#;

fn import(server: &Server, folder: &std::path::Path) -> Value {
    let output = server.pody(&["import", folder.to_str().unwrap(), "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn users_quotas_and_usage_are_imported() {
    if !Need::PythonServer.is_there() {
        return;
    }
    let old = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| original::run(old.path(), program, arguments);
    run("pody-user", &["add", "carol", "carol's old wörd"]);
    run("pody-user", &["add", "dave", "dave-word", "--admin"]);
    run("pody-user", &["add", "alice", "not-her-new-word"]);
    run("pody-quota", &["update", "carol", "--max-pods", "3", "--gpus", "0,1", "--memory-limit", "8g"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
    run("python", &["-c", USAGE, &now]);

    let server = Server::builder().without_docker().start().unwrap();
    let report = import(&server, old.path());
    assert_eq!(
        (&report["users"], &report["quotas"], &report["usage"]),
        (&json!(["carol", "dave"]), &json!(["carol"]), &json!(3))
    );
    assert_eq!(report["skipped"], json!(["user alice: exists already"]));

    // The old password works at once, in the running daemon; existing users are unchanged.
    let carol = server.client("carol", "carol's old wörd");
    let info = carol.get("/user/info").ok().json();
    assert_eq!(info["user"], json!({"name": "carol", "is_admin": 0}));
    assert_eq!(
        (&info["quota"]["max_pods"], &info["quota"]["gpus"], &info["quota"]["memory_limit"]),
        (&json!(3), &json!("0,1"), &json!(8_u64 << 30))
    );
    assert_eq!(server.client("carol", "carol").get("/user/info").status, 401);
    server.client("dave", "dave-word").get("/admin/user/list").ok();
    server.member("alice").get("/user/info").ok();
    assert_eq!(server.client("alice", "not-her-new-word").get("/user/info").status, 401);

    // Usage as pody 0.4.1 computes it; a process that began before the window counts with its share.
    let sum = |path: &str| carol.get(path).ok().json();
    assert_eq!(sum("/stat/cputime"), json!({"carol": 310.0, "dave": 10.0}));
    assert_eq!(sum("/stat/gputime"), json!({"carol": 1000.0, "dave": 100.0}));
    assert_eq!(sum("/stat/cputime?user=dave,nobody"), json!({"dave": 10.0}));
    assert_eq!(sum("/stat/cputime?t=1h"), json!({"carol": 250.0, "dave": 10.0}));
    let half = sum("/stat/gputime?t=750")["carol"].as_f64().unwrap();
    assert!((450.0..=510.0).contains(&half), "{half}");

    // A second import changes nothing.
    let again = import(&server, old.path());
    assert_eq!((&again["users"], &again["quotas"], &again["usage"]), (&json!([]), &json!([]), &json!(0)));
    assert_eq!(sum("/stat/cputime"), json!({"carol": 310.0, "dave": 10.0}));
}

#[test]
fn an_import_of_something_else_changes_nothing() {
    let server = Server::builder().without_docker().start().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let fails = |folder: &std::path::Path| {
        let output = server.command(&["import", folder.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(fails(empty.path()).contains("there is no users.db in"));
    // A damaged database, and one whose second half is missing: all or nothing.
    std::fs::write(empty.path().join("users.db"), "this is no database, not at all").unwrap();
    fails(empty.path());
    std::fs::remove_file(empty.path().join("users.db")).unwrap();
    let database = rusqlite::Connection::open(empty.path().join("users.db")).unwrap();
    database
        .execute_batch(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, username TEXT, credential TEXT, is_admin BOOLEAN);
             INSERT INTO users VALUES (1, 'carol', 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 0);
             INSERT INTO users VALUES (2, '../x', 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', 0);
             INSERT INTO users VALUES (3, 'dave', 'short', 1);",
        )
        .unwrap();
    std::fs::write(empty.path().join("resmon.db"), "no database either").unwrap();
    fails(empty.path());
    assert_eq!(server.count("SELECT count(*) FROM users"), 3);
    std::fs::remove_file(empty.path().join("resmon.db")).unwrap();
    let report = import(&server, empty.path());
    assert_eq!(report["users"], json!(["carol"]));
    assert_eq!(report["skipped"].as_array().unwrap().len(), 2, "{report}");
}
