//! A pod's network, closed while the pod is frozen.
//!
//! The kernel answers for frozen programs: it would acknowledge what others send after the sockets were saved, and
//! nobody would ever send that again. And at the end of a pod that is stopped it would tell others that their
//! connections are over, although they are to continue after the restore. CRIU closes the network too, but only while
//! it dumps. When the pod ends, its network is removed, and the lock with it.

use std::{fs, process::Stdio, time::Duration};

use tokio::process::Command;

use super::sockets;
use crate::host::bridge::{self, State};

/// IPv4 and IPv6, each in one step.
const LOCK: &str = "for t in iptables ip6tables; do printf '*filter\n:PODY - [0:0]\n-A PODY -j DROP\n\
                    -I INPUT -j PODY\n-I OUTPUT -j PODY\nCOMMIT\n' | $t-restore -w --noflush || [ $t = ip6tables ] || exit 1; done";

/// Our chain, and those that CRIU uses. A killed CRIU leaves them, and the pod without network.
const UNLOCK: &str = "for t in iptables ip6tables; do for c in PODY CRIU; do $t -w -D INPUT -j $c; $t -w -D OUTPUT -j $c; \
                      $t -w -F $c; $t -w -X $c; done; done 2>/dev/null; \
                      command -v nft >/dev/null && nft list tables 2>/dev/null | grep CRIU | while read -r t; do \
                      nft delete $t; done; true";

/// What CRIU does about the network while it dumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkLock {
    /// Close the network by itself.
    #[default]
    Criu,
    /// Nothing: the ports that connect the pod to the host's bridges are disabled.
    Ports,
}

/// No packet passes any more, until [`unlock`] or the pod's end. For a pod that resumes, and is on no bridge, CRIU's
/// lock is enough.
pub async fn lock(pid: i32, is_stopped: bool) -> NetworkLock {
    match bridge::set_ports(pid, State::Disabled) {
        Ok(true) => return NetworkLock::Ports,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(pid, %error, "could not disable a pod's network ports for its checkpoint");
            open_ports(pid);
        }
    }
    if is_stopped && !is_hosts(pid) && sockets::of(pid).outside > 0 && !inside(pid, LOCK).await {
        tracing::warn!(pid, "could not lock the network of a pod: its connections with others end when it stops");
    }
    NetworkLock::Criu
}

/// Lets packets pass again, whatever blocked them.
pub async fn unlock(pid: i32) {
    open_ports(pid);
    if !is_hosts(pid) && !inside(pid, UNLOCK).await {
        tracing::error!(pid, "the network of a pod may still be locked");
    }
}

/// Lets packets pass through the ports again: all there is to undo for a pod that resumes as planned.
pub fn open_ports(pid: i32) {
    if let Err(error) = bridge::set_ports(pid, State::Forwarding) {
        tracing::error!(pid, %error, "the network of a pod may still be locked");
    }
}

/// Whether the network is the host's own, of a container made that way.
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
