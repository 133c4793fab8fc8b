//! `pody exec NAME -- CMD…`: a command in a pod, ending with the command's exit code.

use clap::Args;
use serde::Deserialize;

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{Format, Output},
    shell_words,
};

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The pod
    name: String,
    /// Seconds that the command may run; without it, the server's default
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Do not wait: it runs in the background, is saved in checkpoints, and `pody shell NAME --attach` comes back to it
    #[arg(short, long, conflicts_with = "timeout")]
    detach: bool,
    /// The command: one argument goes to the pod's bash as it is, several are words
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    exit_code: i64,
    log: String,
    #[serde(default)]
    truncated: bool,
    /// What a command that ran out of time had written by then.
    output: Option<String>,
}

/// The `exit_code` of a command that ran out of time.
const TIMED_OUT: i64 = -1;

impl ExecArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let command = shell_words::command(&self.command);
        let timeout = self.timeout.map(|seconds| seconds.to_string());
        let mut form = vec![("ins", self.name.as_str()), ("cmd", command.as_str())];
        form.extend(timeout.as_deref().map(|seconds| ("timeout", seconds)));
        form.extend(self.detach.then_some(("detach", "true")));
        let value = Client::from_environment()?.post("pod/exec", &form).await?;
        if self.detach {
            let session = value["session"].as_str().unwrap_or_default().to_owned();
            let sentence = format!("runs in the background; `pody shell {} --attach {session}` shows it", self.name);
            return out.done(&value, sentence).map(|()| exit::OK);
        }
        let answer: Answer = serde_json::from_value(value.clone()).map_err(ClientError::Unintelligible)?;
        match out.format() {
            Format::Json => out.json(&value)?,
            Format::People if answer.exit_code == TIMED_OUT => {
                out.bytes(answer.output.unwrap_or_default().as_bytes())?;
            }
            Format::People => out.bytes(answer.log.as_bytes())?,
        }
        if answer.truncated {
            out.warn("the output was longer than the server keeps; write it to a file in the pod to have all of it");
        }
        if answer.exit_code == TIMED_OUT {
            out.warn("the command ran out of time and was killed; --timeout SECONDS gives it more");
            return Ok(exit::TIMED_OUT);
        }
        // As a shell does: the low eight bits.
        Ok((answer.exit_code & 0xff) as u8)
    }
}
