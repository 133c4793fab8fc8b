//! The protocols on the socket between PID 1 and its clients, and on the pipes between a client and the daemon.
//!
//! To PID 1: one [`Request`], preceded by its length. From PID 1: a [`Reply`] of eight bytes, with a session's terminal
//! and the output since the last client left as files beside it; later another reply with its end.
//!
//! From the daemon, on the standard input of `attach`: frames of a kind, a length and bytes ([`Frames`]). End of file
//! means that the user has left. To the daemon: the terminal's bytes on the standard output; on the standard error one
//! line each of `started`, then `exit CODE` or `detached`, or instead of all that `failed ERRNO`.

use std::{
    ffi::{CStr, CString},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use crate::sys::{self, WinSize};

/// Upper bound of a request, bytes: a program's arguments and environment together are smaller.
pub const MAX_REQUEST: usize = 4 << 20;
/// Names that are tried. More than one is used only where pods share a network namespace, and with it abstract names.
const NAMES: u32 = 64;

/// A request to PID 1.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Start(Start),
    /// Attaches to a session; a client that is attached is detached.
    Resume {
        id: String,
        size: WinSize,
    },
    List,
}

/// A session to start.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    pub id: String,
    /// No client attaches; the session lives on its own.
    pub in_background: bool,
    pub size: WinSize,
    pub directory: CString,
    pub command: Vec<CString>,
    pub environment: Vec<CString>,
}

/// A reply of PID 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With the terminal and the output since the last client left.
    Started,
    /// The exit code; in reply to a request, with the output that no client has read.
    Ended(i32),
    /// The client must leave; the session continues.
    Detach,
    /// An errno.
    Failed(i32),
    /// With the list.
    Listed,
}

impl Reply {
    pub fn encode(self) -> [u8; 8] {
        let (kind, value) = match self {
            Self::Started => (b'S', 0),
            Self::Ended(code) => (b'E', code),
            Self::Detach => (b'G', 0),
            Self::Failed(error) => (b'F', error),
            Self::Listed => (b'L', 0),
        };
        let [a, b, c, d] = value.to_le_bytes();
        [kind, 0, 0, 0, a, b, c, d]
    }

    pub fn decode(bytes: [u8; 8]) -> Option<Self> {
        let [kind, _, _, _, a, b, c, d] = bytes;
        let value = i32::from_le_bytes([a, b, c, d]);
        Some(match kind {
            b'S' => Self::Started,
            b'E' => Self::Ended(value),
            b'G' => Self::Detach,
            b'F' => Self::Failed(value),
            b'L' => Self::Listed,
            _ => return None,
        })
    }
}

impl Request {
    /// Preceded by its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        let text = |bytes: &mut Vec<u8>, text: &[u8]| {
            bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(text);
        };
        let list = |bytes: &mut Vec<u8>, list: &[CString]| {
            bytes.extend(u32::try_from(list.len()).unwrap_or(u32::MAX).to_le_bytes());
            for word in list {
                text(bytes, word.as_bytes());
            }
        };
        let size = |bytes: &mut Vec<u8>, size: WinSize| {
            bytes.extend(size.rows.to_le_bytes());
            bytes.extend(size.cols.to_le_bytes());
        };
        match self {
            Self::Start(start) => {
                bytes.push(if start.in_background { b'b' } else { b'a' });
                text(&mut bytes, start.id.as_bytes());
                size(&mut bytes, start.size);
                text(&mut bytes, start.directory.as_bytes());
                list(&mut bytes, &start.command);
                list(&mut bytes, &start.environment);
            }
            Self::Resume { id, size: window } => {
                bytes.push(b'r');
                text(&mut bytes, id.as_bytes());
                size(&mut bytes, *window);
            }
            Self::List => bytes.push(b'l'),
        }
        let len = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    /// Decodes what follows the length; `None` if it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut left = Left(bytes);
        let request = match left.take(1)? {
            kind @ (b"a" | b"b") => Self::Start(Start {
                in_background: kind == b"b",
                id: left.id()?,
                size: left.size()?,
                directory: left.text()?,
                command: left.list().filter(|command| !command.is_empty())?,
                environment: left.list()?,
            }),
            b"r" => Self::Resume { id: left.id()?, size: left.size()? },
            b"l" => Self::List,
            _ => return None,
        };
        left.0.is_empty().then_some(request)
    }
}

/// The bytes of a request that are still to be decoded.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.take(4)?.try_into().ok()?)).ok()
    }

    fn text(&mut self) -> Option<CString> {
        let len = self.number()?;
        CString::new(self.take(len)?).ok()
    }

    fn id(&mut self) -> Option<String> {
        self.text()?.into_string().ok()
    }

    fn list(&mut self) -> Option<Vec<CString>> {
        (0..self.number()?).map(|_| self.text()).collect()
    }

    fn size(&mut self) -> Option<WinSize> {
        let mut side = || Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?));
        Some(WinSize::new(side()?, side()?))
    }
}

