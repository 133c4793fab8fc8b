//! Short calls of other programs, and the variable that marks our processes.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

/// Marks the processes of an action, so that they are found after the daemon was killed. CRIU clears its environment:
/// it is found by its working directory, which is the checkpoint's, and by its log there.
pub const MARK: &str = "PODY_ACTION";

pub async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(Duration::from_secs(20), run).await {
        Err(_) => Err("it does not answer".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed").trim().to_owned())
        }
    }
}
