//! `pody shell NAME`: a terminal in a pod.
//!
//! Binary frames are the terminal's bytes, both ways. Text frames to the server say `{"resize": {"rows", "cols"}}`; the
//! server's last text frame says `{"exit_code"}`, or `{"detached"}` with the id of a session that goes on in the pod: it was
//! let go for a checkpoint. Then this comes back to it by itself, as soon as the pod runs. The person's terminal is in raw
//! mode while the connection stands, and is restored whichever way it ends.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Upgraded;
use serde::Deserialize;
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
    shell_words,
    terminal::{self, RawMode},
};

#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The pod
    name: String,
    /// List what goes on in the pod without anybody: terminals that were let go, commands in the background
    #[arg(long, conflicts_with_all = ["attach", "command"])]
    list: bool,
    /// Come back to one of them; without its id, to the only one
    #[arg(long, value_name = "SESSION", num_args = 0..=1, default_missing_value = "", conflicts_with = "command")]
    attach: Option<String>,
    /// Run this instead of a login shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// A session as the server lists it.
#[derive(Deserialize)]
struct Listed {
    session: String,
    command: String,
    attached: bool,
    exit_code: Option<i64>,
}

/// Time between two tries to come back to a session whose pod does not run, and how long that is tried. Ctrl-C ends it.
const RETRY: Duration = Duration::from_millis(500);

const PATIENCE: Duration = Duration::from_secs(3600);

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
        let command = shell_words::command(&self.command);
        let session = match self.attach.as_deref() {
            Some("") => Some(self.only_session(&client).await?),
            Some(session) => Some(session.to_owned()),
            None => None,
        };
        let mut socket = self.open(&client, &command, session.as_deref()).await?;
        // Only now, so that a refusal is printed on a terminal in its usual state.
        let _raw = if std::io::stdin().is_terminal() { Some(RawMode::enter()?) } else { None };
        let mut input = Input::Open;
        loop {
            let ended = Session { socket, out, input }.run().await?;
            match ended {
                Ended::Code(code) => return Ok(code),
                Ended::Detached { session: id, input: left } => {
                    eprint!("\r\n[pody: let go while the pod is saved; coming back to {id}, Ctrl-C ends that]\r\n");
                    input = left;
                    socket = self.come_back(&client, &id, &mut input).await?;
                    eprint!("[pody: back]\r\n");
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

    /// Tries until the pod runs again: it is paused while it is saved, and may be stopped and restored later.
    async fn come_back(
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
                Err(CliError::Client(error)) if error.may_pass() && begun.elapsed() < PATIENCE => {}
                Err(error) => return Err(error),
            }
            let retry = tokio::time::sleep(RETRY);
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

    async fn sessions(&self, client: &Client) -> Result<(Value, Vec<Listed>), CliError> {
        let value = client.get("pod/sessions", &[("ins", self.name.as_str())]).await?;
        let list = serde_json::from_value(value.clone()).map_err(ClientError::Unintelligible)?;
        Ok((value, list))
    }

    async fn list(&self, client: &Client, out: &Output) -> Result<u8, CliError> {
        let (value, _) = self.sessions(client).await?;
        out.show(value, |list: Vec<Listed>| {
            let rows = list.into_iter().map(|listed| {
                let state = match (listed.exit_code, listed.attached) {
                    (Some(code), _) => format!("ended with {code}"),
                    (None, true) => "somebody is at it".to_owned(),
                    (None, false) => "runs".to_owned(),
                };
                vec![listed.session, state, listed.command]
            });
            out.table(&["SESSION", "STATE", "COMMAND"], rows)
        })?;
        Ok(exit::OK)
    }

    /// The one that there is to come back to.
    async fn only_session(&self, client: &Client) -> Result<String, CliError> {
        let (_, list) = self.sessions(client).await?;
        let mut left = list.into_iter().filter(|listed| !listed.attached);
        match (left.next(), left.next()) {
            (Some(only), None) => Ok(only.session),
            (None, _) => Err(CliError::NoSession(self.name.clone())),
            (Some(_), Some(_)) => Err(CliError::ManySessions(self.name.clone())),
        }
    }
}

/// How a connection to a session ended.
enum Ended {
    Code(u8),
    /// The session goes on without us.
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

/// What the server says at the end.
enum LastWord {
    Exit(u8),
    Detached(String),
}

/// Whether there may be more to send.
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
    /// Carries bytes both ways until the shell ends or lets us go.
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
                        Some(LastWord::Exit(code)) => return Ok(Ended::Code(code)),
                        Some(LastWord::Detached(session)) => return Ok(Ended::Detached { session, input: self.input }),
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

    /// Takes one frame; the last word, if it is that.
    fn receive(&self, message: Option<Result<Message, Error>>) -> Result<Option<LastWord>, CliError> {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.out.bytes(&bytes).map(|()| None),
            Some(Ok(Message::Text(text))) => {
                let said: Value = serde_json::from_str(&text).unwrap_or_default();
                let detached = said["detached"]["session"].as_str();
                Ok(detached
                    .map(|session| LastWord::Detached(session.to_owned()))
                    .or_else(|| said["exit_code"].as_i64().map(|code| LastWord::Exit((code & 0xff) as u8))))
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Close(_))) | None => Err(CliError::ShellLost(None)),
            Some(Err(error)) => Err(CliError::ShellLost(Some(error))),
        }
    }

    /// Sends what was typed. At the end of a pipe the program in the pod is told so.
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
            // The shell ended while we wrote; its exit code is still to be read.
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => Ok(()),
            Err(error) => Err(CliError::ShellLost(Some(error))),
        }
    }
}
