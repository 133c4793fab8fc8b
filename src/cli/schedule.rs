//! `pody checkpoint schedule` and `schedules`: pods that are saved again and again.

use clap::Args;
use serde::Deserialize;

use super::{
    client::Client,
    error::CliError,
    exit,
    output::{self, Output},
};
use crate::model::schedule::Rule;

#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// The pod
    name: String,
    /// How often, and how many stay: "every 6h keep 4"; without it the schedule is shown
    #[arg(conflicts_with = "off", num_args = 0.., value_name = "RULE")]
    rule: Vec<String>,
    /// End the schedule; what it has saved stays
    #[arg(long)]
    off: bool,
}

#[derive(Debug, Args)]
pub struct SchedulesArgs {
    /// Everybody's; for admins
    #[arg(short, long)]
    all: bool,
}

/// A line of the table.
#[derive(Deserialize)]
struct Line {
    user: String,
    instance: String,
    rule: String,
    next_at: String,
    last_at: Option<String>,
    last_error: Option<String>,
}

impl ScheduleArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        let name = self.name.as_str();
        if self.off {
            let answer = client.post("pod/schedule", &[("ins", name), ("off", "true")]).await?;
            out.done(&answer, format!("{name} is not saved on a schedule any more"))?;
        } else if self.rule.is_empty() {
            let answer = client.get("pod/schedule", &[("ins", name)]).await?;
            out.show(answer, |line: Line| table(vec![line], false, out))?;
        } else {
            let rule = self.rule.join(" ");
            let rule: Rule = rule.parse().map_err(|error: crate::model::schedule::RuleError| {
                CliError::usage(error.to_string(), "see `pody checkpoint schedule --help`")
            })?;
            let (every, keep) = (rule.every.to_string(), rule.keep.to_string());
            let answer = client.post("pod/schedule", &[("ins", name), ("every", &every), ("keep", &keep)]).await?;
            let next = answer["next_at"].as_str().map(ahead).unwrap_or_default();
            out.done(&answer, format!("{name} is saved {rule}, next {next}"))?;
        }
        Ok(exit::OK)
    }
}

impl SchedulesArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let query: &[(&str, &str)] = if self.all { &[("all", "true")] } else { &[] };
        let answer = Client::from_environment()?.get("pod/schedules", query).await?;
        out.show(answer, |lines: Vec<Line>| match lines.is_empty() {
            true => "no schedules; `pody checkpoint schedule NAME \"every 6h keep 4\"` sets one".to_owned(),
            false => table(lines, self.all, out),
        })?;
        Ok(exit::OK)
    }
}

fn table(lines: Vec<Line>, with_user: bool, out: &Output) -> String {
    let mut header = vec!["POD", "SCHEDULE", "NEXT", "LAST", "TROUBLE"];
    if with_user {
        header.insert(0, "USER");
    }
    let row = |line: Line| {
        let last = line.last_at.as_deref().map_or_else(|| "-".to_owned(), output::ago);
        let trouble = line.last_error.unwrap_or_else(|| "-".to_owned());
        let mut row = vec![line.instance, line.rule, ahead(&line.next_at), last, trouble];
        if with_user {
            row.insert(0, line.user);
        }
        row
    };
    out.table(&header, lines.into_iter().map(row))
}

/// How far ahead an RFC 3339 time is: `in 3h 5m`.
fn ahead(time: &str) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return time.to_owned() };
    match time.as_second() - jiff::Timestamp::now().as_second() {
        ..=0 => "now".to_owned(),
        seconds => format!("in {}", output::short_duration(seconds as f64)),
    }
}
