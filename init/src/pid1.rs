//! PID 1: one thread and one loop over signals, the socket and the sessions.
//!
//! The main program is in the foreground of the container's terminal and gets every signal that comes from outside. Its end
//! is the pod's end, with its exit code. PID 1 stays the leader of that terminal's session and keeps it open: CRIU restores a
//! terminal only through its leader, and `/proc/1/fd/1` is where programs in containers write to be in the log.

use std::{
    ffi::CString,
    io::Read,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use crate::{
    seccomp::{self, IoUring},
    session::Session,
    sys::{self, Forked, PollFd},
    wire::{self, Reply, Request},
};

/// The daemon's word before a checkpoint: whoever is attached is let go, and their sessions go on.
const LET_GO: i32 = 62;
/// Who connects has this long to say what is wanted.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who connect at a time.
const MAX_CALLERS: usize = 64;
/// Sessions that ended with nobody there, kept for who comes back.
const MAX_WAITING: usize = 16;

/// Runs the main program to its end; its exit code.
pub fn run(command: &[CString], io_uring: IoUring) -> i32 {
    if !sys::is_first_process() {
        sys::say("`init` is for PID 1");
        return crate::CANNOT_RUN;
    }
    if io_uring == IoUring::Refused
        && let Err(error) = seccomp::refuse_io_uring()
    {
        sys::say(&format!("io_uring stays allowed: {error}"));
    }
    let listener = listen();
    sys::catch_signals();
    let main = match sys::fork_process() {
        Ok(Forked::Parent(pid)) => pid,
        Ok(Forked::Child) => {
            // While signals are blocked: who is in the background may not take the foreground otherwise.
            sys::take_foreground(0);
            sys::reset_signals();
            sys::leave(crate::exec(command, None))
        }
        Err(error) => {
            sys::say(&format!("no process for {:?}: {error}", command[0]));
            return crate::CANNOT_RUN;
        }
    };
    Init { main, listener, callers: Vec::new(), sessions: Vec::new() }.serve()
}

/// Before any program of the pod could take the name.
fn listen() -> Option<UnixListener> {
    let listener = wire::listen().and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| sys::say(&format!("no sessions: {error}"))).ok()
}

struct Init {
    main: i32,
    listener: Option<UnixListener>,
    callers: Vec<Caller>,
    sessions: Vec<Session>,
}

/// Somebody who has connected and not said all yet.
struct Caller {
    stream: UnixStream,
    said: Vec<u8>,
    until: Instant,
}

/// What a file in the list of those waited for is.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Caller(usize),
    Session(usize),
}

impl Init {
    fn serve(mut self) -> i32 {
        loop {
            for signal in sys::take_signals() {
                match signal {
                    sys::SIGCHLD => {}
                    LET_GO => self.sessions.iter_mut().for_each(Session::let_go),
                    signal => sys::send_signal(self.main, signal),
                }
            }
            if let Some(code) = self.reap() {
                return code;
            }
            let next = self.tidy();
            self.wait(next);
        }
    }

    /// Takes all that have ended, orphans too. The main program's code, if it is among them.
    fn reap(&mut self) -> Option<i32> {
        while let Some((pid, code)) = sys::reap() {
            if pid == self.main {
                return Some(code);
            }
            if let Some(session) =
                self.sessions.iter_mut().find(|session| session.leader == pid && session.code.is_none())
            {
                session.end(code);
            }
        }
        None
    }

    /// Does what is due and forgets what is over. When the next is due.
    fn tidy(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due = self.sessions.iter_mut().filter_map(|session| session.tick(now)).min();
        self.callers.retain(|caller| caller.until > now);
        let waiting = self.sessions.iter().filter(|session| session.is_waiting()).count();
        let mut surplus = waiting.saturating_sub(MAX_WAITING);
        self.sessions.retain(|session| {
            let is_surplus = surplus > 0 && session.is_waiting();
            surplus -= usize::from(is_surplus);
            !is_surplus && !session.is_gone()
        });
        due.into_iter().chain(self.callers.iter().map(|caller| caller.until)).min()
    }

