//! Shared helpers: servers behind a proxy, what must hold after a fault, reads that stay fast.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::OptionalExtension;
use serde_json::Value;

use crate::{
    common::{Answer, Builder, Client, IMAGE, Server, docker},
    proxy::Proxy,
};

/// After a fault ends, the daemon recovers within this time: five seconds, and as many again on a machine that is busy
/// with other tests.
pub const RECOVERY: Duration = Duration::from_secs(10);
/// A write that cannot be done is refused within this time: ten seconds, plus some on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// A server whose engine is the proxy.
pub struct Proxied {
    // Dropped first: it may still call the engine.
    pub server: Server,
    pub proxy: Proxy,
    _folder: tempfile::TempDir,
}

impl Proxied {
    pub fn start() -> Option<Self> {
        Self::start_with(|builder| builder)
    }

    pub fn start_with(change: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let proxy = Proxy::start(folder.path());
        let server = change(Server::builder().env("DOCKER_HOST", proxy.docker_host())).start()?;
        Some(Self { server, proxy, _folder: folder })
    }
}

impl Deref for Proxied {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Proxied {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

#[track_caller]
pub fn create(client: &Client, instance: &str) -> Answer {
    client.post(&create_path(instance))
}

pub fn create_path(instance: &str) -> String {
    format!("/pod/create?ins={instance}&image={IMAGE}")
}

#[track_caller]
pub fn delete(client: &Client, instance: &str) -> Answer {
    client.post(&format!("/pod/delete?ins={instance}"))
}

#[track_caller]
pub fn exec(client: &Client, instance: &str, command: &str, timeout: u32) -> Answer {
    let timeout = timeout.to_string();
    client.post_with("/pod/exec", &[("ins", instance), ("cmd", command), ("timeout", &timeout)])
}

/// Whether a process with exactly this command line runs in the pod.
#[track_caller]
pub fn runs(client: &Client, instance: &str, command: &str) -> bool {
    let log = exec(client, instance, &format!("pgrep -fxc '{command}'; true"), 10).ok().json()["log"].clone();
    log.as_str().expect("a log").trim() != "0"
}

/// A request in flight: its answer, if there was one, and how long it took.
pub struct Pending(JoinHandle<(Option<Answer>, Duration)>);

/// Posts in the background. The daemon may be killed meanwhile.
pub fn begin(client: &Client, path: &str) -> Pending {
    let (client, path) = (client.clone(), path.to_owned());
    Pending(thread::spawn(move || {
        let begun = Instant::now();
        let answer = client.try_send("POST", &path, &[], b"").ok();
        (answer, begun.elapsed())
    }))
}

impl Pending {
    /// The answer and its time.
    #[track_caller]
    pub fn answer(self) -> (Answer, Duration) {
        let (answer, took) = self.0.join().expect("a thread of ours");
        (answer.expect("an answer"), took)
    }

    /// For requests whose daemon exited meanwhile.
    pub fn answer_if_any(self) -> Option<Answer> {
        self.0.join().expect("a thread of ours").0
    }

