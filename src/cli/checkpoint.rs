//! `pody checkpoint`, `restore`, `checkpoints`: pods saved and brought back. The server works on in the background; the
//! command waits and shows how far it is, see [`super::actions`].

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::{
    actions::{Saved, copy_words, follow, seconds, warn_of_losses},
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{self, Output},
    schedule::{ScheduleArgs, SchedulesArgs},
    terminal,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    command: Option<CheckpointCommand>,
    #[command(flatten)]
    save: SaveArgs,
}

#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// Whether a pod can be saved, process by process, and what that costs; nothing is touched
    Check {
        /// The pod
        name: String,
        /// What is to be saved: simple, rootfs or rootfsonly
        #[arg(long)]
        kind: Option<String>,
    },
    /// Have a pod saved again and again
    Schedule(ScheduleArgs),
    /// Your schedules, with the next and the last time
    Schedules(SchedulesArgs),
    /// What the remote store has of yours, also what this host does not know
    Remote {
        /// Another user's; for admins
        #[arg(long)]
        user: Option<String>,
    },
    /// Take a checkpoint of the remote store in that this host does not know; its files come when it is restored
    Fetch {
        /// The checkpoint, as `pody checkpoint remote` lists it
        id: String,
        /// Another user's; for admins
        #[arg(long)]
        user: Option<String>,
    },
    /// Delete a checkpoint, and its copy in the remote store
    Rm {
        /// The checkpoint, as `pody checkpoints` lists it
        id: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct SaveArgs {
    /// The pod
    name: Option<String>,
    /// Stop the pod once it is saved
    #[arg(long)]
    stop: bool,
    /// simple: the processes; rootfs: and what the pod wrote (the default); rootfsonly: that alone, also of a stopped pod
    #[arg(long)]
    kind: Option<String>,
    /// none, zstd, lz4 or gzip; without it what the server is set to
    #[arg(long)]
    compression: Option<String>,
    /// A name to remember it by
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Copy it to the server's remote store, in the background
    #[arg(long)]
    remote: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The pod, also one that was deleted
    name: String,
    /// The checkpoint; without it, the newest
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Make a new pod of that name, beside the one that there is
    #[arg(long = "as", value_name = "NEW")]
    new_name: Option<String>,
}

#[derive(Debug, Args)]
pub struct CheckpointsArgs {
    /// Only those of this pod
    name: Option<String>,
    /// Everybody's; for admins
    #[arg(short, long)]
    all: bool,
}

/// A line of `pody checkpoints`.
#[derive(Deserialize)]
struct Line {
    id: String,
    user: String,
    instance: String,
    kind: String,
    compression: String,
    status: String,
    size: i64,
    name: Option<String>,
    /// Who had it made; an older server does not tell.
    #[serde(default)]
    origin: String,
    remote: Option<String>,
    /// While it is copied.
    remote_bytes: Option<i64>,
    remote_total_bytes: Option<i64>,
    created_at: String,
}

impl Line {
    /// How its copy is.
    fn copy(&self) -> String {
        copy_words(self.remote.as_deref(), self.remote_bytes, self.remote_total_bytes)
    }

    /// Its name; those that nobody made by hand say where they come from.
    fn label(&self) -> String {
        match (&self.name, self.origin.as_str()) {
            (Some(name), _) => name.clone(),
            (None, "" | "hand") => "-".to_owned(),
            (None, origin) => format!("({origin})"),
        }
    }
}

/// A line of `pody checkpoint remote`.
#[derive(Deserialize)]
struct RemoteLine {
    id: String,
    is_here: bool,
    instance: Option<String>,
    kind: Option<String>,
    size: Option<i64>,
    created_at: Option<String>,
    problem: Option<String>,
}

/// What `checkpoint/check` says.
#[derive(Deserialize)]
struct Verdict {
    pod: String,
    can_be_saved: bool,
    problems: Vec<String>,
    losses: Vec<String>,
    processes: Vec<Process>,
    memory: i64,
    #[serde(default)]
    gpu_memory: i64,
    files: i64,
    freeze_ms: u64,
    space_needed: i64,
    space_free: i64,
}

#[derive(Deserialize)]
struct Process {
    pid: i32,
    name: String,
    saved: String,
    notes: Vec<String>,
}

impl CheckpointArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self.command {
            Some(CheckpointCommand::Check { name, kind }) => check(&name, kind.as_deref(), out).await,
            Some(CheckpointCommand::Schedule(args)) => args.run(out).await,
            Some(CheckpointCommand::Schedules(args)) => args.run(out).await,
            Some(CheckpointCommand::Remote { user }) => list_remote(user.as_deref(), out).await,
            Some(CheckpointCommand::Fetch { id, user }) => fetch(&id, user.as_deref(), out).await,
            Some(CheckpointCommand::Rm { id, yes }) => remove(&id, yes, out).await,
            None => self.save.run(out).await,
        }
    }
}

impl SaveArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let name = self.name.ok_or_else(|| CliError::usage("which pod?", "name it: `pody checkpoint NAME`"))?;
        let mut form = vec![("ins", name.as_str()), ("leave_running", if self.stop { "false" } else { "true" })];
        form.extend(self.kind.as_deref().map(|kind| ("kind", kind)));
        form.extend(self.compression.as_deref().map(|compression| ("compression", compression)));
        form.extend(self.label.as_deref().map(|label| ("name", label)));
        if self.remote {
            form.push(("remote", "true"));
        }
        let (answer, action) = follow("pod/checkpoint", &form).await?;
        let saved = action.saved(&name, if self.stop { Saved::AndStopped } else { Saved::AndGoesOn });
        out.done(&answer, saved)?;
        warn_of_losses(&action, out);
        Ok(exit::OK)
    }
}

