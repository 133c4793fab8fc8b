//! Whether processes are still alive: a thousand at once, and never mistaken for another process that reuses the PID.
//!
//! The kernel provides a descriptor of a process (pidfd_open(2), Linux 5.3) that becomes readable when the process
//! exits, and one poll(2) checks them all at less than the cost of one `/proc` file each. Where there is no descriptor,
//! on older kernels or with too many open files, the start time of the PID is compared.

use std::{
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::process::Stat;
use crate::model::ids::ProcessId;

/// Poll interval for a process without a descriptor.
const LOOK: Duration = Duration::from_millis(5);

/// A process identified beyond its PID.
pub struct PidFd {
    pub id: ProcessId,
    descriptor: Option<OwnedFd>,
}

impl PidFd {
    /// The process that has the PID now; `None` if there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let descriptor = match open(pid) {
            Ok(descriptor) => Some(descriptor),
            Err(Errno::ESRCH | Errno::EINVAL) => return None,
            Err(_) => None,
        };
        let life = Self { id: Stat::read(pid)?.id, descriptor };
        // The start time is that of the descriptor's process unless that has exited in between.
        (!ended([&life])[0]).then_some(life)
    }

    /// Returns as soon as it has exited.
    pub async fn wait(&self) {
        let descriptor = self.descriptor.as_ref().map(AsFd::as_fd);
        // SAFETY: the descriptor stays open as long as it is borrowed, which is longer than it is watched.
        let watch = |descriptor| unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        let watched = descriptor.and_then(|descriptor| watch(descriptor).ok());
        match watched {
            Some(watched) => drop(watched.readable().await),
            None => {
                while !ended([self])[0] {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }
}

/// Which of them have exited, in their order. With a descriptor, this includes zombies.
pub fn ended<'a>(lives: impl IntoIterator<Item = &'a PidFd> + Clone) -> Vec<bool> {
    let descriptors = lives.clone().into_iter().filter_map(|life| life.descriptor.as_ref());
    let mut asked: Vec<PollFd> =
        descriptors.map(|descriptor| PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)).collect();
    let is_answered = poll(&mut asked, PollTimeout::ZERO).is_ok();
    let mut answers = asked.iter();
    let is_ended = |life: &PidFd| {
        let answer = life.descriptor.as_ref().and_then(|_| answers.next()).filter(|_| is_answered);
        match answer {
            Some(answer) => answer.any().unwrap_or(true),
            None => Stat::read(life.id.pid).is_none_or(|stat| stat.id != life.id),
        }
    };
    lives.into_iter().map(is_ended).collect()
}

fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and touches no memory.
    let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let descriptor = RawFd::try_from(descriptor).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created it for this caller, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Duplicates a descriptor of another process (pidfd_getfd(2), Linux 5.6).
pub fn descriptor(pid: i32, number: RawFd) -> Result<OwnedFd, Errno> {
    let process = open(pid)?;
    // SAFETY: the call takes three numbers and touches no memory.
    let copy = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
    let copy = RawFd::try_from(copy).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created it for this caller, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn exited_processes_are_recognized_with_and_without_descriptors() {
        let mut children: Vec<_> = (0..3).map(|_| Command::new("sleep").arg("600").spawn().unwrap()).collect();
        let pid = |child: &std::process::Child| i32::try_from(child.id()).unwrap();
        let mut lives: Vec<PidFd> = children.iter().map(|child| PidFd::of(pid(child)).unwrap()).collect();
        assert!(lives.iter().all(|life| life.descriptor.is_some()), "this kernel has pidfds");
        // Each once more, as on a kernel without pidfds.
        lives.extend(children.iter().map(|child| PidFd { descriptor: None, ..PidFd::of(pid(child)).unwrap() }));
        assert_eq!(ended(&lives), [false; 6]);
        children[1].kill().unwrap();
        children[1].wait().unwrap();
        assert_eq!(ended(&lives), [false, true, false, false, true, false]);
        assert!(PidFd::of(pid(&children[1])).is_none());
        // The same PID with another start time is another process.
        let id = ProcessId { started: lives[0].id.started + 1, ..lives[0].id };
        assert_eq!(ended(&[PidFd { id, descriptor: None }]), [true]);
        for mut child in children {
            let _ = child.kill();
            let _ = child.wait();
        }
        assert_eq!(ended(&lives), [true; 6]);
        assert!(ended(&[]).is_empty());
    }

    #[test]
    fn a_zombie_counts_as_exited() {
        let mut child = Command::new("true").spawn().unwrap();
        let life = PidFd::of(i32::try_from(child.id()).unwrap());
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        // `None` if it exited before we looked.
        while life.as_ref().is_some_and(|life| !ended([life])[0]) {
            assert!(std::time::Instant::now() < until, "still alive");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        child.wait().unwrap();
    }
}
