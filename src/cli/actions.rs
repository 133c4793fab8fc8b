//! `pody actions`: running and past checkpoints and restores, and how to wait for one. The server does the work: Ctrl-C
//! stops only the waiting, which can be resumed.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::Value;

use super::{
    bars,
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{self, Output},
    terminal,
};
use crate::model::{
    action::ActionStatus,
    ids::ActionId,
    names::start_of,
    phase::ActionKind,
    view::{action::ActionView, checkpoint::CopyView},
};

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

/// The state of a pod after its checkpoint.
pub enum Saved {
    Running,
    Stopped,
}

fn is_restore(action: &ActionView) -> bool {
    action.kind == ActionKind::Restore
}

/// The sentence about a finished checkpoint.
pub fn saved(action: &ActionView, name: &str, how: Saved) -> String {
    let (id, size) = (&action.checkpoint, output::bytes(action.bytes));
    match how {
        Saved::Stopped => {
            format!("{name} saved as {id} ({size}) and stopped; `pody restore {name}` resumes it")
        }
        Saved::Running => {
            let frozen = action.frozen_ms.map_or(String::new(), |ms| format!("; it was frozen for {}", seconds(ms)));
            format!("{name} saved as {id} ({size}){frozen}")
        }
    }
}

/// The progress of an action, on one line that is shorter than `columns`.
fn progress(action: &ActionView, columns: usize) -> String {
    let what = if is_restore(action) { "restoring" } else { "saving" };
    let total = action.total_bytes.unwrap_or(0).max(action.bytes);
    let cells = columns.saturating_sub(BESIDE).min(BAR);
    let bar = match cells {
        0..4 => String::new(),
        cells => bars::gauge(action.bytes as f64, total as f64, cells) + " ",
    };
    let frozen = action.frozen_ms.map_or(String::new(), |ms| format!("  frozen {}", seconds(ms)));
    let (phase, done, total) = (action.phase.as_str(), output::bytes(action.bytes), output::bytes(total));
    let line = format!("{what}: {phase:<9} {bar}{done} of {total}{frozen}");
    // A line that wraps cannot be erased.
    start_of(&line, columns.saturating_sub(1)).to_owned()
}

/// An action as a row of the table.
fn row(action: ActionView) -> Vec<String> {
    let done = match (action.status, action.total_bytes) {
        (ActionStatus::Running, Some(total)) => {
            format!("{} of {}", output::bytes(action.bytes), output::bytes(total.max(action.bytes)))
        }
        (ActionStatus::Running | ActionStatus::Done | ActionStatus::Error, _) => output::bytes(action.bytes),
    };
    vec![
        action.id.to_string(),
        action.kind.to_string(),
        action.container_name,
        action.status.to_string(),
        action.phase.to_string(),
        done,
        action.frozen_ms.map_or_else(|| "-".to_owned(), seconds),
        output::ago(&action.started_at.to_string()),
        copy_words(action.remote.as_ref()),
        action.error.as_deref().map_or_else(|| "-".to_owned(), output::printable_line),
    ]
}

impl ActionsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        if let Some(id) = self.follow {
            let answer = client.get("action/status", &[("id", &id)]).await?;
            let (answer, action) = wait(&client, answer).await?;
            let words = match action.kind {
                ActionKind::Restore => format!("{} restored from {}", action.container_name, action.checkpoint),
                ActionKind::Checkpoint => saved(&action, &action.container_name, Saved::Running),
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
        out.show(answer, |rows: Vec<ActionView>| {
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
            out.table(&titles, rows.into_iter().map(|action| shown(row(action))))
        })?;
        Ok(exit::OK)
    }
}

/// Starts an action and waits for its end.
pub async fn follow(route: &str, form: &[(&str, &str)]) -> Result<(Value, ActionView), CliError> {
    let client = Client::from_environment()?;
    let answer = or_ctrl_c(None, async { Ok(client.post(route, form).await?) }).await?;
    wait(&client, answer).await
}

