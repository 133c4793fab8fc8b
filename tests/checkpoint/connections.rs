//! Connections with the outside, across a stop and a restore in place: the pod gets its original address again,
//! although the engine has lower ones to assign.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    common::{Client, IMAGE, Need, Server, docker, eventually, run},
    help::{
        address, assert_clean, create, delete, delete_checkpoints, done, engine_says, exec, run_python, save, start,
        start_with,
    },
};

/// Retransmissions get through within this time.
const PATIENCE: Duration = Duration::from_secs(90);

/// The test's own network: nothing else takes addresses in it. Removed after the server and its pods.
struct Network(String);

impl Network {
    fn new() -> Self {
        let name = format!("pody-test-{}", hex::encode(rand::random::<[u8; 5]>()));
        docker(&["network", "create", &name]);
        Self(name)
    }

    fn config(&self) -> String {
        format!("network = \"{}\"", self.0)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["network", "rm", &self.0]).output();
    }
}

fn gateway(server: &Server, instance: &str) -> String {
    engine_says(server, "alice", instance, "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")
}

/// Sends numbers over a connection and expects each back; reports its progress in a file. Others may connect as well.
const TALKER: &str = r#"
import os, socket, sys, threading, time
l = socket.create_server(('0.0.0.0', 7500))
def serve():
    while True:
        s, _ = l.accept()
        threading.Thread(target=echo, args=(s,), daemon=True).start()
def echo(s):
    while True:
        data = s.recv(64)
        if not data: return
        s.sendall(data)
threading.Thread(target=serve, daemon=True).start()
s = socket.create_connection(PEER)
print('ready')
n = 0
while True:
    try:
        n += 1
        s.sendall(b'%d\n' % n)
        got = b''
        while not got.endswith(b'\n'):
            part = s.recv(64); assert part, 'closed'
            got += part
        assert got == b'%d\n' % n, got
        said = '%d' % n
    except (OSError, AssertionError) as error:
        said = 'closed'
    tell('/root/said', said)
    time.sleep(0.05)
"#;

fn talker(address: &str, port: u16) -> String {
    TALKER.replace("PEER", &format!("('{address}', {port})"))
}

fn said(client: &Client, instance: &str) -> String {
    exec(client, instance, "cat /root/said; true")
}

#[track_caller]
fn keeps_talking(client: &Client, instance: &str) {
    let number = || said(client, instance).parse::<u64>();
    let from = number().unwrap_or_else(|_| panic!("{instance} says {:?}", said(client, instance)));
    eventually(PATIENCE, "it keeps talking", || {
        number().unwrap_or_else(|_| panic!("{instance} says {:?}", said(client, instance))) > from + 2
    });
}

/// A connection from the host to a pod, in constant use; returns its progress.
fn ask(address: &str) -> Arc<AtomicU64> {
    let mut connection = TcpStream::connect((address, 7500)).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    thread::spawn(move || {
        for n in 1u64.. {
            let mut back = [0; 8];
            if connection.write_all(&n.to_be_bytes()).is_err() || connection.read_exact(&mut back).is_err() {
                return;
            }
            assert_eq!(u64::from_be_bytes(back), n);
            count.store(n, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(50));
        }
    });
    told
}

#[track_caller]
fn is_answered(told: &AtomicU64) {
    let from = told.load(Ordering::Relaxed);
    eventually(PATIENCE, "the host is answered", || told.load(Ordering::Relaxed) > from + 2);
}

/// Echoes what it receives, for as long as the test runs.
fn echo_server(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            thread::spawn(move || {
                let mut input = connection.try_clone().unwrap();
                let _ = std::io::copy(&mut input, &mut connection);
            });
        }
    });
    port
}

/// No container that held an address for this restore is left.
#[track_caller]
fn no_placeholders(action: &serde_json::Value) {
    let filter = format!("name=pody-address-{}", action["id"].as_str().unwrap());
    eventually(Duration::from_secs(30), "the placeholders are gone", || {
        docker(&["ps", "-aq", "--filter", &filter]).is_empty()
    });
}

#[test]
fn connections_with_the_host_survive_three_restores() {
    let network = Network::new();
    let Some(server) = start_with(|builder| builder.config(&network.config())) else { return };
    let alice = server.member("alice");
    for name in ["low", "lower", "main"] {
        create(&alice, name);
    }
    let port = echo_server(&gateway(&server, "main"));
    run_python(&alice, "main", "talker", &talker(&gateway(&server, "main"), port));
    let then = address(&server, "main");
    let asked = ask(&then);
    is_answered(&asked);
    // The engine would assign one of these.
    let freed = [address(&server, "low"), address(&server, "lower")];
    delete(&alice, "low");
    delete(&alice, "lower");
    for generation in 1..=3 {
        let id = save(&alice, "ins=main&leave_running=false");
        if generation == 2 {
            // One gap fewer.
            create(&alice, "low");
        }
        let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        assert_eq!(address(&server, "main"), then, "generation {generation}");
        assert_eq!(restored["losses"].to_string(), "[]", "generation {generation}");
        keeps_talking(&alice, "main");
        is_answered(&asked);
        no_placeholders(&restored);
    }
    // The engine itself knows that the address is in use: later containers get others.
    create(&alice, "next");
    assert!(freed.contains(&address(&server, "next")), "{}", address(&server, "next"));
    keeps_talking(&alice, "main");

    // A checkpoint without a stop does not affect them, and a twin gets none of them.
    let id = save(&alice, "ins=main");
    keeps_talking(&alice, "main");
    is_answered(&asked);
    let twin = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
    assert!(twin["losses"].to_string().contains("TCP connections were closed"), "{twin}");
    eventually(PATIENCE, "the twin notices", || said(&alice, "twin") == "closed");
    keeps_talking(&alice, "main");
    is_answered(&asked);
    assert_clean(&server);
    for name in ["low", "main", "next", "twin"] {
        delete(&alice, name);
    }
    delete_checkpoints(&alice);
}

