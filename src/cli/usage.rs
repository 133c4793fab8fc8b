//! `pody stat usage [T]`: usage by user, pod, GPU and time, with bars.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    bars,
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{self, Format, Output},
};
use crate::model::{
    names::UserName,
    view::usage::{UsageKey, UsageRow},
};

/// Show CPU time, GPU time, GPU memory and energy
///
/// GPU time is "active" while the GPU computes, and "held" while it does not but its memory is in use. Energy is an
/// estimate from the power of the GPU, divided among its active users.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// How far to look back: 1y, 1w, 1d, 1h, 1m, 1s or seconds [default: all recorded time]
    #[arg(value_name = "T")]
    since: Option<String>,
    /// How to split the usage; several with a comma, like user,day
    #[arg(long, value_enum, value_delimiter = ',', default_value = "user", value_name = "PARTS")]
    by: Vec<Part>,
    /// Only these users, several with a comma
    #[arg(long, value_name = "NAMES")]
    user: Option<String>,
    /// Print CSV with all columns
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    User,
    Pod,
    Gpu,
    Hour,
    Day,
}

/// Length of the longest bar of GPU time without a terminal.
const BAR: usize = 20;
/// Columns of the rest of the table.
const REST: u16 = 70;

impl Part {
    /// In the order of the table's columns, whichever order they were typed in.
    const COLUMNS: [Self; 5] = [Self::Hour, Self::Day, Self::User, Self::Pod, Self::Gpu];

    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pod => "pod",
            Self::Gpu => "gpu",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::User => "USER",
            Self::Pod => "POD",
            Self::Gpu => "GPU",
            Self::Hour => "HOUR (UTC)",
            Self::Day => "DAY (UTC)",
        }
    }
}

impl UsageArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        if self.csv && out.format() == Format::Json {
            return Err(usage("--csv and --json exclude each other", "omit one"));
        }
        if self.by.contains(&Part::Hour) && self.by.contains(&Part::Day) {
            return Err(usage("--by takes hour or day, not both", "omit one"));
        }
        let by = self.by.iter().map(|part| part.name()).collect::<Vec<_>>().join(",");
        let mut query = vec![("by", by.as_str())];
        query.extend(self.since.as_deref().map(|since| ("t", since)));
        query.extend(self.user.as_deref().map(|names| ("user", names)));
        let client = Client::from_environment()?;
        if self.csv {
            query.push(("format", "csv"));
            let answer = client.send(reqwest::Method::GET, "stat/usage", &query, &[]).await?;
            out.bytes(&answer.bytes().await.map_err(ClientError::BrokeOff)?)?;
        } else {
            let answer: Value = client.get("stat/usage", &query).await?;
            out.show(answer, |rows| table(rows, &self.by, out))?;
        }
        Ok(exit::OK)
    }
}

fn usage(message: &str, hint: &'static str) -> CliError {
    CliError::Usage { message: message.to_owned(), hint }
}

fn table(mut rows: Vec<UsageRow>, by: &[Part], out: &Output) -> String {
    if rows.is_empty() {
        return "no usage in this time".to_owned();
    }
    rows.sort_by(|a, b| {
        let (more, less) = ((b.gpu_seconds(), b.cpu_seconds), (a.gpu_seconds(), a.cpu_seconds));
        a.key.at.cmp(&b.key.at).then(more.0.total_cmp(&less.0)).then(more.1.total_cmp(&less.1))
    });
    let most = |of: fn(&UsageRow) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let (most_cpu, most_gpu) = (most(|row| row.cpu_seconds), most(UsageRow::gpu_seconds));
    let parts: Vec<Part> = Part::COLUMNS.into_iter().filter(|part| by.contains(part)).collect();
    let mut used = vec!["CPU TIME", "", "GPU ACTIVE █", "HELD ▒", "", "GPU GiB·h", "EST. kWh"];
    let has_free = rows.iter().any(|row| row.gpu_free_seconds.is_some());
    used.extend(has_free.then_some("FREE"));
    let length = out.width().map_or(BAR, |width| usize::from(width.saturating_sub(REST) / 2).clamp(8, 30));
    let header: Vec<_> = parts.iter().map(|part| part.title()).chain(used).collect();
    let lines = rows.iter().map(|row| {
        let mut used = vec![
            output::short_duration(row.cpu_seconds),
            bars::bar(row.cpu_seconds, most_cpu, length / 2),
            output::short_duration(row.gpu_active_seconds),
            output::short_duration(row.gpu_held_seconds),
            bars::two_tone(row.gpu_active_seconds, row.gpu_held_seconds, most_gpu, length),
            format!("{:.2}", row.gpu_memory_byte_seconds / f64::from(1 << 30) / 3600.0),
            format!("{:.2}", row.estimated_kwh),
        ];
        used.extend(has_free.then(|| row.gpu_free_seconds.map_or_else(|| "-".to_owned(), output::short_duration)));
        parts.iter().map(|part| key_text(&row.key, *part)).chain(used).collect()
    });
    out.table(&header, lines)
}

/// One part of what a row is about.
fn key_text(key: &UsageKey, part: Part) -> String {
    let gpu = key.gpu.as_ref().map(|gpu| gpu.0.as_str());
    let text = match part {
        Part::User => key.user.as_ref().map(UserName::as_str),
        Part::Pod => key.pod.as_deref(),
        // The first part of a UUID is unique on a host; JSON and CSV have all of it.
        Part::Gpu => gpu.map(|gpu| gpu.match_indices('-').nth(1).map_or(gpu, |(at, _)| &gpu[..at])),
        Part::Hour => key.at.as_deref().map(|at| at.get(..16).unwrap_or(at)),
        Part::Day => key.at.as_deref().map(|at| at.get(..10).unwrap_or(at)),
    };
    text.map_or_else(|| "-".to_owned(), |text| text.replace('T', if part == Part::Hour { " " } else { "T" }))
}
