//! The OCI runtime `pody-runc`: this program under that name, registered with Docker as a runtime.
//!
//! For every container it is runc: it becomes runc at once, with the same arguments. Only a container for which the
//! daemon has left a plan ([`crate::criu::restore`]) is restored by it:
//!
//! ```text
//! dockerd ── create ──► containerd's shim ──► pody-runc create      takes the plan, starts a supervisor
//!                                                └─ supervisor ──► runc restore ──► CRIU
//!                                                       ▲            └─ at "setup-namespaces": the first process exists,
//!                                                       │               with its PID and an empty network
//!                                                       └── hook PID ── pody-runc restore-hook (waits)
//!                                             create tells the PID and ends
//! dockerd sets the container's network up
//! dockerd ── start ───► shim ──► pody-runc start ──► supervisor ── go ──► the hook ends, CRIU continues
//!                                                start ends as runc does
//! ```
//!
//! Docker up to 27 sets the network up in a hook of runc's, since 28 itself between create and start: both have it done
//! before `start`. Its own `docker start --checkpoint` has no process between the two, and fails since 28.
//!
//! If one of them dies, the others end: each waits at a socket that closes with its other end, and the supervisor has a
//! deadline. It ends what it started, as a failed `create` or `start` leaves nothing.

mod call;
pub mod registration;
mod supervisor;
mod terminal;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::Deserialize;

use self::{
    call::{Call, Verb},
    supervisor::Order,
};
use crate::{
    criu::{
        cgroup_view,
        restore::{self, Plan},
    },
    model::ids::ContainerId,
};

/// The name under which this program is the runtime.
pub const NAME: &str = "pody-runc";

/// Prints [`PROTOCOL`]: whether the program under the runtime's path is one that the daemon can leave plans for.
pub const PROTOCOL_COMMAND: &str = "restore-protocol";

/// Changes with the plan and the way it is left.
pub const PROTOCOL: u32 = 1;

const SUPERVISE: &str = "supervise";

const HOOK: &str = "restore-hook";

/// The supervisor's socket in the container's directory.
const CONTROL: &str = "control.sock";

/// How much longer than the supervisor's deadline its answer is awaited: it ends what it started first.
const GRACE: Duration = Duration::from_secs(20);

/// The longest line between these processes, bytes.
const LONGEST: u64 = 64 << 10;

/// Runs as the OCI runtime, with the arguments after the program's name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    match arguments.iter().map(|word| word.to_str()).collect::<Option<Vec<_>>>().as_deref() {
        Some([PROTOCOL_COMMAND]) => {
            println!("{PROTOCOL}");
            return ExitCode::SUCCESS;
        }
        Some([SUPERVISE, socket]) => return supervisor::run(socket),
        Some([HOOK, directory]) => return done(hook(Path::new(directory)), None),
        _ => {}
    }
    let Some(call) = Call::parse(&arguments) else { return become_runc(&arguments, None) };
    match call.verb {
        Verb::Create => match Plan::take(&call.container) {
            Ok(None) => become_runc(&arguments, None),
            Ok(Some(plan)) => done(create(&call, plan), call.log.as_deref()),
            Err(error) => done(Err(io::Error::other(format!("its plan cannot be read: {error}"))), call.log.as_deref()),
        },
        Verb::Start => match connect(&call.container) {
            Some(supervisor) => done(supervisor.and_then(start), call.log.as_deref()),
            None => become_runc(&arguments, None),
        },
        // There is no container for runc yet.
        Verb::Kill => match connect(&call.container) {
            Some(Ok(supervisor)) => done(abort(supervisor), call.log.as_deref()),
            _ => become_runc(&arguments, None),
        },
        Verb::Delete => {
            if let Some(Ok(supervisor)) = connect(&call.container) {
                let _ = abort(supervisor);
            }
            become_runc(&arguments, None)
        }
        Verb::Checkpoint => become_runc(&arguments, restore::dump_options(&call.container)),
    }
}

/// Returns only if there is no runc.
fn become_runc(arguments: &[OsString], criu_options: Option<PathBuf>) -> ExitCode {
    let mut runc = Command::new("runc");
    runc.args(arguments);
    if let Some(file) = criu_options {
        runc.env("CRIU_CONFIG_FILE", file);
    }
    eprintln!("{NAME}: cannot run runc: {}", runc.exec());
    ExitCode::FAILURE
}

/// Reports an error where runc's callers look for it: on standard error, and as the last line of the log.
fn done(result: io::Result<()>, log: Option<&Path>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let text = format!("pody restore: {error}");
    eprintln!("{text}");
    if let Some(mut log) = log.and_then(|log| File::options().create(true).append(true).open(log).ok()) {
        let line = serde_json::json!({"level": "error", "msg": text, "time": jiff::Timestamp::now().to_string()});
        let _ = writeln!(log, "{line}");
    }
    ExitCode::FAILURE
}

/// Starts the supervisor, and returns when the container's first process exists.
fn create(call: &Call, plan: Plan) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    fcntl(theirs.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut supervisor = Command::new("/proc/self/exe");
    supervisor.arg0(NAME).arg(SUPERVISE).arg(theirs.as_raw_fd().to_string());
    if call.console.is_some() {
        // The shim reads what `create` prints until nobody holds it any more.
        supervisor.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    supervisor.spawn()?;
    drop(theirs);
    let deadline = plan.deadline + GRACE;
    let order = Order {
        container: call.container.clone(),
        plan,
        options: call.options.clone(),
        bundle: call.bundle.clone().ok_or_else(|| io::Error::other("create has no --bundle"))?,
        console: call.console.clone(),
    };
    writeln!(ours, "{}", serde_json::to_string(&order)?)?;
    ours.set_read_timeout(Some(deadline))?;
    let pid = answer(ours)?;
    match &call.pid_file {
        Some(file) => fs::write(file, pid),
        None => Ok(()),
    }
}

fn start(mut supervisor: UnixStream) -> io::Result<()> {
    writeln!(supervisor, "start")?;
    answer(supervisor).map(drop)
}

fn abort(mut supervisor: UnixStream) -> io::Result<()> {
    writeln!(supervisor, "abort")?;
    answer(supervisor).map(drop)
}

/// What follows `ok` in the supervisor's answer, or the error.
fn answer(supervisor: UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(supervisor.take(LONGEST)).read_line(&mut line)?;
    match line.trim_end_matches('\n').split_once(' ') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        Some(("error", why)) => Err(io::Error::other(why.to_owned())),
        _ => Err(io::Error::other("the restore was interrupted")),
    }
}

/// The supervisor of a container that is being restored; `None` where there is none.
fn connect(container: &ContainerId) -> Option<io::Result<UnixStream>> {
    let socket = restore::directory(container).join(CONTROL);
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other),
    }
}

/// The part of the container's state that runc passes to a hook.
#[derive(Deserialize)]
struct HookState {
    pid: i32,
}

/// What runc runs once CRIU has made the container's namespaces; CRIU continues when it has ended.
fn hook(directory: &Path) -> io::Result<()> {
    let state: HookState = serde_json::from_reader(io::stdin().lock())?;
    let mut supervisor = UnixStream::connect(directory.join(CONTROL))?;
    writeln!(supervisor, "hook {}", state.pid)?;
    answer(supervisor)?;
    cgroup_view::confine(state.pid).map_err(|error| io::Error::other(format!("its view of cgroups: {error}")))
}
