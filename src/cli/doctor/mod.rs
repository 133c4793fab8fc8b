//! `pody doctor`: is this host ready for pods? Every finding that is not ok comes with a fix.

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

/// How long a program may take; one that hangs must not hang the doctor.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, but something is missing or risky.
    Warn,
    /// Pods, or the checked feature, do not work.
    Fail,
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do about it. The JSON key is older than the name.
    #[serde(rename = "mend")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), fix: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs all checks; exits with 1 if one fails. Failures come first, and among them those that prevent checkpoints.
pub async fn run(out: &Output) -> Result<u8, CliError> {
    let home = crate::config::home();
    let mut findings = criu::examine(&home).await;
    let (docker_findings, docker_root) = docker::examine(&home).await;
    findings.extend(docker_findings);
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
    match &finding.fix {
        Some(fix) => format!("{line}\n{:23}-> {fix}", ""),
        None => line,
    }
}

/// The output of a program that succeeded, or a sentence why it did not.
async fn ask_program(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).env("PATH", search_path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PROGRAM_TIMEOUT, command.output()).await {
        Err(_) => return Err(format!("{program} did not exit within {} s", PROGRAM_TIMEOUT.as_secs())),
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Ok(Ok(output)) => output,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let output = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    Err(output.trim().lines().last().unwrap_or("it failed without a message").to_owned())
}

fn is_on_path(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|directory| directory.join(program).is_file())
}

/// Our `PATH` and the administrator's directories, where the daemons of this host find their tools.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// The first two numbers of a version, anywhere in a line: `Version: 4.2.1` is (4, 2).
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
    fn versions_are_found_in_the_output_of_programs() {
        assert_eq!(version_in("Version: 3.17.1"), Some((3, 17)));
        assert_eq!(version_in("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version_in("20.10.24+dfsg1"), Some((20, 10)));
        assert_eq!(version_in("none"), None);
    }
}
