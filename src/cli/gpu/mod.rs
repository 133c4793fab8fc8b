//! `pody gpu`: the GPUs and who uses them. On a terminal it is a live view, redrawn every second; elsewhere, or with
//! `--once`, it is printed once.
//!
//! - `view`: the response of the server, as lines of text
//! - `live`: the screen, the keys, and what happens while the server is away

mod live;
mod view;

use std::io::{self, IsTerminal};

use clap::Args;

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{Format, Output},
};
use crate::model::{gpu::Library, view::gpu::GpusView};

#[derive(Debug, Args)]
pub struct GpuArgs {
    /// Print once and exit, also on a terminal
    #[arg(long)]
    once: bool,
}

const ROUTE: &str = "host/gpus";

impl GpuArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        let answer = client.get(ROUTE, &[]).await?;
        if out.format() == Format::Json {
            out.json(&answer)?;
            return Ok(exit::OK);
        }
        let gpus: GpusView = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
        let width = out.width();
        // Without a driver there is nothing to watch.
        if self.once || !io::stdout().is_terminal() || matches!(gpus.library, Library::Absent) {
            out.line(view::lines(&gpus, out, width).join("\n"))?;
            return Ok(exit::OK);
        }
        live::watch(&client, gpus, out).await
    }
}
