//! A pod's network, closed for a while.
//!
//! CRIU closes it while it dumps. A pod that is to be stopped must stay silent from then on until it is gone: its kernel
//! would go on acknowledging what others send, and nobody would ever send that again; and at its end it would tell them that
//! their connections are over, which are to go on after the restore. With the pod, its network goes, and the lock with it.

use std::{fs, process::Stdio, time::Duration};

use tokio::process::Command;

/// Both kinds of addresses, each in one step.
const LOCK: &str = "for t in iptables ip6tables; do printf '*filter\n:PODY - [0:0]\n-A PODY -j DROP\n\
                    -I INPUT -j PODY\n-I OUTPUT -j PODY\nCOMMIT\n' | $t-restore -w --noflush || [ $t = ip6tables ] || exit 1; done";
/// Our chain, and those by which CRIU does it. A CRIU that was killed leaves them, and the pod without network.
const UNLOCK: &str = "for t in iptables ip6tables; do for c in PODY CRIU; do $t -w -D INPUT -j $c; $t -w -D OUTPUT -j $c; \
                      $t -w -F $c; $t -w -X $c; done; done 2>/dev/null; \
                      command -v nft >/dev/null && nft list tables 2>/dev/null | grep CRIU | while read -r t; do \
                      nft delete $t; done; true";

/// No packet passes any more, until [`unlock`] or the pod's end.
pub async fn lock(pid: i32) {
    if is_ours(pid) {
        return;
    }
    if !inside(pid, LOCK).await {
        tracing::warn!(pid, "the network of a pod could not be locked: its connections with others end with it");
    }
}

/// Packets pass again, whoever kept them off.
pub async fn unlock(pid: i32) {
    if is_ours(pid) {
        return;
    }
    if !inside(pid, UNLOCK).await {
        tracing::error!(pid, "the network of a pod may still be locked");
    }
}

/// Whether it is the host's own network, of a container that was made so.
fn is_ours(pid: i32) -> bool {
    let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    network("self") == network(&pid.to_string())
}

async fn inside(pid: i32, script: &str) -> bool {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(Duration::from_secs(10), command.status()).await;
    matches!(done, Ok(Ok(status)) if status.success())
}
