//! What `pody` tells the shell when it ends.

/// It worked.
pub const OK: u8 = 0;
/// The server refused the request, or the work failed.
pub const FAILED: u8 = 1;
/// The command line was wrong; nothing was tried.
pub const USAGE: u8 = 2;
/// No answer from the server.
pub const UNREACHABLE: u8 = 3;
/// Not logged in, or the server does not take the credentials.
pub const CREDENTIALS: u8 = 4;
/// `pody exec`: the command ran longer than it was given.
pub const TIMED_OUT: u8 = 124;
/// A signal ended `pody`: this plus its number.
pub const SIGNAL_BASE: u8 = 128;
/// Ctrl-C while `pody` waited for a checkpoint or restore, which goes on.
pub const INTERRUPTED: u8 = SIGNAL_BASE + 2;

/// The part of `pody --help` that lists the codes.
pub fn help() -> String {
    let codes = [
        (OK, "it worked"),
        (FAILED, "the request was refused, or the work failed"),
        (USAGE, "the command line was wrong; nothing was tried"),
        (UNREACHABLE, "no answer from the server"),
        (CREDENTIALS, "not logged in, or the server does not take the credentials"),
        (TIMED_OUT, "exec: the command ran longer than it was given"),
        (INTERRUPTED, "checkpoint, restore: Ctrl-C; the work goes on in the background"),
    ];
    let lines: String = codes.iter().map(|(code, sentence)| format!("  {code:<4} {sentence}\n")).collect();
    format!(
        "Exit codes:\n{lines}  Otherwise exec, shell, ssh and connect end with the command's own code.\n  \
         get, post, fetch, help, copy-id, stat cputime and stat gputime end with 1 on every error, as in pody 0.4.1.\n\n\
         Environment:\n  \
         PODY_API_BASE                   the server, for example http://box:8799\n  \
         PODY_USERNAME, PODY_PASSWORD    who you are; or\n  \
         PODY_TOKEN                      a token (`pody token create`); without them `pody login` is used\n  \
         PODY_CA_CERT                    a PEM file with one more authority to trust\n  \
         PODY_HOME                       where daemon and admin commands keep their data\n  \
         NO_COLOR                        no colours"
    )
}
