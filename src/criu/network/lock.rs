//! A pod's network, closed for as long as it stands still.
//!
//! The kernel answers for programs that stand still: it would acknowledge what others send after their sockets were
//! written down, and nobody would ever send that again. And at the end of a pod that is stopped it would tell others
//! that their connections are over, which are to go on after the restore. CRIU closes the network too, but only while
//! it dumps. With the pod, its network goes, and the lock with it.

use std::{fs, process::Stdio, time::Duration};

use tokio::process::Command;

use super::sockets;
use crate::host::bridge::{self, State};

/// Both kinds of addresses, each in one step.
const LOCK: &str = "for t in iptables ip6tables; do printf '*filter\n:PODY - [0:0]\n-A PODY -j DROP\n\
                    -I INPUT -j PODY\n-I OUTPUT -j PODY\nCOMMIT\n' | $t-restore -w --noflush || [ $t = ip6tables ] || exit 1; done";

/// Our chain, and those by which CRIU does it. A CRIU that was killed leaves them, and the pod without network.
const UNLOCK: &str = "for t in iptables ip6tables; do for c in PODY CRIU; do $t -w -D INPUT -j $c; $t -w -D OUTPUT -j $c; \
                      $t -w -F $c; $t -w -X $c; done; done 2>/dev/null; \
                      command -v nft >/dev/null && nft list tables 2>/dev/null | grep CRIU | while read -r t; do \
                      nft delete $t; done; true";

/// What CRIU is to do while it dumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkLock {
    /// Close the network by itself.
    #[default]
    Criu,
    /// Nothing: the ports are disabled by which the pod hangs on the host's bridges.
    Ports,
}

/// No packet passes any more, until [`unlock`] or the pod's end. Of a pod that goes on, and hangs on no bridge, CRIU's
/// lock is enough.
pub async fn lock(pid: i32, is_stopped: bool) -> NetworkLock {
    match bridge::set_ports(pid, State::Disabled) {
        Ok(true) => return NetworkLock::Ports,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(pid, %error, "the ports of a pod's network are not disabled while it is saved");
            open_ports(pid);
        }
    }
    if is_stopped && !is_hosts(pid) && sockets::of(pid).outside > 0 && !inside(pid, LOCK).await {
        tracing::warn!(pid, "the network of a pod could not be locked: its connections with others end with it");
    }
    NetworkLock::Criu
}

/// Packets pass again, whoever kept them off.
pub async fn unlock(pid: i32) {
    open_ports(pid);
    if !is_hosts(pid) && !inside(pid, UNLOCK).await {
        tracing::error!(pid, "the network of a pod may still be locked");
    }
}

/// Packets pass through the ports again: all there is to undo of a pod that goes on as it was meant to.
pub fn open_ports(pid: i32) {
    if let Err(error) = bridge::set_ports(pid, State::Forwarding) {
        tracing::error!(pid, %error, "the network of a pod may still be locked");
    }
}

/// Whether it is the host's own network, of a container that was made so.
fn is_hosts(pid: i32) -> bool {
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
