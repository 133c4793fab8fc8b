//! Shared helpers: servers for checkpoints, programs to checkpoint, waiting for actions.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::common::{Answer, Builder, Client, IMAGE, Need, Server, docker, eventually};

/// An action may take this long on a slow machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Starts a server if this machine can checkpoint pods.
pub fn start_with(change: impl FnOnce(Builder) -> Builder) -> Option<Server> {
    Need::Criu.is_there().then(|| change(Server::builder()).start()).flatten()
}

pub fn start() -> Option<Server> {
    start_with(|builder| builder)
}

#[track_caller]
pub fn create(client: &Client, instance: &str) {
    client.post(&format!("/pod/create?ins={instance}&image={IMAGE}")).ok();
}

#[track_caller]
pub fn delete(client: &Client, instance: &str) {
    client.post(&format!("/pod/delete?ins={instance}")).ok();
}

/// Runs a command that must end with 0, and returns its output.
#[track_caller]
pub fn exec(client: &Client, instance: &str, command: &str) -> String {
    let answer = client.post_with("/pod/exec", &[("ins", instance), ("cmd", command)]).ok().json();
    assert_eq!(answer["exit_code"], 0, "{command}: {answer}");
    answer["log"].as_str().expect("a log").replace("\r\n", "\n").trim_end().to_owned()
}

/// How each program reports something: a reader never sees a partial text.
const TELL: &str = "
import os
def tell(path, text):
    with open(path + '.new', 'w') as f: f.write(text)
    os.rename(path + '.new', path)
";

/// Starts a python program in the background of the pod, as a child of its first process, and waits for `ready` in
/// /root. The program can also use `tell(path, text)`.
#[track_caller]
pub fn run_python(client: &Client, instance: &str, name: &str, program: &str) {
    let write = format!("cat > /root/{name}.py <<'END'\n{TELL}{program}\nEND\n");
    exec(client, instance, &write);
    // The command's terminal must not close before the program has its own session.
    let start = format!("nohup setsid python3 -u /root/{name}.py >/root/{name}.log 2>&1 </dev/null & sleep 0.3");
    exec(client, instance, &start);
    let begun = Instant::now();
    loop {
        let log = exec(client, instance, &format!("cat /root/{name}.log; true"));
        if log.contains("ready") {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{name} is not ready:\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Holds a large deleted file open, which cannot be checkpointed.
pub const STUBBORN: &str = r#"
import os, time
a = os.open('/root/large', os.O_RDWR | os.O_CREAT)
os.ftruncate(a, 2 << 30)
os.unlink('/root/large')
print('ready')
time.sleep(10000)
"#;

/// Counts in memory and reports to a file; its secret is only in memory.
pub const COUNTER: &str = r#"
import os, time
secret = os.urandom(8).hex()
blob = os.urandom(4 << 20)
tell('/root/secret', secret)
print('ready')
n = 0
while True:
    n += 1
    tell('/root/count', '%d %s %d' % (n, secret, os.getpid()))
    time.sleep(0.02)
"#;

/// The counter's report: its count, and its secret with its process id.
#[track_caller]
pub fn count(client: &Client, instance: &str) -> (u64, String) {
    let text = exec(client, instance, "cat /root/count");
    let (number, rest) = text.split_once(' ').unwrap_or_else(|| panic!("{text:?}"));
    (number.parse().expect("a number"), rest.to_owned())
}

/// Waits until it keeps counting.
#[track_caller]
pub fn keeps_counting(client: &Client, instance: &str, from: u64) {
    eventually(Duration::from_secs(30), "it keeps counting", || count(client, instance).0 > from);
}

pub fn status(client: &Client, instance: &str) -> String {
    client.get(&format!("/pod/inspect?ins={instance}")).ok().json()["status"].as_str().expect("a status").to_owned()
}

/// Waits for the action to end and returns it.
#[track_caller]
pub fn wait(client: &Client, begun: &Answer) -> Value {
    let id = begun.json()["id"].as_str().unwrap_or_else(|| panic!("{begun}")).to_owned();
    let started = Instant::now();
    loop {
        let action = client.get(&format!("/action/status?id={id}")).ok().json();
        if action["status"] != "running" {
            return action;
        }
        assert!(started.elapsed() < PATIENCE, "{action}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs an action that must succeed.
#[track_caller]
pub fn done(client: &Client, path: &str) -> Value {
    let action = wait(client, &client.post(path).ok());
    assert_eq!(action["status"], "done", "{path}: {action}");
    action
}

/// Runs an action that must fail; returns the reason.
#[track_caller]
pub fn fails(client: &Client, path: &str) -> String {
    let action = wait(client, &client.post(path).ok());
    assert_eq!(action["status"], "error", "{path}: {action}");
    action["error"].as_str().expect("a reason").to_owned()
}

#[track_caller]
pub fn save(client: &Client, query: &str) -> String {
    done(client, &format!("/pod/checkpoint?{query}"))["checkpoint"].as_str().expect("an id").to_owned()
}

pub fn folder(server: &Server, checkpoint: &str) -> PathBuf {
    server.home.join("checkpoints").join(checkpoint)
}

pub fn engine_says(server: &Server, user: &str, instance: &str, format: &str) -> String {
    docker(&["inspect", "-f", format, &server.container(user, instance)])
}

/// The address of alice's pod.
pub fn address(server: &Server, instance: &str) -> String {
    engine_says(server, "alice", instance, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

/// Deletes all checkpoints of a user.
pub fn delete_checkpoints(client: &Client) {
    for row in client.get("/pod/checkpoints").ok().json().as_array().expect("a list") {
        client.post(&format!("/checkpoint/delete?checkpoint={}", row["id"].as_str().expect("an id"))).ok();
    }
}

/// Nothing of any action may be left: directories in progress, files put aside, what was left for the runtime.
#[track_caller]
pub fn assert_clean(server: &Server) {
    let left = || {
        let mut left: Vec<String> = Vec::new();
        for entry in fs::read_dir(server.home.join("checkpoints")).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".tmp-") || name.starts_with(".restore-") {
                left.push(name);
            }
        }
        for name in server.containers() {
            // It may be removed at the same time.
            let asked = std::process::Command::new("docker")
                .args(["inspect", "-f", "{{.GraphDriver.Data.UpperDir}} {{.Id}}", &name])
                .output()
                .expect("docker runs");
            let upper = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
            let Some((upper, id)) = upper.split_once(' ') else { continue };
            let order = PathBuf::from("/run/pody-runc").join(id);
            if order.exists() {
                left.push(order.display().to_string());
            }
            let layer = PathBuf::from(upper).parent().expect("a directory").to_owned();
            for entry in fs::read_dir(layer).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("pody-") {
                    left.push(format!("{name} beside {upper}"));
                }
            }
            for entry in
                fs::read_dir(format!("/var/lib/docker/containers/{id}/checkpoints")).into_iter().flatten().flatten()
            {
                left.push(entry.path().display().to_string());
            }
        }
        for (what, query) in [
            ("action", "SELECT id || ' runs' FROM actions WHERE status = 'running'"),
            (
                "checkpoint",
                "SELECT id || ' is ' || status FROM checkpoints WHERE status NOT IN ('ready', 'deprecated')",
            ),
        ] {
            let database = server.database();
            let mut statement = database.prepare(query).expect("a table of ours");
            let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("a table of ours");
            left.extend(rows.map(|row| format!("{what} {}", row.expect("a text"))));
        }
        left
    };
    let begun = Instant::now();
    while !left().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(15), "left behind: {:#?}\n{}", left(), server.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}
