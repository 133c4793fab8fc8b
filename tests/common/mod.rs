//! The harness of all tests that talk to a running daemon.
//!
//! Each test starts its own daemon with its own `$PODY_HOME`, prefix of container names, repository of commits and
//! range of ports. So tests run in parallel, and leftovers of a test are recognized by its prefix. When a [`Server`] is
//! dropped, the test fails if a container, a port, an unfinished pod or a pending event is left; after a panic
//! everything with the prefix is removed instead. Nothing else in the engine is ever touched.
//!
//! ```ignore
//! let Some(server) = Server::start() else { return };
//! let alice = server.member("alice");
//! alice.post("/pod/create?ins=main&image=pody-base").ok();
//! alice.post("/pod/delete?ins=main").ok();
//! ```

#![allow(dead_code, unused_imports, reason = "each test program uses a part of the harness")]

pub mod client;
pub mod gpus;
pub mod need;
pub mod original;
pub mod s3;

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    io::{self, Write},
    net::TcpStream,
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use self::client::Redactions;
pub use self::{
    client::{Answer, Client, with_query},
    gpus::Gpus,
    need::{IMAGE, Need, python},
};

/// Members that each server starts with, besides the admin `boss`. A password is the name and `-secret`.
pub const MEMBERS: [&str; 2] = ["alice", "bob"];
pub const ADMIN: &str = "boss";

/// The OCI runtime that `tests/run.sh` registers with Docker: the program under test.
pub const RUNTIME: &str = "pody-tests";

/// `daemon.json` of a test's own engine, with the runtime that the host's engine has.
pub fn settings_with_runtime() -> String {
    let runtimes: serde_json::Value =
        serde_json::from_str(&docker(&["info", "--format", "{{json .Runtimes}}"])).expect("JSON");
    serde_json::json!({"experimental": true, "runtimes": {RUNTIME: {"path": runtimes[RUNTIME]["path"]}}}).to_string()
}

/// Ports are leased to servers in blocks, below the kernel's range for clients.
const FIRST_PORT: u16 = 21_000;
const LAST_PORT: u16 = 32_000;
/// The first port of a block is the server's own.
const BLOCK: u16 = 50;
/// How long the daemon may take to answer after its start, and to end.
const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(12);
/// How long recovery and cleanup may take at the end of a test.
const SETTLE: Duration = Duration::from_secs(8);

pub fn password(user: &str) -> String {
    format!("{user}-secret")
}

/// The settings of a server.
pub struct Builder {
    config: toml::Table,
    pod_ports: u16,
    environment: Vec<(String, String)>,
    members: Vec<String>,
    needs_docker: bool,
    hidden: Vec<PathBuf>,
    is_filtered: bool,
}