/// Waits for the end of an action whose current view is `answer`.
async fn wait(client: &Client, answer: Value) -> Result<(Value, ActionView), CliError> {
    let begun: ActionView = serde_json::from_value(answer.clone()).map_err(ClientError::Unintelligible)?;
    or_ctrl_c(Some(begun.id), wait_for_end(client, answer, begun)).await
}

/// Ctrl-C stops only the waiting; the error says how to resume it.
async fn or_ctrl_c<T>(id: Option<ActionId>, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::select! {
        // Listened for before the work shows anything: a signal that nobody waits for is lost.
        biased;
        pressed = tokio::signal::ctrl_c() => {
            pressed.map_err(CliError::Terminal)?;
            Err(CliError::StoppedWaiting(id.map(|id| id.to_string())))
        }
        done = work => done,
    }
}

async fn wait_for_end(
    client: &Client,
    mut answer: Value,
    mut action: ActionView,
) -> Result<(Value, ActionView), CliError> {
    let line = ProgressLine::new();
    let mut silent_since = None::<Instant>;
    loop {
        match action.status {
            ActionStatus::Running => line.draw(&action),
            ActionStatus::Done => return Ok((answer, action)),
            ActionStatus::Error => {
                return Err(CliError::Action(action.error.unwrap_or_else(|| "the action failed".to_owned())));
            }
        }
        tokio::time::sleep(if silent_since.is_some() { RETRY_INTERVAL } else { POLL_INTERVAL }).await;
        match client.get("action/status", &[("id", &action.id.to_string())]).await {
            Ok(found) => {
                silent_since = None;
                action = serde_json::from_value(found.clone()).map_err(ClientError::Unintelligible)?;
                answer = found;
            }
            // A restarted daemon recovers its running actions.
            Err(source) if source.may_pass() => {
                if silent_since.get_or_insert_with(Instant::now).elapsed() > RESTART_TIMEOUT {
                    return Err(CliError::LostAction { id: action.id.to_string(), source });
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

    fn draw(&self, action: &ActionView) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K{}", progress(action, terminal::size().0.into()));
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
pub fn copy_words(copy: Option<&CopyView>) -> String {
    let Some(copy) = copy else { return "-".to_owned() };
    let state = output::printable_line(&copy.state);
    match (copy.bytes, copy.total_bytes) {
        (Some(bytes), Some(total)) => format!("{state} {} of {}", output::bytes(bytes), output::bytes(total)),
        _ => state,
    }
}

pub fn warn_about_losses(action: &ActionView, out: &Output) {
    for loss in &action.losses {
        out.warn(output::printable_line(loss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ids::{CheckpointId, PodId},
        phase::Phase,
        time::Millis,
    };

    #[test]
    fn progress_shows_phase_bytes_and_seconds() {
        let action = |kind| ActionView {
            id: ActionId::generate(),
            kind,
            user: "alice".parse().unwrap(),
            pod: PodId::generate(),
            container_name: "alice-main".to_owned(),
            checkpoint: CheckpointId::generate(),
            status: ActionStatus::Running,
            phase: Phase::Dump,
            bytes: 1 << 29,
            total_bytes: Some(1 << 30),
            frozen_ms: Some(1234),
            losses: Vec::new(),
            error: None,
            remote: None,
            started_at: Millis(0),
            ended_at: None,
        };
        let wide = "saving: dump      ████████████░░░░░░░░░░░░ 512.0M of 1.0G  frozen 1.2 s";
        assert_eq!(progress(&action(ActionKind::Checkpoint), 100), wide);
        assert_eq!(progress(&action(ActionKind::Checkpoint), 82), wide);
        let narrow = progress(&action(ActionKind::Restore), 70);
        assert_eq!(narrow, "restoring: dump      ██████░░░░░░ 512.0M of 1.0G  frozen 1.2 s");
        for columns in [0, 1, 20, 40, 61, 62, 80] {
            assert!(progress(&action(ActionKind::Restore), columns).chars().count() < columns.max(1), "{columns}");
        }
    }
}
