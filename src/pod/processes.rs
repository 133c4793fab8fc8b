//! Ending processes inside a pod, from the host.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    host::process::{self, Stat},
    model::ids::{ContainerId, ProcessId},
};

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);

/// Ends the session that the process leads: it and its descendants, except those with a session of their own. Only
/// processes of this container are signalled. SIGTERM at once, SIGKILL a second later, in the background.
pub fn end_session(leader: i32, container: &ContainerId) {
    if leader <= 0 {
        return;
    }
    let members = session_of(leader, container);
    signal(&members, Signal::SIGTERM);
    let container = container.clone();
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        // The earlier ones that still live, and those that they started meanwhile.
        let mut left: Vec<ProcessId> = members.into_iter().filter(is_alive).collect();
        left.extend(session_of(leader, &container));
        signal(&left, Signal::SIGKILL);
    });
}

pub(super) fn is_alive(id: &ProcessId) -> bool {
    Stat::read(id.pid).is_some_and(|stat| stat.id == *id)
}

pub(super) fn signal(processes: &[ProcessId], signal: Signal) {
    for process in processes {
        // One that has exited already needs no signal.
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

fn session_of(leader: i32, container: &ContainerId) -> Vec<ProcessId> {
    let members = process::list().into_iter().filter_map(Stat::read).filter(|stat| stat.session == leader);
    members.filter(|stat| process::container_of(stat.id.pid).as_ref() == Some(container)).map(|stat| stat.id).collect()
}