impl Builder {
    /// Adds TOML to the config. Tables are merged, other values replaced.
    #[track_caller]
    pub fn config(mut self, text: &str) -> Self {
        let added = text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}"));
        merge(&mut self.config, added);
        self
    }

    /// Number of host ports for pods.
    pub fn pod_ports(mut self, count: u16) -> Self {
        assert!(count < BLOCK);
        self.pod_ports = count;
        self
    }

    /// An environment variable for the daemon, such as `FAILPOINTS` or `DOCKER_HOST`.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    /// GPUs that the daemon finds.
    pub fn gpus(self, gpus: &Gpus) -> Self {
        self.env(gpus::STATE_VARIABLE, gpus.state_file().display().to_string())
            .env("LD_LIBRARY_PATH", gpus.folder().display().to_string())
    }

    /// Additional members.
    pub fn member(mut self, name: &str) -> Self {
        self.members.push(name.to_owned());
        self
    }

    /// Hides a directory from the daemon, in its own mount namespace.
    pub fn hide(mut self, folder: &str) -> Self {
        self.hidden.push(PathBuf::from(folder));
        self
    }

    /// Runs the daemon under a seccomp filter that allows all system calls.
    pub fn filtered(mut self) -> Self {
        self.is_filtered = true;
        self
    }

    /// For tests that create no pods: they run on machines without Docker, too.
    pub fn without_docker(mut self) -> Self {
        self.needs_docker = false;
        self
    }

    /// `None` where the machine lacks a requirement.
    pub fn start(self) -> Option<Server> {
        if self.needs_docker && !Need::Docker.is_there() {
            return None;
        }
        let ports = PortBlock::take();
        let prefix = format!("t{}", hex::encode(rand::random::<[u8; 5]>()));
        // Directly in /tmp: volumes must be reachable for the engine, sockets need a short path.
        let folder = tempfile::Builder::new().prefix("pody-test-").tempdir().expect("a temporary directory");
        let home = folder.path().join("home");
        let mut config = format!(
            "name_prefix = \"{prefix}\"\navailable_ports = \"{}\"\ncommit_name = \"{prefix}_commit\"\n\
             [pod]\nstop_grace_seconds = 2\n[checkpoint]\nruntime = \"{RUNTIME}\"\n[default_quota]\ngpus = \"none\"\n",
            ports.for_pods(self.pod_ports)
        )
        .parse::<toml::Table>()
        .expect("valid");
        config.insert("images".to_owned(), toml::Value::Array(vec![image_rule("pody-base", &[22])]));
        merge(&mut config, self.config);
        fs::create_dir(&home).expect("a new directory");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("our own directory");
        fs::write(home.join("config.toml"), config.to_string()).expect("our own directory");
        // It may contain keys.
        fs::set_permissions(home.join("config.toml"), fs::Permissions::from_mode(0o600)).expect("our own file");

        let mut database =
            File::options().write(true).create_new(true).mode(0o600).open(home.join("pody.db")).expect("new");
        database.write_all(first_accounts()).expect("our own directory");
        drop(database);

        let redactions = [
            (format!("127.0.0.1:{}", ports.first), "[server]"),
            (folder.path().display().to_string(), "[folder]"),
            (prefix.clone(), "[prefix]"),
        ];
        let mut server = Server {
            home,
            prefix,
            port: ports.first,
            config,
            environment: self.environment,
            hidden: self.hidden,
            is_filtered: self.is_filtered,
            child: None,
            needs_docker: self.needs_docker,
            redactions: Redactions(Arc::new(redactions.into())),
            checks_leaks: true,
            ports,
            _folder: folder,
        };
        for member in self.members {
            server.add_user(&member, &[]);
        }
        server.spawn();
        server.wait_until_ready();
        Some(server)
    }
}

/// A daemon under test.
pub struct Server {
    /// `$PODY_HOME`.
    pub home: PathBuf,
    /// Prefix of the names of all containers of this server, and of its commits.
    pub prefix: String,
    pub port: u16,
    config: toml::Table,
    environment: Vec<(String, String)>,
    hidden: Vec<PathBuf>,
    is_filtered: bool,
    child: Option<Child>,
    needs_docker: bool,
    redactions: Redactions,
    checks_leaks: bool,
    ports: PortBlock,
    _folder: tempfile::TempDir,
}

impl Server {
    /// A daemon with the admin `boss`, the members `alice` and `bob`, the image `pody-base` and 40 ports.
    pub fn start() -> Option<Self> {
        Self::builder().start()
    }

