//! Safe wrappers of C library calls. Declared by hand, because this program uses nothing but std; the layouts are those
//! of glibc on 64-bit Linux, x86-64 and arm64.

use std::{
    ffi::{CString, c_char, c_int, c_ulong, c_void},
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

pub const SIGHUP: i32 = 1;
pub const SIGKILL: i32 = 9;
pub const SIGPIPE: i32 = 13;
pub const SIGCHLD: i32 = 17;
pub const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
/// The kernel's; the C library keeps the first two (32 and 33) for itself.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;
/// Raised by faults of the process itself: PID 1 must die of them.
const FAULTS: [i32; 6] = [4, 5, 6, 7, 8, 11];

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const POLLERR: i16 = 8;
pub const POLLHUP: i16 = 16;

pub const EAGAIN: i32 = 11;
pub const EIO: i32 = 5;
pub const ENOENT: i32 = 2;
pub const EEXIST: i32 = 17;
pub const EINVAL: i32 = 22;

const O_RDWR: c_int = 2;
const O_NOCTTY: c_int = 0o400;
const O_NONBLOCK: c_int = 0o4000;
const O_CLOEXEC: c_int = 0o2_000_000;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSPGRP: c_ulong = 0x5410;
const TIOCSWINSZ: c_ulong = 0x5414;
const TIOCGPTN: c_ulong = 0x8004_5430;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const SIG_SETMASK: c_int = 2;
const SIG_DFL: usize = 0;
const WNOHANG: c_int = 1;
const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
const SCM_RIGHTS: c_int = 1;
const MSG_DONTWAIT: c_int = 0x40;
const MSG_WAITALL: c_int = 0x100;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const MFD_CLOEXEC: c_int = 1;
const X_OK: c_int = 1;

/// `sigset_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SignalSet([u64; 16]);

static NO_SIGNALS: SignalSet = SignalSet([0; 16]);
static ALL_SIGNALS: SignalSet = SignalSet([u64::MAX; 16]);

#[repr(C)]
struct SignalAction {
    handler: usize,
    mask: SignalSet,
    flags: c_int,
    restorer: usize,
}

#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PollFd {
    pub fd: RawFd,
    pub events: i16,
    pub revents: i16,
}

/// `struct winsize`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WinSize {
    pub rows: u16,
    pub cols: u16,
    pixels: [u16; 2],
}

/// `struct ucred`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer {
    /// 0 if the peer is in a PID namespace that is not visible from here.
    pub pid: i32,
    pub uid: u32,
    gid: u32,
}

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct MessageHeader {
    name: *mut c_void,
    name_len: u32,
    iov: *mut IoVec,
    iov_len: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

/// One control message with up to two file descriptors.
#[repr(C)]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [RawFd; 2],
}

/// Bytes of a control message before its data.
const RIGHTS_HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();

