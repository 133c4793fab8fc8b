//! `pody doctor`: is this machine fit for pods? Every finding that is not good says how to mend it.

mod criu;
mod docker;
mod gpu;
mod gpu_checkpoints;
mod host;

use std::{ffi::OsString, path::Path, process::Stdio, time::Duration};

use serde::Serialize;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
};

/// How long a program that we ask may take; a hung one must not hang the doctor.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, but something is missing or risky.
    Warn,
    /// Pods, or what the finding is about, do not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do about it.
    mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), mend: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Looks at everything; ends with 1 if something fails. What is wrong comes first, and of that, what stands against checkpoints.
pub async fn run(out: &Output) -> Result<u8, CliError> {
    let home = crate::config::home();
    let mut findings = criu::examine(&home).await;
    let (of_docker, docker_root) = docker::examine().await;
    findings.extend(of_docker);
    findings.extend(gpu::examine().await);
    findings.extend(gpu_checkpoints::examine(&home).await);
    findings.extend(host::examine(&home, docker_root.as_deref()).await);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    match out.format() {
        Format::Json => out.json(&findings)?,
        Format::People => {
            for finding in &findings {
                out.line(render(finding, out))?;
            }
        }
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    Ok(if failed { exit::FAILED } else { exit::OK })
}

fn render(finding: &Finding, out: &Output) -> String {
    let (word, color) = match finding.level {
        Level::Ok => ("ok  ", "32"),
        Level::Warn => ("warn", "33"),
        Level::Fail => ("fail", "31"),
    };
    let line = format!("{}  {:<16} {}", out.color(word, color), finding.check, finding.found);
    match &finding.mend {
        Some(mend) => format!("{line}\n{:23}-> {mend}", ""),
        None => line,
    }
}

/// What a program printed, if it ran and was content: or else a sentence why not.
async fn ask_program(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).env("PATH", search_path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PROGRAM_TIMEOUT, command.output()).await {
        Err(_) => return Err(format!("{program} did not end within {} s", PROGRAM_TIMEOUT.as_secs())),
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Ok(Ok(output)) => output,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    Err(said.trim().lines().last().unwrap_or("it failed without a word").to_owned())
}

fn is_on_path(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|folder| folder.join(program).is_file())
}

/// Our `PATH` and the administrator's folders, where the daemons of this host find their tools.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// The first two numbers of a version, wherever they stand in a line: `Version: 4.2.1` is (4, 2).
fn version_in(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[start..].split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn read_line(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version_in("Version: 3.17.1"), Some((3, 17)));
        assert_eq!(version_in("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version_in("20.10.24+dfsg1"), Some((20, 10)));
        assert_eq!(version_in("none"), None);
    }
}