/// Another container has got the address meanwhile: it keeps it, the connections are closed, and the restore says why.
#[test]
fn an_address_that_another_container_got_stays_with_it() {
    let network = Network::new();
    let Some(server) = start_with(|builder| builder.config(&network.config())) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let then = address(&server, "main");
    let port = echo_server(&gateway(&server, "main"));
    run_python(&alice, "main", "talker", &talker(&gateway(&server, "main"), port));
    let id = save(&alice, "ins=main&leave_running=false");
    // Not one of our containers.
    let other = docker(&["run", "-d", "--rm", "--network", &network.0, "--entrypoint", "sleep", IMAGE, "1000"]);
    let of_other = docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &other]);
    let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    docker(&["rm", "-f", &other]);
    assert_eq!(of_other, then);
    let losses = restored["losses"].to_string();
    let why = format!("were closed: the pod's original address {then} is not available: another container has it now");
    assert!(losses.contains(&why), "{losses}");
    assert_ne!(address(&server, "main"), then);
    eventually(PATIENCE, "the program notices", || said(&alice, "main") == "closed");

    // The address is free again, and there are no connections: the current address is saved and assigned again.
    let now = address(&server, "main");
    let again = save(&alice, "ins=main&leave_running=false");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={again}"));
    assert!([&now, &then].contains(&&address(&server, "main")));
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Two pods that are connected to each other, through maintenance of the host.
#[test]
fn connections_between_pods_survive_maintenance() {
    let network = Network::new();
    let Some(server) = start_with(|builder| builder.config(&network.config())) else { return };
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    // These have no connections: they are restored later.
    create(&bob, "first");
    create(&alice, "low");
    create(&alice, "one");
    create(&bob, "second");
    create(&alice, "two");
    run_python(&alice, "two", "talker", &talker("127.0.0.1", 7500));
    run_python(&alice, "one", "talker", &talker(&address(&server, "two"), 7500));
    let then = ["one", "two"].map(|name| address(&server, name));
    delete(&alice, "low");
    admin.post_with("/admin/drain", &[("reason", "driver upgrade")]).ok();
    eventually(PATIENCE, "drained", || admin.get("/admin/drain").ok().json()["state"] == "drained");
    admin.post("/admin/undrain").ok();
    eventually(PATIENCE, "all are back", || admin.get("/admin/drain").ok().json()["state"].is_null());
    assert_eq!(["one", "two"].map(|name| address(&server, name)), then);
    keeps_talking(&alice, "one");
    keeps_talking(&alice, "two");
    for action in alice.get("/action/list").ok().json().as_array().unwrap() {
        no_placeholders(action);
        assert!(!action["losses"].to_string().contains("closed"), "{action}");
    }
    assert_clean(&server);
    for name in ["one", "two"] {
        delete(&alice, name);
    }
    for name in ["first", "second"] {
        delete(&bob, name);
    }
    delete_checkpoints(&alice);
    delete_checkpoints(&bob);
}

/// A terminal over SSH, straight to the pod's address.
struct Session {
    child: Child,
    lines: Arc<AtomicU64>,
}

