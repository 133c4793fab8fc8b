//! `pody log`: the events of this host, read from its database.

use clap::Subcommand;
use serde_json::json;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
    user::open,
};
use crate::db::EventFilter;

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the newest events, oldest first
    Show {
        /// Accepted for scripts of pody 0.4.1, whose logs are files; not needed
        #[arg(value_name = "DB_FILE")]
        file: Option<String>,
        /// Events to show
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Newer events to skip
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// Only this level and worse: info, warning (work that failed or was interrupted)
        #[arg(long)]
        level: Option<String>,
    },
    /// Delete old events
    Shrink {
        /// Accepted for scripts of pody 0.4.1; not needed
        #[arg(value_name = "DB_FILE")]
        file: Option<String>,
        /// Events to keep
        #[arg(long, default_value_t = 1000)]
        keep: u64,
    },
}

impl LogCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let (Self::Show { file, .. } | Self::Shrink { file, .. }) = &self;
        if let Some(file) = file {
            out.warn(format!("{file} is not read: events are in the database of this host"));
        }
        let app = open()?;
        match self {
            Self::Show { limit, offset, level, .. } => {
                let troubles =
                    level.is_some_and(|level| !matches!(level.to_ascii_lowercase().as_str(), "debug" | "info"));
                let filter = EventFilter { user: None, before: None, limit: u32::MAX };
                let mut events = app.db.read(move |tx| tx.list_events(&filter)).await?;
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
            Self::Shrink { keep, .. } => {
                let gone = app.db.write(move |tx| tx.shrink_events(keep)).await?;
                out.done(&json!({ "deleted": gone }), format!("{gone} events deleted"))?;
            }
        }
        Ok(exit::OK)
    }
}
