//! A session: a command on a terminal that PID 1 holds.
//!
//! The attached client reads and writes the terminal directly; PID 1 only waits for it to leave. While no client is
//! attached, PID 1 reads the terminal, so that the command is never blocked, and keeps the end of the output.
//!
//! ```text
//!           client leaves                                  killed, reaped
//! attached ───────────────────► hung up ─────────────────────────────────────► gone
//!    │  ▲                                                                       ▲
//!    │  └───── resumed ──────┐             the command ended                    │ resumed,
//!    └─► detaching ───────► detached ────────────────────────────► ended ───────┘ or too many
//! ```

use std::{
    collections::VecDeque,
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    sys::{self, Forked},
    wire::{self, Reply, Start},
};

/// Bytes of output kept while no client is attached.
const HISTORY: usize = 256 << 10;
/// Between SIGHUP and SIGKILL after the client has left.
const GRACE: Duration = Duration::from_secs(1);
/// How long a client may take to print what it has read after it was asked to detach.
const DETACH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a client may take to print the rest of the output after the command has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Session {
    pub id: String,
    /// Its command, as JSON.
    shown: String,
    /// Unix seconds.
    started: u64,
    pub leader: i32,
    /// Open as long as there may be something to read.
    master: Option<OwnedFd>,
    client: Option<UnixStream>,
    /// It outlives every client.
    in_background: bool,
    /// It outlives the current client.
    outlives_client: bool,
    /// When a client that is to leave is dropped.
    leave_deadline: Option<Instant>,
    history: VecDeque<u8>,
    /// How the command ended.
    pub code: Option<i32>,
    /// Whether a client got the exit code, or none will.
    is_reported: bool,
    /// When its remaining processes are killed.
    kill_at: Option<Instant>,
}

impl Session {
    /// Starts the command.
    pub fn start(start: &Start) -> io::Result<Self> {
        let (master, slave) = sys::open_terminal()?;
        sys::resize(master.as_raw_fd(), start.size);
        let leader = match sys::fork_process()? {
            Forked::Parent(pid) => pid,
            Forked::Child => become_command(slave.as_raw_fd(), start),
        };
        Ok(Self {
            id: start.id.clone(),
            shown: wire::shown(&start.command),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            leader,
            master: Some(master),
            client: None,
            in_background: start.in_background,
            outlives_client: true,
            leave_deadline: None,
            history: VecDeque::new(),
            code: None,
            is_reported: false,
            kill_at: None,
        })
    }

    /// Passes the terminal to a client, with the output since the last one left. If the command has ended, passes its
    /// exit code.
    pub fn attach(&mut self, client: UnixStream, size: sys::WinSize) {
        if let Some(previous) = self.client.take() {
            let _ = sys::send_files(previous.as_raw_fd(), &Reply::Detach.encode(), &[]);
        }
        self.leave_deadline = None;
        if self.code.is_some() {
            self.read_terminal();
        }
        let (front, back) = self.history.as_slices();
        let Ok(history) = sys::memory_file(&[front, back].concat()) else { return };
        let sent = match (self.code, &self.master) {
            (Some(code), _) => {
                self.is_reported = true;
                sys::send_files(client.as_raw_fd(), &Reply::Ended(code).encode(), &[history.as_raw_fd()])
            }
            (None, Some(master)) => {
                sys::resize(master.as_raw_fd(), size);
                let files = [master.as_raw_fd(), history.as_raw_fd()];
                self.client = Some(client);
                self.outlives_client = self.in_background;
                let socket = self.client.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                sys::send_files(socket, &Reply::Started.encode(), &files)
            }
            // Every program has closed its side, and the command continues without a terminal.
            (None, None) => sys::send_files(client.as_raw_fd(), &Reply::Failed(sys::EIO).encode(), &[]),
        };
        if sent.is_ok() {
            self.history.clear();
        } else {
            self.client = None;
            self.is_reported = false;
        }
    }

    /// Asks the client to leave; the session continues without it.
    pub fn detach(&mut self) {
        if let Some(client) = &self.client {
            self.outlives_client = true;
            self.leave_deadline = Some(Instant::now() + DETACH_TIMEOUT);
            let _ = sys::send_files(client.as_raw_fd(), &Reply::Detach.encode(), &[]);
        }
    }

