//! `pody actions`: running and past checkpoints and restores, and how to wait for one. The server does the work: Ctrl-C
//! stops only the waiting, which can be resumed.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    bars,
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{self, Output},
    terminal,
};
use crate::model::names::start_of;

/// Time between two polls of an action, and between two while the server does not respond.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for a server that restarts.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// Cells of the progress bar, and columns of the text beside it.
const BAR: usize = 24;
const BESIDE: usize = 58;

#[derive(Debug, Args)]
pub struct ActionsArgs {
    /// Only those of this pod, also of a deleted one
    name: Option<String>,
    /// Everybody's actions (admins only)
    #[arg(short, long)]
    all: bool,
    /// Wait for the end of one and show its progress
    #[arg(long, value_name = "ID", conflicts_with_all = ["name", "all"])]
    follow: Option<String>,
}

/// The fields of an action that are shown.
#[derive(Deserialize)]
pub struct Action {
    pub id: String,
    pub checkpoint: String,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    container_name: String,
    pub status: String,
    phase: String,
    bytes: u64,
    total_bytes: Option<u64>,
    frozen_ms: Option<u64>,
    pub losses: Vec<String>,
    error: Option<String>,
    remote: Option<String>,
    remote_bytes: Option<i64>,
    remote_total_bytes: Option<i64>,
    #[serde(default)]
    started_at: String,
}

/// The state of a pod after its checkpoint.
pub enum Saved {
    Running,
    Stopped,
}

impl Action {
    fn is_restore(&self) -> bool {
        self.kind == "restore"
    }

    fn size(bytes: u64) -> String {
        output::size(i64::try_from(bytes).unwrap_or(i64::MAX), 1)
    }

    /// The sentence about a finished checkpoint.
    pub fn saved(&self, name: &str, how: Saved) -> String {
        let (id, size) = (&self.checkpoint, Self::size(self.bytes));
        match how {
            Saved::Stopped => {
                format!("{name} saved as {id} ({size}) and stopped; `pody restore {name}` resumes it")
            }
            Saved::Running => {
                let frozen = self.frozen_ms.map_or(String::new(), |ms| format!("; it was frozen for {}", seconds(ms)));
                format!("{name} saved as {id} ({size}){frozen}")
            }
        }
    }

    /// Its progress, on one line that is shorter than `columns`.
    fn progress(&self, columns: usize) -> String {
        let what = if self.is_restore() { "restoring" } else { "saving" };
        let total = self.total_bytes.unwrap_or(0).max(self.bytes);
        let cells = columns.saturating_sub(BESIDE).min(BAR);
        let bar = match cells {
            0..4 => String::new(),
            cells => bars::gauge(self.bytes as f64, total as f64, cells) + " ",
        };
        let frozen = self.frozen_ms.map_or(String::new(), |ms| format!("  frozen {}", seconds(ms)));
        let line =
            format!("{what}: {:<9} {bar}{} of {}{frozen}", self.phase, Self::size(self.bytes), Self::size(total));
        // A line that wraps cannot be erased.
        start_of(&line, columns.saturating_sub(1)).to_owned()
    }

    /// As a row of the table.
    fn row(self) -> Vec<String> {
        let done = match (self.status.as_str(), self.total_bytes) {
            ("running", Some(total)) => format!("{} of {}", Self::size(self.bytes), Self::size(total.max(self.bytes))),
            _ => Self::size(self.bytes),
        };
        let copy = copy_words(self.remote.as_deref(), self.remote_bytes, self.remote_total_bytes);
        let frozen = self.frozen_ms.map_or_else(|| "-".to_owned(), seconds);
        let problem = self.error.as_deref().map_or_else(|| "-".to_owned(), output::printable_line);
        let started = output::ago(&self.started_at);
        vec![self.id, self.kind, self.container_name, self.status, self.phase, done, frozen, started, copy, problem]
    }
}

impl ActionsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        if let Some(id) = self.follow {
            let answer = client.get("action/status", &[("id", &id)]).await?;
            let (answer, action) = wait(&client, answer).await?;
            let words = match action.is_restore() {
                true => format!("{} restored from {}", action.container_name, action.checkpoint),
                false => action.saved(&action.container_name, Saved::Running),
            };
            out.done(&answer, words)?;
            warn_about_losses(&action, out);
            return Ok(exit::OK);
        }
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(self.name.as_deref().map(|name| ("ins", name)));
        if self.all {
            query.push(("all", "true"));
        }
        let answer = client.get("action/list", &query).await?;
        out.show(answer, |rows: Vec<Action>| {
            if rows.is_empty() {
                return "no checkpoints or restores yet; `pody checkpoint NAME` starts one".to_owned();
            }
            let header = ["ID", "TYPE", "POD", "STATUS", "PHASE", "DONE", "FROZEN", "STARTED", "REMOTE", "PROBLEM"];
            let (has_copies, has_problems) =
                (rows.iter().any(|row| row.remote.is_some()), rows.iter().any(|row| row.error.is_some()));
            let is_shown = |at: usize| match header[at] {
                "REMOTE" => has_copies,
                "PROBLEM" => has_problems,
                _ => true,
            };
            let shown = |cells: Vec<String>| -> Vec<String> {
                cells.into_iter().enumerate().filter(|(at, _)| is_shown(*at)).map(|(_, cell)| cell).collect()
            };
            let titles: Vec<&str> =
                header.into_iter().enumerate().filter(|(at, _)| is_shown(*at)).map(|(_, title)| title).collect();
            out.table(&titles, rows.into_iter().map(|row| shown(row.row())))
        })?;
        Ok(exit::OK)
    }
}

