//! `pody events`: who did what, from the server.

use clap::Args;

use super::{client::Client, error::CliError, exit, output::Output};
use crate::model::event::Event;

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Number of events, newest first
    #[arg(long, short = 'n', default_value_t = 50, value_name = "N")]
    limit: u32,
    /// Only events before the one with this id
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
    /// Only events that concern this user (admins only)
    #[arg(long)]
    user: Option<String>,
}

impl EventsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let limit = self.limit.to_string();
        let before = self.before.map(|id| id.to_string());
        let mut query = vec![("limit", limit.as_str())];
        query.extend(before.as_deref().map(|id| ("before", id)));
        query.extend(self.user.as_deref().map(|user| ("user", user)));
        let answer = Client::from_environment()?.get("events", &query).await?;
        out.show(answer, |events: Vec<Event>| table(events, out))?;
        Ok(exit::OK)
    }
}

fn table(events: Vec<Event>, out: &Output) -> String {
    let header = ["ID", "AT", "ACTOR", "FROM", "ACTION", "OBJECT", "OUTCOME", "DETAIL"];
    let row = |event: Event| {
        let detail = event.detail.unwrap_or_default();
        vec![
            event.id.to_string(),
            event.at,
            event.actor,
            event.source,
            event.action,
            event.object,
            event.outcome.to_string(),
            detail,
        ]
    };
    out.table(&header, events.into_iter().map(row))
}
