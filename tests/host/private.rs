//! A test's own engine, in its own network namespace: it may be frozen, killed, and have its disk filled.

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

use crate::common::{Builder, IMAGE, Need, Server, run};

/// The engine's config file.
const SETTINGS: &str = "daemon.json";

/// The engine, with an image from the host's engine.
pub struct PrivateDocker {
    folder: tempfile::TempDir,
    child: Child,
}

impl PrivateDocker {
    /// `None` if the machine lacks what is needed.
    pub fn start() -> Option<Self> {
        Self::start_in(|_| {})
    }

    /// On its own disk of this many MiB.
    pub fn start_on_a_disk(size: u32) -> Option<Self> {
        Self::start_in(|folder| {
            let (image, data) = (folder.join("disk.img").display().to_string(), folder.join("data"));
            fs::create_dir(&data).expect("our own directory");
            run("truncate", &["-s", &format!("{size}M"), &image]);
            run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
            run("mount", &["-o", "loop", &image, &data.display().to_string()]);
        })
    }

    fn start_in(prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !Need::PrivateEngine.is_there() || !Need::Docker.is_there() {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("pody-dockerd-").tempdir().expect("a temporary directory");
        prepare(folder.path());
        fs::write(folder.path().join(SETTINGS), "{}").expect("our own directory");
        let child = Self::spawn(folder.path());
        let docker = Self { folder, child };
        docker.wait_ready();
        let saved = docker.folder.path().join("image.tar").display().to_string();
        run("docker", &["save", "-o", &saved, IMAGE]);
        let loaded = docker.docker(&["load", "-i", &saved]);
        assert!(loaded.status.success(), "{loaded:?}");
        fs::remove_file(saved).expect("our own file");
        Some(docker)
    }

    /// A server with this engine. The engine has no network, and so no ports.
    pub fn server(&self) -> Builder {
        let image = "network = \"none\"\n[[images]]\nname = \"pody-base\"\nports = []\n";
        Server::builder().env("DOCKER_HOST", self.host()).config(image).pod_ports(0)
    }

    /// Where the engine keeps images and containers.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn spawn(folder: &Path) -> Child {
        let log = fs::File::options().create(true).append(true).open(folder.join("log")).expect("a file");
        let at = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new("unshare");
        // CRIU probes its own network namespace for features: the loopback must be up.
        command.args(["-n", "sh", "-c", "ip link set lo up; exec dockerd \"$@\"", "sh"]);
        command.args(["--bridge=none", "--iptables=false", "--live-restore"]);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")]);
        command.args(["--host", &format!("unix://{}", at("docker.sock")), "--config-file", &at(SETTINGS)]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        // Its containerd belongs to it.
        command.process_group(0);
        command.spawn().expect("dockerd")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn docker(&self, arguments: &[&str]) -> std::process::Output {
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
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("our own child");
    }

    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("our own child");
    }

    /// Containers outlive their engine: when a test fails while it is dead, they and their shims are killed here.
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

    /// Sets the config for its next start.
    pub fn set(&self, settings: &str) {
        fs::write(self.folder.path().join(SETTINGS), settings).expect("our own directory");
    }

    pub fn start_again(&mut self) {
        // Its containerd dies with it, and a new dockerd must not adopt the one that is just exiting.
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
        // Anything that dockerd left mounted would prevent the removal of the directory.
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
