//! `pody shell NAME`: a terminal in a pod.
//!
//! Binary frames are the terminal's bytes, both ways. Text frames to the server are `{"resize": {"rows", "cols"}}`; the
//! server's last text frame is `{"exit_code"}`, or `{"detached"}` with the id of a session that was detached for a
//! checkpoint and continues in the pod. The client reattaches to it as soon as the pod runs. The user's terminal is in
//! raw mode while connected, and is always restored.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Upgraded;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, signal::unix::SignalKind};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Error, Message},
};

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::Output,
    terminal::{self, RawMode},
    words,
};
use crate::model::view::pod::SessionView;

#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The pod
    name: String,
    /// List the pod's sessions: detached terminals and background commands
    #[arg(long, conflicts_with_all = ["attach", "command"])]
    list: bool,
    /// Attach to a session; without an id, to the only detached one
    #[arg(long, value_name = "SESSION", num_args = 0..=1, default_missing_value = "", conflicts_with = "command")]
    attach: Option<String>,
    /// The command to run instead of a login shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Time between two attempts to reattach to a session whose pod does not run, and their total time. Ctrl-C ends them.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const REATTACH_TIMEOUT: Duration = Duration::from_secs(3600);
/// Ctrl-C in raw mode.
const INTERRUPT: u8 = 3;

/// What ends the input of a program on a terminal: Ctrl-D.
const END_OF_INPUT: &[u8] = b"\x04";

impl ShellArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        if self.list {
            return self.list(&client, out).await;
        }
        let command = words::command(&self.command)?;
        let session = match self.attach.as_deref() {
            Some("") => Some(self.only_session(&client).await?),
            Some(session) => Some(session.to_owned()),
            None => None,
        };
        let mut socket = self.open(&client, &command, session.as_deref()).await?;
        // Only now, so that a refusal is printed on a terminal in its normal mode.
        let _raw = if std::io::stdin().is_terminal() { Some(RawMode::enter()?) } else { None };
        let mut input = Input::Open;
        loop {
            let ended = Session { socket, out, input }.run().await?;
            match ended {
                Ended::Code(code) => return Ok(code),
                Ended::Detached { session: id, input: left } => {
                    eprint!("\r\n[pody: detached while the pod is saved; reattaching to {id}, Ctrl-C to quit]\r\n");
                    input = left;
                    socket = self.reattach(&client, &id, &mut input).await?;
                    eprint!("[pody: reattached]\r\n");
                }
            }
        }
    }

    async fn open(
        &self,
        client: &Client,
        command: &str,
        session: Option<&str>,
    ) -> Result<WebSocketStream<Upgraded>, CliError> {
        let (columns, rows) = terminal::size();
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let mut query = vec![("ins", self.name.as_str()), ("rows", rows.as_str()), ("cols", columns.as_str())];
        if !command.is_empty() {
            query.push(("cmd", command));
        }
        query.extend(session.map(|session| ("session", session)));
        Ok(client.websocket("pod/shell", &query).await?)
    }

    /// Retries until the pod runs again: it is paused while it is saved, and may be stopped and restored later.
    async fn reattach(
        &self,
        client: &Client,
        session: &str,
        input: &mut Input,
    ) -> Result<WebSocketStream<Upgraded>, CliError> {
        let begun = tokio::time::Instant::now();
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 256];
        loop {
            match self.open(client, "", Some(session)).await {
                Ok(socket) => return Ok(socket),
                Err(CliError::Client(error)) if error.may_pass() && begun.elapsed() < REATTACH_TIMEOUT => {}
                Err(error) => return Err(error),
            }
            let retry = tokio::time::sleep(RETRY_INTERVAL);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = &mut retry => break,
                    read = stdin.read(&mut buffer), if matches!(input, Input::Open) => {
                        let count = read.map_err(CliError::Stdin)?;
                        if count == 0 {
                            *input = Input::Ended;
                        }
                        if buffer[..count].contains(&INTERRUPT) {
                            return Err(CliError::Cancelled);
                        }
                    }
                }
            }
        }
    }

    async fn sessions(&self, client: &Client) -> Result<(Value, Vec<SessionView>), CliError> {
        let value = client.get("pod/sessions", &[("ins", self.name.as_str())]).await?;
        let list = serde_json::from_value(value.clone()).map_err(ClientError::Unintelligible)?;
        Ok((value, list))
    }

    async fn list(&self, client: &Client, out: &Output) -> Result<u8, CliError> {
        let (value, _) = self.sessions(client).await?;
        out.show(value, |list: Vec<SessionView>| {
            let rows = list.into_iter().map(|listed| {
                let state = match (listed.exit_code, listed.attached) {
                    (Some(code), _) => format!("exited with {code}"),
                    (None, true) => "attached".to_owned(),
                    (None, false) => "detached".to_owned(),
                };
                vec![listed.session, state, listed.command]
            });
            out.table(&["SESSION", "STATE", "COMMAND"], rows)
        })?;
        Ok(exit::OK)
    }

    /// The only detached session.
    async fn only_session(&self, client: &Client) -> Result<String, CliError> {
        let (_, list) = self.sessions(client).await?;
        let mut detached = list.into_iter().filter(|listed| !listed.attached);
        match (detached.next(), detached.next()) {
            (Some(only), None) => Ok(only.session),
            (None, _) => Err(CliError::NoSession(self.name.clone())),
            (Some(_), Some(_)) => Err(CliError::ManySessions(self.name.clone())),
        }
    }
}

