//! `pody drain` and `undrain`: maintenance of this host. The request is a row of the database; the daemon does the
//! work, and the command waits and reports the progress.

use std::time::Duration;

use clap::Args;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
    user::open,
};
use crate::{
    app::App,
    config,
    control::{NotifyOutcome, notify_daemon},
    model::{
        drain::{DrainState, DrainStatus, DrainedState, DrainedView, NewDrain},
        user::Actor,
    },
};

/// Time between two polls of the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The reason that members see if the admin gives none.
const MAINTENANCE: &str = "maintenance";
const SHUTDOWN: &str = "the host is shutting down";

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The reason, which members see
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["status", "shutdown"])]
    reason: Option<String>,
    /// Also stop pods that cannot be saved; `pody undrain` starts those from scratch
    #[arg(long, conflicts_with_all = ["status", "shutdown"])]
    force: bool,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
    /// Only show the progress
    #[arg(long, conflicts_with = "shutdown")]
    status: bool,
    /// For the systemd unit that runs when the host shuts down: does nothing unless before_shutdown is set in the
    /// config; the pods are restored at the next start of pody
    #[arg(long)]
    shutdown: bool,
}

#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

impl DrainArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let app = open()?;
        if self.status {
            let status = app.checkpoints.drain_status().await?;
            match out.format() {
                Format::Json => out.json(&status)?,
                Format::People => out.line(describe(&status, out))?,
            }
            return Ok(exit::OK);
        }
        if self.shutdown && !app.config.get().checkpoint.before_shutdown {
            out.line("before_shutdown is off: pods are not saved")?;
            return Ok(exit::OK);
        }
        ensure_daemon()?;
        let reason = if self.shutdown { SHUTDOWN } else { MAINTENANCE };
        let reason = self.reason.unwrap_or_else(|| reason.to_owned());
        let new = NewDrain { reason, forced: self.force, shutdown: self.shutdown };
        app.checkpoints.drain(Actor::local(), new).await?;
        ensure_daemon()?;
        if self.no_wait {
            out.line("pods are being saved and stopped; `pody drain --status` shows the progress")?;
            return Ok(exit::OK);
        }
        let (status, _) = follow(&app, DrainState::Draining, out).await?;
        let left: Vec<&DrainedView> = in_state(&status, DrainedState::Running);
        match out.format() {
            Format::Json => out.json(&status)?,
            Format::People => {
                let saved = in_state(&status, DrainedState::Saved).len();
                let stopped = in_state(&status, DrainedState::Stopped).len();
                out.line(format!(
                    "{} saved and stopped, {} stopped without saving, {} left running",
                    pods(saved),
                    pods(stopped),
                    pods(left.len())
                ))?;
                out.line("`pody undrain` restores them; until then no pod is created, started or restored")?;
            }
        }
        for pod in &left {
            out.warn(format_args!("{} is still running: {}", pod.name, pod.reason.as_deref().unwrap_or("?")));
        }
        if !left.is_empty() {
            out.warn("`pody drain` tries these again, `pody drain --force` stops them");
        }
        Ok(if left.is_empty() { exit::OK } else { exit::FAILED })
    }
}

impl UndrainArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let app = open()?;
        ensure_daemon()?;
        let begun = app.checkpoints.undrain(Actor::local()).await?;
        if begun.state.is_none() {
            match out.format() {
                Format::Json => out.json(&begun)?,
                Format::People => out.line("nothing is drained")?,
            }
            return Ok(exit::OK);
        }
        ensure_daemon()?;
        if self.no_wait {
            out.line("pods are being restored; `pody drain --status` shows the progress")?;
            return Ok(exit::OK);
        }
        let (status, total) = follow(&app, DrainState::Undraining, out).await?;
        let failed = in_state(&status, DrainedState::Failed);
        match out.format() {
            Format::Json => out.json(&status)?,
            Format::People => out.line(format!("{} restored", pods(total.saturating_sub(failed.len()))))?,
        }
        for pod in &failed {
            out.warn(format_args!("{} was not restored: {}", pod.name, pod.reason.as_deref().unwrap_or("?")));
        }
        if !failed.is_empty() {
            out.warn("`pody undrain` tries these again; their checkpoints are kept");
        }
        Ok(if failed.is_empty() { exit::OK } else { exit::FAILED })
    }
}

/// Notifies the daemon of the row. It has to be running: it does the work.
fn ensure_daemon() -> Result<(), CliError> {
    match notify_daemon(&config::home()) {
        NotifyOutcome::Yes => Ok(()),
        NotifyOutcome::NotRunning => Err(CliError::NoDaemon),
        NotifyOutcome::Silent => Err(CliError::SilentDaemon),
    }
}

/// Waits until the drain has left a state, and reports each pod on the way. Also returns the number of pods.
async fn follow(app: &App, state: DrainState, out: &Output) -> Result<(DrainStatus, usize), CliError> {
    let mut reported: Vec<(String, DrainedState)> = Vec::new();
    let mut total = 0;
    loop {
        let status = app.checkpoints.drain_status().await?;
        total = total.max(status.pods.len());
        for pod in &status.pods {
            let now = (pod.name.clone(), pod.state);
            if out.format() == Format::People && !reported.contains(&now) {
                eprintln!("{}: {}", pod.name, pod.state);
            }
            reported.retain(|(name, _)| *name != pod.name);
            reported.push(now);
        }
        if status.state != Some(state) {
            return Ok((status, total));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn pods(count: usize) -> String {
    format!("{count} pod{}", if count == 1 { "" } else { "s" })
}

fn in_state(status: &DrainStatus, state: DrainedState) -> Vec<&DrainedView> {
    status.pods.iter().filter(|pod| pod.state == state).collect()
}

fn describe(status: &DrainStatus, out: &Output) -> String {
    let (Some(state), Some(by), Some(since)) = (status.state, &status.by, &status.since) else {
        return "nothing is drained".to_owned();
    };
    let what = match state {
        DrainState::Draining => "pods are being saved and stopped",
        DrainState::Drained => "drained: no pod is created, started or restored until `pody undrain`",
        DrainState::Undraining => "pods are being restored",
        DrainState::Ended => "ended, but these pods were not restored; `pody undrain` tries them again",
    };
    let reason = status.reason.as_deref().unwrap_or_default();
    let rows = status.pods.iter().map(|pod| {
        let state = match pod.phase {
            Some(phase) => format!("{} ({phase})", pod.state),
            None => pod.state.to_string(),
        };
        vec![pod.name.clone(), state, pod.reason.clone().unwrap_or_else(|| "-".to_owned())]
    });
    let table = out.table(&["POD", "STATE", "WHY"], rows);
    format!("{what}\nby {by} since {since}: {reason}\n\n{table}")
}
