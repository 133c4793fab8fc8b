//! CRIU that fails, hangs or is killed, and disks that fill up: the pod keeps running, with its network, and nothing is
//! left behind.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    common::{Answer, Client, Server, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, engine_says, exec, fails, keeps_counting,
        run_python, save, start_with, status, wait,
    },
};

/// A directory with a `criu` that does this where the real one would dump a pod.
fn criu_that(does: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|part| part.join("criu")).find(|program| program.is_file()).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = swrk ] && [ -n \"$PODY_ACTION\" ] && {{ {does}; }}\nexec {} \"$@\"\n",
        real.display()
    );
    let program = folder.path().join("criu");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{path}", folder.path().display());
    (folder, path)
}

#[track_caller]
fn keeps_running(server: &Server) {
    let alice = server.member("alice");
    assert_eq!(status(&alice, "main"), "running");
    let (from, _) = count(&alice, "main");
    keeps_counting(&alice, "main", from);
    assert_eq!(engine_says(server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    let pid = engine_says(server, "alice", "main", "{{.State.Pid}}");
    let rules = Command::new("nsenter").args(["-t", &pid, "-n", "iptables-save"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("CRIU"));
    assert_clean(server);
    assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
}

#[test]
fn a_criu_that_fails_hangs_or_is_killed_leaves_the_pod_running() {
    for (does, said) in
        [("exit 1", "dump: "), ("sleep 1000", "dump: CRIU did not end within "), ("kill -9 $$", "dump: ")]
    {
        let (_folder, path) = criu_that(does);
        let config = "[checkpoint]\ntimeout_seconds = 1";
        let Some(server) = start_with(|builder| builder.config(config).env("PATH", &path)) else { return };
        let alice = server.member("alice");
        create(&alice, "main");
        run_python(&alice, "main", "counter", COUNTER);
        let begun = Instant::now();
        let error = fails(&alice, "/pod/checkpoint?ins=main&leave_running=false");
        assert!(error.starts_with(said), "{does}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{does} took {:?}", begun.elapsed());
        keeps_running(&server);
        delete(&alice, "main");
    }
}

/// Sends on many connections in turn, within the pod, all the time. Broken ones are reported.
const CONNECTED: &str = r#"
import socket, time
server = socket.create_server(('127.0.0.1', 7300))
pairs = [(socket.create_connection(('127.0.0.1', 7300)), server.accept()[0]) for _ in range(300)]
tell('/root/broken', '0')
print('ready')
broken = 0
while True:
    for pair in list(pairs):
        try:
            pair[0].sendall(b'x')
            pair[1].recv(1)
        except OSError as error:
            print(error)
            pairs.remove(pair)
            broken += 1
            tell('/root/broken', str(broken))
        time.sleep(0.0005)
"#;

/// CRIU is killed while it writes pages: its lock on the pod's network is removed, and no program runs before its
/// connections are restored.
#[test]
fn connections_survive_a_criu_that_is_killed_during_a_dump() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // Started first: CRIU dumps the processes in order.
    run_python(&alice, "main", "connected", CONNECTED);
    let program = COUNTER.replace("os.urandom(4 << 20)", "os.urandom(1 << 20) * 700");
    run_python(&alice, "main", "counter", &program);
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    kill_criu_at_its_work(&server, &alice, &begun);
    let action = crate::help::wait(&alice, &begun);
    assert_eq!(action["status"], "error", "{action}");
    keeps_running(&server);
    // The kernel lets them run until we notice, a moment later.
    let broken: u32 = exec(&alice, "main", "cat /root/broken").parse().unwrap();
    assert!(broken <= 12, "{broken} of 300 connections are broken");
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Kills the CRIU of this action while it writes pages.
#[track_caller]
fn kill_criu_at_its_work(server: &Server, client: &Client, begun: &Answer) {
    let folder = server.home.join("checkpoints");
    let mine = folder.join(format!(".tmp-{}", begun.json()["checkpoint"].as_str().unwrap()));
    let id = begun.json()["id"].as_str().unwrap().to_owned();
    let bytes = || client.get(&format!("/action/status?id={id}")).ok().json()["bytes"].as_u64().unwrap();
    eventually(Duration::from_secs(20), "pages are written", || bytes() > 20 << 20);
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Its working directory is another one while it examines the pod.
        let is_mine = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&mine))
            || (!fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default().contains("docker/")
                && fs::read_dir(entry.path().join("fd"))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|file| fs::read_link(file.path()).is_ok_and(|file| file.starts_with(&mine))));
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_mine && command.windows(4).any(|part| part == b"criu") && !command.starts_with(b"runc") {
            killed += 1;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
    assert!(killed >= 1);
}

/// CRIU is killed while it dumps a program that was stopped with Ctrl-Z: the program is stopped again, and nothing of
/// CRIU stays in it, so it can be checkpointed.
#[test]
fn a_stopped_program_survives_a_criu_that_is_killed_during_its_dump() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "stopped", STOPPED);
    run_python(&alice, "main", "counter", COUNTER);
    let state = || exec(&alice, "main", "cut -d' ' -f3 /proc/$(cat /root/pid)/stat");
    eventually(Duration::from_secs(20), "it is stopped", || state() == "T");
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    kill_criu_at_its_work(&server, &alice, &begun);
    let action = wait(&alice, &begun);
    assert_eq!(action["status"], "error", "{action}");
    keeps_running(&server);
    eventually(Duration::from_secs(20), "it is stopped again", || state() == "T");
    let on = || exec(&alice, "main", "cat /root/on; true");
    let before = on();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(on(), before, "it stays stopped");
    save(&alice, "ins=main");
    exec(&alice, "main", "kill -CONT $(cat /root/pid)");
    eventually(Duration::from_secs(20), "it resumes", || on() != before);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