unsafe extern "C" {
    fn fork() -> c_int;
    fn setsid() -> c_int;
    fn setpgid(pid: c_int, group: c_int) -> c_int;
    fn getuid() -> u32;
    fn getpid() -> c_int;
    fn dup2(old: c_int, new: c_int) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn chdir(path: *const c_char) -> c_int;
    fn access(path: *const c_char, mode: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize;
    fn write(fd: c_int, buffer: *const c_void, len: usize) -> isize;
    fn _exit(code: c_int) -> !;
    fn sigaction(signal: c_int, new: *const SignalAction, old: *mut SignalAction) -> c_int;
    fn sigprocmask(how: c_int, new: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn ppoll(fds: *mut PollFd, count: c_ulong, timeout: *const TimeSpec, mask: *const SignalSet) -> c_int;
    fn sendmsg(fd: c_int, message: *const MessageHeader, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut u32) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    static environ: *const *const c_char;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl WinSize {
    pub fn new(rows: u16, cols: u16) -> Self {
        Self { rows, cols, pixels: [0; 2] }
    }
}

/// Logs a line to the standard error.
pub fn log(text: &str) {
    write_all(2, format!("pody-init: {text}\n").as_bytes());
}

/// Writes all bytes, waiting where needed; `false` if that failed.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match write_some(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.raw_os_error() == Some(EAGAIN) => {
                let _ = poll(&mut [PollFd { fd, events: POLLOUT, revents: 0 }], None);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

pub fn write_some(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is readable for its length.
    let count = unsafe { write(fd, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

pub fn read_some(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is writable for its length.
    let count = unsafe { read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

pub fn is_first_process() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { getpid() == 1 }
}

pub fn user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { getuid() }
}

// ---------------------------------------------------------------- processes

/// Which side of a fork this is.
pub enum Forked {
    Child,
    Parent(i32),
}

/// Only called while the process has one thread.
pub fn fork_process() -> io::Result<Forked> {
    // SAFETY: with one thread the child may do whatever the parent may.
    Ok(match checked(unsafe { fork() })? {
        0 => Forked::Child,
        pid => Forked::Parent(pid),
    })
}

/// Exits at once, without the flushes and handlers of `exit`.
pub fn leave(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { _exit(code) }
}

pub fn new_session() {
    // SAFETY: no arguments; it fails only for a process group leader.
    unsafe { setsid() };
}

pub fn change_directory(path: &CString) -> bool {
    // SAFETY: a NUL-terminated string.
    unsafe { chdir(path.as_ptr()) == 0 }
}

pub fn may_run(path: &CString) -> io::Result<()> {
    // SAFETY: a NUL-terminated string.
    checked(unsafe { access(path.as_ptr(), X_OK) }).map(drop)
}

pub fn send_signal(pid: i32, signal: i32) {
    // SAFETY: numbers only; a process that is gone needs no signal.
    unsafe { kill(pid, signal) };
}

/// A child that has ended, with its exit code in the shells' convention.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let pid = unsafe { waitpid(-1, &raw mut status, WNOHANG) };
    let signal = status & 0x7f;
    (pid > 0).then(|| (pid, if signal == 0 { (status >> 8) & 0xff } else { 128 + signal }))
}

/// Replaces this process with the program, searched in `PATH`; returns only if that fails. `None` keeps our
/// environment.
pub fn exec(command: &[CString], environment: Option<&[CString]>) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let arguments = pointers(command);
    let given = environment.map(pointers);
    // SAFETY: null-terminated lists of strings, as the call requires; `environ` is one, too.
    unsafe {
        let environment = given.as_ref().map_or(environ, |list| list.as_ptr());
        execvpe(arguments[0], arguments.as_ptr(), environment);
    }
    io::Error::last_os_error()
}

// ---------------------------------------------------------------- signals

/// Signals that arrived and were not taken yet, one bit each.
static PENDING: AtomicU64 = AtomicU64::new(0);

extern "C" fn mark_pending(signal: c_int) {
    PENDING.fetch_or(1 << (signal - 1), Ordering::SeqCst);
}

fn set_handler(signal: i32, handler: usize) {
    let action = SignalAction { handler, mask: ALL_SIGNALS, flags: 0, restorer: 0 };
    // SAFETY: the handler only sets a bit; signals that cannot be handled are refused.
    unsafe { sigaction(signal, &raw const action, ptr::null_mut()) };
}

fn set_mask(mask: &SignalSet) {
    // SAFETY: a readable set.
    unsafe { sigprocmask(SIG_SETMASK, mask, ptr::null_mut()) };
}

/// From here on signals arrive only during [`wait`], and [`take_signals`] returns them.
pub fn catch_signals() {
    set_mask(&ALL_SIGNALS);
    let ordinary = (1..32).filter(|signal| ![SIGKILL, SIGSTOP, SIGPIPE].contains(signal) && !FAULTS.contains(signal));
    for signal in ordinary.chain(SIGRTMIN..=SIGRTMAX) {
        set_handler(signal, mark_pending as *const () as usize);
    }
}

/// Restores the signal state that a new program expects.
pub fn reset_signals() {
    for signal in (1..32).chain(SIGRTMIN..=SIGRTMAX) {
        set_handler(signal, SIG_DFL);
    }
    set_mask(&NO_SIGNALS);
}

pub fn take_signals() -> impl Iterator<Item = i32> {
    let pending = PENDING.swap(0, Ordering::SeqCst);
    (1..=SIGRTMAX).filter(move |signal| pending & (1 << (signal - 1)) != 0)
}

/// Waits for a file, a signal or the timeout.
pub fn wait(files: &mut [PollFd], timeout: Option<Duration>) {
    let _ = poll_with(files, timeout, &raw const NO_SIGNALS);
}

/// [`wait`] with the current signal mask.
pub fn poll(files: &mut [PollFd], timeout: Option<Duration>) -> io::Result<c_int> {
    poll_with(files, timeout, ptr::null())
}

fn poll_with(files: &mut [PollFd], timeout: Option<Duration>, mask: *const SignalSet) -> io::Result<c_int> {
    let timeout = timeout.map(|time| TimeSpec {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: i64::from(time.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), |time| &raw const *time);
    // SAFETY: the list is writable for its length, the rest is readable or null.
    checked(unsafe { ppoll(files.as_mut_ptr(), files.len() as c_ulong, timeout, mask) })
}

// ---------------------------------------------------------------- terminals

/// Puts this process, in a group of its own, into the foreground of its terminal.
pub fn take_foreground(fd: RawFd) {
    // SAFETY: numbers, and a pointer to one; without a terminal the ioctl fails.
    unsafe {
        setpgid(0, 0);
        let group = getpid();
        ioctl(fd, TIOCSPGRP, &raw const group);
    }
}

/// Makes it the controlling terminal of the session that this process leads.
pub fn take_terminal(fd: RawFd) {
    // SAFETY: a number; a terminal of another session is not taken.
    unsafe { ioctl(fd, TIOCSCTTY, 0 as c_int) };
}

pub fn resize(fd: RawFd, size: WinSize) {
    // SAFETY: a readable `struct winsize`.
    unsafe { ioctl(fd, TIOCSWINSZ, &raw const size) };
}

/// Opens a new pseudoterminal: the master, which never blocks, and the slave.
pub fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let own = |path: &str, flags: c_int| -> io::Result<OwnedFd> {
        let path = CString::new(path)?;
        // SAFETY: a NUL-terminated string; nobody else owns the descriptor.
        checked(unsafe { open(path.as_ptr(), flags | O_CLOEXEC | O_NOCTTY) })
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let master = own("/dev/ptmx", O_RDWR | O_NONBLOCK)?;
    let (mut number, unlocked): (c_int, c_int) = (0, 0);
    // SAFETY: both calls take a pointer to a number.
    checked(unsafe { ioctl(master.as_raw_fd(), TIOCSPTLCK, &raw const unlocked) })?;
    checked(unsafe { ioctl(master.as_raw_fd(), TIOCGPTN, &raw mut number) })?;
    let slave = own(&format!("/dev/pts/{number}"), O_RDWR)?;
    Ok((master, slave))
}

/// Makes it the standard input, output and error.
pub fn become_standard(fd: RawFd) {
    for standard in 0..3 {
        // SAFETY: numbers only. The copies are not closed on exec.
        unsafe { dup2(fd, standard) };
    }
}

// ---------------------------------------------------------------- sockets and files

/// The process at the other end of a unix socket.
pub fn peer(fd: RawFd) -> Option<Peer> {
    let mut peer = Peer::default();
    let mut len = u32::try_from(size_of::<Peer>()).ok()?;
    // SAFETY: writable for the given length.
    let got = unsafe { getsockopt(fd, SOL_SOCKET, SO_PEERCRED, (&raw mut peer).cast(), &raw mut len) };
    (got == 0).then_some(peer)
}

/// A memfd with these bytes, to be read from its beginning.
pub fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated string; nobody else owns the descriptor.
    let file = checked(unsafe { memfd_create(c"pody-init".as_ptr(), MFD_CLOEXEC) })?;
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(file) });
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
    Ok(file.into())
}

/// Sends bytes with up to two files, at once or not at all.
pub fn send_files(socket: RawFd, bytes: &[u8], files: &[RawFd]) -> io::Result<()> {
    let mut rights = Rights { len: 0, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [-1; 2] };
    for (slot, fd) in rights.fds.iter_mut().zip(files) {
        *slot = *fd;
    }
    rights.len = RIGHTS_HEADER + size_of_val(files);
    let mut iov = IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() };
    let mut message = header(&mut iov);
    if !files.is_empty() {
        message.control = (&raw mut rights).cast();
        message.control_len = size_of::<Rights>().min(RIGHTS_HEADER + size_of_val(files).next_multiple_of(8));
    }
    // SAFETY: all pointers in the header point to locals that outlive the call.
    let sent = unsafe { sendmsg(socket, &raw const message, MSG_DONTWAIT | MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(EIO)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Fills the buffer, and returns the files that came with the bytes. `None` at the end.
pub fn receive_files(socket: RawFd, bytes: &mut [u8]) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; 2] };
    let mut iov = IoVec { base: bytes.as_mut_ptr().cast(), len: bytes.len() };
    let mut message = header(&mut iov);
    message.control = (&raw mut rights).cast();
    message.control_len = size_of::<Rights>();
    // SAFETY: all pointers in the header point to locals that outlive the call.
    let count = unsafe { recvmsg(socket, &raw mut message, MSG_WAITALL | MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut files = Vec::new();
    if message.control_len >= RIGHTS_HEADER && rights.level == SOL_SOCKET && rights.kind == SCM_RIGHTS {
        let number = rights.len.saturating_sub(RIGHTS_HEADER) / size_of::<RawFd>();
        for fd in rights.fds.into_iter().take(number) {
            // SAFETY: the kernel just installed it; nobody else owns it.
            files.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok((count == bytes.len()).then_some(files))
}

fn header(iov: &mut IoVec) -> MessageHeader {
    MessageHeader {
        name: ptr::null_mut(),
        name_len: 0,
        iov,
        iov_len: 1,
        control: ptr::null_mut(),
        control_len: 0,
        flags: 0,
    }
}

// ---------------------------------------------------------------- seccomp

/// One instruction of a filter (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

#[repr(C)]
struct Program {
    len: u16,
    filter: *const Instruction,
}

/// Whether this process and its children can no longer gain privileges.
pub fn has_no_new_privileges() -> bool {
    const PR_GET_NO_NEW_PRIVS: c_int = 39;
    // SAFETY: numbers only.
    unsafe { prctl(PR_GET_NO_NEW_PRIVS, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) == 1 }
}

/// Installs a filter for every system call of this process and its children. It cannot be removed.
pub fn filter_calls(filter: &[Instruction]) -> io::Result<()> {
    const PR_SET_SECCOMP: c_int = 22;
    const SECCOMP_MODE_FILTER: c_ulong = 2;
    let program = Program { len: u16::try_from(filter.len()).unwrap_or(0), filter: filter.as_ptr() };
    // SAFETY: a readable program of that length.
    checked(unsafe { prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program) }).map(drop)
}