/// Frames from the daemon, which may arrive in pieces.
#[derive(Default)]
pub struct Frames(Vec<u8>);

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Typed bytes.
    Input(Vec<u8>),
    Resize(WinSize),
}

impl Frames {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next complete frame. Frames of an unknown kind are skipped.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let (head, rest) = self.0.split_at_checked(5)?;
            let len = usize::try_from(u32::from_le_bytes(head[1..].try_into().ok()?)).ok()?;
            let payload = rest.get(..len)?;
            let frame = match (head[0], payload) {
                (b'i', bytes) => Some(Frame::Input(bytes.to_vec())),
                (b'w', &[a, b, c, d]) => {
                    Some(Frame::Resize(WinSize::new(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))))
                }
                _ => None,
            };
            self.0.drain(..5 + len);
            if frame.is_some() {
                return frame;
            }
        }
    }
}

fn name(number: u32) -> std::io::Result<SocketAddr> {
    let number = if number == 0 { String::new() } else { format!(".{number}") };
    SocketAddr::from_abstract_name(format!("pody-init{number}"))
}

/// The socket of PID 1. Its name is abstract: nothing in the pod can remove it, and no commit contains it.
pub fn listen() -> std::io::Result<UnixListener> {
    let mut number = 0;
    loop {
        match UnixListener::bind_addr(&name(number)?) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && number < NAMES => number += 1,
            result => return result,
        }
    }
}

/// Whether the peer may send requests: it is in this pod, and root or the user of PID 1.
pub fn is_authorized(stream: &UnixStream) -> bool {
    sys::peer(stream.as_raw_fd()).is_some_and(|peer| peer.pid > 0 && (peer.uid == 0 || peer.uid == sys::user()))
}

/// Connects to PID 1 of this pod; that of another pod in the same network namespace is skipped.
pub fn connect() -> Option<UnixStream> {
    for number in 0..=NAMES {
        let stream = UnixStream::connect_addr(&name(number).ok()?).ok()?;
        if sys::peer(stream.as_raw_fd()).is_some_and(|peer| peer.pid == 1) {
            return Some(stream);
        }
    }
    None
}

/// A command as one JSON string, for lists: its words joined by spaces.
pub fn shown(command: &[CString]) -> String {
    let words: Vec<_> = command.iter().map(|word| CStr::to_string_lossy(word)).collect();
    json_text(&words.join(" "))
}

pub fn json_text(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            c if u32::from(c) < 32 => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Request {
        Request::Start(Start {
            id: "a-b".to_owned(),
            in_background: false,
            size: WinSize::new(40, 120),
            directory: c"/root".to_owned(),
            command: vec![c"/bin/bash".to_owned(), c"-c".to_owned(), c"".to_owned()],
            environment: vec![c"TERM=xterm".to_owned()],
        })
    }

    #[test]
    fn requests_arrive_as_they_were_sent() {
        for request in [start(), Request::Resume { id: "x".to_owned(), size: WinSize::new(1, 65535) }, Request::List] {
            let bytes = request.encode();
            assert_eq!(bytes[..4], u32::try_from(bytes.len() - 4).unwrap().to_le_bytes());
            assert_eq!(Request::decode(&bytes[4..]), Some(request));
        }
    }

    #[test]
    fn a_request_that_is_cut_or_too_long_is_rejected() {
        let bytes = start().encode();
        for len in 0..bytes.len() - 4 {
            assert_eq!(Request::decode(&bytes[4..4 + len]), None, "{len}");
        }
        assert_eq!(Request::decode(&[&bytes[4..], b"x"].concat()), None);
        let mut absurd = bytes;
        absurd[5..9].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Request::decode(&absurd[4..]), None);
    }

    #[test]
    fn replies_arrive_as_they_were_sent() {
        for reply in [Reply::Started, Reply::Ended(137), Reply::Detach, Reply::Failed(11), Reply::Listed] {
            assert_eq!(Reply::decode(reply.encode()), Some(reply));
        }
        assert_eq!(Reply::decode([0; 8]), None);
    }

    #[test]
    fn frames_may_arrive_in_any_pieces() {
        let bytes = b"i\x03\0\0\0abcw\x04\0\0\0\x28\0\x78\0?\x01\0\0\0xi\0\0\0\0";
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for byte in bytes {
            frames.push(&[*byte]);
            seen.extend(std::iter::from_fn(|| frames.next()));
        }
        let expected = [Frame::Input(b"abc".to_vec()), Frame::Resize(WinSize::new(40, 120)), Frame::Input(Vec::new())];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_command_is_shown_as_a_json_string() {
        assert_eq!(shown(&[c"a".to_owned(), c"b\"\\\n".to_owned()]), r#""a b\"\\\u000a""#);
    }
}
