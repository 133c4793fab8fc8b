//! The exit codes of `pody`, and the end of `pody --help`.

/// Success.
pub const OK: u8 = 0;
/// The server refused the request, or the work failed.
pub const FAILED: u8 = 1;
/// The command line was wrong; nothing was done.
pub const USAGE: u8 = 2;
/// No response from the server.
pub const UNREACHABLE: u8 = 3;
/// Not logged in, or the server rejected the credentials.
pub const CREDENTIALS: u8 = 4;
/// `pody exec`: the command exceeded its time limit.
pub const TIMED_OUT: u8 = 124;
/// A signal ended `pody`: this plus its number.
pub const SIGNAL_BASE: u8 = 128;
/// Ctrl-C while `pody` waited for a checkpoint or restore, which continues.
pub const INTERRUPTED: u8 = SIGNAL_BASE + 2;

/// Exit codes and environment variables, for `pody --help`.
pub fn help() -> String {
    let codes = [
        (OK, "success"),
        (FAILED, "the request was refused, or the work failed"),
        (USAGE, "the command line was wrong; nothing was done"),
        (UNREACHABLE, "no response from the server"),
        (CREDENTIALS, "not logged in, or the server rejected the credentials"),
        (TIMED_OUT, "exec: the command exceeded its time limit"),
        (INTERRUPTED, "checkpoint, restore: Ctrl-C; the work continues in the background"),
    ];
    let lines: String = codes.iter().map(|(code, sentence)| format!("  {code:<4} {sentence}\n")).collect();
    format!(
        "Exit codes:\n{lines}  exec, shell, ssh and connect otherwise exit with the command's own code.\n  \
         get, post, fetch, copy-id, stat cputime, stat gputime and help ROUTE exit\n  \
         with 1 on every error, as in pody 0.4.1.\n\n\
         Environment:\n  \
         PODY_API_BASE                 the server, for example http://box:8799\n  \
         PODY_USERNAME, PODY_PASSWORD  your account; or\n  \
         PODY_TOKEN                    a token (`pody token create`); without any of\n                                \
         these, the login stored by `pody login` is used\n  \
         PODY_CA_CERT                  a PEM file with an additional trusted authority\n  \
         PODY_HOME                     directory of the daemon's config and data\n  \
         NO_COLOR                      disables colors"
    )
}
