//! Volumes: only directories of the host that the config names.

use std::fs;

use super::{create, delete, exec};
use crate::common::Server;

#[test]
fn configured_volumes_are_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display();
    fs::create_dir(folder.path().join("share")).unwrap();
    fs::write(folder.path().join("share/hello"), "shared\n").unwrap();
    let config = format!(
        "volume_mappings = [\"{root}/$username:/workspace/$username:rw\", \"{root}/share:/workspace/share:ro\", \"tmpfs:/workspace/fast\"]\n\
         [default_quota]\ntmpfs_size = \"16m\""
    );
    let Some(server) = Server::builder().config(&config).start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    create(&bob, "main");
    exec(&alice, "main", "echo of alice > /workspace/alice/file");
    assert_eq!(fs::read_to_string(folder.path().join("alice/file")).unwrap(), "of alice\n");
    // Each user has their own; the shared one is read-only; the tmpfs has the size of the quota.
    assert_eq!(exec(&bob, "main", "ls -1 /workspace; ls /workspace/bob"), "bob\nfast\nshare");
    assert_eq!(exec(&bob, "main", "cat /workspace/share/hello"), "shared");
    let write = bob.post_with("/pod/exec", &[("ins", "main"), ("cmd", "touch /workspace/share/x")]).ok().json();
    assert_eq!(write["exit_code"], 1, "{write}");
    assert_eq!(
        exec(&bob, "main", "df -B1 --output=size,fstype /workspace/fast | tail -1").trim(),
        format!("{} tmpfs", 16 << 20)
    );
    // The files of a volume outlive its pod.
    delete(&alice, "main");
    create(&alice, "again");
    assert_eq!(exec(&alice, "again", "cat /workspace/alice/file"), "of alice");
    delete(&alice, "again");
    delete(&bob, "main");
}

#[test]
fn no_tmpfs_is_mounted_if_the_quota_is_none() {
    let config = "volume_mappings = [\"tmpfs:/fast\"]\n[default_quota]\ntmpfs_size = \"none\"";
    let Some(server) = Server::builder().config(config).start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "! mountpoint -q /fast");
    server.admin().post("/admin/quota/update?username=bob&tmpfs_size=8m").ok();
    let bob = server.member("bob");
    create(&bob, "main");
    exec(&bob, "main", "mountpoint -q /fast");
    delete(&bob, "main");
    delete(&alice, "main");
}

/// Members cannot add mounts: a pod has those of the config and of the engine.
#[test]
fn parameters_add_no_mounts() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let query =
        "ins=main&image=pody-base&volumes=/:/host&binds=/:/host&privileged=true&user=bob&name=other&network=host";
    alice.post(&format!("/pod/create?{query}")).ok();
    let container = super::engine_says(&server, "alice", "main");
    let mounts: Vec<_> = container["Mounts"].as_array().unwrap().iter().map(|mount| &mount["Destination"]).collect();
    // The init program of every pod is ours.
    assert_eq!(mounts, ["/dev/pody-init"]);
    assert_eq!(container["HostConfig"]["Privileged"], false);
    assert_eq!(container["HostConfig"]["NetworkMode"], "default");
    delete(&alice, "main");
}
