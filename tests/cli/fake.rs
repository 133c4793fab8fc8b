//! A server that records requests and returns the responses that a test sets; and `pody` to send them.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State, WebSocketUpgrade, ws::Message},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A recorded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET /pod/list?a=b`, query decoded.
    pub line: String,
    /// Decoded, `&` between the fields.
    pub form: String,
    pub authorization: String,
}

type Answers = HashMap<&'static str, (u16, String)>;

#[derive(Clone, Default)]
struct Shared {
    answers: Arc<Mutex<Answers>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// How often a client that reattaches gets the response that its pod is paused.
    paused: Arc<AtomicI32>,
}

/// A server, and the home directory of its user. Both are removed on drop.
pub struct Fake {
    pub base: String,
    pub home: TempDir,
    shared: Shared,
    _runtime: tokio::runtime::Runtime,
}

/// `alice` with the password `secret`, as HTTP Basic.
pub const BASIC: &str = "Basic YWxpY2U6c2VjcmV0";

impl Fake {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Shared::default();
        shared.paused.store(1, Ordering::SeqCst);
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/pod/shell", get(shell)).fallback(answer).with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base, home: tempfile::tempdir().unwrap(), shared, _runtime: runtime }
    }

    /// Sets the JSON response of a path.
    pub fn on(&self, path: &'static str, answer: impl Serialize) -> &Self {
        self.on_status(path, 200, answer)
    }

    pub fn on_status(&self, path: &'static str, status: u16, answer: impl Serialize) -> &Self {
        let answer = serde_json::to_string(&answer).unwrap();
        self.shared.answers.lock().unwrap().insert(path, (status, answer));
        self
    }

    /// Sets a response that is not JSON.
    pub fn on_text(&self, path: &'static str, status: u16, answer: &str) -> &Self {
        self.shared.answers.lock().unwrap().insert(path, (status, answer.to_owned()));
        self
    }

    /// The requests since the last call, in order.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }

    /// The only request since the last call.
    pub fn seen_one(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.into_iter().next().unwrap()
    }

    /// `pody` as alice: an environment with nothing but her identity and this server.
    pub fn pody<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.stranger(args);
        command.env("PODY_API_BASE", &self.base).env("PODY_USERNAME", "alice").env("PODY_PASSWORD", "secret");
        command
    }

    /// `pody` in an environment without identity and server.
    pub fn stranger<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pody"));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.home.path()).env("PODY_HOME", self.home.path().join("pody-home"));
        command
    }

    /// Runs as alice, with empty standard input.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        ended(&mut self.pody(args), "")
    }
}

/// The result of a program.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The standard output of a program that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub fn ended(command: &mut Command, stdin: &str) -> Ended {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program may exit without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

/// `pody` under another program name.
pub fn named(command: &mut Command, name: &str) -> Ended {
    ended(command.arg0(Path::new("/usr/local/bin").join(name)), "")
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    record(&shared, request).await;
    let answers = shared.answers.lock().unwrap();
    let (status, body) =
        answers.get(path.as_str()).cloned().unwrap_or((404, json!({"detail": "Not Found"}).to_string()));
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    if status == 503 {
        response.headers_mut().insert(header::RETRY_AFTER, "7".parse().unwrap());
    }
    response
}

async fn record(shared: &Shared, request: Request) {
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let query = decoded(parts.uri.query().unwrap_or_default().as_bytes());
    let question = if query.is_empty() { "" } else { "?" };
    let seen = Seen {
        line: format!("{} {}{question}{query}", parts.method, parts.uri.path()),
        form: decoded(&body),
        authorization: header(header::AUTHORIZATION),
    };
    shared.seen.lock().unwrap().push(seen);
}

fn decoded(query: &[u8]) -> String {
    form_urlencoded::parse(query).map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
}

/// A terminal that prints its size, echoes input in upper case, and exits with 7 at Ctrl-D. `ins=gone` drops the
/// connection. `ins=saved` detaches at once, unless the client reattaches; the first to reattach gets the response that
/// the pod is paused.
async fn shell(State(shared): State<Shared>, request: Request) -> Response {
    use axum::extract::FromRequestParts;
    let query = decoded(request.uri().query().unwrap_or_default().as_bytes());
    let (mut parts, body) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    record(&shared, Request::from_parts(parts, body)).await;
    if query.contains("ins=missing") {
        return (StatusCode::NOT_FOUND, json!({"detail": "no pod missing"}).to_string()).into_response();
    }
    let reattaches = query.contains("session=s1");
    if query.contains("ins=saved") && reattaches && shared.paused.fetch_sub(1, Ordering::SeqCst) > 0 {
        return (StatusCode::CONFLICT, json!({"detail": "it is paused"}).to_string()).into_response();
    }
    if query.contains("ins=saved") && query.contains("session=s2") {
        return (StatusCode::NOT_FOUND, json!({"detail": "no session s2"}).to_string()).into_response();
    }
    upgrade.unwrap().on_upgrade(async move |mut socket| {
        if query.contains("ins=saved") && !reattaches {
            let _ = socket.send(Message::Text(r#"{"detached":{"session":"s1"}}"#.into())).await;
            return;
        }
        if query.contains("ins=gone") {
            return;
        }
        socket.send(Message::Binary(format!("[{query}]\r\n").into())).await.unwrap();
        // The first connection got the input, its end too.
        let has_ended = query.contains("ins=saved");
        while !has_ended && let Some(Ok(message)) = socket.recv().await {
            match message {
                Message::Binary(bytes) if bytes.ends_with(b"\x04") => break,
                Message::Binary(bytes) => {
                    socket.send(Message::Binary(bytes.to_ascii_uppercase().into())).await.unwrap()
                }
                Message::Text(text) => {
                    socket.send(Message::Binary(Bytes::copy_from_slice(text.as_bytes()))).await.unwrap()
                }
                _ => {}
            }
        }
        let _ = socket.send(Message::Text(r#"{"exit_code":7}"#.into())).await;
        let _ = socket.send(Message::Close(None)).await;
    })
}
