//! `pody-init`: the first process of every pod, and how commands become its children.
//!
//! One static program, bound read-only into the pod, so that it runs in any image:
//!
//! - `init [--io-uring] -- PROGRAM ARG…` is PID 1 ([`pid1`]): it runs the image's own program on the container's
//!   terminal, forwards signals, reaps, and holds the terminals of sessions ([`session`]).
//! - `attach ID ROWS COLS [-- PROGRAM ARG…]` starts a session below PID 1, or resumes one, and relays its bytes
//!   ([`attach`]). The engine execs it, and what the engine execs is not part of a checkpoint; the session is.
//! - `start ID -- PROGRAM ARG…` starts a session that no client is attached to; `list` prints all sessions.
//! - `run -- PROGRAM ARG…` becomes that program, without io_uring.
//! - `hold SECONDS` sleeps: for a container that only holds an address.
//!
//! Everything but `init` reports its outcome in lines on its standard error ([`wire`]).

#![cfg_attr(not(test), no_main)]

mod attach;
mod pid1;
mod seccomp;
mod session;
mod sys;
mod wire;

use std::ffi::{CStr, CString, c_char, c_int};

/// The exit codes of shells: the program was not found, or cannot be run.
const NOT_FOUND: i32 = 127;
const CANNOT_RUN: i32 = 126;
const USAGE: &str = "usage: pody-init init [--io-uring] -- CMD | attach ID ROWS COLS [-- CMD] | start ID -- CMD | list | run -- CMD | hold SECONDS";

/// Not std's `main`: it installs a handler for stack overflows and ignores SIGPIPE, which the programs we run would
/// inherit.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the C runtime passes `count` strings that live as long as the process.
    let arguments: Vec<CString> = (1..count).map(|n| unsafe { CStr::from_ptr(*arguments.add(n)) }.to_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let command = |from: usize| arguments.get(from..).filter(|command| !command.is_empty());
    match words[..] {
        ["init", "--", ..] if command(2).is_some() => pid1::run(&arguments[2..], seccomp::IoUring::Refused),
        ["init", "--io-uring", "--", ..] if command(3).is_some() => {
            pid1::run(&arguments[3..], seccomp::IoUring::Allowed)
        }
        ["attach", id, rows, cols] => attach::attach(id, size(rows, cols), &[]),
        ["attach", id, rows, cols, "--", ..] if command(5).is_some() => {
            attach::attach(id, size(rows, cols), &arguments[5..])
        }
        ["start", id, "--", ..] if command(3).is_some() => attach::start(id, &arguments[3..]),
        ["list"] => attach::list(),
        ["run", "--", ..] if command(2).is_some() => run(&arguments[2..]),
        ["hold", seconds] => hold(seconds.parse().unwrap_or(0)),
        _ => {
            sys::log(USAGE);
            CANNOT_RUN
        }
    }
}

fn size(rows: &str, cols: &str) -> sys::WinSize {
    sys::WinSize::new(rows.parse().unwrap_or(24), cols.parse().unwrap_or(80))
}

/// Replaces this process with the program.
fn run(command: &[CString]) -> i32 {
    if let Err(error) = seccomp::refuse_io_uring() {
        sys::log(&format!("io_uring stays allowed: {error}"));
    }
    exec(command, None)
}

fn hold(seconds: u64) -> i32 {
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    0
}

/// Replaces this process with the program. If that fails, logs why and returns the exit code.
fn exec(command: &[CString], environment: Option<&[CString]>) -> i32 {
    let error = sys::exec(command, environment);
    sys::log(&format!("exec: {:?}: {error}", command[0]));
    if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
}
