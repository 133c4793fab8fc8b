//! `pody version`: the version of this program, and of the API that the server speaks.

use serde_json::{Value, json};

use super::{
    client::Client,
    error::CliError,
    exit,
    output::{Format, Output},
};

/// Prints both versions. A server that cannot be reached is not a failure.
pub async fn run(out: &Output) -> Result<u8, CliError> {
    let ours = crate::VERSION;
    let server = async { Client::from_environment()?.get("version", &[]).await };
    let server: Result<Value, CliError> = server.await.map_err(CliError::from);
    if out.format() == Format::Json {
        out.json(&json!({"client": ours, "server": server.ok()}))?;
        return Ok(exit::OK);
    }
    out.line(format!("Client version: {ours}"))?;
    match server {
        Ok(Value::Array(parts)) => {
            let parts: Vec<String> = parts.iter().map(Value::to_string).collect();
            out.line(format!("Server API version: {}", parts.join(".")))?;
        }
        Ok(other) => out.line(format!("Server API version: {other}"))?,
        Err(error) => out.line(format!("Failed to fetch the server's version: {}", error.message()))?,
    }
    Ok(exit::OK)
}
