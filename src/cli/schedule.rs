//! `pody schedule`: pods that are saved again and again.

use clap::{Args, Subcommand};

use super::{
    client::Client,
    error::CliError,
    exit,
    help::examples,
    output::{self, Output},
};
use crate::model::{
    schedule::{Rule, RuleError},
    time::Millis,
    view::schedule::PodSchedule,
};

#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// List your schedules with their next and last checkpoint
    #[command(alias = "ls", after_help = examples!["pody schedule list", "pody schedule list --all"])]
    List(ListArgs),
    /// Show the schedule of a pod
    #[command(after_help = examples!["pody schedule show main"])]
    Show {
        /// The pod
        name: String,
    },
    /// Save a pod regularly and keep the newest checkpoints
    #[command(after_help = examples![
        "pody schedule set main every 6h keep 4",
        "pody schedule set main every 30m keep 2",
    ])]
    Set {
        /// The pod
        name: String,
        /// How often, and how many checkpoints to keep: every 6h keep 4
        #[arg(required = true, value_name = "RULE")]
        rule: Vec<String>,
    },
    /// Remove the schedule of a pod; its checkpoints stay
    #[command(after_help = examples!["pody schedule rm main"])]
    Rm {
        /// The pod
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Everybody's schedules (admins only)
    #[arg(short, long)]
    all: bool,
}

/// `pody checkpoint schedule NAME [RULE | --off]`, the spelling of pody 0.5.0.
#[derive(Debug, Args)]
pub struct OldArgs {
    /// The pod
    name: String,
    /// How often, and how many checkpoints to keep; without it the schedule is shown
    #[arg(conflicts_with = "off", num_args = 0.., value_name = "RULE")]
    rule: Vec<String>,
    /// Remove the schedule
    #[arg(long)]
    off: bool,
}

impl From<OldArgs> for ScheduleCommand {
    fn from(OldArgs { name, rule, off }: OldArgs) -> Self {
        match (off, rule.is_empty()) {
            (true, _) => Self::Rm { name },
            (false, true) => Self::Show { name },
            (false, false) => Self::Set { name, rule },
        }
    }
}

impl ScheduleCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        match self {
            Self::List(ListArgs { all }) => {
                let query: &[(&str, &str)] = if all { &[("all", "true")] } else { &[] };
                let answer = client.get("pod/schedules", query).await?;
                out.show(answer, |lines: Vec<PodSchedule>| match lines.is_empty() {
                    true => "no schedules; `pody schedule set NAME every 6h keep 4` sets one".to_owned(),
                    false => table(lines, all, out),
                })?;
            }
            Self::Show { name } => {
                let answer = client.get("pod/schedule", &[("ins", &name)]).await?;
                out.show(answer, |line: PodSchedule| table(vec![line], false, out))?;
            }
            Self::Set { name, rule } => {
                let rule: Rule = rule
                    .join(" ")
                    .parse()
                    .map_err(|error: RuleError| CliError::usage(error.to_string(), "see `pody schedule set --help`"))?;
                let (every, keep) = (rule.every.to_string(), rule.keep.to_string());
                let answer = client.post("pod/schedule", &[("ins", &name), ("every", &every), ("keep", &keep)]).await?;
                out.show(answer, |set: PodSchedule| {
                    let next = ahead(set.schedule.next_at);
                    format!("{name} is saved every {every} (keep {keep}); next checkpoint: {next}")
                })?;
            }
            Self::Rm { name } => {
                let answer = client.post("pod/schedule", &[("ins", &name), ("off", "true")]).await?;
                out.done(&answer, format!("schedule of {name} removed; its checkpoints stay"))?;
            }
        }
        Ok(exit::OK)
    }
}

fn table(lines: Vec<PodSchedule>, with_user: bool, out: &Output) -> String {
    let mut header = vec!["POD", "SCHEDULE", "NEXT", "LAST", "PROBLEM"];
    if with_user {
        header.insert(0, "USER");
    }
    let row = |line: PodSchedule| {
        let schedule = line.schedule;
        let last = schedule.last_at.map_or_else(|| "-".to_owned(), |at| output::ago(&at.to_string()));
        let problem = schedule.last_error.unwrap_or_else(|| "-".to_owned());
        let mut row = vec![line.instance.to_string(), schedule.rule, ahead(schedule.next_at), last, problem];
        if with_user {
            row.insert(0, line.user.to_string());
        }
        row
    };
    out.table(&header, lines.into_iter().map(row))
}

/// The time until a time: `in 3h 5m`.
fn ahead(time: Millis) -> String {
    match time.seconds() - Millis::now().seconds() {
        ..=0 => "now".to_owned(),
        seconds => format!("in {}", output::short_duration(seconds as f64)),
    }
}
