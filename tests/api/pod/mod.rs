//! `/pod/…`: real pods.

mod adopt;
mod commit;
mod create;
mod exec;
mod init;
mod life;
mod logs;
mod ports;
mod quota;
mod race;
mod shell;
mod ssh;
mod volumes;

use serde_json::Value;

use crate::common::{Answer, Client, Server, docker};

/// Creates a pod, which must succeed.
#[track_caller]
fn create(client: &Client, instance: &str) -> Value {
    try_create(client, instance).ok().json()
}

fn try_create(client: &Client, instance: &str) -> Answer {
    client.post_with("/pod/create", &[("ins", instance), ("image", "pody-base")])
}

#[track_caller]
fn delete(client: &Client, instance: &str) {
    client.post_with("/pod/delete", &[("ins", instance)]).ok();
}

/// Deletes all pods of a user, in parallel.
fn delete_all(client: &Client) {
    let pods = client.get("/pod/list").ok().json();
    std::thread::scope(|scope| {
        for pod in pods.as_array().unwrap() {
            scope.spawn(|| delete(client, pod.as_str().unwrap()));
        }
    });
}

/// Runs a command that must exit with 0, and returns its output.
#[track_caller]
fn exec(client: &Client, instance: &str, command: &str) -> String {
    let answer = client.post_with("/pod/exec", &[("ins", instance), ("cmd", command)]).ok().json();
    assert_eq!(answer["exit_code"], 0, "{command}: {answer}");
    answer["log"].as_str().unwrap().replace("\r\n", "\n").trim_end().to_owned()
}

/// The engine's inspect of a pod's container.
fn engine_says(server: &Server, user: &str, instance: &str) -> Value {
    let text = docker(&["inspect", &server.container(user, instance)]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list[0].clone()
}

/// The host port that is published for `port` of a pod.
fn host_port(client: &Client, instance: &str, port: u16) -> u16 {
    let pod = client.get_with("/pod/inspect", &[("ins", instance)]).ok().json();
    let mappings = pod["port_mapping"].as_array().unwrap().clone();
    let suffix = format!(":{port}");
    let mapping = mappings.iter().filter_map(Value::as_str).find_map(|text| text.strip_suffix(&suffix));
    mapping.unwrap_or_else(|| panic!("no port {port} in {pod}")).parse().unwrap()
}