    /// The command has ended.
    pub fn end(&mut self, code: i32) {
        self.code = Some(code);
        // A client that was asked to leave no longer listens: the exit code is kept for the next one.
        if self.leave_deadline.is_none()
            && let Some(client) = &self.client
        {
            self.is_reported = sys::send_files(client.as_raw_fd(), &Reply::Ended(code).encode(), &[]).is_ok();
            // The client reads the last output; PID 1 reads what is left after that.
            self.leave_deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        }
    }

    /// The file to poll: the client's socket, or the terminal.
    pub fn watched(&self) -> Option<RawFd> {
        match &self.client {
            Some(client) => Some(client.as_raw_fd()),
            None => self.master.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// That file is ready.
    pub fn ready(&mut self) {
        if self.client.is_none() {
            self.read_terminal();
            return;
        }
        // A client sends nothing once attached: its socket was closed.
        self.client = None;
        self.leave_deadline = None;
        // What a command leaves running when it ends by itself is left alone.
        if !self.outlives_client && !self.is_reported {
            self.hang_up();
        }
    }

    fn read_terminal(&mut self) {
        let mut buffer = [0; 4096];
        // Bounded, so that other sessions get their turn.
        for _ in 0..64 {
            let Some(master) = &self.master else { return };
            match sys::read_some(master.as_raw_fd(), &mut buffer) {
                Ok(count @ 1..) if !self.is_reported => {
                    self.history.extend(&buffer[..count]);
                    let surplus = self.history.len().saturating_sub(HISTORY);
                    self.history.drain(..surplus);
                }
                Ok(1..) => {}
                Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => return,
                // Every program has closed its side.
                Ok(_) | Err(_) => self.master = None,
            }
        }
    }

    /// The client has left: every process of the session ends.
    fn hang_up(&mut self) {
        self.master = None;
        for pid in self.members() {
            sys::send_signal(pid, sys::SIGHUP);
            sys::send_signal(pid, sys::SIGCONT);
        }
        self.kill_at = Some(Instant::now() + GRACE);
    }

    /// Runs what is due; returns when the next is.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        if self.leave_deadline.is_some_and(|at| at <= now) {
            self.client = None;
            self.leave_deadline = None;
        }
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            for pid in self.members() {
                sys::send_signal(pid, sys::SIGKILL);
            }
            self.is_reported = true;
        }
        [self.leave_deadline, self.kill_at].into_iter().flatten().min()
    }

    /// Nothing is left to do or to report.
    pub fn is_gone(&self) -> bool {
        self.code.is_some()
            && self.is_reported
            && self.client.is_none()
            && self.master.is_none()
            && self.kill_at.is_none()
    }

    /// The command ended while detached, and no client has fetched its exit code.
    pub fn is_unclaimed(&self) -> bool {
        self.code.is_some() && !self.is_reported
    }

    /// As a JSON object; `None` if it cannot be resumed.
    pub fn describe(&self) -> Option<String> {
        if self.is_reported || self.kill_at.is_some() {
            return None;
        }
        let code = self.code.map_or_else(|| "null".to_owned(), |code| code.to_string());
        Some(format!(
            "{{\"session\":{},\"command\":{},\"started\":{},\"attached\":{},\"exit_code\":{code}}}",
            wire::json_text(&self.id),
            self.shown,
            self.started,
            self.client.is_some()
        ))
    }

    /// Whether a client can attach to it again.
    pub fn can_be_resumed(&self) -> bool {
        !self.is_reported && self.kill_at.is_none()
    }

    /// Processes of the session, from /proc.
    fn members(&self) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| session_of(*pid) == Some(self.leader)).collect()
    }
}

/// Field 6 of `/proc/PID/stat`. The name before it may hold anything but ends with the last parenthesis.
fn session_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(3)?.parse().ok()
}

/// In the child: a session and a terminal of its own, then the command.
fn become_command(terminal: RawFd, start: &Start) -> ! {
    sys::new_session();
    sys::take_terminal(terminal);
    sys::become_standard(terminal);
    sys::reset_signals();
    if !sys::change_directory(&start.directory) {
        let _ = sys::change_directory(&CString::from(c"/"));
    }
    sys::leave(crate::exec(&start.command, Some(&start.environment)))
}
