//! Commands in running containers.
//!
//! A command goes on when its client leaves, and the engine has no way to end it: whoever starts one ends it by the host
//! PID that the engine tells. The PID of a command that takes longer is asked for while it runs, so that it can be ended
//! also when the engine is gone by then.

use std::{pin::Pin, sync::Arc, time::Duration};

use bollard::{
    container::LogOutput,
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWrite;

use super::{Engine, EngineError, SHORT};
use crate::model::ids::ContainerId;

/// Bytes read of a command's output at a time.
const READ_BUFFER: usize = 64 << 10;

/// A command that has not ended by then has its host PID asked for.
const LONG_COMMAND: Duration = Duration::from_millis(200);

/// Exit code that the engine gives to a command that it could not start; such a one never had a PID.
const CANNOT_RUN: i64 = 126;

/// A command to run to its end.
#[derive(Clone)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub timeout: Duration,
    /// Bytes of output to keep; the rest is read and dropped.
    pub output_limit: usize,
}

/// What came of it.
pub struct ExecOutput {
    /// `None` = it did not end in time.
    pub exit_code: Option<i64>,
    /// Terminal bytes.
    pub output: Vec<u8>,
    /// More came than was kept.
    pub truncated: bool,
}

/// A running command with a terminal.
pub struct Terminal {
    pub exec_id: String,
    pub output: Pin<Box<dyn Stream<Item = Result<Bytes, EngineError>> + Send>>,
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// A running command between pipes.
pub struct Pipes {
    pub exec_id: String,
    pub output: Pin<Box<dyn Stream<Item = Result<Piece, EngineError>> + Send>>,
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// A piece of what a command between pipes writes.
pub enum Piece {
    Output(Bytes),
    /// To the standard error.
    Aside(Bytes),
}

impl Engine {
    /// Runs a command on a terminal of its own. When it does not end in time, or can no longer be followed, `kill` is given
    /// its host PID.
    pub async fn exec<K: Future<Output = ()>>(
        &self,
        id: &ContainerId,
        request: ExecRequest,
        kill: impl FnOnce(i32) -> K,
    ) -> Result<ExecOutput, EngineError> {
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(true),
            cmd: Some(request.command),
            ..CreateExecOptions::default()
        };
        let exec_id = self.prepare(id, options).await?;
        let begun = tokio::time::Instant::now();
        let (mut output, _input) = match self.begin(&exec_id, true).await {
            Ok(begun) => begun,
            Err(error) => {
                // It may have been started all the same.
                if error.is_ambiguous() {
                    kill(self.exec_pid(&exec_id).await.unwrap_or(0)).await;
                }
                return Err(error);
            }
        };
        let mut kept = Vec::new();
        let mut truncated = false;
        let mut pid = None;
        let read = async {
            while let Some(chunk) = output.next().await {
                let chunk = chunk?.into_bytes();
                let room = request.output_limit - kept.len();
                kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
                truncated |= chunk.len() > room;
            }
            Ok::<_, bollard::errors::Error>(())
        };
        let learn_pid = async {
            // On a busy machine the engine may not know it yet.
            while pid.is_none() {
                tokio::time::sleep(LONG_COMMAND).await;
                pid = self.exec_pid(&exec_id).await;
            }
            std::future::pending::<()>().await;
        };
        let deadline = begun + request.timeout;
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(deadline, read) => ended,
            () = learn_pid => unreachable!("it waits for ever"),
        };
        let exit_code = match ended {
            // The output ends with the command, or with the connection: only the engine knows.
            Ok(Ok(())) => self.exit_code_by(&exec_id, deadline).await,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Ok(None),
        };
        if !matches!(exit_code, Ok(Some(_))) {
            let pid = match pid {
                Some(pid) => pid,
                None => self.exec_pid(&exec_id).await.unwrap_or(0),
            };
            kill(pid).await;
        }
        let exit_code = exit_code?;
        // Then the output is what the runtime says about it.
        if exit_code == Some(CANNOT_RUN) && self.exec_pid(&exec_id).await.is_none() {
            return Err(EngineError::Conflict(String::from_utf8_lossy(&kept).trim_end().to_owned()));
        }
        Ok(ExecOutput { exit_code, output: kept, truncated })
    }

