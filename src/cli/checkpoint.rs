//! `pody checkpoint`, `restore`, `checkpoints`: pods saved and restored. The server works in the background; the
//! command waits and shows the progress, see [`super::actions`].

use clap::{Args, Subcommand};

use super::{
    actions::{self, Saved, copy_words, follow, saved, seconds},
    client::{Client, ClientError},
    error::CliError,
    exit,
    help::examples,
    output::{self, Output},
    schedule::{ListArgs, OldArgs, ScheduleCommand},
    terminal,
};
use crate::model::{
    checkpoint::{Checkpoint, Origin},
    view::checkpoint::{CheckpointView, RemoteCheckpoint, Verdict},
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
    /// List your checkpoints, like `pody checkpoints`
    #[command(alias = "ls", after_help = examples!["pody checkpoint list", "pody checkpoint list main"])]
    List(CheckpointsArgs),
    /// Check whether a pod can be saved, process by process, and what it costs; changes nothing
    #[command(after_help = examples!["pody checkpoint check main", "pody checkpoint check main --kind simple"])]
    Check {
        /// The pod
        name: String,
        /// What to save: simple, rootfs or rootfsonly
        #[arg(long)]
        kind: Option<String>,
    },
    /// List your checkpoints in the remote store, also those of other hosts
    #[command(after_help = examples!["pody checkpoint remote"])]
    Remote {
        /// Those of another user (admins only)
        #[arg(long)]
        user: Option<String>,
    },
    /// Register a checkpoint found in the remote store; its files are downloaded when it is restored
    #[command(after_help = examples!["pody checkpoint fetch 01a22f71-3bc4-7107-b013-464a3160d161"])]
    Fetch {
        /// The checkpoint's id, as `pody checkpoint remote` shows it
        id: String,
        /// The checkpoint of another user (admins only)
        #[arg(long)]
        user: Option<String>,
    },
    /// Delete a checkpoint, and its copy in the remote store
    #[command(after_help = examples!["pody checkpoint rm 01a22f71-3bc4-7107-b013-464a3160d161"])]
    Rm {
        /// The checkpoint's id, as `pody checkpoints` shows it
        id: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// Set, show or remove the schedule of a pod: `pody schedule` of pody 0.5.0
    #[command(hide = true)]
    Schedule(OldArgs),
    /// List your schedules: `pody schedule list` of pody 0.5.0
    #[command(hide = true)]
    Schedules(ListArgs),
}

#[derive(Debug, Args)]
struct SaveArgs {
    /// The pod
    name: Option<String>,
    /// Stop the pod once it is saved
    #[arg(long)]
    stop: bool,
    /// What to save: `rootfs` (the default) the processes and the files the pod wrote, `simple` only the processes,
    /// `rootfsonly` only the files, also of a stopped pod
    #[arg(long)]
    kind: Option<String>,
    /// How to compress it: none, zstd, lz4 or gzip [default: the server's setting]
    #[arg(long)]
    compression: Option<String>,
    /// A label, shown by `pody checkpoints`
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Copy the checkpoint to the server's remote store, in the background
    #[arg(long)]
    remote: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The pod, also a deleted one
    name: String,
    /// The checkpoint's id [default: the newest]
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Restore it as a new pod of this name, beside the existing one
    #[arg(long = "as", value_name = "NEW")]
    new_name: Option<String>,
}

#[derive(Debug, Args)]
pub struct CheckpointsArgs {
    /// Only those of this pod
    name: Option<String>,
    /// Everybody's checkpoints (admins only)
    #[arg(short, long)]
    all: bool,
}

/// The label of a checkpoint: its name, or in parentheses where it comes from if nobody asked for it by hand.
fn label(row: &Checkpoint) -> String {
    match (&row.name, row.origin) {
        (Some(name), _) => name.as_str().to_owned(),
        (None, Origin::Hand) => "-".to_owned(),
        (None, origin @ (Origin::Schedule | Origin::Drain)) => format!("({origin})"),
    }
}

impl CheckpointArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self.command {
            Some(CheckpointCommand::List(args)) => args.run(out).await,
            Some(CheckpointCommand::Check { name, kind }) => check(&name, kind.as_deref(), out).await,
            Some(CheckpointCommand::Remote { user }) => list_remote(user.as_deref(), out).await,
            Some(CheckpointCommand::Fetch { id, user }) => fetch(&id, user.as_deref(), out).await,
            Some(CheckpointCommand::Rm { id, yes }) => remove(&id, yes, out).await,
            Some(CheckpointCommand::Schedule(args)) => ScheduleCommand::from(args).run(out).await,
            Some(CheckpointCommand::Schedules(args)) => ScheduleCommand::List(args).run(out).await,
            None => self.save.run(out).await,
        }
    }
}