/// How a connection to a session ended.
enum Ended {
    Code(u8),
    /// The session continues in the pod.
    Detached {
        session: String,
        input: Input,
    },
}

impl Ended {
    fn by(signal: SignalKind) -> Self {
        Self::Code(exit::SIGNAL_BASE + signal.as_raw_value() as u8)
    }
}

/// The last text frame of the server.
enum LastFrame {
    Exit(u8),
    Detached(String),
}

/// Whether there may be more input.
enum Input {
    Open,
    Ended,
}

struct Session<'a> {
    socket: WebSocketStream<Upgraded>,
    out: &'a Output,
    input: Input,
}

impl Session<'_> {
    /// Carries bytes both ways until the shell ends or detaches.
    async fn run(mut self) -> Result<Ended, CliError> {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 4096];
        let mut resized = terminal::on_signal(SignalKind::window_change())?;
        let mut terminated = terminal::on_signal(SignalKind::terminate())?;
        let mut hung_up = terminal::on_signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                message = self.socket.next() => {
                    match self.receive(message)? {
                        Some(LastFrame::Exit(code)) => return Ok(Ended::Code(code)),
                        Some(LastFrame::Detached(session)) => return Ok(Ended::Detached { session, input: self.input }),
                        None => {}
                    }
                }
                read = stdin.read(&mut buffer), if matches!(self.input, Input::Open) => {
                    let count = read.map_err(CliError::Stdin)?;
                    self.send_input(&buffer[..count]).await?;
                }
                _ = resized.recv() => {
                    let (cols, rows) = terminal::size();
                    self.send(Message::text(json!({"resize": {"rows": rows, "cols": cols}}).to_string())).await?;
                }
                _ = terminated.recv() => return Ok(Ended::by(SignalKind::terminate())),
                _ = hung_up.recv() => return Ok(Ended::by(SignalKind::hangup())),
            }
        }
    }

    /// Handles one frame. Returns the last one.
    fn receive(&self, message: Option<Result<Message, Error>>) -> Result<Option<LastFrame>, CliError> {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.out.bytes(&bytes).map(|()| None),
            Some(Ok(Message::Text(text))) => {
                let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                let detached = frame["detached"]["session"].as_str();
                Ok(detached
                    .map(|session| LastFrame::Detached(session.to_owned()))
                    .or_else(|| frame["exit_code"].as_i64().map(|code| LastFrame::Exit((code & 0xff) as u8))))
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Close(_))) | None => Err(CliError::ShellLost(None)),
            Some(Err(error)) => Err(CliError::ShellLost(Some(error))),
        }
    }

    /// Sends input. The end of a pipe becomes the end of input of the program in the pod.
    async fn send_input(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let bytes = if bytes.is_empty() {
            self.input = Input::Ended;
            END_OF_INPUT
        } else {
            bytes
        };
        self.send(Message::Binary(Bytes::copy_from_slice(bytes))).await
    }

    async fn send(&mut self, message: Message) -> Result<(), CliError> {
        match self.socket.send(message).await {
            // The shell ended meanwhile; its exit code is still to be read.
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => Ok(()),
            Err(error) => Err(CliError::ShellLost(Some(error))),
        }
    }
}