    /// Starts a command on a terminal of this size for someone to type at.
    pub async fn open_terminal(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        env: Vec<String>,
    ) -> Result<Terminal, EngineError> {
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(true),
            cmd: Some(command),
            env: Some(env),
            ..CreateExecOptions::default()
        };
        let exec_id = self.prepare(id, options).await?;
        let (output, input) = self.begin(&exec_id, true).await?;
        let output = output.map(|item| item.map(LogOutput::into_bytes).map_err(EngineError::from));
        Ok(Terminal { exec_id, output: Box::pin(output), input })
    }

    /// Starts a command between pipes.
    pub async fn open_pipes(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        env: Vec<String>,
    ) -> Result<Pipes, EngineError> {
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command),
            env: Some(env),
            ..CreateExecOptions::default()
        };
        let exec_id = self.prepare(id, options).await?;
        let (output, input) = self.begin(&exec_id, false).await?;
        let output = output.map(|item| match item {
            Ok(LogOutput::StdErr { message }) => Ok(Piece::Aside(message)),
            Ok(other) => Ok(Piece::Output(other.into_bytes())),
            Err(error) => Err(EngineError::from(error)),
        });
        Ok(Pipes { exec_id, output: Box::pin(output), input })
    }

    async fn prepare(&self, id: &ContainerId, options: CreateExecOptions<String>) -> Result<String, EngineError> {
        let exec = self.call(SHORT, |docker| async move { docker.create_exec(id.as_str(), options).await }).await?;
        Ok(exec.id)
    }

    async fn begin(
        &self,
        exec_id: &str,
        tty: bool,
    ) -> Result<
        (
            Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>,
            Pin<Box<dyn AsyncWrite + Send>>,
        ),
        EngineError,
    > {
        let start = StartExecOptions { detach: false, tty, output_capacity: Some(READ_BUFFER) };
        let call = |docker: Arc<bollard::Docker>| async move { docker.start_exec(exec_id, Some(start)).await };
        match self.call(SHORT, call).await? {
            StartExecResults::Attached { output, input } => Ok((output, input)),
            StartExecResults::Detached => Err(EngineError::AnswerLost("the engine did not attach".to_owned())),
        }
    }

    pub async fn resize_terminal(&self, exec_id: &str, rows: u16, columns: u16) -> Result<(), EngineError> {
        let options = ResizeExecOptions { height: rows, width: columns };
        self.call(SHORT, |docker| async move { docker.resize_exec(exec_id, options).await }).await
    }

    /// How a command ended whose output is at its end. The engine may need a moment to know.
    pub async fn exit_code(&self, exec_id: &str) -> Result<Option<i64>, EngineError> {
        self.exit_code_by(exec_id, tokio::time::Instant::now() + Duration::from_secs(1)).await
    }

    /// Asks until the command has ended; `None` = it runs on at the deadline.
    async fn exit_code_by(&self, exec_id: &str, deadline: tokio::time::Instant) -> Result<Option<i64>, EngineError> {
        for pause in [0, 1, 2, 5, 10, 20, 50, 100, 200].into_iter().chain(std::iter::repeat(500)) {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let inspect = self.call(SHORT, |docker| async move { docker.inspect_exec(exec_id).await }).await?;
            if inspect.running != Some(true) {
                return Ok(inspect.exit_code);
            }
            if tokio::time::Instant::now() >= deadline {
                break;
            }
        }
        Ok(None)
    }

    /// The host PID of a command that runs.
    pub async fn exec_pid(&self, exec_id: &str) -> Option<i32> {
        let inspect = self.call(SHORT, |docker| async move { docker.inspect_exec(exec_id).await }).await.ok()?;
        inspect.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 0)
    }
}
