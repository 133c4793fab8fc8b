//! `pody serve`: the daemon.

use std::{io::IsTerminal, path::PathBuf};

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{error::CliError, exit};
use crate::{config::DEFAULT_PORT, daemon::ServeOptions};

/// What is logged where `RUST_LOG` does not say: changes, refusals, trouble. Reads are `debug`.
const LOGGED: &str = "info";

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Config file; without it $PODY_HOME/config.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ServeArgs {
    pub async fn run(self) -> Result<u8, CliError> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // A log that cannot be written, for its disk is full, is no reason to end: to complain of it there would panic.
        let log = log.log_internal_errors(false);
        log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
        crate::daemon::serve(ServeOptions { host: self.host, port: self.port, config: self.config }).await?;
        Ok(exit::OK)
    }
}
