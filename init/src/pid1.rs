//! PID 1: one thread and one loop over signals, the socket and the sessions.
//!
//! The main program is in the foreground of the container's terminal and gets every signal from outside. When it ends,
//! the pod ends, with its exit code. PID 1 stays the leader of that terminal's session and keeps it open: CRIU restores
//! a terminal only through its leader, and `/proc/1/fd/1` is where programs in containers write to reach the log.

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

/// The signal that the daemon sends before a checkpoint: all clients are detached, and their sessions continue.
const DETACH: i32 = 62;
/// Deadline of a request after its connection was accepted.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are waiting to send their request, at most.
const MAX_CONNECTIONS: usize = 64;
/// Sessions kept that ended while detached and whose exit code nobody has fetched, at most.
const MAX_UNCLAIMED: usize = 16;

/// Runs the main program to its end and returns its exit code.
pub fn run(command: &[CString], io_uring: IoUring) -> i32 {
    if !sys::is_first_process() {
        sys::log("`init` is for PID 1");
        return crate::CANNOT_RUN;
    }
    if io_uring == IoUring::Refused
        && let Err(error) = seccomp::refuse_io_uring()
    {
        sys::log(&format!("io_uring stays allowed: {error}"));
    }
    let listener = listen();
    sys::catch_signals();
    let main = match sys::fork_process() {
        Ok(Forked::Parent(pid)) => pid,
        Ok(Forked::Child) => {
            // While signals are blocked: otherwise SIGTTOU would stop a background process that takes the foreground.
            sys::take_foreground(0);
            sys::reset_signals();
            sys::leave(crate::exec(command, None))
        }
        Err(error) => {
            sys::log(&format!("no process for {:?}: {error}", command[0]));
            return crate::CANNOT_RUN;
        }
    };
    Init { main, listener, connections: Vec::new(), sessions: Vec::new() }.serve()
}

/// Called before any program of the pod runs and could take the name.
fn listen() -> Option<UnixListener> {
    let listener = wire::listen().and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| sys::log(&format!("no sessions: {error}"))).ok()
}

struct Init {
    main: i32,
    listener: Option<UnixListener>,
    connections: Vec<Connection>,
    sessions: Vec<Session>,
}

/// A client that has connected and not sent its whole request yet.
struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    deadline: Instant,
}

/// What a file in the poll list belongs to.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Connection(usize),
    Session(usize),
}

impl Init {
    fn serve(mut self) -> i32 {
        loop {
            for signal in sys::take_signals() {
                match signal {
                    sys::SIGCHLD => {}
                    DETACH => self.sessions.iter_mut().for_each(Session::detach),
                    signal => sys::send_signal(self.main, signal),
                }
            }
            if let Some(code) = self.reap() {
                return code;
            }
            let next = self.expire();
            self.wait(next);
        }
    }

    /// Reaps every child that has ended, orphans too. Returns the main program's exit code if it is among them.
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

    /// Runs what is due and drops what is over. Returns when the next is due.
    fn expire(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due = self.sessions.iter_mut().filter_map(|session| session.tick(now)).min();
        self.connections.retain(|connection| connection.deadline > now);
        let unclaimed = self.sessions.iter().filter(|session| session.is_unclaimed()).count();
        let mut surplus = unclaimed.saturating_sub(MAX_UNCLAIMED);
        self.sessions.retain(|session| {
            let is_surplus = surplus > 0 && session.is_unclaimed();
            surplus -= usize::from(is_surplus);
            !is_surplus && !session.is_gone()
        });
        due.into_iter().chain(self.connections.iter().map(|connection| connection.deadline)).min()
    }

    fn wait(&mut self, next: Option<Instant>) {
        let listener = self.listener.iter().map(|listener| (Source::Listener, listener.as_raw_fd()));
        let connections = self
            .connections
            .iter()
            .enumerate()
            .map(|(at, connection)| (Source::Connection(at), connection.stream.as_raw_fd()));
        let sessions = self.sessions.iter().enumerate();
        let sessions = sessions.filter_map(|(at, session)| Some((Source::Session(at), session.watched()?)));
        let (sources, mut files): (Vec<Source>, Vec<PollFd>) = listener
            .chain(connections)
            .chain(sessions)
            .map(|(source, fd)| (source, PollFd { fd, events: sys::POLLIN, revents: 0 }))
            .unzip();
        sys::wait(&mut files, next.map(|at| at.saturating_duration_since(Instant::now())));
        // From the end, so that indices stay valid while elements are removed.
        for (source, file) in sources.into_iter().zip(files).rev().filter(|(_, file)| file.revents != 0) {
            debug_assert!(file.fd >= 0);
            match source {
                Source::Listener => self.accept(),
                Source::Connection(at) => self.read_request(at),
                Source::Session(at) => self.sessions[at].ready(),
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok((stream, _)) = listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS
                && wire::is_authorized(&stream)
                && stream.set_nonblocking(true).is_ok()
            {
                self.connections.push(Connection {
                    stream,
                    received: Vec::new(),
                    deadline: Instant::now() + REQUEST_TIMEOUT,
                });
            }
        }
    }

    /// Reads from a connection, and handles the request once it is complete.
    fn read_request(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        let mut buffer = [0; 16 << 10];
        let is_over = loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => connection.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
            if connection.received.len() > wire::MAX_REQUEST {
                break true;
            }
        };
        let framed = connection.received.split_at_checked(4).filter(|(len, rest)| {
            <[u8; 4]>::try_from(*len).map(u32::from_le_bytes).is_ok_and(|len| usize::try_from(len) == Ok(rest.len()))
        });
        match framed.map(|(_, request)| Request::decode(request)) {
            None if !is_over => {}
            None | Some(None) => drop(self.connections.remove(at)),
            Some(Some(request)) => {
                let stream = self.connections.remove(at).stream;
                self.handle(request, stream);
            }
        }
    }

    fn handle(&mut self, request: Request, stream: UnixStream) {
        let refuse = |stream: &UnixStream, error: i32| {
            let _ = sys::send_files(stream.as_raw_fd(), &Reply::Failed(error).encode(), &[]);
        };
        let find = |sessions: &mut Vec<Session>, id: &str| sessions.iter().position(|session| session.id == id);
        match request {
            Request::Start(start) if find(&mut self.sessions, &start.id).is_some() => refuse(&stream, sys::EEXIST),
            Request::Start(start) => match Session::start(&start) {
                Ok(mut session) => {
                    if start.in_background {
                        let _ = sys::send_files(stream.as_raw_fd(), &Reply::Started.encode(), &[]);
                    } else {
                        session.attach(stream, start.size);
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
