//! A session: a command on a terminal that PID 1 holds.
//!
//! Who is attached reads and writes the terminal directly; PID 1 only waits for their leaving. While nobody is attached PID 1
//! reads it, so that the command is never held up, and keeps the end of what was shown.
//!
//! ```text
//!              their leaving                               killed, reaped
//! attached ───────────────────► hung up ─────────────────────────────────────► gone
//!    │  ▲                                                                       ▲
//!    │  └───── resumed ─────┐              the command ended                    │ resumed,
//!    └─► let go ───────────► left ───────────────────────────────► ended ───────┘ or too many
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
    wire::{self, Begin, Reply},
};

/// Bytes kept of what a session shows while nobody is attached.
const HISTORY: usize = 256 << 10;
/// Between SIGHUP and SIGKILL for those who were left by their user.
const GRACE: Duration = Duration::from_secs(1);
/// Whoever was told to go may take this long to show what they have read.
const LEAVE: Duration = Duration::from_millis(500);
/// Whoever was told of the end may take this long to show what is left.
const LAST_WORDS: Duration = Duration::from_secs(10);

pub struct Session {
    pub id: String,
    /// Its command, as JSON.
    shown: String,
    /// Unix seconds.
    started: u64,
    pub leader: i32,
    /// Open as long as there may be something to read from it.
    master: Option<OwnedFd>,
    client: Option<UnixStream>,
    /// It outlives whoever attaches.
    in_background: bool,
    /// It outlives who is attached now.
    kept: bool,
    /// When who is attached was told to go.
    leaving: Option<Instant>,
    history: VecDeque<u8>,
    /// How the command ended.
    pub code: Option<i32>,
    /// Somebody was told that.
    told: bool,
    /// When what is left of it is killed.
    doom: Option<Instant>,
}

impl Session {
    /// Starts the command.
    pub fn begin(begin: &Begin) -> io::Result<Self> {
        let (master, slave) = sys::open_terminal()?;
        sys::resize(master.as_raw_fd(), begin.size);
        let leader = match sys::fork_process()? {
            Forked::Parent(pid) => pid,
            Forked::Child => become_command(slave.as_raw_fd(), begin),
        };
        Ok(Self {
            id: begin.id.clone(),
            shown: wire::shown(&begin.command),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            leader,
            master: Some(master),
            client: None,
            in_background: begin.in_background,
            kept: true,
            leaving: None,
            history: VecDeque::new(),
            code: None,
            told: false,
            doom: None,
        })
    }

    /// Hands the terminal over, with what was shown meanwhile; of one that has ended, how.
    pub fn attach(&mut self, client: UnixStream, size: sys::WinSize) {
        if let Some(previous) = self.client.take() {
            let _ = sys::send_files(previous.as_raw_fd(), &Reply::LetGo.encode(), &[]);
        }
        self.leaving = None;
        if self.code.is_some() {
            self.read_terminal();
        }
        let (front, back) = self.history.as_slices();
        let Ok(history) = sys::memory_file(&[front, back].concat()) else { return };
        let sent = match (self.code, &self.master) {
            (Some(code), _) => {
                self.told = true;
                sys::send_files(client.as_raw_fd(), &Reply::Ended(code).encode(), &[history.as_raw_fd()])
            }
            (None, Some(master)) => {
                sys::resize(master.as_raw_fd(), size);
                let files = [master.as_raw_fd(), history.as_raw_fd()];
                self.client = Some(client);
                self.kept = self.in_background;
                let socket = self.client.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                sys::send_files(socket, &Reply::Started.encode(), &files)
            }
            // Every program has closed its side, and the command goes on without a terminal.
            (None, None) => sys::send_files(client.as_raw_fd(), &Reply::Failed(sys::EIO).encode(), &[]),
        };
        if sent.is_ok() {
            self.history.clear();
        } else {
            self.client = None;
            self.told = false;
        }
    }

    /// The session goes on without who is attached.
    pub fn let_go(&mut self) {
        if let Some(client) = &self.client {
            self.kept = true;
            self.leaving = Some(Instant::now() + LEAVE);
            let _ = sys::send_files(client.as_raw_fd(), &Reply::LetGo.encode(), &[]);
        }
    }

    /// The command has ended.
    pub fn end(&mut self, code: i32) {
        self.code = Some(code);
        // Told to go already, they no longer listen: how it ended is kept for who comes back.
        if self.leaving.is_none()
            && let Some(client) = &self.client
        {
            self.told = sys::send_files(client.as_raw_fd(), &Reply::Ended(code).encode(), &[]).is_ok();
            // What was shown last is theirs to read; we read on when they have left.
            self.leaving = Some(Instant::now() + LAST_WORDS);
        }
    }

    /// What is waited for: who is attached, or the terminal.
    pub fn watched(&self) -> Option<RawFd> {
        match &self.client {
            Some(client) => Some(client.as_raw_fd()),
            None => self.master.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// What was waited for has happened.
    pub fn ready(&mut self) {
        if self.client.is_none() {
            self.read_terminal();
            return;
        }
        // Who is attached has nothing to say: this is their leaving.
        self.client = None;
        self.leaving = None;
        // What a command leaves behind when it ends by itself is left alone.
        if !self.kept && !self.told {
            self.hang_up();
        }
    }

    fn read_terminal(&mut self) {
        let mut buffer = [0; 4096];
        // Not for ever: others wait.
        for _ in 0..64 {
            let Some(master) = &self.master else { return };
            match sys::read_some(master.as_raw_fd(), &mut buffer) {
                Ok(count @ 1..) if !self.told => {
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

    /// Its user has left: all of it ends.
    fn hang_up(&mut self) {
        self.master = None;
        for pid in self.members() {
            sys::send_signal(pid, sys::SIGHUP);
            sys::send_signal(pid, sys::SIGCONT);
        }
        self.doom = Some(Instant::now() + GRACE);
    }

    /// Does what is due; says when the next is.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        if self.leaving.is_some_and(|at| at <= now) {
            self.client = None;
            self.leaving = None;
        }
        if self.doom.is_some_and(|at| at <= now) {
            self.doom = None;
            for pid in self.members() {
                sys::send_signal(pid, sys::SIGKILL);
            }
            self.told = true;
        }
        [self.leaving, self.doom].into_iter().flatten().min()
    }

    /// Nothing is left to be done with it or to be asked of it.
    pub fn is_gone(&self) -> bool {
        self.code.is_some() && self.told && self.client.is_none() && self.master.is_none() && self.doom.is_none()
    }

    /// The command ended with nobody there.
    pub fn is_waiting(&self) -> bool {
        self.code.is_some() && !self.told
    }

    /// As an object of JSON; `None` where there is nothing to come back to.
    pub fn describe(&self) -> Option<String> {
        if self.told || self.doom.is_some() {
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

    /// Whether somebody can come back to it.
    pub fn can_be_resumed(&self) -> bool {
        !self.told && self.doom.is_none()
    }

    /// Processes of the session, as /proc has them.
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

/// The child's side: a session and a terminal of its own, then the command.
fn become_command(terminal: RawFd, begin: &Begin) -> ! {
    sys::new_session();
    sys::take_terminal(terminal);
    sys::become_standard(terminal);
    sys::reset_signals();
    if !sys::change_folder(&begin.folder) {
        let _ = sys::change_folder(&CString::from(c"/"));
    }
    sys::leave(crate::exec(&begin.command, Some(&begin.environment)))
}
