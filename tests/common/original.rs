//! A node that runs pody 0.4.1 itself. Its own daemon requires NVML, so only its web application is served, which is
//! all that users and their routes need.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{Client, client::Redactions, eventually, need::python};

/// A running node of pody 0.4.1.
pub struct OriginalNode {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl OriginalNode {
    /// Starts it on the caller's port, with the given `[remote_user_profile]` (the lines of `provider` and `service`).
    pub fn start(port: u16, provider: &str, service: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let home = folder.path();
        // It writes its own default config at the first access; ours replaces a part of it.
        run(home, "pody-util", &["show-home"]);
        let config = format!(
            "name_prefix = \"o\"\navailable_ports = \"1-2\"\ncommit_name = \"o\"\ncommit_image_ports = [22]\nvolume_mappings = []\n\
             network = \"\"\nimages = []\n\
             [remote_user_profile.provider]\n{provider}\n[remote_user_profile.service]\n{service}\n\
             [default_quota]\nmax_pods = 5\ngpu_count = -1\ngpus = \"all\"\nmemory_limit = \"\"\nstorage_size = \"\"\n\
             commit_count = 1\ncommit_size_limit = \"\"\nshm_size = \"\"\ntmpfs_size = \"none\"\n"
        );
        fs::write(home.join("config.toml"), config).expect("our own directory");
        let log = fs::File::create(home.join("node.log")).expect("our own directory");
        let mut command = Command::new(python("uvicorn").expect("a checked requirement"));
        command.args(["pody.svc.app:app", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.env("PODY_HOME", home).stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("uvicorn runs");
        let node = Self { child, port, folder };
        eventually(Duration::from_secs(20), "the original node listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        node
    }

    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Runs one of its admin tools.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(self.home(), program, arguments)
    }

    pub fn client(&self, user: &str, password: &str) -> Client {
        let anon = Client::new(&self.endpoint(), None, Redactions::default());
        anon.with_authorization(&Client::basic(user, password))
    }
}

impl Drop for OriginalNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- log of the original\n{}---",
                fs::read_to_string(self.home().join("node.log")).unwrap_or_default()
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program of pody 0.4.1 on a `$PODY_HOME`.
#[track_caller]
pub fn run(home: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(python(program).expect("a checked requirement"));
    let output = command.args(arguments).env("PODY_HOME", home).stdin(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