    fn wait(&mut self, next: Option<Instant>) {
        let listener = self.listener.iter().map(|listener| (Source::Listener, listener.as_raw_fd()));
        let callers =
            self.callers.iter().enumerate().map(|(at, caller)| (Source::Caller(at), caller.stream.as_raw_fd()));
        let sessions = self.sessions.iter().enumerate();
        let sessions = sessions.filter_map(|(at, session)| Some((Source::Session(at), session.watched()?)));
        let (sources, mut files): (Vec<Source>, Vec<PollFd>) = listener
            .chain(callers)
            .chain(sessions)
            .map(|(source, fd)| (source, PollFd { fd, events: sys::POLLIN, revents: 0 }))
            .unzip();
        sys::wait(&mut files, next.map(|at| at.saturating_duration_since(Instant::now())));
        // From the end, so that places in the lists stay right while some are taken out.
        for (source, file) in sources.into_iter().zip(files).rev().filter(|(_, file)| file.revents != 0) {
            debug_assert!(file.fd >= 0);
            match source {
                Source::Listener => self.accept(),
                Source::Caller(at) => self.hear(at),
                Source::Session(at) => self.sessions[at].ready(),
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok((stream, _)) = listener.accept() {
            if self.callers.len() < MAX_CALLERS && wire::is_welcome(&stream) && stream.set_nonblocking(true).is_ok() {
                self.callers.push(Caller { stream, said: Vec::new(), until: Instant::now() + PATIENCE });
            }
        }
    }

    /// Reads what a caller says, and does it when all is said.
    fn hear(&mut self, at: usize) {
        let caller = &mut self.callers[at];
        let mut buffer = [0; 16 << 10];
        let is_over = loop {
            match caller.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => caller.said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
            if caller.said.len() > wire::MAX_REQUEST {
                break true;
            }
        };
        let said = caller.said.split_at_checked(4).filter(|(len, rest)| {
            <[u8; 4]>::try_from(*len).map(u32::from_le_bytes).is_ok_and(|len| usize::try_from(len) == Ok(rest.len()))
        });
        match said.map(|(_, request)| Request::decode(request)) {
            None if !is_over => {}
            None | Some(None) => drop(self.callers.remove(at)),
            Some(Some(request)) => {
                let stream = self.callers.remove(at).stream;
                self.obey(request, stream);
            }
        }
    }

    fn obey(&mut self, request: Request, stream: UnixStream) {
        let refuse = |stream: &UnixStream, error: i32| {
            let _ = sys::send_files(stream.as_raw_fd(), &Reply::Failed(error).encode(), &[]);
        };
        let find = |sessions: &mut Vec<Session>, id: &str| sessions.iter().position(|session| session.id == id);
        match request {
            Request::Begin(begin) if find(&mut self.sessions, &begin.id).is_some() => refuse(&stream, sys::EEXIST),
            Request::Begin(begin) => match Session::begin(&begin) {
                Ok(mut session) => {
                    if begin.in_background {
                        let _ = sys::send_files(stream.as_raw_fd(), &Reply::Started.encode(), &[]);
                    } else {
                        session.attach(stream, begin.size);
                    }
                    self.sessions.push(session);
                }
                Err(error) => refuse(&stream, error.raw_os_error().unwrap_or(sys::EINVAL)),
            },
            Request::Resume { id, size } => {
                let found = find(&mut self.sessions, &id).filter(|at| self.sessions[*at].can_be_resumed());
                match found {
                    Some(at) => self.sessions[at].attach(stream, size),
                    None => refuse(&stream, sys::ENOENT),
                }
            }
            Request::List => {
                let list: Vec<String> = self.sessions.iter().filter_map(Session::describe).collect();
                let file = sys::memory_file(format!("[{}]", list.join(",")).as_bytes());
                match file {
                    Ok(file) => {
                        let _ = sys::send_files(stream.as_raw_fd(), &Reply::Listed.encode(), &[file.as_raw_fd()]);
                    }
                    Err(error) => refuse(&stream, error.raw_os_error().unwrap_or(sys::EINVAL)),
                }
            }
        }
    }
}