/// Starts an action and waits for its end.
pub async fn follow(route: &str, form: &[(&str, &str)]) -> Result<(Value, Action), CliError> {
    let client = Client::from_environment()?;
    let answer = or_ctrl_c(None, async { Ok(client.post(route, form).await?) }).await?;
    wait(&client, answer).await
}

/// Waits for the end of an action whose current view is `answer`.
async fn wait(client: &Client, answer: Value) -> Result<(Value, Action), CliError> {
    let begun: Action = serde_json::from_value(answer.clone()).map_err(ClientError::Unintelligible)?;
    or_ctrl_c(Some(begun.id.clone()), wait_for_end(client, answer, begun)).await
}

/// Ctrl-C stops only the waiting; the error says how to resume it.
async fn or_ctrl_c<T>(id: Option<String>, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::select! {
        done = work => done,
        pressed = tokio::signal::ctrl_c() => {
            pressed.map_err(CliError::Terminal)?;
            Err(CliError::StoppedWaiting(id))
        }
    }
}

async fn wait_for_end(client: &Client, mut answer: Value, mut action: Action) -> Result<(Value, Action), CliError> {
    let line = ProgressLine::new();
    let mut silent_since = None::<Instant>;
    loop {
        match action.status.as_str() {
            "running" => line.draw(&action),
            "done" => return Ok((answer, action)),
            _ => return Err(CliError::Action(action.error.unwrap_or_else(|| "the action failed".to_owned()))),
        }
        tokio::time::sleep(if silent_since.is_some() { RETRY_INTERVAL } else { POLL_INTERVAL }).await;
        match client.get("action/status", &[("id", &action.id)]).await {
            Ok(found) => {
                silent_since = None;
                action = serde_json::from_value(found.clone()).map_err(ClientError::Unintelligible)?;
                answer = found;
            }
            // A restarted daemon recovers its running actions.
            Err(source) if source.may_pass() => {
                if silent_since.get_or_insert_with(Instant::now).elapsed() > RESTART_TIMEOUT {
                    return Err(CliError::LostAction { id: action.id, source });
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Phase, bytes and seconds frozen, if standard error is a terminal. Erased when dropped.
struct ProgressLine {
    is_shown: bool,
}

impl ProgressLine {
    fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal() }
    }

    fn draw(&self, action: &Action) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K{}", action.progress(terminal::size().0.into()));
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }
}

pub fn seconds(millis: u64) -> String {
    format!("{:.1} s", millis as f64 / 1000.0)
}

/// The state of a copy in the remote store, with bytes while it is being made.
pub fn copy_words(state: Option<&str>, bytes: Option<i64>, total: Option<i64>) -> String {
    let Some(state) = state.map(output::printable_line) else { return "-".to_owned() };
    match (bytes, total) {
        (Some(bytes), Some(total)) => format!("{state} {} of {}", output::size(bytes, 1), output::size(total, 1)),
        _ => state,
    }
}

pub fn warn_about_losses(action: &Action, out: &Output) {
    for loss in &action.losses {
        out.warn(output::printable_line(loss));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_shows_phase_bytes_and_seconds() {
        let action = |kind: &str| -> Action {
            serde_json::from_value(json!({
                "id": "a", "checkpoint": "c", "type": kind, "status": "running", "phase": "dump", "bytes": 1 << 29,
                "total_bytes": 1 << 30, "frozen_ms": 1234, "losses": [], "error": null,
            }))
            .unwrap()
        };
        let wide = "saving: dump      ████████████░░░░░░░░░░░░ 512.0M of 1.0G  frozen 1.2 s";
        assert_eq!(action("checkpoint").progress(100), wide);
        assert_eq!(action("checkpoint").progress(82), wide);
        let narrow = action("restore").progress(70);
        assert_eq!(narrow, "restoring: dump      ██████░░░░░░ 512.0M of 1.0G  frozen 1.2 s");
        for columns in [0, 1, 20, 40, 61, 62, 80] {
            assert!(action("restore").progress(columns).chars().count() < columns.max(1), "{columns}");
        }
    }
}
