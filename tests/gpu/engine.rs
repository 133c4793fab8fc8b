//! A test's own Docker Engine that can assign GPUs: it finds a program by the name of NVIDIA's hook, which does
//! nothing. So device requests go all the way to a running container, and no card is needed.
//!
//! It has its own directories, socket and containerd namespace, and runs in its own network namespace, since it would
//! shut down the host's bridge. Its one image is made from this host's shell.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    common::{Builder, Need, Server, settings_with_runtime},
    run,
};

/// The image's name. Like CUDA's images, it requests all GPUs by itself.
pub const TINY: &str = "tiny";
const PROGRAMS: [&str; 7] = ["/bin/sh", "/bin/bash", "/bin/sleep", "/bin/cat", "/bin/mkdir", "/bin/rm", "/bin/mv"];
const HOOK: &str = "nvidia-container-runtime-hook";
/// Time that the engine may take to start and to stop.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

pub struct Engine {
    folder: tempfile::TempDir,
    child: Child,
}

impl Engine {
    /// `None` if the machine lacks what is needed.
    pub fn start() -> Option<Self> {
        if !Need::PrivateEngine.is_there() {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("pody-engine-").tempdir().expect("a temporary directory");
        let within = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(within("bin")).expect("our own directory");
        let hook = folder.path().join("bin").join(HOOK);
        fs::write(&hook, "#!/bin/sh\nexit 0\n").expect("our own directory");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("our own directory");
        fs::write(within("daemon.json"), settings_with_runtime()).expect("our own directory");
        let log = fs::File::create(within("log")).expect("our own directory");
        let namespace = folder.path().file_name().expect("a name").display().to_string();
        let child = Command::new("unshare")
            // CRIU probes its own network namespace for features: the loopback must be up.
            .args(["--net", "sh", "-c", "ip link set lo up; exec dockerd \"$@\"", "sh"])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--host", &format!("unix://{}", within("docker.sock")), "--config-file", &within("daemon.json")])
            .args(["--data-root", &within("root"), "--exec-root", &within("exec"), "--pidfile", &within("pid")])
            .args(["--containerd-namespace", &namespace])
            .args(["--containerd-plugins-namespace", &format!("{namespace}-plugins")])
            .env("PATH", path_with(&folder.path().join("bin")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("unshare exists");
        let mut engine = Self { folder, child };
        engine.wait_until_ready();
        engine.import_image();
        Some(engine)
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// A server with this engine, whose pods use [`TINY`].
    pub fn server(&self) -> Builder {
        let builder = Server::builder().env("DOCKER_HOST", self.host());
        let path = path_with(&self.path("bin"));
        builder
            .env("PATH", path)
            .config(&format!("network = \"none\"\nimages = [{{ name = \"{TINY}\", ports = [] }}]\n"))
    }

    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        run("docker", &[&["--host", &self.host()], arguments].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        let log = self.path("log");
        let log = || fs::read_to_string(&log).unwrap_or_default();
        loop {
            let mut version = Command::new("docker");
            version.args(["--host", &self.host(), "version"]).stdout(Stdio::null()).stderr(Stdio::null());
            if version.status().is_ok_and(|status| status.success()) {
                return;
            }
            assert!(self.child.try_wait().expect("our own child").is_none(), "dockerd exited:\n{}", log());
            assert!(begun.elapsed() < START, "dockerd is not ready:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Imports an image of this host's shell and a few programs, with the libraries that they need.
    fn import_image(&self) {
        let tree = self.path("tree");
        let mut files: BTreeSet<PathBuf> = BTreeSet::new();
        for program in PROGRAMS {
            files.insert(program.into());
            let libraries = run("ldd", &[program]);
            let words = libraries.split_whitespace().filter(|word| word.starts_with('/'));
            files.extend(words.map(PathBuf::from));
        }
        for file in files {
            let target = tree.join(file.strip_prefix("/").expect("an absolute path"));
            fs::create_dir_all(target.parent().expect("a parent")).expect("our own directory");
            fs::copy(&file, target).expect("a program of this host");
        }
        fs::create_dir(tree.join("tmp")).expect("our own directory");
        // Programs are searched there first.
        let _ = symlink("../bin", tree.join("usr/bin"));
        let archive = self.path("tiny.tar").display().to_string();
        run("tar", &["-C", &tree.display().to_string(), "-cf", &archive, "."]);
        let changes = ["CMD [\"/bin/sleep\", \"infinity\"]", "ENV PATH=/bin", "ENV NVIDIA_VISIBLE_DEVICES=all"];
        let mut arguments = vec!["import"];
        changes.iter().for_each(|change| arguments.extend(["--change", *change]));
        self.docker(&[&arguments[..], &[&archive, TINY]].concat());
    }
}

fn path_with(folder: &Path) -> String {
    format!("{}:{}", folder.display(), env::var("PATH").unwrap_or_default())
}

impl Drop for Engine {
    fn drop(&mut self) {
        let list = Command::new("docker").args(["--host", &self.host(), "ps", "-aq"]).output();
        for id in list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default().lines() {
            let _ = Command::new("docker").args(["--host", &self.host(), "rm", "-f", id]).output();
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let begun = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if begun.elapsed() > STOP {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if std::thread::panicking() {
            eprintln!("--- log of dockerd\n{}---", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
        // Unmounts everything below its directory, the innermost first; otherwise the directory cannot be removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = self.folder.path().display().to_string();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|p| p.starts_with(&below)).rev() {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }
}
