//! Commands in pods.

use std::time::Duration;

use super::{PodError, Pods, processes};
use crate::{
    db::NewEvent,
    engine::{EngineError, ExecRequest, LogOptions},
    model::{ids::ContainerId, names::PodRef, pod::Init, user::Caller},
};

/// Bytes of a command line: the kernel's limit on one argument of a program (MAX_ARG_STRLEN), without its final NUL.
const MAX_COMMAND: usize = (128 << 10) - 1;

/// Runs command lines.
const SHELL: &str = "/bin/bash";

/// What `pody-init run` prints where bash is missing.
const NO_SHELL: &str = "pody-init: exec: \"/bin/bash\"";

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Executed {
    Ended {
        exit_code: i64,
        output: String,
        truncated: bool,
    },
    /// It was killed at its timeout; the output until then.
    TimedOut {
        output: String,
    },
}

impl Pods {
    /// Runs a command line as root by `/bin/bash -c` on a terminal.
    pub async fn exec(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        command: String,
        timeout: Option<u64>,
    ) -> Result<Executed, PodError> {
        let pod = self.find(caller, wanted)?;
        check_command(&command)?;
        let limits = self.config.get().exec.clone();
        let seconds = timeout.unwrap_or(limits.timeout_seconds);
        if seconds == 0 || seconds > limits.max_timeout_seconds {
            return Err(PodError::Timeout { asked: seconds, max: limits.max_timeout_seconds });
        }
        let container = self.running(&pod).await?;
        // Only the request: its outcome is for the caller. The command is private to the member and may contain secrets.
        let event = NewEvent::by(&caller.into()).did("pod.exec", &pod.container_name).of(&pod.user);
        self.db.insert_event(event).await?;
        let filters = pod.spec.init.as_ref().is_some_and(|init| !init.io_uring);
        let filter: &[&str] = if filters { &[Init::INSIDE, "run", "--"] } else { &[] };
        let words = filter.iter().copied().chain([SHELL, "-c", &command]).map(str::to_owned).collect();
        let request = ExecRequest {
            command: words,
            timeout: Duration::from_secs(seconds),
            output_limit: usize::try_from(limits.output_limit.0).unwrap_or(usize::MAX),
        };
        let inside = container.clone();
        let kill = |pid| async move { processes::end_session(pid, &inside) };
        let mut ran = self.engine.exec(&container, request.clone(), kill.clone()).await;
        while let Err(EngineError::Paused(_)) = &ran
            && self.locks.is_held(pod.id)
        {
            // A checkpoint began between our check and the engine's: nothing was started.
            let _ = self.engine.look(&container).await;
            self.running(&pod).await?;
            ran = self.engine.exec(&container, request.clone(), kill.clone()).await;
        }
        let ran = ran.map_err(|error| self.exec_error(&pod, error))?;
        let output = String::from_utf8_lossy(&ran.output).into_owned();
        if matches!(ran.exit_code, Some(126 | 127)) && output.starts_with(NO_SHELL) {
            return Err(PodError::NoShell { pod: pod.container_name.clone() });
        }
        Ok(match ran.exit_code {
            Some(exit_code) => Executed::Ended { exit_code, output, truncated: ran.truncated },
            None => Executed::TimedOut { output },
        })
    }

    pub(super) fn exec_error(&self, pod: &crate::model::pod::Pod, error: EngineError) -> PodError {
        match error {
            EngineError::NoPids(_) => {
                PodError::NoPids { pod: pod.container_name.clone(), limit: pod.spec.pids.unwrap_or(0) }
            }
            // The image lacks bash, or bash cannot be executed.
            EngineError::CannotExecute { program, .. } if program == SHELL => {
                PodError::NoShell { pod: pod.container_name.clone() }
            }
            EngineError::Paused(_) | EngineError::AlreadyPaused(_) => ended(pod, "paused"),
            EngineError::NotRunning(_)
            | EngineError::RemovalInProgress(_)
            | EngineError::CannotExecute { .. }
            | EngineError::Conflict(_) => ended(pod, "not running"),
            EngineError::NotFound(_) => PodError::NotFound(pod.container_name.clone()),
            EngineError::Unavailable(_)
            | EngineError::TimedOut(_)
            | EngineError::AnswerLost(_)
            | EngineError::PortTaken(_)
            | EngineError::DiskFull
            | EngineError::NoImage(_)
            | EngineError::NoNetwork(_)
            | EngineError::NotPaused(_)
            | EngineError::StorageOptUnsupported(_)
            | EngineError::NoGpuDriver(_)
            | EngineError::NotFrozen(_)
            | EngineError::Failed(_) => error.into(),
        }
    }

    /// The output of the pod's own process.
    pub fn log_source(&self, caller: &Caller, wanted: &PodRef) -> Result<ContainerId, PodError> {
        let pod = self.find(caller, wanted)?;
        pod.container.clone().ok_or_else(|| PodError::NotFound(pod.container_name.clone()))
    }

    /// The end of the output, at most `limit` bytes.
    pub async fn logs(&self, container: &ContainerId, options: LogOptions, limit: usize) -> Result<String, PodError> {
        let output = self.engine.tail(container, options, limit, Duration::from_secs(5)).await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// The output as it is written, until the reader disconnects.
    pub fn follow_logs(
        &self,
        container: &ContainerId,
        options: LogOptions,
    ) -> Result<impl futures_util::Stream<Item = Result<bytes::Bytes, EngineError>> + Send + use<>, PodError> {
        Ok(self.engine.logs(container, options)?)
    }
}

/// The pod was stopped, paused or deleted between our check and the engine's.
fn ended(pod: &crate::model::pod::Pod, status: &str) -> PodError {
    PodError::NotRunning { pod: pod.container_name.clone(), status: status.to_owned(), next: "see `pody inspect`" }
}

/// Refuses a command line that no program can be started with.
pub(super) fn check_command(command: &str) -> Result<(), PodError> {
    match command.len() > MAX_COMMAND || command.contains('\0') {
        true => Err(PodError::Command { max: MAX_COMMAND }),
        false => Ok(()),
    }
}