impl SaveArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let name = self.name.ok_or_else(|| CliError::usage("no pod given", "name one: `pody checkpoint NAME`"))?;
        let mut form = vec![("ins", name.as_str()), ("leave_running", if self.stop { "false" } else { "true" })];
        form.extend(self.kind.as_deref().map(|kind| ("kind", kind)));
        form.extend(self.compression.as_deref().map(|compression| ("compression", compression)));
        form.extend(self.label.as_deref().map(|label| ("name", label)));
        if self.remote {
            form.push(("remote", "true"));
        }
        let (answer, action) = follow("pod/checkpoint", &form).await?;
        let how = if self.stop { Saved::Stopped } else { Saved::Running };
        out.done(&answer, saved(&action, &name, how))?;
        actions::warn_about_losses(&action, out);
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
        out.done(&answer, format!("{name} restored from {}", action.checkpoint))?;
        actions::warn_about_losses(&action, out);
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
        out.show(answer, |rows: Vec<CheckpointView>| {
            if rows.is_empty() {
                return "no checkpoints; `pody checkpoint NAME` creates one".to_owned();
            }
            let has_copies = rows.iter().any(|row| row.remote.is_some());
            let mut header = vec!["ID", "POD", "KIND", "SIZE", "PACKED", "STATUS", "LABEL", "CREATED"];
            if has_copies {
                header.push("REMOTE");
            }
            if self.all {
                header.insert(1, "USER");
            }
            let line = |CheckpointView { row, remote }: CheckpointView| {
                let mut line = vec![
                    row.id.to_string(),
                    row.instance.to_string(),
                    row.kind.to_string(),
                    output::bytes(row.size),
                    row.compression.to_string(),
                    row.status.to_string(),
                    label(&row),
                    output::ago(&row.created_at.to_string()),
                ];
                if has_copies {
                    line.push(copy_words(remote.as_ref()));
                }
                if self.all {
                    line.insert(1, row.user.to_string());
                }
                line
            };
            out.table(&header, rows.into_iter().map(line))
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
                vec![process.pid.to_string(), process.name.clone(), process.saved.to_string(), process.notes.join("; ")]
            }),
        );
        let word = match (verdict.can_be_saved, verdict.losses.is_empty()) {
            (false, _) => "cannot be saved",
            (true, true) => "can be saved",
            (true, false) => "can be saved, with losses",
        };
        let gpus = match verdict.gpu_memory {
            0 => String::new(),
            bytes => format!(", {} of GPU memory", output::bytes(bytes)),
        };
        text.push_str(&format!(
            "\n{} {word}: about {} of memory{gpus} and {} of files; frozen for about {}; {} of disk needed, {} free",
            verdict.pod,
            output::bytes(verdict.memory),
            output::bytes(verdict.files),
            seconds(verdict.freeze_ms),
            output::bytes(verdict.space_needed),
            output::bytes(verdict.space_free)
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
    out.show(answer, |rows: Vec<RemoteCheckpoint>| {
        if rows.is_empty() {
            return "no checkpoints in the remote store; `pody checkpoint NAME --remote` copies one there".to_owned();
        }
        let dash = || "-".to_owned();
        let row = |line: RemoteCheckpoint| {
            let content = line.content.as_ref();
            vec![
                line.id.to_string(),
                content.map_or_else(dash, |content| content.instance.to_string()),
                content.map_or_else(dash, |content| content.kind.to_string()),
                content.map_or_else(dash, |content| output::bytes(content.size)),
                if line.is_here { "yes" } else { "no" }.to_owned(),
                content.map_or_else(dash, |content| output::ago(&content.created_at.to_string())),
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
    out.show(answer, |checkpoint: CheckpointView| {
        let pod = checkpoint.row.instance;
        format!("{id} registered; `pody restore {pod} --from {id}` downloads its files and restores the pod")
    })?;
    Ok(exit::OK)
}

async fn remove(id: &str, yes: bool, out: &Output) -> Result<u8, CliError> {
    if !yes && !terminal::confirm(&format!("delete checkpoint {id}?"))? {
        return Err(CliError::NotConfirmed(format!("checkpoint {id} was not deleted")));
    }
    let answer = Client::from_environment()?.post("checkpoint/delete", &[("checkpoint", id)]).await?;
    out.done(&answer, format!("checkpoint {id} deleted"))?;
    Ok(exit::OK)
}