    /// For requests whose daemon was killed.
    pub fn forget(self) {
        let _ = self.0.join();
    }

    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// A temporary refusal: 503 with Retry-After, in time.
#[track_caller]
pub fn assert_unavailable(answer: &Answer, took: Duration) {
    assert_eq!(answer.status, 503, "{answer}");
    let retry = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(retry.is_some_and(|seconds| seconds >= 1), "no Retry-After: {:?}", answer.headers);
    assert!(took < DEADLINE, "refused only after {took:?}");
}

/// Reads of one user do not wait for anything: calls to an engine that is down take seconds. Their speed is measured by
/// benches/compare.sh.
#[track_caller]
pub fn assert_reads_fast(client: &Client, paths: &[&str]) {
    for path in paths {
        // The first request caches the credentials, so a password is not hashed for each read.
        client.get(path).ok();
        let mut times: Vec<Duration> = (0..15)
            .map(|_| {
                let begun = Instant::now();
                client.get(path).ok();
                begun.elapsed()
            })
            .collect();
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        assert!(median < Duration::from_millis(200), "{path} takes {median:?} in the median of {times:?}");
        assert!(worst < Duration::from_secs(2), "{path} takes {worst:?} once");
    }
}

/// The state of the newest row of a pod.
pub fn state(server: &Server, user: &str, instance: &str) -> Option<String> {
    let query = "SELECT state FROM pods WHERE container_name = ?1 ORDER BY created_at DESC, id DESC LIMIT 1";
    let name = server.container(user, instance);
    server.database().query_row(query, [name], |row| row.get(0)).optional().expect("a table of ours")
}

/// The full id of the container of an existing pod.
#[track_caller]
pub fn container_id(server: &Server, user: &str, instance: &str) -> String {
    let query = "SELECT container_id FROM pods WHERE container_name = ?1 AND state = 'running'";
    let name = server.container(user, instance);
    server.database().query_row(query, [&name], |row| row.get(0)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One word of `docker inspect`, empty if there is no such container.
pub fn inspect(container: &str, format: &str) -> String {
    let output = Command::new("docker").args(["container", "inspect", "--format", format, container]).output();
    String::from_utf8_lossy(&output.expect("docker").stdout).trim().to_owned()
}

/// Everything that must hold after a fault, within [`RECOVERY`].
#[track_caller]
pub fn assert_recovered(server: &Server) {
    let begun = Instant::now();
    loop {
        let wrong = inconsistencies(server);
        if wrong.is_empty() {
            return;
        }
        assert!(begun.elapsed() < RECOVERY, "not recovered within {RECOVERY:?}: {wrong:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The inconsistencies among rows, containers, ports, events and answers.
pub fn inconsistencies(server: &Server) -> Vec<String> {
    let mut wrong = Vec::new();
    let database = server.database();
    let mut rows = BTreeSet::new();
    let mut wanted_ports = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut statement = database
        .prepare(
            "SELECT id, container_name, state, container_id, spec FROM pods WHERE state NOT IN ('deleted', 'failed')",
        )
        .expect("a table of ours");
    let mut found = statement.query([]).expect("a table of ours");
    while let Some(row) = found.next().expect("a row") {
        let text = |column| row.get::<_, Option<String>>(column).expect("a text").unwrap_or_default();
        let (pod, name, state, container, spec) = (text(0), text(1), text(2), text(3), text(4));
        if state != "running" {
            wrong.push(format!("{name} is {state}"));
        }
        if !names.insert(name.clone()) {
            wrong.push(format!("{name} exists twice"));
        }
        let spec: Value = serde_json::from_str(&spec).expect("JSON");
        for port in spec["ports"].as_array().into_iter().flatten() {
            wanted_ports.insert((port["host"].as_i64().unwrap_or(0), pod.clone()));
        }
        rows.insert(container);
    }
    let containers = containers(server);
    if rows != containers {
        wrong.push(format!("the rows name {rows:?}, the engine has {containers:?}"));
    }

    let mut statement = database.prepare("SELECT host_port, pod FROM ports").expect("a table of ours");
    let ports = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)));
    let ports: BTreeSet<_> = ports.expect("a table of ours").map(|row| row.expect("a row")).collect();
    if ports != wanted_ports {
        wrong.push(format!("the table of ports has {ports:?}, the pods {wanted_ports:?}"));
    }
    for (query, what) in [
        ("SELECT count(*) FROM events WHERE outcome = 'pending'", "events are pending"),
        ("SELECT count(*) FROM commits", "commits are in progress"),
        (
            "SELECT count(*) FROM workloads WHERE ended_at IS NULL AND id NOT IN
                 (SELECT workload FROM pods WHERE state NOT IN ('deleted', 'failed'))",
            "workloads have neither a pod nor an end",
        ),
    ] {
        let count: i64 = database.query_row(query, [], |row| row.get(0)).expect("a table of ours");
        if count != 0 {
            wrong.push(format!("{count} {what}"));
        }
    }
    match server.admin().try_send("GET", "/pod/listall", &[], b"") {
        Ok(answer) if answer.status == 200 => {
            let listed: BTreeSet<String> = serde_json::from_slice(&answer.body).expect("names");
            if listed != names {
                wrong.push(format!("listed are {listed:?}, the rows are {names:?}"));
            }
        }
        other => wrong.push(format!("no list: {other:?}")),
    }
    wrong
}

/// Ids of this server's containers. Names are not compared, since people rename containers.
fn containers(server: &Server) -> BTreeSet<String> {
    let filter = format!("name=^/{}-", server.prefix);
    let list = docker(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", "{{.ID}}"]);
    list.lines().map(str::to_owned).collect()
}

/// A container of the test's own, removed when dropped.
pub struct Foreign(pub String);

impl Foreign {
    #[track_caller]
    pub fn create(name: &str, options: &[&str]) -> Self {
        let mut arguments = vec!["create", "--name", name];
        arguments.extend(options);
        arguments.extend([IMAGE, "sleep", "600"]);
        docker(&arguments);
        Self(name.to_owned())
    }

    pub fn is_there(&self) -> bool {
        !inspect(&self.0, "{{.Id}}").is_empty()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}
