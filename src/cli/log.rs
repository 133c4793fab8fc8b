//! `pody log`: the events of this host, read from its database; given a file, the log of a pody 0.4.1 installation.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
    user::open,
};
use crate::db::{EventFilter, OldLog};

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the newest events, oldest first
    Show {
        /// Show this log file of pody 0.4.1 instead
        #[arg(value_name = "DB_FILE")]
        file: Option<PathBuf>,
        /// Entries to show
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Newer entries to skip
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// Only this level and worse; an event that failed or was interrupted is a warning
        #[arg(long, ignore_case = true)]
        level: Option<Level>,
    },
    /// Delete old events
    Shrink {
        /// Shrink this log file of pody 0.4.1 instead
        #[arg(value_name = "DB_FILE")]
        file: Option<PathBuf>,
        /// Entries to keep
        #[arg(long, default_value_t = 1000)]
        keep: u64,
    },
}

/// Levels with Python's numbers, which are in the log files of 0.4.1.
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
                let gone = OldLog::open(&file)?.shrink(keep)?;
                out.done(&json!({ "deleted": gone }), format!("{gone} messages deleted"))?;
            }
            Self::Show { file: None, limit, offset, level } => {
                let troubles = level.is_some_and(|level| level > Level::Info);
                let filter = EventFilter { user: None, before: None, limit: u32::MAX };
                let mut events = open()?.db.read(move |tx| tx.list_events(&filter)).await?;
                events.retain(|event| !troubles || !matches!(event.outcome.as_str(), "ok" | "pending"));
                let mut shown: Vec<_> = events.into_iter().skip(offset as usize).take(limit as usize).collect();
                shown.reverse();
                match out.format() {
                    Format::Json => out.json(&shown)?,
                    Format::People => {
                        let rows = shown.into_iter().map(|e| {
                            vec![e.at, e.actor, e.source, e.action, e.object, e.outcome, e.detail.unwrap_or_default()]
                        });
                        out.line(out.table(&["AT", "WHO", "FROM", "DID", "TO", "OUTCOME", "DETAIL"], rows))?;
                    }
                }
            }
            Self::Shrink { file: None, keep } => {
                let gone = open()?.db.write(move |tx| tx.shrink_events(keep)).await?;
                out.done(&json!({ "deleted": gone }), format!("{gone} events deleted"))?;
            }
        }
        Ok(exit::OK)
    }
}