impl RestoreArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let mut form = vec![("ins", self.name.as_str())];
        form.extend(self.from.as_deref().map(|id| ("checkpoint", id)));
        form.extend(self.new_name.as_deref().map(|name| ("as", name)));
        let (answer, action) = follow("pod/restore", &form).await?;
        let name = self.new_name.as_deref().unwrap_or(&self.name);
        out.done(&answer, format!("{name} is back, from {}", action.checkpoint))?;
        warn_of_losses(&action, out);
        Ok(exit::OK)
    }
}

impl CheckpointsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let mut query: Vec<(&str, &str)> = Vec::new();
        query.extend(self.name.as_deref().map(|name| ("ins", name)));
        if self.all {
            query.push(("all", "true"));
        }
        let answer = Client::from_environment()?.get("pod/checkpoints", &query).await?;
        out.show(answer, |rows: Vec<Line>| {
            if rows.is_empty() {
                return "no checkpoints; `pody checkpoint NAME` makes one".to_owned();
            }
            let has_copies = rows.iter().any(|row| row.remote.is_some());
            let mut header = vec!["ID", "POD", "KIND", "SIZE", "PACKED", "STATUS", "LABEL", "CREATED"];
            if has_copies {
                header.push("REMOTE");
            }
            if self.all {
                header.insert(1, "USER");
            }
            let row = |line: Line| {
                let (label, copy) = (line.label(), line.copy());
                let mut row = vec![
                    line.id,
                    line.instance,
                    line.kind,
                    output::size(line.size, 1),
                    line.compression,
                    line.status,
                    label,
                    output::ago(&line.created_at),
                ];
                if has_copies {
                    row.push(copy);
                }
                if self.all {
                    row.insert(1, line.user);
                }
                row
            };
            out.table(&header, rows.into_iter().map(row))
        })?;
        Ok(exit::OK)
    }
}

async fn check(name: &str, kind: Option<&str>, out: &Output) -> Result<u8, CliError> {
    let mut query = vec![("ins", name)];
    query.extend(kind.map(|kind| ("kind", kind)));
    let answer = Client::from_environment()?.get("checkpoint/check", &query).await?;
    let verdict: Verdict = serde_json::from_value(answer.clone()).map_err(ClientError::Unintelligible)?;
    let code = if verdict.can_be_saved { exit::OK } else { exit::FAILED };
    out.show(answer, |verdict: Verdict| {
        let mut text = out.table(
            &["PID", "PROCESS", "SAVED", "WHY"],
            verdict.processes.iter().map(|process| {
                vec![process.pid.to_string(), process.name.clone(), process.saved.clone(), process.notes.join("; ")]
            }),
        );
        let word = match (verdict.can_be_saved, verdict.losses.is_empty()) {
            (false, _) => "cannot be saved",
            (true, true) => "can be saved",
            (true, false) => "can be saved, with losses",
        };
        let gpus = match verdict.gpu_memory {
            0 => String::new(),
            bytes => format!(", {} of GPUs' memory", output::size(bytes, 1)),
        };
        text.push_str(&format!(
            "\n{} {word}: about {} of memory{gpus} and {} of files; it would stand still for about {}; {} needed, {} free",
            verdict.pod,
            output::size(verdict.memory, 1),
            output::size(verdict.files, 1),
            seconds(verdict.freeze_ms),
            output::size(verdict.space_needed, 1),
            output::size(verdict.space_free, 1)
        ));
        for problem in &verdict.problems {
            text.push_str(&format!("\n- {problem}"));
        }
        text
    })?;
    Ok(code)
}

async fn list_remote(user: Option<&str>, out: &Output) -> Result<u8, CliError> {
    let query: Vec<(&str, &str)> = user.map(|user| ("user", user)).into_iter().collect();
    let answer = Client::from_environment()?.get("checkpoint/remote", &query).await?;
    out.show(answer, |rows: Vec<RemoteLine>| {
        if rows.is_empty() {
            return "the remote store has none; `pody checkpoint NAME --remote` copies one there".to_owned();
        }
        let dash = || "-".to_owned();
        let row = |line: RemoteLine| {
            vec![
                line.id,
                line.instance.unwrap_or_else(dash),
                line.kind.unwrap_or_else(dash),
                line.size.map_or_else(dash, |size| output::size(size, 1)),
                if line.is_here { "yes" } else { "no" }.to_owned(),
                line.created_at.as_deref().map_or_else(dash, output::ago),
                line.problem.map_or_else(dash, |problem| output::printable_line(&problem)),
            ]
        };
        let header = ["ID", "POD", "KIND", "SIZE", "HERE", "CREATED", "PROBLEM"];
        out.table(&header, rows.into_iter().map(row))
    })?;
    Ok(exit::OK)
}

async fn fetch(id: &str, user: Option<&str>, out: &Output) -> Result<u8, CliError> {
    let mut form = vec![("checkpoint", id)];
    form.extend(user.map(|user| ("user", user)));
    let answer = Client::from_environment()?.post("checkpoint/fetch", &form).await?;
    let pod = answer["instance"].as_str().unwrap_or("NAME").to_owned();
    out.done(
        &answer,
        format!("{id} is known here now; `pody restore {pod} --from {id}` brings its files and the pod"),
    )?;
    Ok(exit::OK)
}

async fn remove(id: &str, yes: bool, out: &Output) -> Result<u8, CliError> {
    if !yes && !terminal::confirm(&format!("delete checkpoint {id}?"))? {
        return Err(CliError::NotConfirmed(format!("{id} is still there")));
    }
    let answer = Client::from_environment()?.post("checkpoint/delete", &[("checkpoint", id)]).await?;
    out.done(&answer, format!("{id} deleted"))?;
    Ok(exit::OK)
}
