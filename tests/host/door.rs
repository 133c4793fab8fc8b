//! Load on the HTTP server: slow clients, many clients, large requests. The daemon releases its memory, files and
//! threads afterwards.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Client, Server, eventually},
    help::{assert_reads_fast, create, delete},
};

/// The resources of a process.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// KiB.
    pub memory: u64,
    pub files: usize,
    pub threads: u64,
}

impl Held {
    pub fn by(server: &Server) -> Self {
        let folder = format!("/proc/{}", server.pid());
        let status = fs::read_to_string(format!("{folder}/status")).expect("a running daemon");
        let number = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).expect("a line of proc(5)");
            line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
        };
        let files = fs::read_dir(format!("{folder}/fd")).expect("a running daemon").count();
        Self { memory: number("VmRSS:"), files, threads: number("Threads:") }
    }
}

/// Back to where it was, except for what the allocator and idle threads of the runtime keep.
#[track_caller]
pub fn assert_released(server: &Server, before: Held) {
    let is_back = |now: Held| {
        now.files <= before.files + 8 && now.threads <= before.threads + 24 && now.memory <= before.memory + 32 * 1024
    };
    let begun = Instant::now();
    while !is_back(Held::by(server)) {
        assert!(begun.elapsed() < Duration::from_secs(15), "before {before:?}, now {:?}", Held::by(server));
        thread::sleep(Duration::from_millis(100));
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// Waits until the other side closes, and returns what it sent before.
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("not closed: {error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn warm(server: &Server) -> Client {
    let alice = server.member("alice");
    for _ in 0..50 {
        alice.get("/pod/list").ok();
    }
    alice
}

const QUICK: &str = "[server]\nheader_timeout_seconds = 2\nbody_timeout_seconds = 2\n";

#[test]
fn half_sent_requests_are_cut_off_and_others_served() {
    let Some(server) = Server::builder().without_docker().config(QUICK).start() else { return };
    let alice = warm(&server);
    let before = Held::by(&server);
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect(&server)).collect();
    let begun = Instant::now();
    for stream in &mut slow {
        stream.write_all(b"GET /pod/list HTTP/1.1\r\nHost: x\r\n").expect("a connection");
    }
    // A byte every now and then, as slowloris does.
    let mut cut = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        thread::sleep(Duration::from_millis(400));
        cut = slow.iter_mut().filter_map(|stream| stream.write_all(b"X-A: b\r\n").err()).count();
        assert_reads_fast(&alice, &["/pod/list"]);
    }
    assert_eq!(cut, 200, "all of them are cut off after their 2 s, however active they seem");
    drop(slow);
    assert_released(&server, before);
}

#[test]
fn slow_bodies_are_cut_off_and_others_served() {
    let Some(server) = Server::builder().without_docker().config(QUICK).start() else { return };
    let alice = warm(&server);
    let before = Held::by(&server);
    let authorization = Client::basic("alice", "alice-secret");
    let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(&server)).collect();
    let begun = Instant::now();
    for stream in &mut slow {
        write!(
            stream,
            "POST /user/tokens/create HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nname="
        )
        .expect("a connection");
    }
    assert_reads_fast(&alice, &["/pod/list", "/user/info"]);
    for stream in &mut slow {
        let answer = read_to_close(stream);
        assert_eq!(status_of(&answer), 408, "{answer}");
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(slow);
    assert_released(&server, before);
}

#[test]
fn thousands_of_idle_connections_are_cheap_and_closed_in_time() {
    // Both ends of each connection are files; this process has one of them.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit.1, limit.1)
        .expect("its own limit");
    let count = usize::try_from(limit.1).unwrap_or(usize::MAX).saturating_sub(1000).min(5000);
    let Some(server) = Server::builder().without_docker().config("[server]\nheader_timeout_seconds = 12\n").start()
    else {
        return;
    };
    let alice = warm(&server);
    let before = Held::by(&server);
    let begun = Instant::now();
    let idle: Vec<TcpStream> = (0..count).map(|_| connect(&server)).collect();
    // A client that finds the queue full retries after a second.
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?} to connect", begun.elapsed());
    eventually(Duration::from_secs(5), "all are accepted", || Held::by(&server).files >= count);
    assert_reads_fast(&alice, &["/pod/list", "/user/info", "/pod/ps"]);
    let during = Held::by(&server);
    let each = during.memory.saturating_sub(before.memory) / count as u64;
    assert!(each <= 24, "an idle connection takes {each} KiB");
    // No client sends anything: all are closed in time.
    eventually(Duration::from_secs(40), "idle connections are closed", || Held::by(&server).files < before.files + 20);
    drop(idle);
    assert_released(&server, before);
}

