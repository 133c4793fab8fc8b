//! Pods by their names: `ps`, `create`, `inspect`, `rm` and so on; `logs`; tokens and keys.

use pody::model::view::pod::PodView;
use serde_json::json;

use super::{
    fake::{Fake, ended},
    views,
};

#[test]
fn ps_is_a_table_or_the_servers_json() {
    let fake = Fake::start();
    let pods = json!([views::pod()]);
    fake.on("/pod/ps", pods.clone());
    let table = fake.run(&["ps"]).ok();
    let words: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "STATUS", "IMAGE", "PORTS", "GPUS", "MEMORY", "CREATED"]);
    assert_eq!(words[1][..6], ["main", "running", "pody-base:latest", "20806:22", "all", "64.0G"]);
    assert_eq!(fake.seen_one().line, "GET /pod/ps");

    assert_eq!(fake.run(&["ps", "-a", "--json"]).json(), pods);
    assert_eq!(fake.seen_one().line, "GET /pod/ps?all=true");
}

#[test]
fn ps_names_pods_that_lost_their_gpus() {
    let fake = Fake::start();
    let trouble = Some("this pod has lost its GPUs: why".to_owned());
    fake.on("/pod/ps", [PodView { gpu_trouble: trouble, ..views::pod() }]);
    let shown = fake.run(&["ps"]).ok();
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(shown.ends_with("\nalice-main: this pod has lost its GPUs: why\n"), "{shown}");
}

#[test]
fn create_start_stop_and_commit_post_forms() {
    let fake = Fake::start();
    fake.on("/pod/create", views::created()).on("/pod/stop", json!({"log": "Server listening"}));
    fake.on("/pod/commit", json!({"image_name": "c:alice-v1", "log": "Container alice-main committed"}));
    let said = fake.run(&["create", "main", "--image", "pody-base"]).ok();
    assert_eq!(said, "main is running; connect with `pody shell main` or `pody ssh main`\n");
    let seen = fake.seen_one();
    assert_eq!((seen.line.as_str(), seen.form.as_str()), ("POST /pod/create", "ins=main&image=pody-base"));
    fake.run(&["create", "two", "--image", "pody-base", "--gpus", "0,1"]).ok();
    assert_eq!(fake.seen_one().form, "ins=two&image=pody-base&gpus=0,1");
    assert_eq!(fake.run(&["stop", "main"]).ok(), "main stopped\n");
    assert_eq!(fake.seen_one().form, "ins=main");
    fake.run(&["commit", "main", "--tag", "v1", "--message", "with torch"]).ok();
    assert_eq!(fake.seen_one().form, "ins=main&tag=v1&msg=with torch");
}

#[test]
fn inspect_and_stats_are_tables() {
    let fake = Fake::start();
    fake.on(
        "/pod/inspect",
        json!({"instance": "main", "gpu_ids": [0, 1], "memory_limit": -1, "port_mapping": ["1:22", "2:80"]}),
    );
    let shown = fake.run(&["inspect", "main"]).ok();
    let fields =
        "FIELD         VALUE\ninstance      main\ngpu_ids       0,1\nmemory_limit  -\nport_mapping  1:22 2:80\n";
    assert_eq!(shown, fields);
    fake.on("/pod/stats", views::stats());
    let shown = fake.run(&["stats", "main"]).ok();
    assert_eq!(shown.lines().nth(1).unwrap(), "main  1m 1s     1.50   1.0G of 4.0G  3          3.0M       -");
}

#[test]
fn rm_asks_for_confirmation() {
    let fake = Fake::start();
    fake.on("/pod/delete", json!({"log": "Container alice-main deleted"}));
    let kept = fake.run(&["rm", "main"]);
    assert_eq!(
        (kept.code, kept.stderr.as_str()),
        (1, "error: not confirmed: main was not deleted\nhint: answer y, or add --yes\n")
    );
    assert!(fake.seen().is_empty());
    assert_eq!(fake.run(&["rm", "main", "-y"]).ok(), "main deleted\n");
    assert_eq!(fake.seen_one().form, "ins=main");
}

#[test]
fn logs_are_printed_unchanged() {
    let fake = Fake::start();
    fake.on("/pod/logs", json!({"log": "a\r\n\u{1b}[1mb"}));
    assert_eq!(fake.run(&["logs", "main", "--tail", "5", "--since", "10m"]).ok(), "a\r\n\u{1b}[1mb");
    assert_eq!(fake.seen_one().line, "GET /pod/logs?ins=main&tail=5&since=10m");
    fake.on_text("/pod/logs", 200, "as it\ncomes\n");
    assert_eq!(fake.run(&["logs", "-f", "main"]).ok(), "as it\ncomes\n");
    assert_eq!(fake.seen_one().line, "GET /pod/logs?ins=main&follow=true");
}

#[test]
fn a_new_token_is_alone_on_the_standard_output() {
    let fake = Fake::start();
    fake.on("/user/tokens/create", views::token(3, "pody_xyz"));
    assert_eq!(fake.run(&["token", "create", "ci", "--expires", "7d"]).ok(), "pody_xyz\n");
    assert_eq!(fake.seen_one().form, "name=ci&expires=7d");
    fake.on("/user/tokens/revoke", json!({"message": "revoked"}));
    for verb in ["rm", "revoke"] {
        assert_eq!(fake.run(&["token", verb, "3"]).ok(), "revoked\n");
        assert_eq!(fake.seen_one().form, "id=3");
    }
    let problem = json!([{"type": "int_parsing", "loc": ["query", "id"], "msg": "Input should be a valid integer", "input": "ci"}]);
    fake.on_status("/user/tokens/revoke", 422, json!({ "detail": problem }));
    assert_eq!(fake.run(&["token", "rm", "ci"]).stderr, "error: id: Input should be a valid integer\n");
}

#[test]
fn keys_come_from_a_file_or_the_standard_input() {
    let fake = Fake::start();
    fake.on("/user/ssh-keys/add", views::key());
    let none = fake.run(&["key", "add"]);
    assert_eq!((none.code, none.stderr.starts_with("error: no SSH public key in ~/.ssh\nhint: ")), (1, true));
    std::fs::create_dir(fake.home.path().join(".ssh")).unwrap();
    std::fs::write(fake.home.path().join(".ssh/id_ed25519.pub"), "ssh-ed25519 AAAA a@b\n").unwrap();
    assert_eq!(fake.run(&["key", "add"]).ok(), "1 SHA256:x added\n");
    assert_eq!(fake.seen_one().form, "key=ssh-ed25519 AAAA a@b");
    ended(&mut fake.pody(&["key", "add", "-"]), "ssh-rsa BBBB\n").ok();
    assert_eq!(fake.seen_one().form, "key=ssh-rsa BBBB");
}