impl Session {
    fn begin(address: &str, key: &str) -> Self {
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"];
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-tt", "-i", key]).args(options.iter().flat_map(|option| ["-o", option]));
        ssh.arg(format!("root@{address}"));
        ssh.arg("test -t 0 && n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done");
        let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(AtomicU64::new(0));
        let (count, output) = (lines.clone(), BufReader::new(child.stdout.take().unwrap()));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let number: u64 =
                    line.trim().strip_prefix("tick ").unwrap_or_else(|| panic!("{line}")).parse().unwrap();
                // None is missing and none arrives twice.
                assert_eq!(count.swap(number, Ordering::Relaxed) + 1, number);
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    fn keeps_running(&mut self) {
        let from = self.lines.load(Ordering::Relaxed);
        eventually(PATIENCE, "the session continues", || {
            assert!(self.child.try_wait().unwrap().is_none(), "ssh has exited");
            self.lines.load(Ordering::Relaxed) > from + 3
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_live_ssh_session_survives_a_restore() {
    if !Need::Ssh.is_there() {
        return;
    }
    let network = Network::new();
    let Some(server) = start_with(|builder| builder.config(&network.config())) else { return };
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key").display().to_string();
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]);
    let alice = server.member("alice");
    let public = std::fs::read_to_string(format!("{key}.pub")).unwrap();
    alice.post_with("/user/ssh-keys/add", &[("key", public.trim())]).ok();
    create(&alice, "low");
    create(&alice, "main");
    let then = address(&server, "main");
    eventually(Duration::from_secs(30), "sshd listens", || TcpStream::connect((then.as_str(), 22)).is_ok());
    let mut session = Session::begin(&then, &key);
    session.keeps_running();

    save(&alice, "ins=main");
    session.keeps_running();
    delete(&alice, "low");
    for _ in 0..2 {
        let id = save(&alice, "ins=main&leave_running=false");
        let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        assert_eq!(restored["losses"].to_string(), "[]");
        session.keeps_running();
    }
    // Typing works, and so does a new login.
    let mut second = Session::begin(&then, &key);
    second.keeps_running();
    session.child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    eventually(PATIENCE, "control-C ends it", || session.child.try_wait().unwrap().is_some());
    drop(second);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// On the engine's default bridge, where no address can be requested. Other containers on this machine may take it
/// meanwhile; then that is reported.
#[test]
fn on_the_default_bridge_the_address_is_restored_or_the_loss_is_reported() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "low");
    create(&alice, "main");
    let then = address(&server, "main");
    let port = echo_server(&gateway(&server, "main"));
    run_python(&alice, "main", "talker", &talker(&gateway(&server, "main"), port));
    delete(&alice, "low");
    let id = save(&alice, "ins=main&leave_running=false");
    let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    no_placeholders(&restored);
    if address(&server, "main") == then {
        assert_eq!(restored["losses"].to_string(), "[]");
        keeps_talking(&alice, "main");
    } else {
        assert!(restored["losses"].to_string().contains("is not available"), "{restored}");
        eventually(PATIENCE, "the program notices", || said(&alice, "main") == "closed");
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The daemon is killed while placeholders exist: none is left, and the next restore works.
#[test]
fn a_kill_leaves_no_placeholders() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let network = Network::new();
    let config = network.config();
    let stopping = |builder: crate::common::Builder| {
        builder.config(&config).env("FAILPOINTS", "restore-held=pause").env("TOKIO_WORKER_THREADS", "8")
    };
    let Some(mut server) = start_with(stopping) else { return };
    let alice = server.member("alice");
    for name in ["low", "lower", "main"] {
        create(&alice, name);
    }
    let then = address(&server, "main");
    let port = echo_server(&gateway(&server, "main"));
    run_python(&alice, "main", "talker", &talker(&gateway(&server, "main"), port));
    delete(&alice, "low");
    delete(&alice, "lower");
    let id = save(&alice, "ins=main&leave_running=false");
    let begun = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok().json();
    let filter = format!("name=pody-address-{}", begun["id"].as_str().unwrap());
    let held = || docker(&["ps", "-q", "--filter", &filter]).lines().count();
    eventually(Duration::from_secs(60), "there are two placeholders", || held() == 2);
    // They do not answer ARP.
    let lowest = docker(&["ps", "-q", "--filter", &filter]);
    let silent = docker(&[
        "inspect",
        "-f",
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
        lowest.lines().next().unwrap(),
    ]);
    let answered = TcpStream::connect_timeout(&format!("{silent}:22").parse().unwrap(), Duration::from_secs(2));
    assert_ne!(answered.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    no_placeholders(&begun);
    eventually(Duration::from_secs(30), "the restore has ended", || {
        let action = alice.get(&format!("/action/status?id={}", begun["id"].as_str().unwrap())).ok().json();
        action["status"] == "error"
    });
    let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!((address(&server, "main"), restored["losses"].to_string()), (then, "[]".to_owned()));
    keeps_talking(&alice, "main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A pod was to be stopped, and is not: the connections whose traffic was held for it continue, also after a kill.
#[test]
fn a_stop_that_does_not_happen_leaves_connections_intact() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let network = Network::new();
    let config = network.config();
    let failing = |builder: crate::common::Builder| {
        builder.config(&config).env("FAILPOINTS", "checkpoint-hash=1*return->pause").env("TOKIO_WORKER_THREADS", "8")
    };
    let Some(mut server) = start_with(failing) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let port = echo_server(&gateway(&server, "main"));
    run_python(&alice, "main", "talker", &talker(&gateway(&server, "main"), port));
    let asked = ask(&address(&server, "main"));
    is_answered(&asked);

    crate::help::fails(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    keeps_talking(&alice, "main");
    is_answered(&asked);

    alice.post("/pod/checkpoint?ins=main&leave_running=false").ok();
    eventually(PATIENCE, "it is paused and its traffic is held", || {
        let query = "SELECT count(*) FROM actions WHERE phase = 'hash' AND status = 'running'";
        server.count(query) == 1
    });
    let silent = asked.load(Ordering::Relaxed);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(asked.load(Ordering::Relaxed), silent);
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    eventually(PATIENCE, "it resumes", || crate::help::status(&alice, "main") == "running");
    keeps_talking(&alice, "main");
    is_answered(&asked);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