/// More connections than the limit: those accepted are served, the others wait and are accepted later.
#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let config = "[server]\nmax_connections = 8\nheader_timeout_seconds = 2\n";
    let Some(server) = Server::builder().without_docker().config(config).start() else { return };
    let idle: Vec<TcpStream> = (0..40).map(|_| connect(&server)).collect();
    let begun = Instant::now();
    server.anon().get("/version").ok();
    // Five rounds of eight connections, two seconds each.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    drop(idle);
    server.anon().get("/version").ok();
}

#[test]
fn large_requests_are_refused() {
    let Some(server) = Server::builder().without_docker().start() else { return };
    let alice = warm(&server);
    let before = Held::by(&server);
    let authorization = Client::basic("alice", "alice-secret");
    let long = "a".repeat(1 << 20);
    let head = format!("Host: x\r\nAuthorization: {authorization}\r\n");
    let many: String = (0..5000).map(|number| format!("X-{number}: b\r\n")).collect();
    for (what, request) in [
        ("query", format!("GET /pod/inspect?ins={long} HTTP/1.1\r\n{head}\r\n")),
        ("path", format!("GET /{long} HTTP/1.1\r\n{head}\r\n")),
        ("header", format!("GET /pod/list HTTP/1.1\r\n{head}X-Long: {long}\r\n\r\n")),
        ("many headers", format!("GET /pod/list HTTP/1.1\r\n{head}{many}\r\n")),
        (
            "body",
            format!(
                "POST /user/tokens/create HTTP/1.1\r\n{head}Content-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\n\r\nname={long}",
                long.len() + 5
            ),
        ),
        ("authorization", format!("GET /pod/list HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {long}\r\n\r\n")),
    ] {
        let mut stream = connect(&server);
        // The server may close before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut start = [0; 64];
        match stream.read(&mut start) {
            Ok(length) if length > 0 => {
                let status = status_of(&String::from_utf8_lossy(&start[..length]));
                assert!((400..500).contains(&status), "{what}: {status}");
            }
            // Closed, and its response lost: the kernel does that when unread bytes are left.
            Ok(_) | Err(_) => {}
        }
        alice.get("/pod/list").ok();
    }
    // The query has its own limit, just below that of the head.
    let query = "a".repeat(40 << 10);
    let answer = alice.get(&format!("/pod/inspect?ins={query}"));
    assert!((400..500).contains(&answer.status), "{}", answer.status);
    assert_released(&server, before);
}

/// Bytes that are not HTTP, and clients that leave at any point.
#[test]
fn noise_and_clients_that_leave_do_no_harm() {
    let Some(server) = Server::builder().without_docker().start() else { return };
    let alice = warm(&server);
    let before = Held::by(&server);
    for number in 0..300_u32 {
        let mut stream = connect(&server);
        let noise: Vec<u8> = match number % 5 {
            0 => (0..500).map(|_| rand::random::<u8>()).collect(),
            1 => b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
            2 => b"POST /user/tokens/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
            3 => b"GET /pod/list HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50),
            _ => b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        };
        let _ = stream.write_all(&noise);
    }
    assert_reads_fast(&alice, &["/pod/list", "/user/info"]);
    assert_released(&server, before);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Creating and deleting pods over and over leaks nothing in the daemon.
#[test]
fn creating_and_deleting_pods_leaks_nothing_in_the_daemon() {
    let Some(server) = Server::start() else { return };
    let alice = warm(&server);
    let round = || {
        create(&alice, "main").ok();
        crate::help::exec(&alice, "main", "head -c 3000000 /dev/zero", 20).ok();
        delete(&alice, "main").ok();
    };
    (0..4).for_each(|_| round());
    let before = Held::by(&server);
    (0..15).for_each(|_| round());
    let after = Held::by(&server);
    assert!(after.memory < before.memory + 8 * 1024, "before {before:?}, after {after:?}");
    assert_released(&server, before);
}
