//! Docker that is not there: at the start, in the middle, frozen, killed and started again.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::{IMAGE, Server, eventually},
    help::{
        DEADLINE, Proxied, SETTLE, assert_reads_fast, assert_settled, assert_unavailable, begin, create, create_path,
        delete,
    },
};

fn docker_word(server: &Server) -> String {
    server.anon().get("/healthz").ok().json()["docker"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn docker_down_at_the_start() {
    let Some(mut server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    server.terminate();
    server.proxy.vanish();

    let begun = Instant::now();
    server.start_unready();
    assert_eq!(server.anon().get("/version").ok().text(), "[0,4,1]");
    let took = begun.elapsed();
    // A call to an engine is given three seconds: none was waited for.
    assert!(took < Duration::from_secs(2), "/version answers after {took:?}");
    eventually(Duration::from_secs(2), "it says so", || docker_word(&server) == "down");
    assert_eq!(server.anon().get("/healthz").ok().json()["status"], "degraded");

    assert_reads_fast(&alice, &["/pod/list", "/user/info", "/image/list", "/pod/ps", "/pod/inspect?ins=main"]);
    assert_eq!(alice.get("/pod/list").ok().text(), "[\"main\"]");
    for path in [
        create_path("second"),
        "/pod/delete?ins=main".to_owned(),
        "/pod/stop?ins=main".to_owned(),
        "/pod/start?ins=main".to_owned(),
        "/pod/restart?ins=main".to_owned(),
        "/pod/commit?ins=main&tag=v1".to_owned(),
        "/pod/exec?ins=main&cmd=true".to_owned(),
    ] {
        let (answer, took) = begin(&alice, &path).answer();
        assert_unavailable(&answer, took);
    }
    let log = alice.get("/pod/logs?ins=main");
    assert_eq!(log.status, 503, "{log}");

    server.proxy.appear();
    eventually(SETTLE, "it recovers by itself", || docker_word(&server) == "ok");
    assert_settled(&server);
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
}

#[test]
fn docker_goes_away_and_comes_back() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    for _ in 0..3 {
        let command = begin(&alice, "/pod/exec?ins=main&cmd=sleep+30&timeout=60");
        thread::sleep(Duration::from_millis(300));
        server.proxy.vanish();
        eventually(DEADLINE, "it is noticed", || docker_word(&server) == "down");
        let (answer, _) = command.answer();
        assert_eq!(answer.status, 503, "{answer}");
        let (answer, took) = begin(&alice, &create_path("second")).answer();
        assert_unavailable(&answer, took);
        let shown = alice.get("/pod/inspect?ins=main").ok();
        assert_eq!(shown.json()["status"], "running");
        assert!(shown.header("x-pody-inventory-age").is_some());
        assert_reads_fast(&alice, &["/pod/ps"]);
        server.proxy.appear();
        eventually(SETTLE, "it is back", || docker_word(&server) == "ok");
        assert_eq!(alice.get("/pod/inspect?ins=main").ok().header("x-pody-inventory-age"), None);
    }
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
    assert_settled(&server);
}

/// An engine of the test's own, in a network namespace of its own: it may be frozen and killed.
struct PrivateDocker {
    folder: tempfile::TempDir,
    child: Child,
}

impl PrivateDocker {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("pody-dockerd-").tempdir().expect("a temporary folder");
        let child = Self::spawn(folder.path());
        let docker = Self { folder, child };
        docker.wait_ready();
        docker
    }

    fn spawn(folder: &Path) -> Child {
        fs::write(folder.join("daemon.json"), "{}").expect("our own folder");
        let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a file");
        let at = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new("unshare");
        command.args(["-n", "dockerd", "--bridge=none", "--iptables=false", "--live-restore"]);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
        command.args(["--host", &format!("unix://{}", at("docker.sock")), "--config-file", &at("daemon.json")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        // Its containerd belongs to it.
        command.process_group(0);
        command.spawn().expect("dockerd")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn docker(&self, arguments: &[&str]) -> std::process::Output {
        Command::new("docker").arg("-H").arg(self.host()).args(arguments).output().expect("docker")
    }

    fn wait_ready(&self) {
        let begun = Instant::now();
        while !self.docker(&["version"]).status.success() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(30), "the private engine does not answer:\n{}", log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// `unshare` becomes dockerd, so this is its pid.
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("our own child");
    }

    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("our own child");
    }

    /// Containers outlive their engine: when a test fails while it is dead, they and their shims are ended here.
    fn end_shims(&self) {
        let ours = self.folder.path().display().to_string();
        let numbers =
            fs::read_dir("/proc").expect("procfs").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for shim in numbers.filter_map(|name| name.parse::<i32>().ok()) {
            let command = fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap_or_default();
            if !command.contains("containerd-shim") || !command.contains(&ours) {
                continue;
            }
            let threads = fs::read_dir(format!("/proc/{shim}/task")).into_iter().flatten().filter_map(Result::ok);
            let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
            let children: String = children.collect();
            for process in children.split_whitespace().filter_map(|word| word.parse().ok()).chain([shim]) {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
    }

    fn start_again(&mut self) {
        // Its containerd dies with it, and a new dockerd must not take the one that is just dying for its own.
        for left in ["pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.folder.path().join(left));
        }
        self.child = Self::spawn(self.folder.path());
        self.wait_ready();
    }
}

impl Drop for PrivateDocker {
    fn drop(&mut self) {
        if let Ok(list) = String::from_utf8(self.docker(&["ps", "-aq"]).stdout) {
            for id in list.lines() {
                self.docker(&["rm", "-f", id]);
            }
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
        self.end_shims();
        // What dockerd may leave mounted would keep the folder.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&ours)).collect();
        points.reverse();
        for point in points {
            let _ = Command::new("umount").args(["-l", point]).output();
        }
    }
}

#[test]
fn a_real_engine_frozen_killed_and_started_again() {
    if !crate::common::Need::Docker.is_there() {
        return;
    }
    let mut docker = PrivateDocker::start();
    let saved = docker.folder.path().join("image.tar");
    crate::common::docker(&["save", "-o", &saved.display().to_string(), IMAGE]);
    let loaded = docker.docker(&["load", "-i", &saved.display().to_string()]);
    assert!(loaded.status.success(), "{loaded:?}");
    let builder = Server::builder().env("DOCKER_HOST", docker.host()).config("network = \"none\"").pod_ports(0);
    let image = format!("[[images]]\nname = \"{}\"\nports = []\n", "pody-base");
    let Some(server) = builder.config(&image).start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();

    docker.signal(Signal::SIGSTOP);
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    eventually(DEADLINE, "the frozen engine is noticed", || docker_word(&server) == "down");
    assert_reads_fast(&alice, &["/pod/list", "/pod/ps", "/pod/inspect?ins=main", "/user/info"]);
    docker.signal(Signal::SIGCONT);
    eventually(SETTLE, "the engine is back", || docker_word(&server) == "ok");
    eventually(SETTLE, "only one container is left", || {
        String::from_utf8_lossy(&docker.docker(&["ps", "-aq"]).stdout).lines().count() == 1
    });

    docker.kill();
    eventually(DEADLINE, "the killed engine is noticed", || docker_word(&server) == "down");
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    docker.start_again();
    eventually(SETTLE, "the engine is back", || docker_word(&server) == "ok");
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    delete(&alice, "main").ok();
    assert_eq!(server.count("SELECT count(*) FROM pods WHERE state NOT IN ('deleted', 'failed')"), 0);
    assert_eq!(server.count("SELECT count(*) FROM events WHERE outcome = 'pending'"), 0);
    drop(server);
}
