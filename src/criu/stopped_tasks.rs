//! Programs that wait where CRIU cannot attach to them: those in vfork(2), and those that were stopped by a signal,
//! e.g. a job under Ctrl-Z, a program in a debugger, `kill -STOP`.
//!
//! Cgroups version 1 on newer kernels freeze such a process in a way that nobody can attach to it (the kernel waits for
//! it to leave its stop, which it cannot before it is thawed), so CRIU would hang until its deadline. But a process
//! that got SIGCONT while it is frozen can be attached to, and does not run; it gets SIGSTOP again before it is thawed.
//! In CRIU's images it is marked as stopped, as CRIU itself would have done, so it is restored as it was.
//!
//! A killed CRIU leaves each program in CRIU's own code, which returns to the program as soon as it runs. A program
//! that was stopped there would stay there, with CRIU's log open, and could not be saved any more.
//!
//! Version 2 does not need this, and nothing is found there: frozen processes keep the state that is read here.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::image::field;
use crate::{
    criu::kill,
    host::process::{self, Stat},
    model::ids::{ContainerId, ProcessId},
};

/// The kernel function in which a stopped process waits (kernel/signal.c).
const STOP: &str = "do_signal_stop";

const VFORK: &str = "kernel_clone";

/// How long a program may take to leave CRIU's code, on a busy host.
const WAY_OUT: Duration = Duration::from_secs(2);

const LOOK: Duration = Duration::from_millis(1);

/// An image begins with two magic numbers and the length of its entry, bytes.
const HEADER: usize = 12;

/// images/core.proto: the part of an entry that is about the process and not a thread, and in it the state.
const TASK: u64 = 3;

const STATE: u64 = 1;

/// The values of that state (compel/include/uapi/task-state.h).
const ALIVE: u8 = 1;

const STOPPED: u8 = 3;

/// The processes of a frozen container that CRIU could not attach to.
pub fn find(container: &ContainerId) -> Vec<ProcessId> {
    let is_stuck = |pid: &i32| {
        let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        place.trim() == STOP && process::state(*pid) != Some('T')
    };
    let stuck = kill::members(container).into_iter().filter(is_stuck);
    stuck.filter_map(|pid| Stat::read(pid).map(|stat| stat.id)).collect()
}

/// A program of a frozen container in vfork(2): it waits for its child to execute another program, and cannot be
/// attached to before. The kernel names the place kernel_clone (kernel/fork.c).
pub fn in_vfork(container: &ContainerId) -> Option<String> {
    let waits = |thread: &Path| fs::read_to_string(thread.join("wchan")).is_ok_and(|place| place.trim() == VFORK);
    let is_in_it = |&pid: &i32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads.into_iter().any(|thread| waits(&thread.path()))
    };
    let pid = kill::members(container).into_iter().find(is_in_it)?;
    let name = process::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{}[{}]", name.trim().escape_debug(), process::pid_inside(pid).unwrap_or(pid)))
}

/// Makes them ready to be saved. They do not run: they are frozen.
pub fn send_sigcont(processes: &[ProcessId]) {
    signal(processes, Signal::SIGCONT);
}

/// Stops them again, as soon as they are thawed.
pub fn stop_again(processes: &[ProcessId]) {
    signal(processes, Signal::SIGSTOP);
}

/// Splits them into those in CRIU's code and the others: CRIU's log is in this directory.
pub fn by_place(processes: &[ProcessId], directory: &Path) -> (Vec<ProcessId>, Vec<ProcessId>) {
    processes.iter().partition(|process| process::has_open_below(process.pid, directory))
}

/// Stops thawed processes as soon as they are out of CRIU's code.
pub async fn stop_when_out(mut inside: Vec<ProcessId>, directory: &Path) {
    let begun = Instant::now();
    while !inside.is_empty() && begun.elapsed() < WAY_OUT {
        tokio::time::sleep(LOOK).await;
        let (still_inside, out) = by_place(&inside, directory);
        stop_again(&out);
        inside = still_inside;
    }
    stop_again(&inside);
}

fn signal(processes: &[ProcessId], signal: Signal) {
    for process in processes {
        // Another process may have got the PID.
        if Stat::read(process.pid).is_some_and(|stat| stat.id == *process) {
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
    }
}

/// Marks them as stopped in the images. A process without an image is not saved.
pub fn note(processes: &[ProcessId], images: &Path) -> io::Result<()> {
    for process in processes {
        let Some(inside) = process::pid_inside(process.pid) else { continue };
        let path = images.join(format!("core-{inside}.img"));
        let mut image = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let unknown = || io::Error::other(format!("{} is not as CRIU writes it", path.display()));
        let at = state_in(&image).ok_or_else(unknown)?;
        // One that has ended meanwhile stays ended.
        if image[at] == ALIVE {
            image[at] = STOPPED;
            fs::write(&path, image)?;
        }
    }
    Ok(())
}

/// The offset of the state in an image of a process: one byte.
fn state_in(image: &[u8]) -> Option<usize> {
    let task = field(image, HEADER, image.len(), TASK)?;
    let state = field(image, task.0, task.1, STATE)?;
    (state.1 - state.0 == 1).then_some(state.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Machine, registers of 3 bytes, and the process: state, exit code, personality.
    const IMAGE: [u8; 26] = [
        0x19, 0x43, 0x56, 0x54, 0x47, 0x38, 0x05, 0x55, 14, 0, 0, 0, 0x08, 0x01, 0x12, 0x03, 0xff, 0xff, 0xff, 0x1a,
        0x05, 0x08, 0x01, 0x10, 0x00, 0x18,
    ];

    #[test]
    fn the_state_is_found_and_nothing_else_is_touched() {
        assert_eq!(state_in(&IMAGE), Some(22));
        assert_eq!(IMAGE[22], ALIVE);
    }

    #[test]
    fn a_cut_image_has_none() {
        for length in 0..IMAGE.len() {
            assert_eq!(state_in(&IMAGE[..length]), None, "{length}");
        }
    }
}
