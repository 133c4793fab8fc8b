//! An S3 server, and a connection to it that can be cut.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use super::{Need, eventually, need::moto};

/// A running server with a bucket `lab`.
pub struct S3 {
    child: Child,
    way: Way,
}

impl S3 {
    /// `None` if the machine does not have it.
    pub fn start() -> Option<Self> {
        if !Need::S3.is_there() {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let program = moto().expect("it is there");
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.expect("it runs"), way: Way::to(port) };
        eventually(Duration::from_secs(60), "the S3 server answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert_eq!(ask("PUT", &format!("http://127.0.0.1:{port}/lab"), b"").0, 200, "a bucket is made");
        Some(server)
    }

    /// The prefix of its URLs.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/", self.way.port)
    }

    /// For `config.toml`.
    pub fn config(&self, more: &str) -> String {
        format!(
            "[checkpoint.remote]\nurl = \"s3://lab/pods\"\n{more}\n[checkpoint.remote.options]\n\
             aws_access_key_id = \"lab-key\"\naws_secret_access_key = \"lab-secret-{0}\"\naws_region = \"us-east-1\"\n\
             aws_endpoint = \"http://127.0.0.1:{0}\"\naws_allow_http = \"true\"\ntimeout = \"3s\"\n",
            self.way.port
        )
    }

    pub fn secret(&self) -> String {
        format!("lab-secret-{}", self.way.port)
    }

    pub fn set(&self, state: WayState) {
        self.way.state.store(state as u8, Ordering::SeqCst);
    }
}

/// Status and body of a URL's response without credentials.
#[track_caller]
pub fn ask(method: &str, url: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let mut stream = TcpStream::connect(host).expect("it answers");
    let head = format!("{method} /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, answer[end + 4..].to_vec())
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug)]
pub enum WayState {
    Open,
    /// Closed at once.
    Cut,
    /// Accepted, but never answered.
    Hangs,
}

/// Forwards connections to another port, or not.
struct Way {
    port: u16,
    state: Arc<AtomicU8>,
}

impl Way {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(AtomicU8::new(WayState::Open as u8));
        let seen = state.clone();
        // It ends with the test program.
        thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let seen = seen.clone();
                thread::spawn(move || carry(stream, target, &seen));
            }
        });
        Self { port, state }
    }
}

fn carry(near: TcpStream, target: u16, state: &AtomicU8) {
    let state = state.load(Ordering::SeqCst);
    if state == WayState::Cut as u8 {
        return;
    }
    if state == WayState::Hangs as u8 {
        thread::sleep(Duration::from_secs(30));
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let (Ok(mut from), Ok(mut to)) = (near.try_clone(), far.try_clone()) else { return };
    let there = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (far, near);
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = there.join();
}
