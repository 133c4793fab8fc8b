//! `pody shell NAME`: a terminal in a pod.
//!
//! Binary frames are the terminal's bytes, both ways. Text frames to the server say `{"resize": {"rows", "cols"}}`; the
//! server's last text frame says `{"exit_code"}`. The person's terminal is in raw mode while the connection stands, and is
//! restored whichever way it ends.

use std::io::IsTerminal;

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Upgraded;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, signal::unix::SignalKind};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Error, Message},
};

use super::{client::Client, error::CliError, exit, output::Output, shell_words, terminal, terminal::RawMode};

#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The pod
    name: String,
    /// Run this instead of a login shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What ends the input of a program on a terminal: Ctrl-D.
const END_OF_INPUT: &[u8] = b"\x04";

impl ShellArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let (columns, rows) = terminal::size();
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let command = shell_words::command(&self.command);
        let mut query = vec![("ins", self.name.as_str()), ("rows", rows.as_str()), ("cols", columns.as_str())];
        if !command.is_empty() {
            query.push(("cmd", command.as_str()));
        }
        let socket = Client::from_environment()?.websocket("pod/shell", &query).await?;
        // Only now, so that a refusal is printed on a terminal in its usual state.
        let _raw = if std::io::stdin().is_terminal() { Some(RawMode::enter()?) } else { None };
        Session { socket, out, input: Input::Open }.run().await
    }
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
    /// Carries bytes both ways until the shell ends, and returns its exit code.
    async fn run(mut self) -> Result<u8, CliError> {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 4096];
        let mut resized = terminal::on_signal(SignalKind::window_change())?;
        let mut terminated = terminal::on_signal(SignalKind::terminate())?;
        let mut hung_up = terminal::on_signal(SignalKind::hangup())?;
        loop {
            tokio::select! {
                message = self.socket.next() => {
                    if let Some(code) = self.receive(message)? {
                        return Ok(code);
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
                _ = terminated.recv() => return Ok(exit::SIGNAL_BASE + SignalKind::terminate().as_raw_value() as u8),
                _ = hung_up.recv() => return Ok(exit::SIGNAL_BASE + SignalKind::hangup().as_raw_value() as u8),
            }
        }
    }

    /// Takes one frame; the exit code, if it says one.
    fn receive(&self, message: Option<Result<Message, Error>>) -> Result<Option<u8>, CliError> {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.out.bytes(&bytes).map(|()| None),
            Some(Ok(Message::Text(text))) => {
                let said: Value = serde_json::from_str(&text).unwrap_or_default();
                Ok(said["exit_code"].as_i64().map(|code| (code & 0xff) as u8))
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
