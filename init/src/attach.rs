//! The client of PID 1's socket: relays a session's bytes between its terminal and the engine's pipes.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStringExt, net::UnixStream},
    },
    time::Duration,
};

use crate::{
    CANNOT_RUN,
    sys::{self, PollFd, WinSize},
    wire::{self, Frame, Frames, Reply, Request, Start},
};

const INPUT: RawFd = 0;
const OUTPUT: RawFd = 1;
const BUFFER: usize = 32 << 10;
/// Typed bytes that may wait for a program to read them; at this many, no more are read from the daemon.
const MAX_TYPED: usize = 64 << 10;
/// How the rest of the output is read after the command has ended. It arrives at once, but a process left behind may
/// keep the terminal open for ever, or flood it: hence both limits. A terminal buffers less than that many reads.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(30);
const MAX_DRAIN_READS: usize = 256;

/// Reports to the daemon.
fn report(line: &str) {
    sys::write_all(2, format!("{line}\n").as_bytes());
}

/// The session was not started. The daemon falls back to another way.
fn fail(error: i32) -> i32 {
    report(&format!("failed {error}"));
    CANNOT_RUN
}

/// Starts a session, or resumes one if there is no command, and stays attached. The exit code is the command's.
pub fn attach(id: &str, size: WinSize, command: &[CString]) -> i32 {
    let request = match command {
        [] => Request::Resume { id: id.to_owned(), size },
        command => match new_start(id, command, size) {
            Ok(start) => Request::Start(start),
            Err(error) => return fail(error),
        },
    };
    let (socket, reply, mut files) = match send_request(&request) {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    match (reply, files.len()) {
        (Reply::Started, 2) => {
            let (master, history) = (files.remove(0), files.remove(0));
            report("started");
            print_file(history);
            Attached { socket, master, frames: Frames::default(), typed: Vec::new() }.relay()
        }
        (Reply::Ended(code), 1) => {
            report("started");
            print_file(files.remove(0));
            report(&format!("exit {code}"));
            code
        }
        (Reply::Failed(error), _) => fail(error),
        _ => fail(sys::EINVAL),
    }
}

/// Starts a session that no client is attached to.
pub fn start(id: &str, command: &[CString]) -> i32 {
    let request = new_start(id, command, WinSize::new(24, 80))
        .map(|start| Request::Start(Start { in_background: true, ..start }));
    match request.and_then(|request| send_request(&request)) {
        Ok((_, Reply::Started, _)) => {
            report("started");
            0
        }
        Ok((_, Reply::Failed(error), _)) | Err(error) => fail(error),
        Ok(_) => fail(sys::EINVAL),
    }
}

/// Prints the sessions as JSON.
pub fn list() -> i32 {
    match send_request(&Request::List) {
        Ok((_, Reply::Listed, mut files)) if files.len() == 1 => {
            print_file(files.remove(0));
            0
        }
        Ok((_, Reply::Failed(error), _)) | Err(error) => fail(error),
        Ok(_) => fail(sys::EINVAL),
    }
}

/// The command as this process would run it: in its directory and with its environment, both set up by the engine.
fn new_start(id: &str, command: &[CString], size: WinSize) -> Result<Start, i32> {
    if command[0].as_bytes().starts_with(b"/") {
        sys::may_run(&command[0]).map_err(|error| error.raw_os_error().unwrap_or(sys::EINVAL))?;
    }
    let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let environment = std::env::vars_os().filter_map(|(key, value)| {
        let mut text = key.into_vec();
        text.push(b'=');
        text.extend(value.into_vec());
        CString::new(text).ok()
    });
    Ok(Start {
        id: id.to_owned(),
        in_background: false,
        size,
        directory: CString::new(directory.into_os_string().into_vec()).map_err(|_| sys::EINVAL)?,
        command: command.to_vec(),
        environment: environment.collect(),
    })
}

/// Sends a request to PID 1 and reads the reply.
fn send_request(request: &Request) -> Result<(UnixStream, Reply, Vec<OwnedFd>), i32> {
    let socket = wire::connect().ok_or(sys::ENOENT)?;
    // Not with `write`: PID 1 closes unauthorized connections at once, and that would raise SIGPIPE.
    (&socket).write_all(&request.encode()).map_err(|_| sys::EIO)?;
    let (reply, files) = read_reply(&socket).ok_or(sys::EIO)?;
    Ok((socket, reply, files))
}

fn read_reply(socket: &UnixStream) -> Option<(Reply, Vec<OwnedFd>)> {
    let mut bytes = [0; 8];
    let files = sys::receive_files(socket.as_raw_fd(), &mut bytes).ok()??;
    Some((Reply::decode(bytes)?, files))
}

/// Prints a file from its beginning.
fn print_file(file: OwnedFd) {
    let mut bytes = Vec::new();
    let _ = File::from(file).read_to_end(&mut bytes);
    sys::write_all(OUTPUT, &bytes);
}

struct Attached {
    socket: UnixStream,
    master: OwnedFd,
    frames: Frames,
    /// Typed, and not accepted by the terminal yet.
    typed: Vec<u8>,
}

impl Attached {
    fn relay(mut self) -> i32 {
        let mut buffer = vec![0; BUFFER];
        loop {
            let accepts_input = self.typed.len() < MAX_TYPED;
            let file = |fd, events| PollFd { fd, events, revents: 0 };
            let writes = if self.typed.is_empty() { 0 } else { sys::POLLOUT };
            let mut files = [
                file(self.socket.as_raw_fd(), sys::POLLIN),
                file(self.master.as_raw_fd(), sys::POLLIN | writes),
                file(if accepts_input { INPUT } else { -1 }, sys::POLLIN),
            ];
            let _ = sys::poll(&mut files, None);
            let [socket, master, input] = files.map(|file| file.revents);
            if socket != 0 {
                return self.finish(&mut buffer);
            }
            if master & sys::POLLOUT != 0 {
                self.write_typed();
            }
            if master & (sys::POLLIN | sys::POLLHUP | sys::POLLERR) != 0 && !self.read_terminal(&mut buffer) {
                // Every program has closed its side: only PID 1's reply is still to come.
                let _ = sys::poll(&mut [file(self.socket.as_raw_fd(), sys::POLLIN)], None);
                return self.finish(&mut buffer);
            }
            if input != 0 && !self.read_input(&mut buffer) {
                // PID 1 notices that the socket closes.
                return 128 + sys::SIGHUP;
            }
        }
    }

    /// Reads the last reply of PID 1, and what the terminal still holds.
    fn finish(&mut self, buffer: &mut [u8]) -> i32 {
        match read_reply(&self.socket) {
            Some((Reply::Ended(code), _)) => {
                let waits = |fd| sys::poll(&mut [PollFd { fd, events: sys::POLLIN, revents: 0 }], Some(DRAIN_TIMEOUT));
                for _ in 0..MAX_DRAIN_READS {
                    if !waits(self.master.as_raw_fd()).is_ok_and(|ready| ready > 0) || !self.read_terminal(buffer) {
                        break;
                    }
                }
                report(&format!("exit {code}"));
                code
            }
            Some((Reply::Detach, _)) => {
                report("detached");
                0
            }
            // PID 1 is gone: this process will be killed, too.
            _ => 128 + sys::SIGKILL,
        }
    }

    /// Copies what the terminal has to the output; `false` at its end.
    fn read_terminal(&mut self, buffer: &mut [u8]) -> bool {
        match sys::read_some(self.master.as_raw_fd(), buffer) {
            Ok(0) => false,
            Ok(count) => {
                // A closed output is ignored here: the end of the input reports it.
                sys::write_all(OUTPUT, &buffer[..count]);
                true
            }
            Err(error) => error.raw_os_error() == Some(sys::EAGAIN),
        }
    }

    /// Reads frames from the daemon; `false` when the user has left.
    fn read_input(&mut self, buffer: &mut [u8]) -> bool {
        match sys::read_some(INPUT, buffer) {
            Ok(0) | Err(_) => return false,
            Ok(count) => self.frames.push(&buffer[..count]),
        }
        while let Some(frame) = self.frames.next() {
            match frame {
                Frame::Input(bytes) => self.typed.extend_from_slice(&bytes),
                Frame::Resize(size) => sys::resize(self.master.as_raw_fd(), size),
            }
        }
        self.write_typed();
        true
    }

    fn write_typed(&mut self) {
        if self.typed.is_empty() {
            return;
        }
        match sys::write_some(self.master.as_raw_fd(), &self.typed) {
            Ok(count) => drop(self.typed.drain(..count)),
            Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => {}
            Err(_) => self.typed.clear(),
        }
    }
}
