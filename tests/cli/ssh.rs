//! `pody ssh`, `connect`, `copy-id`, with an `ssh` that prints its arguments.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use serde_json::json;

use super::fake::{Fake, ended};

/// Puts a fake `ssh` first on PATH.
fn with_ssh(fake: &Fake, args: &[&str]) -> Command {
    let bin = fake.home.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("ssh"), "#!/bin/sh\nprintf '<%s>' \"$@\"\nexit 9\n").unwrap();
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = fake.pody(args);
    command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    command
}

#[test]
fn ssh_uses_the_host_port_and_passes_on_the_exit_code() {
    let fake = Fake::start();
    fake.on("/pod/inspect", json!({"port_mapping": ["20805:80", "20806:22"]}));
    let ssh = ended(&mut with_ssh(&fake, &["ssh", "main", "--", "-v", "ls -l"]), "");
    assert_eq!((ssh.code, ssh.stdout.as_str()), (9, "<root@127.0.0.1><-p><20806><-v><ls -l>"));
    assert_eq!(fake.seen_one().line, "GET /pod/inspect?ins=main");
}

#[test]
fn connect_prints_the_ssh_command() {
    let fake = Fake::start();
    fake.on("/pod/inspect", json!({"port_mapping": ["20805:80", "20806:22"]}));
    let ssh = ended(&mut with_ssh(&fake, &["connect", "ins:main", "-p", "80", "-u", "me", "-t", "-i", "/my key"]), "");
    let options = "-o 'UserKnownHostsFile=/dev/null' -o 'StrictHostKeyChecking=no' -i '/my key' me@127.0.0.1 -p 20805";
    assert!(ssh.stdout.starts_with(&format!("ssh {options}\n<-o>")), "{ssh:?}");

    fake.on("/pod/inspect", json!({"port_mapping": []}));
    let no_port = ended(&mut with_ssh(&fake, &["connect", "main"]), "");
    assert_eq!(no_port.code, 1);
    assert!(no_port.stderr.starts_with("Error - pod main has no host port for its port 22\nhint: is it running, "));
}

#[test]
fn copy_id_adds_a_key_once_and_quotes_it() {
    let fake = Fake::start();
    fake.on("/pod/exec", json!({"exit_code": 0, "log": "", "truncated": false}));
    let key = fake.home.path().join("key.pub");
    fs::write(&key, "ssh-ed25519 AAAA it's me\n").unwrap();
    fake.run(&["copy-id", "main", key.to_str().unwrap()]).ok();
    let line = fake.seen_one().line;
    let command = line.strip_prefix("POST /pod/exec?ins=main&cmd=").unwrap();
    // As a pod's shell runs it.
    for _ in 0..2 {
        assert!(Command::new("bash").args(["-c", command]).env("HOME", fake.home.path()).status().unwrap().success());
    }
    let authorized = fake.home.path().join(".ssh/authorized_keys");
    assert_eq!(fs::read_to_string(&authorized).unwrap(), "ssh-ed25519 AAAA it's me\n");
    assert_eq!(fs::metadata(&authorized).unwrap().permissions().mode() & 0o777, 0o600);

    fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    let private = fake.run(&["copy-id", "main", key.to_str().unwrap()]);
    assert_eq!((private.code, private.stderr.contains("is not an SSH public key")), (1, true));
    assert!(fake.seen().is_empty());
}

#[test]
fn a_key_that_was_not_added_is_a_failure() {
    let fake = Fake::start();
    fake.on(
        "/pod/exec",
        json!({"exit_code": 1, "log": "bash: /root/.ssh: Read-only file system\r\n", "truncated": false}),
    );
    let key = fake.home.path().join("key.pub");
    fs::write(&key, "ssh-ed25519 AAAA\n").unwrap();
    let failed = fake.run(&["copy-id", "main", key.to_str().unwrap()]);
    assert_eq!(failed.code, 1);
    assert_eq!(failed.stderr, "Error - the key was not added: bash: /root/.ssh: Read-only file system\n");
}
