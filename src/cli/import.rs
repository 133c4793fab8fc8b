//! `pody import`: users, quotas and usage from a pody 0.4.1 installation.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
    user::{notify_running_daemon, open},
};
use crate::model::user::Actor;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// PODY_HOME of the old installation, usually ~/.pody
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

impl ImportArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let report = open()?.accounts.import(Actor::local(), &self.directory).await?;
        notify_running_daemon(out);
        if out.format() == Format::Json {
            out.json(&json!(report))?;
            return Ok(exit::OK);
        }
        for skipped in &report.skipped {
            out.warn(format!("skipped: {skipped}"));
        }
        let (users, quotas, usage) = (report.users.len(), report.quotas.len(), report.usage);
        out.line(format!(
            "imported users: {users}, quotas: {quotas}, rows of usage: {usage}; old passwords stay valid"
        ))?;
        let config = self.directory.join("config.toml");
        if config.exists() {
            let here = crate::config::home().join("config.toml");
            out.line(format!("the old config works unchanged: cp {} {}", config.display(), here.display()))?;
        }
        Ok(exit::OK)
    }
}
