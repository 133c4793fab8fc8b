//! Whether a container's processes may open a device of the host.
//!
//! This depends on the device rules of their cgroup (a list on version 1, a BPF program on version 2), which only the
//! kernel can evaluate. So a process of our own enters that cgroup for a moment and opens the container's node. It is
//! this program again, since a daemon cannot move a single thread into a cgroup.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    libc,
};

use super::{cgroup, process};
use crate::model::ids::ContainerId;

/// The hidden command that runs this program as that process.
pub const COMMAND: &str = "probe-device";

/// How long it may take: a hung driver would block it forever.
const DEADLINE: Duration = Duration::from_secs(3);

/// The result of opening the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Open,
    /// The cgroup's rules forbid it.
    Denied,
    /// The container has no such node.
    Missing,
    /// The device cannot be opened on the host either, the container has exited meanwhile, or similar.
    Untold,
}

impl Access {
    const ALL: [Self; 4] = [Self::Open, Self::Denied, Self::Missing, Self::Untold];

    /// The exit code of that process. Not 0 or 1, which other programs and crashes use.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Open => 10,
            Self::Denied => 11,
            Self::Missing => 12,
            Self::Untold => 13,
        }
    }
}

/// Has another process try it.
pub async fn ask(container: &ContainerId, pid: i32, device: &Path) -> Access {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg(COMMAND).arg(container.as_str()).arg(pid.to_string()).arg(device);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let status = tokio::time::timeout(DEADLINE, command.status()).await;
    let code = status.ok().and_then(Result::ok).and_then(|status| status.code());
    let told = Access::ALL.into_iter().find(|access| Some(i32::from(access.exit_code())) == code);
    told.unwrap_or(Access::Untold)
}

/// Tries it, in a process that exits afterwards, since it stays in the container's cgroup. `pid` is any process of the
/// container.
pub fn look(container: &ContainerId, pid: i32, device: &Path) -> Access {
    let Some(inside) = Inside::open(container, pid) else { return Access::Untold };
    let Ok(on_host) = fs::metadata(device) else { return Access::Untold };
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    if !on_host.file_type().is_char_device() || options.open(device).is_err() {
        return Access::Untold;
    }
    match inside.node(device) {
        Ok(Some(number)) if number == on_host.rdev() => {}
        // Another device, or none at all.
        Ok(_) => return Access::Missing,
        Err(_) => return Access::Untold,
    }
    // 0 is the writer itself.
    if (&inside.members).write_all(b"0").is_err() {
        return Access::Untold;
    }
    match inside.open_file(device, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
        Ok(_) => Access::Open,
        Err(Errno::EPERM | Errno::EACCES) => Access::Denied,
        Err(Errno::ENOENT) => Access::Missing,
        Err(_) => Access::Untold,
    }
}

/// A container seen from outside.
struct Inside {
    root: File,
    /// The list of the processes in its cgroup.
    members: File,
}

impl Inside {
    fn open(container: &ContainerId, pid: i32) -> Option<Self> {
        let is_inside = || process::container_of(pid).as_ref() == Some(container);
        let group = cgroup::of_devices(pid).filter(|_| is_inside())?;
        let members = File::options().write(true).open(group.join("cgroup.procs")).ok()?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let root = File::options().read(true).custom_flags(flags).open(format!("/proc/{pid}/root")).ok()?;
        // Checked again: this proves that the root is that of the same process.
        is_inside().then_some(Self { root, members })
    }

    /// Opens what the container's processes see under this path: links cannot lead out of the container.
    fn open_file(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        openat2(self.root.as_fd(), path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
    }

    /// The number of the device there; `None` if there is none.
    fn node(&self, path: &Path) -> nix::Result<Option<u64>> {
        // By path only: anything else that the container put there is not opened.
        match self.open_file(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(node) => {
                let node = File::from(node).metadata().map_err(|_| Errno::EIO)?;
                Ok(node.file_type().is_char_device().then(|| node.rdev()))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