const STOPPED: &str = r#"
import os, signal, time
tell('/root/pid', str(os.getpid()))
blob = os.urandom(1 << 20) * 700
print('ready')
os.kill(os.getpid(), signal.SIGSTOP)
n = 0
while True:
    n += 1
    tell('/root/on', '%d' % n)
    time.sleep(0.02)
"#;

/// A small disk for the store; unmounted when dropped.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        crate::common::run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={size}"), "pody-test", &folder.path().display().to_string()],
        );
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_and_one_that_fills_up_leaves_the_pod_running() {
    if !crate::common::Need::Failpoints.is_there() {
        return;
    }
    let disk = Disk::new("64m");
    let config = format!("[checkpoint]\nkeep_free = \"0\"\ndirectory = \"{}\"", disk.path().display());
    // The fail point gives time to fill the disk before the dump.
    let slow =
        |builder: crate::common::Builder| builder.config(&config).env("FAILPOINTS", "checkpoint-dump=sleep(2000)");
    let Some(server) = start_with(slow) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &COUNTER.replace("4 << 20", "40 << 20"));
    let begun = alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    fs::write(disk.path().join("filler"), vec![1; 50 << 20]).unwrap();
    let action = crate::help::wait(&alice, &begun);
    let error = action["error"].as_str().unwrap_or_default();
    assert!(error.starts_with("dump: the disk is full"), "{action}");
    keeps_running(&server);
    assert!(fs::read_dir(disk.path()).unwrap().flatten().all(|entry| {
        let name = entry.file_name();
        name == "filler" || name == ".bin"
    }));

    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 507, "{refused}");
    fs::remove_file(disk.path().join("filler")).unwrap();
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A daemon that is stopped leaves no pod paused.
#[test]
fn a_daemon_that_is_stopped_resumes_the_pod() {
    let (_folder, path) = criu_that("sleep 1000");
    let Some(mut server) = start_with(|builder| builder.env("PATH", &path)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    alice.post("/pod/checkpoint?ins=main").ok();
    eventually(Duration::from_secs(10), "it is paused", || status(&alice, "main") == "paused");
    assert!(server.terminate().success());
    assert_eq!(engine_says(&server, "alice", "main", "{{.State.Status}}"), "running");
    server.start_again();
    keeps_running(&server);
    delete(&alice, "main");
}

/// The memory of pods is deleted with the account, no matter who gets its name next.
#[test]
fn checkpoints_are_deleted_with_their_user() {
    let Some(server) = start_with(|builder| builder) else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    let id = save(&alice, "ins=main&kind=rootfsonly");
    admin.post("/admin/user/purge?username=alice").ok();
    let folder = crate::help::folder(&server, &id);
    eventually(Duration::from_secs(10), "the directory is removed", || !folder.exists());
    server.add_user("alice", &[]);
    assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
    assert_eq!(alice.get("/action/list").ok().json().as_array().unwrap().len(), 0);
    assert_eq!(alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).status, 404);
}

/// The same if it completes only after the account is gone.
#[test]
fn a_checkpoint_in_progress_is_deleted_with_its_user() {
    if !crate::common::Need::Failpoints.is_there() {
        return;
    }
    let slow = |builder: crate::common::Builder| builder.env("FAILPOINTS", "checkpoint-hash=sleep(6000)");
    let Some(server) = start_with(slow) else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    let begun = alice.post("/pod/checkpoint?ins=main").ok().json();
    let (action, checkpoint) = (begun["id"].as_str().unwrap(), begun["checkpoint"].as_str().unwrap());
    let asked = || admin.get(&format!("/action/status?id={action}")).ok().json();
    eventually(Duration::from_secs(30), "the pod has resumed", || asked()["phase"] == "hash");
    admin.post("/admin/user/purge?username=alice").ok();
    assert_eq!(asked()["status"], "running", "it was complete before the account was deleted");
    server.add_user("alice", &[]);
    eventually(Duration::from_secs(30), "it ends", || asked()["status"] != "running");
    assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
    let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={checkpoint}"));
    assert_eq!(refused.status, 404, "{refused}");
    let folder = crate::help::folder(&server, checkpoint);
    eventually(Duration::from_secs(10), "the directory is removed", || !folder.exists());
}

/// Options of other programs for CRIU are unchanged after every restore.
/// `/etc/criu/runc.conf` is the admin's: runc gives it to every CRIU.
#[test]
fn the_hosts_criu_options_are_not_touched() {
    let Some(server) = start_with(|builder| builder) else { return };
    let conf = Path::new("/etc/criu/runc.conf");
    let alice = server.member("alice");
    create(&alice, "main");
    let look = || (fs::read_to_string(conf).ok(), fs::metadata(conf).ok().map(|file| file.modified().unwrap()));
    let before = look();
    save(&alice, "ins=main&leave_running=false");
    crate::help::done(&alice, "/pod/restore?ins=main");
    assert_eq!(look(), before);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
