//! `pody logs [-f] NAME`: the output of the pod's main process.

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::{
    client::{self, Client, ClientError},
    error::CliError,
    exit,
    output::{Format, Output},
};
use crate::model::{quantities::Span, view::Log};

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The pod
    name: String,
    /// Follow the output
    #[arg(short, long)]
    follow: bool,
    /// Only the last LINES lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only output that is not older than TIME, like 10m
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
}

/// A span of time, passed on as typed.
fn since(text: &str) -> Result<String, crate::model::quantities::SpanError> {
    text.parse::<Span>().map(|_| text.to_owned())
}

impl LogsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let tail = self.tail.map(|lines| lines.to_string());
        let mut query = vec![("ins", self.name.as_str())];
        query.extend(tail.as_deref().map(|lines| ("tail", lines)));
        query.extend(self.since.as_deref().map(|since| ("since", since)));
        if self.follow {
            query.push(("follow", "true"));
        }
        let mut response = Client::from_environment()?.send(Method::GET, "pod/logs", &query, &[]).await?;
        if !self.follow {
            let answer = client::read_json(response).await?;
            match out.format() {
                Format::Json => out.json(&answer)?,
                Format::People => {
                    let Log { log } = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
                    out.bytes(log.as_bytes())?;
                }
            }
            return Ok(exit::OK);
        }
        while let Some(chunk) = response.chunk().await.map_err(ClientError::BrokeOff)? {
            match out.format() {
                Format::People => out.bytes(&chunk)?,
                Format::Json => out.json(&json!({"log": String::from_utf8_lossy(&chunk)}))?,
            }
        }
        Ok(exit::OK)
    }
}
