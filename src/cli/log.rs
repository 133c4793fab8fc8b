//! `pody log`: the events of this host, from its database; or a log file of pody 0.4.1.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    help::examples,
    output::{Format, Output},
    user::open,
};
use crate::{
    db::{EventFilter, OldLog},
    model::event::Outcome,
};

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the newest events, the newest last
    #[command(after_help = examples![
        "pody log show --limit 50",
        "pody log show --level warning",
        "pody log show /root/.pody/default.log.db",
    ])]
    Show {
        /// A log file of pody 0.4.1 to show instead
        #[arg(value_name = "DB_FILE")]
        file: Option<PathBuf>,
        /// Number of entries to show
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Number of newest entries to skip
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// Only this level and above; an event that failed or was interrupted is a warning
        #[arg(long, ignore_case = true)]
        level: Option<Level>,
    },
    /// Delete old events
    #[command(after_help = examples!["pody log shrink --keep 10000"])]
    Shrink {
        /// A log file of pody 0.4.1 to shrink instead
        #[arg(value_name = "DB_FILE")]
        file: Option<PathBuf>,
        /// Number of newest entries to keep
        #[arg(long, default_value_t = 1000)]
        keep: u64,
    },
}

/// Levels, with Python's numbers as in the log files of 0.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
    Critical = 50,
}

impl LogCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::Show { file: Some(file), limit, offset, level } => {
                let mut messages = OldLog::open(&file)?.list(level.map_or(0, |level| level as u32), limit, offset)?;
                messages.reverse();
                match out.format() {
                    Format::Json => out.json(&messages)?,
                    Format::People => {
                        for entry in messages {
                            out.line(format!("{} [{}] {}", entry.created, entry.level, entry.message))?;
                        }
                    }
                }
            }
            Self::Shrink { file: Some(file), keep } => {
                let deleted = OldLog::open(&file)?.shrink(keep)?;
                out.done(&json!({ "deleted": deleted }), format!("{deleted} messages deleted"))?;
            }
            Self::Show { file: None, limit, offset, level } => {
                let only_failures = level.is_some_and(|level| level > Level::Info);
                let filter = EventFilter { user: None, before: None, limit: u32::MAX };
                let mut events = open()?.db.read(move |tx| tx.list_events(&filter)).await?;
                events
                    .retain(|event| !only_failures || matches!(event.outcome, Outcome::Failed | Outcome::Interrupted));
                let mut shown: Vec<_> = events.into_iter().skip(offset as usize).take(limit as usize).collect();
                shown.reverse();
                match out.format() {
                    Format::Json => out.json(&shown)?,
                    Format::People => {
                        let rows = shown.into_iter().map(|e| {
                            let (outcome, detail) = (e.outcome.to_string(), e.detail.unwrap_or_default());
                            vec![e.at, e.actor, e.source, e.action, e.object, outcome, detail]
                        });
                        out.line(out.table(&["AT", "ACTOR", "FROM", "ACTION", "OBJECT", "OUTCOME", "DETAIL"], rows))?;
                    }
                }
            }
            Self::Shrink { file: None, keep } => {
                let deleted = open()?.db.write(move |tx| tx.shrink_events(keep)).await?;
                out.done(&json!({ "deleted": deleted }), format!("{deleted} events deleted"))?;
            }
        }
        Ok(exit::OK)
    }
}
