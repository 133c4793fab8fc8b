//! `pody exec NAME -- CMD…`: a command in a pod, whose exit code is passed on.

use clap::Args;

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{Format, Output},
    words,
};
use crate::model::view::pod::ExecView;

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The pod
    name: String,
    /// How many seconds the command may run [default: the server's setting]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Run it in the background: checkpoints include it, and `pody shell NAME --attach` attaches to it
    #[arg(short, long, conflicts_with = "timeout")]
    detach: bool,
    /// The command: a single argument is a bash command line, several are the words of a command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// The `exit_code` of a command that timed out.
const TIMED_OUT: i64 = -1;

impl ExecArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let command = words::command(&self.command)?;
        let timeout = self.timeout.map(|seconds| seconds.to_string());
        let mut form = vec![("ins", self.name.as_str()), ("cmd", command.as_str())];
        form.extend(timeout.as_deref().map(|seconds| ("timeout", seconds)));
        form.extend(self.detach.then_some(("detach", "true")));
        let value = Client::from_environment()?.post("pod/exec", &form).await?;
        if self.detach {
            let attach = |started: ExecView| {
                let session = started.session.map(|session| session.to_string()).unwrap_or_default();
                format!("running in the background; `pody shell {} --attach {session}` attaches to it", self.name)
            };
            return out.show(value, attach).map(|()| exit::OK);
        }
        let answer: ExecView = serde_json::from_value(value.clone()).map_err(ClientError::Unintelligible)?;
        match out.format() {
            Format::Json => out.json(&value)?,
            Format::People if answer.exit_code == TIMED_OUT => {
                out.bytes(answer.output.unwrap_or_default().as_bytes())?;
            }
            Format::People => out.bytes(answer.log.as_bytes())?,
        }
        if answer.truncated {
            out.warn("the output is longer than the server keeps; redirect it to a file in the pod to get all of it");
        }
        if answer.exit_code == TIMED_OUT {
            out.warn("the command exceeded its time limit and was killed; --timeout SECONDS sets another");
            return Ok(exit::TIMED_OUT);
        }
        // Like a shell: the low eight bits.
        Ok((answer.exit_code & 0xff) as u8)
    }
}
