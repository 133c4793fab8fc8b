//! A proxy between the daemon and Docker's socket that injects faults.
//!
//! One request per connection: `Connection: close` is put into every request, so a response ends where the connection
//! does, and everything that no fault concerns is copied byte by byte, including upgraded connections. A [`Rule`] is in
//! effect while its handle lives.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Docker's own socket.
pub const DOCKER: &str = "/var/run/docker.sock";

/// What to do with a request that matches a rule.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Passed on when the rule is lifted, even if the client has left by then.
    Hold,
    /// Closed without having been passed on.
    Refuse,
    /// Passed on and executed; the response is dropped.
    LoseAnswer,
    /// Passed on and executed; the response is held back until the rule is lifted.
    HoldAnswer,
    /// Not passed on; answered with this status and text.
    Answer(u16, &'static str),
    /// Passed on and executed; the response ends after this many bytes of its body.
    Cut(usize),
    /// Passed on and executed; the response's body is half a JSON text.
    Garble,
    /// The response's head is passed on, nothing of its body: a stream that fell silent.
    Mute,
}

struct RuleState {
    pattern: String,
    fault: Fault,
    /// How many matches it applies to.
    limit: usize,
    seen: AtomicUsize,
    lifted: AtomicBool,
}

struct Connection {
    number: usize,
    request: String,
    client: UnixStream,
    upstream: Option<UnixStream>,
}

#[derive(Default)]
struct State {
    rules: Vec<Arc<RuleState>>,
    open: Vec<Connection>,
}

struct Shared {
    upstream: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    /// The test has failed: held requests are no longer passed on, since they would create containers after the
    /// cleanup.
    failed: AtomicBool,
    counter: AtomicUsize,
}

/// The proxy. Stops when dropped.
pub struct Proxy {
    path: PathBuf,
    shared: Arc<Shared>,
}

/// A fault in effect. Lifted when dropped.
#[must_use = "the fault is lifted when this is dropped"]
pub struct Rule {
    shared: Arc<Shared>,
    state: Arc<RuleState>,
}

impl Proxy {
    /// A proxy of Docker, with its socket below `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::before(Path::new(DOCKER), folder)
    }

    /// A proxy of another engine.
    pub fn before(upstream: &Path, folder: &Path) -> Self {
        let proxy = Self::absent(upstream, folder);
        proxy.appear();
        proxy
    }

    /// The same, without a socket until [`Self::appear`].
    pub fn absent(upstream: &Path, folder: &Path) -> Self {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            counter: AtomicUsize::new(0),
        });
        Self { path: folder.join("docker.sock"), shared }
    }

    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Starts to listen.
    pub fn appear(&self) {
        let _ = fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path).expect("a socket in our own directory");
        self.shared.stopped.store(false, Ordering::SeqCst);
        let shared = self.shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || shared.serve(client));
            }
        });
    }

    /// Cuts every connection and removes the socket, as a killed engine does.
    pub fn vanish(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The listener notices the stop when the next client connects.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
        self.cut("*");
    }

    /// Applies to every request that matches. A pattern is method and path without the version, such as
    /// `POST /containers/*/start`; `*` stands for any text, and the query belongs to the path.
    pub fn on(&self, pattern: &str, fault: Fault) -> Rule {
        self.rule(pattern, fault, usize::MAX)
    }

    /// Applies to the next request that matches.
    pub fn once(&self, pattern: &str, fault: Fault) -> Rule {
        self.rule(pattern, fault, 1)
    }

    fn rule(&self, pattern: &str, fault: Fault, limit: usize) -> Rule {
        let state = Arc::new(RuleState {
            pattern: pattern.to_owned(),
            fault,
            limit,
            seen: AtomicUsize::new(0),
            lifted: AtomicBool::new(false),
        });
        self.shared.lock().rules.push(state.clone());
        Rule { shared: self.shared.clone(), state }
    }

    /// Cuts the open connections that match.
    pub fn cut(&self, pattern: &str) -> usize {
        let mut cut = 0;
        for connection in self.shared.lock().open.iter().filter(|open| matches(pattern, &open.request)) {
            let _ = connection.client.shutdown(Shutdown::Both);
            if let Some(upstream) = &connection.upstream {
                let _ = upstream.shutdown(Shutdown::Both);
            }
            cut += 1;
        }
        cut
    }

    /// Connections that are open and match.
    pub fn open(&self, pattern: &str) -> usize {
        self.shared.lock().open.iter().filter(|open| matches(pattern, &open.request)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for rule in self.shared.lock().rules.drain(..) {
            rule.lifted.store(true, Ordering::SeqCst);
        }
        self.shared.changed.notify_all();
        self.vanish();
    }
}

impl Rule {
    /// The number of requests that it has been applied to.
    pub fn hits(&self) -> usize {
        self.state.seen.load(Ordering::SeqCst).min(self.state.limit)
    }

    /// Waits until a request has matched it.
    pub fn wait_hit(&self) {
        let begun = Instant::now();
        while self.hits() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(15), "no request matched {}", self.state.pattern);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the fault; held requests continue.
    pub fn lift(self) {}
}

