//! `pody stat cputime|gputime [T]`: who used how much, with bars, as in pody 0.4.1. `usage` is in its own file.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::{
    client::Client,
    error::CliError,
    exit, original,
    output::{self, Output},
    usage::UsageArgs,
};

#[derive(Debug, Subcommand)]
pub enum StatCommand {
    /// CPU time by user
    Cputime(TimeArgs),
    /// GPU time by user
    Gputime(TimeArgs),
    Usage(UsageArgs),
}

#[derive(Debug, Args)]
pub struct TimeArgs {
    /// How far to look back: 1y, 1w, 1d, 1h, 1s or seconds; without it, all there is
    #[arg(value_name = "T")]
    since: Option<String>,
}

/// Length of the longest bar, in characters.
const LONGEST_BAR: f64 = 30.0;

impl StatCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::Cputime(args) => original::end(args.show("stat/cputime", out).await),
            Self::Gputime(args) => original::end(args.show("stat/gputime", out).await),
            Self::Usage(args) => args.run(out).await,
        }
    }
}

impl TimeArgs {
    async fn show(self, route: &str, out: &Output) -> Result<u8, CliError> {
        let query: Vec<_> = self.since.as_deref().map(|since| ("t", since)).into_iter().collect();
        let answer = Client::from_environment()?.get(route, &query).await?;
        out.show(answer, |seconds: BTreeMap<String, f64>| {
            let most = seconds.values().copied().fold(0.0, f64::max);
            let mut users: Vec<_> = seconds.into_iter().collect();
            users.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            let rows = users.into_iter().map(|(user, used)| {
                let bar = if most > 0.0 { (used / most * LONGEST_BAR) as usize } else { 0 };
                vec![user, output::duration(used), "█".repeat(bar)]
            });
            out.table(&["User", "Time", "Chart"], rows)
        })?;
        Ok(exit::OK)
    }
}
