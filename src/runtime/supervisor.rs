//! The process that stays with a restore from `create` to the end of `start`: it runs `runc restore`, holds CRIU back
//! until the engine says "start", and ends everything if one of the others is gone or the deadline passes. Where the
//! container has a terminal it stays on as its relay ([`super::terminal`]).

use std::{
    fs, io,
    os::{
        fd::{FromRawFd, RawFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::{Instant, sleep_until},
};

use super::{CONTROL, HOOK, LONGEST, NAME, terminal::StandIn};
use crate::{
    criu::{
        command::MARK,
        kill,
        restore::{self, Plan},
    },
    model::ids::ContainerId,
};

/// What runc says, in the container's directory.
const RUNC_LOG: &str = "runc.log";

/// What `create` passes to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub container: ContainerId,
    pub plan: Plan,
    /// runc's options before the verb.
    pub options: Vec<String>,
    pub bundle: PathBuf,
    pub console: Option<PathBuf>,
}

/// Runs with the number of the descriptor that leads to `create`.
pub fn run(socket: &str) -> ExitCode {
    // Not with the caller's session: it may have to be one for the terminal.
    let _ = setsid();
    let Ok(number) = socket.parse::<RawFd>() else { return ExitCode::FAILURE };
    // SAFETY: `create` has opened it for this process alone, and nothing else here uses the number.
    let creator = unsafe { StdUnixStream::from_raw_fd(number) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let relay = match runtime.and_then(|runtime| runtime.block_on(supervise(creator))) {
        Ok(relay) => relay,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(relay) = relay {
        relay.run();
    }
    ExitCode::SUCCESS
}

/// A connection to another process of this restore, and the line that it has sent.
struct Peer {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Peer {
    async fn read(stream: UnixStream) -> io::Result<Self> {
        let mut peer = Self { stream: BufReader::new(stream), line: String::new() };
        (&mut peer.stream).take(LONGEST).read_line(&mut peer.line).await?;
        Ok(peer)
    }

    async fn answer(mut self, answer: &Result<String, String>) {
        let line = match answer {
            Ok(text) => format!("ok {text}\n"),
            Err(why) => format!("error {}\n", why.replace('\n', " ")),
        };
        let _ = self.stream.get_mut().write_all(line.as_bytes()).await;
    }

    /// Returns when the other end is closed.
    async fn closed(&mut self) {
        let mut rest = [0; 64];
        while matches!(self.stream.read(&mut rest).await, Ok(read) if read > 0) {}
    }
}

/// Waits for ever where there is no peer.
async fn closed(peer: &mut Option<Peer>) {
    match peer {
        Some(peer) => peer.closed().await,
        None => std::future::pending().await,
    }
}

async fn supervise(creator: StdUnixStream) -> io::Result<Option<super::terminal::Relay>> {
    creator.set_nonblocking(true)?;
    let creator = Peer::read(UnixStream::from_std(creator)?).await?;
    let order: Order = serde_json::from_str(&creator.line)?;
    let directory = restore::directory(&order.container);
    let begun = begin(&order, &directory);
    let result = match begun {
        Ok(restore) => restore.run(creator).await,
        Err(error) => {
            creator.answer(&Err(error.to_string())).await;
            Err(error)
        }
    };
    if let Err(error) = restore::withdraw(&order.container) {
        eprintln!("{NAME}: {error}");
    }
    result
}

/// A restore in progress.
struct Restore<'a> {
    order: &'a Order,
    directory: &'a Path,
    runc: Child,
    listener: UnixListener,
    stand_in: Option<StandIn>,
}

fn begin<'a>(order: &'a Order, directory: &'a Path) -> io::Result<Restore<'a>> {
    let plan = &order.plan;
    let listener = UnixListener::bind(directory.join(CONTROL))?;
    let stand_in = order.console.as_deref().map(|console| StandIn::open(console, directory)).transpose()?;
    let options = directory.join("criu.conf");
    fs::write(&options, &plan.options)?;
    add_hook(&order.bundle, directory)?;
    let mut runc = Command::new("runc");
    // In a log of its own: the shim takes the last line of its log for the error of its call.
    runc.args(without_log(&order.options)).arg("--log").arg(directory.join(RUNC_LOG)).arg("--log-format").arg("json");
    runc.args(["restore", "--detach", "--no-subreaper", "--file-locks", "--empty-ns", "network"]);
    if plan.is_tcp_established {
        runc.arg("--tcp-established");
    }
    runc.arg("--bundle").arg(&order.bundle);
    runc.arg("--image-path").arg(&plan.images).arg("--work-path").arg(&plan.work);
    if let Some(stand_in) = &stand_in {
        runc.arg("--console-socket").arg(&stand_in.socket);
        runc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    runc.arg(order.container.as_str());
    // Not by the annotation org.criu.config: that would stay in runc's state and spoil the next dump.
    runc.env("CRIU_CONFIG_FILE", &options).env("PATH", &plan.path).env(MARK, plan.action.to_string());
    let runc = runc.spawn()?;
    // Without a terminal these are the container's own.
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(Restore { order, directory, runc, listener, stand_in })
}

impl Restore<'_> {
    async fn run(mut self, creator: Peer) -> io::Result<Option<super::terminal::Relay>> {
        let deadline = Instant::now() + self.order.plan.deadline;
        let (mut creator, mut starter, mut aborter) = (Some(creator), None, None);
        let mut held: Option<Peer> = None;
        let ended = loop {
            tokio::select! {
                status = self.runc.wait() => {
                    break match status {
                        Ok(status) if status.success() => Ok(String::new()),
                        Ok(status) => Err(self.words_of_runc(&status.to_string())),
                        Err(error) => Err(error.to_string()),
                    };
                }
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let Ok(peer) = Peer::read(stream).await else { continue };
                    match peer.line.trim_end().split_once(' ').unwrap_or((peer.line.trim_end(), "")) {
                        ("hook", pid) => {
                            if let Some(stand_in) = &mut self.stand_in
                                && let Err(error) = stand_in.hand_over()
                            {
                                break Err(format!("its terminal: {error}"));
                            }
                            if let Some(creator) = creator.take() {
                                creator.answer(&Ok(pid.to_owned())).await;
                            }
                            held = Some(peer);
                        }
                        ("start", _) => {
                            starter = Some(peer);
                            if let Some(held) = held.take() {
                                held.answer(&Ok(String::new())).await;
                            }
                        }
                        ("abort", _) => {
                            aborter = Some(peer);
                            break Err("it was ended".to_owned());
                        }
                        _ => {}
                    }
                }
                () = sleep_until(deadline) => {
                    break Err(format!("it did not end within {} s", self.order.plan.deadline.as_secs()));
                }
                // Nobody would learn the end.
                () = closed(&mut creator) => break Err("its caller is gone".to_owned()),
                () = closed(&mut starter) => break Err("its caller is gone".to_owned()),
            }
        };
        if ended.is_err() {
            kill::end_restore(&self.order.container).await;
            let _ = self.runc.wait().await;
        }
        let relay = match (&ended, self.stand_in.take()) {
            (Ok(_), Some(stand_in)) => Some(stand_in.relay()).transpose(),
            _ => Ok(None),
        };
        // The socket goes before the answers: a later start is runc's again.
        let _ = fs::remove_file(self.directory.join(CONTROL));
        for peer in [creator, starter].into_iter().flatten() {
            peer.answer(&ended).await;
        }
        if let Some(peer) = aborter {
            peer.answer(&Ok(String::new())).await;
        }
        relay
    }

    /// The last error of runc's log.
    fn words_of_runc(&self, status: &str) -> String {
        let log = fs::read_to_string(self.directory.join(RUNC_LOG)).unwrap_or_default();
        let entries = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut errors = entries.filter(|entry| entry["level"] == "error");
        let said = errors.next().and_then(|entry| entry["msg"].as_str().map(str::to_owned));
        said.unwrap_or_else(|| format!("runc restore ended with {status}"))
    }
}

/// Has runc run our hook when CRIU has made the container's namespaces. Each `create` has a bundle of its own.
fn add_hook(bundle: &Path, directory: &Path) -> io::Result<()> {
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let hook = json!({
        // The very program that runs, also while an upgrade replaces it.
        "path": format!("/proc/{}/exe", std::process::id()),
        "args": [NAME, HOOK, directory],
    });
    let hooks = &mut config["hooks"]["createRuntime"];
    match hooks.as_array_mut() {
        Some(hooks) => hooks.push(hook),
        None => *hooks = json!([hook]),
    }
    fs::write(&file, serde_json::to_vec(&config)?)
}

/// runc's options without those of its log.
fn without_log(options: &[String]) -> Vec<&String> {
    let is_log = |word: &str| matches!(word, "--log" | "--log-format");
    let mut kept = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match word.split_once('=').map_or(word.as_str(), |(name, _)| name) {
            name if is_log(name) && word.contains('=') => {}
            name if is_log(name) => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runc_gets_its_options_but_those_of_its_log() {
        let options = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let given = options("--root /r --log /l --log-format json --systemd-cgroup --log=/m");
        let kept: Vec<String> = without_log(&given).into_iter().cloned().collect();
        assert_eq!(kept, options("--root /r --systemd-cgroup"));
    }

    #[test]
    fn the_hook_comes_after_those_of_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join("config.json");
        for (before, count) in [(json!({"a": 1}), 1), (json!({"hooks": {"createRuntime": [{"path": "/x"}]}}), 2)] {
            fs::write(&file, before.to_string()).unwrap();
            add_hook(bundle.path(), Path::new("/run/d")).unwrap();
            let config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            let hooks = config["hooks"]["createRuntime"].as_array().unwrap();
            assert_eq!(hooks.len(), count);
            assert_eq!(hooks[count - 1]["args"], json!(["pody-runc", "restore-hook", "/run/d"]));
        }
    }
}
