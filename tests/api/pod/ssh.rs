//! SSH into a pod, for real, with keys of `/user/ssh-keys`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{create, delete, exec, host_port};
use crate::common::{Client, Need, Server, eventually, run};

/// A new key pair.
fn make_key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path.to_str().unwrap()]);
    path
}

fn public(key: &Path) -> String {
    std::fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned()
}

fn add(client: &Client, key: &Path) -> String {
    client.post_with("/user/ssh-keys/add", &[("key", &public(key))]).ok().json()["id"].to_string()
}

/// Runs a command over SSH; returns its output, or the error.
fn ssh(port: u16, key: &Path, command: &str) -> Result<String, String> {
    let options = [
        "-F",
        "/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "IdentityAgent=none",
        "-o",
        "ConnectTimeout=5",
        "-o",
        "LogLevel=ERROR",
    ];
    let mut ssh = Command::new("ssh");
    ssh.args(options).arg("-i").arg(key).args(["-p", &port.to_string(), "root@127.0.0.1", command]);
    let output = ssh.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A pod's sshd may need a moment after the start.
fn eventually_in(port: u16, key: &Path) {
    let mut last = String::new();
    eventually(Duration::from_secs(15), "the key is accepted", || {
        ssh(port, key, "true").map_err(|error| last = error).is_ok()
    });
}

#[test]
fn keys_give_access_until_they_are_removed() {
    let Some(server) = Server::start() else { return };
    if !Need::Ssh.is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, second, by_hand) =
        (make_key(folder.path(), "first"), make_key(folder.path(), "second"), make_key(folder.path(), "by-hand"));
    let alice = server.member("alice");
    // Added before the create: present from the start.
    let id = add(&alice, &first);
    create(&alice, "main");
    let port = host_port(&alice, "main", 22);
    eventually_in(port, &first);
    assert_eq!(ssh(port, &first, "id -un; hostname").unwrap(), "root\nmain");
    // The container's environment is set, as in exec.
    assert_eq!(ssh(port, &first, "printenv NVIDIA_VISIBLE_DEVICES").unwrap(), "void");
    assert!(ssh(port, &second, "true").unwrap_err().contains("Permission denied"));

    // Added while it runs: present at once. Keys added by hand stay.
    exec(&alice, "main", &format!("echo '{}' >> /root/.ssh/authorized_keys", public(&by_hand)));
    add(&alice, &second);
    for key in [&first, &second, &by_hand] {
        ssh(port, key, "true").unwrap();
    }
    assert_eq!(exec(&alice, "main", "stat -c '%a %U' /root/.ssh /root/.ssh/authorized_keys"), "700 root\n600 root");

    // Removed: refused at once.
    alice.post_with("/user/ssh-keys/delete", &[("id", &id)]).ok();
    assert!(ssh(port, &first, "true").unwrap_err().contains("Permission denied"));
    ssh(port, &second, "true").unwrap();
    ssh(port, &by_hand, "true").unwrap();

    // Added while it is stopped: present at the next start.
    alice.post("/pod/stop?ins=main").ok();
    add(&alice, &first);
    alice.post("/pod/start?ins=main").ok();
    eventually_in(host_port(&alice, "main", 22), &first);
    ssh(host_port(&alice, "main", 22), &by_hand, "true").unwrap();
    delete(&alice, "main");
}

#[test]
fn keys_give_access_only_to_their_owners_pods() {
    let Some(server) = Server::start() else { return };
    if !Need::Ssh.is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (alices, bobs) = (make_key(folder.path(), "alice"), make_key(folder.path(), "bob"));
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    add(&alice, &alices);
    add(&bob, &bobs);
    create(&alice, "main");
    // A pod that an admin created for her is hers as well.
    admin.post("/pod/create?ins=alice-other&image=pody-base").ok();
    for instance in ["main", "other"] {
        let port = host_port(&alice, instance, 22);
        eventually_in(port, &alices);
        assert!(ssh(port, &bobs, "true").unwrap_err().contains("Permission denied"));
    }
    super::delete_all(&alice);
}

/// A link that a member placed at the path of the keys must not make us write elsewhere, nor fail the start.
#[test]
fn a_symbolic_link_in_place_of_the_keys_is_not_followed() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let mark = server.home.join("mark");
    std::fs::write(&mark, "untouched").unwrap();
    let target = mark.to_str().unwrap();
    exec(&alice, "main", &format!("mkdir -p /root/.ssh && ln -sf {target} /root/.ssh/authorized_keys"));
    alice.post_with("/user/ssh-keys/add", &[("key", crate::user::KEY)]).ok();
    exec(&alice, "main", &format!("rm -rf /root/.ssh && ln -s {} /root/.ssh", server.home.to_str().unwrap()));
    alice.post("/pod/restart?ins=main").ok();
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "untouched");
    assert!(!server.home.join("authorized_keys").exists());
    delete(&alice, "main");
}