    pub fn builder() -> Builder {
        Builder {
            config: toml::Table::new(),
            pod_ports: 40,
            environment: Vec::new(),
            members: Vec::new(),
            needs_docker: true,
            hidden: Vec::new(),
            is_filtered: false,
        }
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A caller without credentials.
    pub fn anon(&self) -> Client {
        Client::new(&self.base(), None, self.redactions.clone())
    }

    /// One of [`MEMBERS`], or added by the test with [`password`].
    pub fn member(&self, name: &str) -> Client {
        self.client(name, &password(name))
    }

    pub fn admin(&self) -> Client {
        self.member(ADMIN)
    }

    pub fn client(&self, user: &str, password: &str) -> Client {
        self.anon().with_authorization(&Client::basic(user, password))
    }

    /// A container's name, as the engine knows it.
    pub fn container(&self, user: &str, instance: &str) -> String {
        format!("{}-{user}-{instance}", self.prefix)
    }

    /// The repository of this server's commits.
    pub fn commit_name(&self) -> String {
        format!("{}_commit", self.prefix)
    }

    /// Ports of the host that pods may get.
    pub fn pod_ports(&self) -> String {
        self.config["available_ports"].as_str().unwrap_or_default().to_owned()
    }

    /// A port of this server's block that no pod gets, for something of the test's own.
    pub fn spare_port(&self) -> u16 {
        self.ports.last()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    /// What the daemon has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default()
    }

    /// Replacements for values that differ between runs.
    pub fn redact(&self, text: &str) -> String {
        self.redactions.text(text)
    }

    /// Runs an admin command, such as `pody user list`, on this server's `$PODY_HOME`.
    #[track_caller]
    pub fn pody(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).stdin(Stdio::null()).output().expect("the binary runs");
        assert!(
            output.status.success(),
            "pody {}: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// The binary with this server's `$PODY_HOME`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        command(&self.home, arguments)
    }

    /// Adds an account with [`password`].
    pub fn add_user(&self, name: &str, options: &[&str]) {
        let password = password(name);
        let mut arguments = vec!["user", "add", name, password.as_str()];
        arguments.extend(options);
        self.pody(&arguments);
    }

    /// Changes the config file and waits until the daemon has read it.
    pub fn reconfigure(&mut self, text: &str) {
        merge(&mut self.config, text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}")));
        fs::write(self.home.join("config.toml"), self.config.to_string()).expect("our own directory");
        // The notification of an admin command: the daemon reads config and database before it answers.
        assert_eq!(pody::control::notify_daemon(&self.home), pody::control::NotifyOutcome::Yes);
    }

    /// A variable for the daemon's next start.
    pub fn set_env(&mut self, key: &str, value: Option<&str>) {
        self.environment.retain(|(known, _)| known != key);
        self.environment.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    fn spawn(&mut self) {
        let log =
            File::options().create(true).append(true).open(self.home.join("daemon.log")).expect("our own directory");
        let port = self.port.to_string();
        let mut command = self.command(&["serve", "--host", "127.0.0.1", "--port", &port]);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        if !self.hidden.is_empty() {
            let folders: Vec<CString> =
                self.hidden.iter().map(|path| CString::new(path.as_os_str().as_bytes()).expect("no zero")).collect();
            // SAFETY: only system calls, on strings made before.
            unsafe { command.pre_exec(move || folders.iter().try_for_each(|folder| hide(folder))) };
        }
        if self.is_filtered {
            // SAFETY: only system calls.
            unsafe { command.pre_exec(filter) };
        }
        self.child = Some(command.spawn().expect("the binary runs"));
    }

    /// Waits for `/healthz`, and, if the test uses pods, until the engine's containers are known.
    fn wait_until_ready(&mut self) {
        let anon = self.anon();
        let begun = Instant::now();
        loop {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("our own child") {
                self.child = None;
                panic!("the daemon ended at its start with {status}:\n{}", self.log());
            }
            if let Ok(answer) = anon.try_send("GET", "/healthz", &[], b"")
                && answer.status == 200
                && (!self.needs_docker || answer.json()["docker"] == "ok" && !answer.json()["inventory_age"].is_null())
            {
                return;
            }
            assert!(begun.elapsed() < START, "the daemon is not ready after {START:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again, on the same port, and waits until it is ready.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.terminate();
        }
        self.start_again();
    }

    /// Starts it after [`Self::kill`] or [`Self::terminate`].
    pub fn start_again(&mut self) {
        self.start_unready();
        self.wait_until_ready();
    }

    /// Starts it and only waits until it listens, for tests without a working engine.
    pub fn start_unready(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.spawn();
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < START, "the daemon does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a daemon that must fail at once, with `config` added for this start only, and returns its error output.
    #[track_caller]
    pub fn fails_to_start(&self, config: &str) -> String {
        assert!(self.child.is_none(), "it runs already");
        let mut table = self.config.clone();
        merge(&mut table, config.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}")));
        let path = self.home.join("config.toml");
        let before = fs::read(&path).expect("our own directory");
        fs::write(&path, table.to_string()).expect("our own directory");
        let mut command = self.command(&["serve", "--host", "127.0.0.1", "--port", &self.port.to_string()]);
        let mut child =
            command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
        let status = wait(&mut child, START);
        if status.is_none() {
            let _ = child.kill();
        }
        let output = child.wait_with_output().expect("our own child");
        fs::write(&path, before).expect("our own directory");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(status.is_some_and(|status| !status.success()), "it starts: {error}");
        error
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running daemon");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Waits for a daemon that ends by itself, at a failpoint for example.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running daemon");
        let Some(status) = wait(&mut child, START) else {
            self.child = Some(child);
            panic!("the daemon keeps running:\n{}", self.log());
        };
        status
    }

    /// SIGTERM; the daemon must end by itself.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running daemon");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our own child");
        match wait(&mut child, STOP) {
            Some(status) => status,
            None => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon does not end within {STOP:?} of SIGTERM:\n{}", self.log());
            }
        }
    }

    /// The server's database, read-only; works with and without a running daemon.
    pub fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        let database = rusqlite::Connection::open_with_flags(self.home.join("pody.db"), flags).expect("a database");
        database.busy_timeout(Duration::from_secs(5)).expect("a timeout");
        database
    }

