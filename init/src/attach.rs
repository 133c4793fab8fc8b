//! The other end of PID 1's socket: carries a session's bytes between its terminal and the engine's pipes.

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
    wire::{self, Begin, Frame, Frames, Reply, Request},
};

const INPUT: RawFd = 0;
const OUTPUT: RawFd = 1;
const BUFFER: usize = 32 << 10;
/// Typed bytes that wait for a program to read them; then no more are taken from the daemon.
const MAX_TYPED: usize = 64 << 10;
/// What a command has shown arrives at once; something that it left behind may hold its terminal for ever, or flood it. No
/// terminal holds as much as that many reads.
const LAST_WORDS: Duration = Duration::from_millis(30);
const LAST_READS: usize = 256;

/// Says a line to the daemon.
fn tell(line: &str) {
    sys::write_all(2, format!("{line}\n").as_bytes());
}

/// It was not begun. The daemon knows another way.
fn fail(error: i32) -> i32 {
    tell(&format!("failed {error}"));
    CANNOT_RUN
}

/// Begins a session, or comes back to one if there is no command, and stays with it. The exit code is the command's.
pub fn attach(id: &str, size: WinSize, command: &[CString]) -> i32 {
    let request = match command {
        [] => Request::Resume { id: id.to_owned(), size },
        command => match begin(id, command, size) {
            Ok(begin) => Request::Begin(begin),
            Err(error) => return fail(error),
        },
    };
    let (socket, reply, mut files) = match ask(&request) {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    match (reply, files.len()) {
        (Reply::Started, 2) => {
            let (master, history) = (files.remove(0), files.remove(0));
            tell("started");
            show(history);
            Attached { socket, master, frames: Frames::default(), typed: Vec::new() }.carry()
        }
        (Reply::Ended(code), 1) => {
            tell("started");
            show(files.remove(0));
            tell(&format!("exit {code}"));
            code
        }
        (Reply::Failed(error), _) => fail(error),
        _ => fail(sys::EINVAL),
    }
}

/// Begins a session that nobody is attached to.
pub fn start(id: &str, command: &[CString]) -> i32 {
    let begun = begin(id, command, WinSize::new(24, 80));
    let request = begun.map(|begin| Request::Begin(Begin { in_background: true, ..begin }));
    match request.and_then(|request| ask(&request)) {
        Ok((_, Reply::Started, _)) => {
            tell("started");
            0
        }
        Ok((_, Reply::Failed(error), _)) | Err(error) => fail(error),
        Ok(_) => fail(sys::EINVAL),
    }
}

/// Prints the sessions as JSON.
pub fn list() -> i32 {
    match ask(&Request::List) {
        Ok((_, Reply::Listed, mut files)) if files.len() == 1 => {
            show(files.remove(0));
            0
        }
        Ok((_, Reply::Failed(error), _)) | Err(error) => fail(error),
        Ok(_) => fail(sys::EINVAL),
    }
}

/// The command as we would run it: in our folder, with our environment. The engine has made both for us.
fn begin(id: &str, command: &[CString], size: WinSize) -> Result<Begin, i32> {
    if command[0].as_bytes().starts_with(b"/") {
        sys::may_run(&command[0]).map_err(|error| error.raw_os_error().unwrap_or(sys::EINVAL))?;
    }
    let folder = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let environment = std::env::vars_os().filter_map(|(key, value)| {
        let mut text = key.into_vec();
        text.push(b'=');
        text.extend(value.into_vec());
        CString::new(text).ok()
    });
    Ok(Begin {
        id: id.to_owned(),
        in_background: false,
        size,
        folder: CString::new(folder.into_os_string().into_vec()).map_err(|_| sys::EINVAL)?,
        command: command.to_vec(),
        environment: environment.collect(),
    })
}

/// Says it to PID 1 and hears the answer.
fn ask(request: &Request) -> Result<(UnixStream, Reply, Vec<OwnedFd>), i32> {
    let socket = wire::connect().ok_or(sys::ENOENT)?;
    // Not by `write`: PID 1 closes at once on strangers, and that would be a SIGPIPE.
    (&socket).write_all(&request.encode()).map_err(|_| sys::EIO)?;
    let (reply, files) = hear(&socket).ok_or(sys::EIO)?;
    Ok((socket, reply, files))
}

fn hear(socket: &UnixStream) -> Option<(Reply, Vec<OwnedFd>)> {
    let mut bytes = [0; 8];
    let files = sys::receive_files(socket.as_raw_fd(), &mut bytes).ok()??;
    Some((Reply::decode(bytes)?, files))
}

/// Shows a file from its begin.
fn show(file: OwnedFd) {
    let mut bytes = Vec::new();
    let _ = File::from(file).read_to_end(&mut bytes);
    sys::write_all(OUTPUT, &bytes);
}

struct Attached {
    socket: UnixStream,
    master: OwnedFd,
    frames: Frames,
    /// Typed, and not taken by the terminal yet.
    typed: Vec<u8>,
}

impl Attached {
    fn carry(mut self) -> i32 {
        let mut buffer = vec![0; BUFFER];
        loop {
            let takes_input = self.typed.len() < MAX_TYPED;
            let file = |fd, events| PollFd { fd, events, revents: 0 };
            let writes = if self.typed.is_empty() { 0 } else { sys::POLLOUT };
            let mut files = [
                file(self.socket.as_raw_fd(), sys::POLLIN),
                file(self.master.as_raw_fd(), sys::POLLIN | writes),
                file(if takes_input { INPUT } else { -1 }, sys::POLLIN),
            ];
            let _ = sys::poll(&mut files, None);
            let [socket, master, input] = files.map(|file| file.revents);
            if socket != 0 {
                return self.end(&mut buffer);
            }
            if master & sys::POLLOUT != 0 {
                self.type_in();
            }
            if master & (sys::POLLIN | sys::POLLHUP | sys::POLLERR) != 0 && !self.read_terminal(&mut buffer) {
                // Every program has closed its side: now only PID 1 has something to say.
                let _ = sys::poll(&mut [file(self.socket.as_raw_fd(), sys::POLLIN)], None);
                return self.end(&mut buffer);
            }
            if input != 0 && !self.read_input(&mut buffer) {
                // Closing the socket tells PID 1.
                return 128 + sys::SIGHUP;
            }
        }
    }

    /// PID 1 has spoken its last word.
    fn end(&mut self, buffer: &mut [u8]) -> i32 {
        match hear(&self.socket) {
            Some((Reply::Ended(code), _)) => {
                let waits = |fd| sys::poll(&mut [PollFd { fd, events: sys::POLLIN, revents: 0 }], Some(LAST_WORDS));
                for _ in 0..LAST_READS {
                    if !waits(self.master.as_raw_fd()).is_ok_and(|ready| ready > 0) || !self.read_terminal(buffer) {
                        break;
                    }
                }
                tell(&format!("exit {code}"));
                code
            }
            Some((Reply::LetGo, _)) => {
                tell("detached");
                0
            }
            // PID 1 is gone, and so shall we be.
            _ => 128 + sys::SIGKILL,
        }
    }

    /// Shows what there is; `false` at the terminal's end.
    fn read_terminal(&mut self, buffer: &mut [u8]) -> bool {
        match sys::read_some(self.master.as_raw_fd(), buffer) {
            Ok(0) => false,
            Ok(count) => {
                // Where nobody reads it any more, the end of the input tells.
                sys::write_all(OUTPUT, &buffer[..count]);
                true
            }
            Err(error) => error.raw_os_error() == Some(sys::EAGAIN),
        }
    }

    /// Takes frames from the daemon; `false` when the user has left.
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
        self.type_in();
        true
    }

    fn type_in(&mut self) {
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
