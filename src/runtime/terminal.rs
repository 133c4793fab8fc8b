//! The terminal of a restored container.
//!
//! The shim wants the terminal's controlling side as soon as `create` has ended. The container's own terminal exists
//! only when CRIU has restored it, after `start`. So the shim gets a stand-in, and this process copies bytes between
//! the two, and the size of the window, as long as the container lives.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    cmsg_space, libc,
    pty::openpty,
    sys::{
        signal::{SigSet, Signal},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    },
};

/// Bytes per read.
const CHUNK: usize = 32 << 10;

/// The terminal that the shim gets.
pub struct StandIn {
    /// Where the shim waits for it.
    console: PathBuf,
    /// Where runc sends the container's own.
    pub socket: PathBuf,
    listener: UnixListener,
    controlling: Option<OwnedFd>,
    other: OwnedFd,
}

impl StandIn {
    pub fn open(console: &Path, directory: &Path) -> io::Result<Self> {
        let socket = directory.join("console.sock");
        let listener = UnixListener::bind(&socket)?;
        let pair = openpty(None, None)?;
        // Bytes pass as they are: the container's own terminal does the rest.
        let mut raw = tcgetattr(&pair.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw)?;
        Ok(Self { console: console.to_owned(), socket, listener, controlling: Some(pair.master), other: pair.slave })
    }

    /// Gives the shim its side, once.
    pub fn hand_over(&mut self) -> io::Result<()> {
        let Some(controlling) = self.controlling.take() else { return Ok(()) };
        let shim = UnixStream::connect(&self.console)?;
        let name = [IoSlice::new(b"/dev/ptmx")];
        let rights = [controlling.as_raw_fd()];
        sendmsg::<()>(shim.as_raw_fd(), &name, &[ControlMessage::ScmRights(&rights)], MsgFlags::empty(), None)?;
        Ok(())
    }

    /// Takes the container's own terminal, which runc has sent by now.
    pub fn relay(self) -> io::Result<Relay> {
        self.listener.set_nonblocking(true)?;
        let (runc, _) = self.listener.accept()?;
        let mut name = [0; 4096];
        let mut room = cmsg_space!([std::os::fd::RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut name)];
        let message = recvmsg::<()>(runc.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let sent = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let number = sent.ok_or_else(|| io::Error::other("runc has sent no terminal"))?;
        // SAFETY: the kernel has just made this descriptor for us.
        let terminal = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Relay { shim: self.other.into(), container: terminal.into() })
    }
}

/// Both terminals: the side of the stand-in that the shim does not have, and the controlling side of the container's.
pub struct Relay {
    shim: File,
    container: File,
}

impl Relay {
    /// Runs until the container's terminal ends.
    pub fn run(self) {
        // Blocked in all threads: the one below waits for it.
        let mut resized = SigSet::empty();
        resized.add(Signal::SIGWINCH);
        let _ = resized.thread_block();
        // The kernel tells the size of the controlling terminal alone.
        // SAFETY: the call takes two numbers.
        unsafe { libc::ioctl(self.shim.as_raw_fd(), libc::TIOCSCTTY, 0) };
        let (Ok(mut shim), Ok(mut container)) = (self.shim.try_clone(), self.container.try_clone()) else { return };
        let (shim_size, container_size) = (self.shim.as_raw_fd(), self.container.as_raw_fd());
        thread::spawn(move || {
            while resized.wait().is_ok() {
                copy_size(shim_size, container_size);
            }
        });
        thread::spawn(move || copy(&mut shim, &mut container));
        copy(&mut &self.container, &mut &self.shim);
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // EIO: nobody has the other side any more.
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.write_all(&chunk[..read]).is_err() {
                    return;
                }
            }
        }
    }
}

fn copy_size(from: i32, to: i32) {
    // SAFETY: the kernel fills the structure, which outlives both calls.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(from, libc::TIOCGWINSZ, &mut size) == 0 {
            libc::ioctl(to, libc::TIOCSWINSZ, &size);
        }
    }
}
