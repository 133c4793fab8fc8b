//! Commands in running containers.
//!
//! A command keeps running after its client has left, and the engine cannot stop it. The code that starts a command
//! therefore kills it by the host PID that the engine reports. For commands that take longer than a moment, the PID is
//! read while they run, so that they can be killed even if the engine is gone by then.

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

/// Bytes of a command's output that are read at a time.
const READ_BUFFER: usize = 64 << 10;

/// After this time the host PID of a command is read.
const LONG_COMMAND: Duration = Duration::from_millis(200);

/// Exit code that the engine reports for a command that it could not start. Such a command never had a PID.
const CANNOT_RUN: i64 = 126;

/// A command to run to completion.
#[derive(Clone)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub timeout: Duration,
    /// Bytes of output to keep; the rest is read and discarded.
    pub output_limit: usize,
}

/// The result of a command.
pub struct ExecOutput {
    /// `None` = it did not exit in time.
    pub exit_code: Option<i64>,
    /// Terminal bytes.
    pub output: Vec<u8>,
    /// There was more output than was kept.
    pub truncated: bool,
}

/// A running command on a terminal.
pub struct Terminal {
    pub exec_id: String,
    pub output: Pin<Box<dyn Stream<Item = Result<Bytes, EngineError>> + Send>>,
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// A running command connected by pipes.
pub struct Pipes {
    pub exec_id: String,
    pub output: Pin<Box<dyn Stream<Item = Result<Piece, EngineError>> + Send>>,
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// A chunk of the output of a command that is connected by pipes.
pub enum Piece {
    Output(Bytes),
    /// From standard error.
    Stderr(Bytes),
}

impl Engine {
    /// Runs a command on a terminal of its own. If it does not exit in time, or its output can no longer be followed,
    /// `kill` is called with its host PID.
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
                // It may have been started.
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
            () = learn_pid => unreachable!("it waits forever"),
        };
        let exit_code = match ended {
            // The output ends when the command exits or when the connection breaks: only the engine knows which.
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
        // In this case the output is the runtime's error message.
        if exit_code == Some(CANNOT_RUN) && self.exec_pid(&exec_id).await.is_none() {
            return Err(EngineError::from_runtime(String::from_utf8_lossy(&kept).trim_end().to_owned()));
        }
        Ok(ExecOutput { exit_code, output: kept, truncated })
    }

    /// Starts a command on an interactive terminal.
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

    /// Starts a command connected by pipes.
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
            Ok(LogOutput::StdErr { message }) => Ok(Piece::Stderr(message)),
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

    /// The exit code of a command whose output has ended. The engine may need a moment to know it.
    pub async fn exit_code(&self, exec_id: &str) -> Result<Option<i64>, EngineError> {
        self.exit_code_by(exec_id, tokio::time::Instant::now() + Duration::from_secs(1)).await
    }

    /// Polls until the command has exited; `None` = it is still running at the deadline.
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

    /// The host PID of a running command.
    pub async fn exec_pid(&self, exec_id: &str) -> Option<i32> {
        let inspect = self.call(SHORT, |docker| async move { docker.inspect_exec(exec_id).await }).await.ok()?;
        inspect.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 0)
    }
}