impl Drop for Rule {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.failed.store(true, Ordering::SeqCst);
        }
        self.state.lifted.store(true, Ordering::SeqCst);
        self.shared.lock().rules.retain(|rule| !Arc::ptr_eq(rule, &self.state));
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The first rule that matches and is not used up.
    fn rule_for(&self, request: &str) -> Option<Arc<RuleState>> {
        self.lock()
            .rules
            .iter()
            .find(|rule| matches(&rule.pattern, request) && { rule.seen.fetch_add(1, Ordering::SeqCst) < rule.limit })
            .cloned()
    }

    fn wait_lifted(&self, rule: &RuleState) {
        let mut state = self.lock();
        while !rule.lifted.load(Ordering::SeqCst) {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn serve(&self, mut client: UnixStream) {
        let Some((request, head, rest)) = read_request_head(&mut client) else { return };
        let rule = self.rule_for(&request);
        let number = self.counter.fetch_add(1, Ordering::SeqCst);
        let Ok(shown) = client.try_clone() else { return };
        self.lock().open.push(Connection { number, request, client: shown, upstream: None });
        let _ = self.forward(number, &mut client, &head, &rest, rule);
        let _ = client.shutdown(Shutdown::Both);
        self.lock().open.retain(|open| open.number != number);
    }

    fn forward(
        &self,
        number: usize,
        client: &mut UnixStream,
        head: &str,
        rest: &[u8],
        rule: Option<Arc<RuleState>>,
    ) -> std::io::Result<()> {
        let fault = rule.as_ref().map(|rule| rule.fault);
        match fault {
            Some(Fault::Hold) => {
                self.wait_lifted(rule.as_ref().expect("a fault has its rule"));
                if self.failed.load(Ordering::SeqCst) {
                    return Ok(());
                }
            }
            Some(Fault::Refuse) => return Ok(()),
            Some(Fault::Answer(status, text)) => return answer(client, status, text),
            _ => {}
        }
        let mut upstream = UnixStream::connect(&self.upstream)?;
        if let Some(open) = self.lock().open.iter_mut().find(|open| open.number == number) {
            open.upstream = Some(upstream.try_clone()?);
        }
        let upgraded = head.to_ascii_lowercase().contains("\r\nupgrade:");
        upstream.write_all(with_close(head, upgraded).as_bytes())?;
        upstream.write_all(rest)?;
        let up = copy_up(client.try_clone()?, upstream.try_clone()?, upgraded, matches!(fault, Some(Fault::Hold)));
        match fault {
            Some(Fault::LoseAnswer) => {
                read_all(&mut upstream);
            }
            Some(Fault::HoldAnswer) => {
                let answer = read_all(&mut upstream);
                self.wait_lifted(rule.as_ref().expect("a fault has its rule"));
                client.write_all(&answer)?;
            }
            Some(Fault::Cut(length)) => {
                let answer = read_all(&mut upstream);
                let body = head_end(&answer).unwrap_or(answer.len());
                client.write_all(&answer[..answer.len().min(body + length)])?;
            }
            Some(Fault::Garble) => {
                let whole = read_all(&mut upstream);
                let status = String::from_utf8_lossy(&whole).split(' ').nth(1).and_then(|s| s.parse().ok());
                answer(client, status.unwrap_or(200), r#"{"Id": 7, "State": {"Sta"#)?;
            }
            Some(Fault::Mute) => {
                let mut start = Vec::new();
                let mut byte = [0];
                while head_end(&start).is_none() && upstream.read(&mut byte)? == 1 {
                    start.push(byte[0]);
                }
                client.write_all(&start)?;
                self.wait_lifted(rule.as_ref().expect("a fault has its rule"));
            }
            _ => {
                let _ = std::io::copy(&mut upstream, client);
                // A half-closed upgraded connection may still be written to.
                let _ = client.shutdown(Shutdown::Write);
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = upstream.shutdown(Shutdown::Both);
        let _ = up.join();
        Ok(())
    }
}

/// Copies what the client still sends. When a client leaves, its request is closed as well, as far as the engine can
/// see.
fn copy_up(
    mut client: UnixStream,
    mut upstream: UnixStream,
    upgraded: bool,
    outlives_client: bool,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let _ = std::io::copy(&mut client, &mut upstream);
        if !outlives_client {
            let _ = upstream.shutdown(if upgraded { Shutdown::Write } else { Shutdown::Both });
        }
    })
}

/// `METHOD /path` without the version, the head, and the bytes after it.
fn read_request_head(client: &mut UnixStream) -> Option<(String, String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    let end = loop {
        if let Some(end) = head_end(&bytes) {
            break end;
        }
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
        }
    };
    let rest = bytes.split_off(end);
    let head = String::from_utf8(bytes).ok()?;
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let path = match path.strip_prefix("/v1.").and_then(|rest| rest.find('/')) {
        Some(at) => &path["/v1.".len() + at..],
        None => path,
    };
    Some((format!("{method} {path}"), head, rest))
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn with_close(head: &str, upgraded: bool) -> String {
    if upgraded {
        return head.to_owned();
    }
    let kept = head.lines().filter(|line| !line.is_empty() && !line.to_ascii_lowercase().starts_with("connection:"));
    let mut lines: Vec<&str> = kept.collect();
    lines.push("Connection: close");
    lines.join("\r\n") + "\r\n\r\n"
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn answer(client: &mut UnixStream, status: u16, text: &str) -> std::io::Result<()> {
    let length = text.len();
    write!(
        client,
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}

/// Whether `text` is the pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            rest.is_empty() || (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
        }),
    }
}

#[test]
fn patterns_match_whole_requests() {
    for (pattern, text, expected) in [
        ("POST /containers/create*", "POST /containers/create?name=a", true),
        ("POST /containers/*/start", "POST /containers/abc/start", true),
        ("POST /containers/*/start", "POST /containers/abc/started", false),
        ("GET /containers/*/json*", "GET /containers/json?all=true", false),
        ("*", "GET /events", true),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
    }
}
