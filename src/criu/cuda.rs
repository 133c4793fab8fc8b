//! NVIDIA's `cuda-checkpoint`: the only place that runs it.
//!
//! It asks a thread inside the process, through the driver, to lock CUDA, to copy GPU memory into host memory, and
//! back. If it is killed halfway, it can leave a process between two states. So each call gets all the time that its
//! bytes may need, and a call that a previous daemon started is awaited before anything else is asked.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::{
    host::process,
    model::{ids::ActionId, words::words},
};

/// The program's name, where the config gives none.
const NAME: &str = "cuda-checkpoint";

/// Marks the calls of an action, so that they are found after the daemon was killed.
const MARK: &str = "PODY_GPU_ACTION";

/// With it set, the driver would show the program other GPUs than the device map names.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// How much of its output is read, bytes.
const SAID: u64 = 16 << 10;

/// How long a killed call may take to exit: one that waits in the driver cannot.
const GONE: Duration = Duration::from_secs(5);

/// How long it may take to print its version.
const ASK: Duration = Duration::from_secs(10);

/// The state of CUDA in a process, in the tool's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaState {
    Running,
    Locked,
    Checkpointed,
    Failed,
}

impl FromStr for CudaState {
    type Err = ToolError;

    fn from_str(s: &str) -> Result<Self, ToolError> {
        match s.trim() {
            "running" => Ok(Self::Running),
            "locked" => Ok(Self::Locked),
            "checkpointed" => Ok(Self::Checkpointed),
            "failed" => Ok(Self::Failed),
            other => Err(ToolError::Said(format!("an unknown state: {:?}", short(other)))),
        }
    }
}

words! {
    /// What it can do with a process.
    Step, "step of cuda-checkpoint" {
        Lock = "lock",
        Checkpoint = "checkpoint",
        Restore = "restore",
        Unlock = "unlock",
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{}: {source}", .program.display())]
    NotRun { program: PathBuf, source: io::Error },
    #[error("{0}")]
    Said(String),
    #[error("it did not end within {} s and was ended", .0.as_secs())]
    TimedOut(Duration),
}

/// What its help says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub version: String,
    /// Whether it knows `--action`; otherwise only the older `--toggle`.
    pub has_actions: bool,
    pub maps_devices: bool,
}

impl About {
    fn parse(help: &str) -> Self {
        let after = help.split_once("Version ").map_or("", |(_, rest)| rest);
        let version = after.split_whitespace().next().unwrap_or_default().trim_end_matches('.');
        Self {
            version: if version.is_empty() { "of an unknown version".to_owned() } else { version.to_owned() },
            has_actions: help.contains("--action"),
            maps_devices: help.contains("--device-map"),
        }
    }
}

/// The program.
#[derive(Clone, Debug)]
pub struct Tool {
    pub program: PathBuf,
}

impl Tool {
    /// The configured one, or the first on the PATH.
    pub fn find(configured: Option<&Path>) -> Option<Self> {
        let is_program = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let program = match configured {
            Some(path) => Some(path.to_owned()).filter(is_program),
            None => {
                let path = env::var_os("PATH").unwrap_or_default();
                env::split_paths(&path).map(|directory| directory.join(NAME)).find(is_program)
            }
        };
        program.map(|program| Self { program })
    }

    pub async fn about(&self) -> Result<About, ToolError> {
        Ok(About::parse(&self.run(&["--help"], None, ASK).await?))
    }

    pub async fn state(&self, pid: i32, action: Option<ActionId>, limit: Duration) -> Result<CudaState, ToolError> {
        self.run(&["--get-state", "--pid", &pid.to_string()], action, limit).await?.parse()
    }

    /// Waits up to `timeout` for the work in progress on the GPU, and blocks the process from submitting more.
    pub async fn lock(&self, pid: i32, action: ActionId, timeout: Duration) -> Result<(), ToolError> {
        let millis = timeout.as_millis().to_string();
        let words = ["--action", Step::Lock.as_str(), "--pid", &pid.to_string(), "--timeout", &millis];
        // It times out by itself.
        self.run(&words, Some(action), timeout + GONE).await.map(drop)
    }

    pub async fn step(
        &self,
        step: Step,
        pid: i32,
        device_map: Option<&str>,
        action: ActionId,
        limit: Duration,
    ) -> Result<(), ToolError> {
        let pid = pid.to_string();
        let mut words = vec!["--action", step.as_str(), "--pid", &pid];
        words.extend(device_map.into_iter().flat_map(|map| ["--device-map", map]));
        self.run(&words, Some(action), limit).await.map(drop)
    }

    async fn run(&self, words: &[&str], action: Option<ActionId>, limit: Duration) -> Result<String, ToolError> {
        let not_run = |source| ToolError::NotRun { program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        command.args(words).env_remove(VISIBLE).current_dir("/");
        command.envs(action.map(|action| (MARK, action.to_string())));
        // Not killed with the daemon: a copy runs to its end, and the next start waits for it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(not_run)?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok());
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let whole = async { tokio::join!(read(output), read(errors), child.wait()) };
        let Ok((output, errors, status)) = tokio::time::timeout(limit, whole).await else {
            if let Some(group) = group {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = tokio::time::timeout(GONE, child.wait()).await;
            return Err(ToolError::TimedOut(limit));
        };
        if status.map_err(not_run)?.success() {
            return Ok(output);
        }
        // It prints errors to either.
        let said = [errors, output].concat();
        let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it failed without a message");
        Err(ToolError::Said(short(line)))
    }
}

/// Waits for calls of an action that a previous daemon started; ends those that take longer.
pub async fn wait_for_calls(action: ActionId, limit: Duration) {
    let mark = format!("{MARK}={action}");
    let calls = || -> Vec<i32> {
        let is_its = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        };
        process::list().into_iter().filter(is_its).collect()
    };
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if calls().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for pid in calls() {
        tracing::warn!(pid, "a call of cuda-checkpoint did not end and is ended");
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut text = Vec::new();
    let _ = (&mut from).take(SAID).read_to_end(&mut text).await;
    // Drain the rest, or it would block on a full pipe.
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Foreign text on one line.
fn short(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_help_shows_what_it_can_do() {
        let help = "CUDA checkpoint and restore utility.\nVersion 570.86.10. Copyright (C) 2025 NVIDIA Corporation.\n\n\
                    Operations:\n--action lock | checkpoint | restore | unlock --pid <pid> [--timeout <ms>]\n";
        let about = About::parse(help);
        assert_eq!((about.version.as_str(), about.has_actions, about.maps_devices), ("570.86.10", true, false));
        let newer = About::parse(&help.replace("[--timeout <ms>]", "[--timeout <ms>] [--device-map <uuids>]"));
        assert!(newer.maps_devices);
        let older = About::parse("Version 550.54.09.\n--toggle --pid <pid>\n");
        assert!(!older.has_actions);
        assert_eq!(About::parse("").version, "of an unknown version");
    }

    #[test]
    fn states_are_its_words() {
        for (word, state) in [
            ("running\n", CudaState::Running),
            ("locked", CudaState::Locked),
            ("checkpointed\n", CudaState::Checkpointed),
            ("failed", CudaState::Failed),
        ] {
            assert_eq!(word.parse::<CudaState>().unwrap(), state);
        }
        assert!("asleep\u{1b}[2J".parse::<CudaState>().unwrap_err().to_string().contains("asleep"));
    }
}
