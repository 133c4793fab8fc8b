//! CRIU, which freezes and thaws pods. Without it everything but checkpoints works.

use std::path::Path;

use super::{Finding, ask_program, read_line, version_in};
use crate::{
    control,
    criu::version::{self, FILTERED, is_filtered},
};

const INSTALL: &str = "install CRIU 4.2 or newer; install.sh does, Ubuntu has ppa:criu/ppa";

pub async fn examine(home: &Path) -> Vec<Finding> {
    let version = match ask_program("criu", &["--version"]).await {
        Ok(text) => text,
        Err(why) => return vec![Finding::warn("criu", format!("no checkpoints: {why}"), INSTALL)],
    };
    let kernel = read_line("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![judge(&version, &kernel)];
    findings.push(match ask_program("criu", &["check"]).await {
        Ok(_) => Finding::ok("criu check", "passed"),
        Err(_) if !nix::unistd::geteuid().is_root() => {
            Finding::warn("criu check", "only root can run it", "sudo pody doctor")
        }
        Err(why) => Finding::fail("criu check", why, INSTALL),
    });
    findings.extend(filter(home).await);
    findings
}

/// Whether the running daemon may suspend the filters of programs.
async fn filter(home: &Path) -> Option<Finding> {
    let daemon = control::daemon_pid(home).await?;
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status")).ok()?;
    let (found, mend) = FILTERED.split_once("; ").unwrap_or((FILTERED, ""));
    Some(match is_filtered(&status) {
        true => Finding::fail("seccomp", found, mend),
        false => Finding::ok("seccomp", "the daemon runs without a filter"),
    })
}

/// Whether this CRIU can dump on this kernel.
fn judge(version: &str, kernel: &str) -> Finding {
    let number = version.lines().next().unwrap_or_default().trim_start_matches("Version:").trim();
    let found = format!("{number} on kernel {kernel}");
    match (version_in(version), version::too_old(number, kernel)) {
        (Some(_), Some(why)) => Finding::fail("criu", why, INSTALL),
        (Some(_), None) => Finding::ok("criu", found),
        (None, _) => Finding::warn("criu", format!("it does not say its version: {number}"), INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn new_kernels_need_a_new_criu() {
        for (criu, kernel, level) in [
            ("Version: 4.1.1", "6.16.0", Level::Fail),
            ("Version: 3.17.1", "6.18.44-fc", Level::Fail),
            ("Version: 3.10", "5.10.0", Level::Fail),
            ("Version: 4.2", "6.18.44", Level::Ok),
            ("Version: 4.2.1\nGitID: v4.2.1", "6.18.44", Level::Ok),
            ("Version: 3.17.1", "6.1.0-18-amd64", Level::Fail),
            ("Version: 3.19", "6.1.0-18-amd64", Level::Ok),
            ("who knows", "6.1.0", Level::Warn),
        ] {
            assert_eq!(judge(criu, kernel).level, level, "{criu} on {kernel}");
        }
    }
}