    /// One number from the database.
    #[track_caller]
    pub fn count(&self, query: &str) -> i64 {
        self.database().query_row(query, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Names of this server's containers, running or not.
    pub fn containers(&self) -> Vec<String> {
        if !self.needs_docker {
            return Vec::new();
        }
        let filter = format!("name=^/{}-", self.prefix);
        let names = docker(&["ps", "-a", "--no-trunc", "--filter", &filter, "--format", "{{.Names}}"]);
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Names of this server's commits.
    pub fn commits(&self) -> Vec<String> {
        if !self.needs_docker {
            return Vec::new();
        }
        let filter = format!("reference={}:*", self.commit_name());
        let names = docker(&["images", "--filter", &filter, "--format", "{{.Repository}}:{{.Tag}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// For tests that leave something on purpose: it is removed and not reported.
    pub fn leave_things_behind(&mut self) {
        self.checks_leaks = false;
    }

    /// Leftovers of the test; empty if there are none.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks: Vec<String> = Vec::new();
        leaks.extend(self.containers().into_iter().map(|name| format!("container {name}")));
        leaks.extend(self.commits().into_iter().map(|name| format!("image {name}")));
        let database = self.database();
        let queries = [
            ("port", "SELECT host_port || ' of ' || pod FROM ports"),
            ("pod", "SELECT container_name || ' is ' || state FROM pods WHERE state NOT IN ('deleted', 'failed')"),
            ("event", "SELECT action || ' of ' || object || ' is pending' FROM events WHERE outcome = 'pending'"),
            ("commit", "SELECT image || ' is under way' FROM commits"),
        ];
        for (kind, query) in queries {
            let mut statement = database.prepare(query).expect("a table of ours");
            let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("a table of ours");
            leaks.extend(rows.map(|row| format!("{kind} {}", row.expect("a text"))));
        }
        leaks
    }

    /// Removes everything with this server's prefix.
    fn remove_everything(&self) {
        for name in self.containers() {
            let _ = Command::new("docker").args(["rm", "-f", &name]).output();
        }
        for name in self.commits() {
            let _ = Command::new("docker").args(["rmi", "-f", &name]).output();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}---", self.log());
            if let Some(mut child) = self.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            self.remove_everything();
            return;
        }
        let begun = Instant::now();
        let mut leaks = if self.checks_leaks { self.leaks() } else { Vec::new() };
        // A running daemon may need a moment to finish its cleanup.
        while self.child.is_some() && !leaks.is_empty() && begun.elapsed() < SETTLE {
            std::thread::sleep(Duration::from_millis(100));
            leaks = self.leaks();
        }
        let ended = self.child.is_some().then(|| self.terminate());
        self.remove_everything();
        assert!(leaks.is_empty(), "left behind: {leaks:#?}\n{}", self.log());
        assert!(ended.is_none_or(|status| status.success()), "the daemon ended with {ended:?}:\n{}", self.log());
    }
}

/// Mounts an empty tmpfs over a directory, for this process and its children. New mounts of the host still propagate.
fn hide(folder: &CStr) -> io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: strings that end with a zero, and no data.
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_SLAVE, none.cast()) != 0
            || libc::mount(c"none".as_ptr(), folder.as_ptr(), c"tmpfs".as_ptr(), 0, none.cast()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Installs a seccomp filter for this process and its children that allows all system calls.
fn filter() -> io::Result<()> {
    let mut pass = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    let program = libc::sock_fprog { len: 1, filter: pass.as_mut_ptr() };
    // SAFETY: the program has as many instructions as it says.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The binary with this `$PODY_HOME`, without the settings of the caller's environment.
fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pody"));
    command.args(arguments).env("PODY_HOME", home).env_remove("FAILPOINTS");
    for key in ["PODY_API_BASE", "PODY_USERNAME", "PODY_PASSWORD", "PODY_TOKEN"] {
        command.env_remove(key);
    }
    command
}

/// A database with the accounts that every server starts with. Created once, because hashing is slow.
fn first_accounts() -> &'static [u8] {
    static DATABASE: OnceLock<Vec<u8>> = OnceLock::new();
    DATABASE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (name, admin) in std::iter::once((ADMIN, true)).chain(MEMBERS.map(|name| (name, false))) {
            let password = password(name);
            let mut arguments = vec!["user", "add", name, &password];
            arguments.extend(admin.then_some("--admin"));
            let output = command(folder.path(), &arguments).stdin(Stdio::null()).output().expect("the binary runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        fs::read(folder.path().join("pody.db")).expect("a database")
    })
}

/// A block of ports, leased for the life of a server. The kernel holds the lock, so it ends with the process at the
/// latest.
struct PortBlock {
    first: u16,
    _lock: File,
}

impl PortBlock {
    fn take() -> Self {
        let folder = std::env::temp_dir().join("pody-test-ports");
        fs::create_dir_all(&folder).expect("a directory for locks");
        let blocks = (LAST_PORT - FIRST_PORT) / BLOCK;
        let offset = rand::random::<u16>() % blocks;
        for number in 0..blocks {
            let first = FIRST_PORT + (offset + number) % blocks * BLOCK;
            let lock = File::create(folder.join(first.to_string())).expect("a lock file");
            let free = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok();
            if lock.try_lock().is_ok() && (first..first + BLOCK).all(free) {
                return Self { first, _lock: lock };
            }
        }
        panic!("no block of {BLOCK} free ports from {FIRST_PORT} to {LAST_PORT}");
    }

    fn for_pods(&self, count: u16) -> String {
        match count {
            0 => String::new(),
            count => format!("{}-{}", self.first + 1, self.first + count),
        }
    }

    fn last(&self) -> u16 {
        self.first + BLOCK - 1
    }
}

fn image_rule(name: &str, ports: &[i64]) -> toml::Value {
    let ports = ports.iter().map(|&port| toml::Value::Integer(port)).collect();
    let pairs = [("name", toml::Value::String(name.to_owned())), ("ports", toml::Value::Array(ports))];
    toml::Value::Table(pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Runs `docker` and returns its output.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    run("docker", arguments)
}

/// Pauses a container. On a busy machine with cgroup v1, runc's freezer sometimes gives up, so this retries.
pub fn pause(container: &str) {
    eventually(Duration::from_secs(20), "the container is paused", || {
        let asked =
            Command::new("docker").args(["pause", container]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    });
}

/// Runs a program that must succeed, and returns its standard output.
#[track_caller]
pub fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{} {}: {}",
        program.display(),
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Waits until a condition holds.
#[track_caller]
pub fn eventually(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
