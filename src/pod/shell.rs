//! Terminals in pods.
//!
//! In a pod with our init program they are *sessions* of that process (`init/src/session.rs`): the engine execs
//! `pody-init attach`, which only relays the bytes. A checkpoint loses the processes that the engine execs, but saves
//! sessions. Before a checkpoint all users are detached ([`Pods::detach_shells`]), the sessions continue inside, and
//! users reattach to them by their ids. A session whose user disconnects in any other way ends, as a terminal does.
//!
//! Without such a process, or if it cannot begin a session, the terminal is an exec of the engine.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;

use super::{LOCK_LOOK, LOCK_WAIT, PodError, Pods, exec::check_command, processes};
use crate::{
    db::NewEvent,
    engine::{EngineError, ExecRequest, Piece, Pipes, Terminal},
    host::process::{self, Stat},
    model::{
        ids::{ContainerId, PodId, ProcessId, SessionId},
        names::PodRef,
        pod::{Init, Pod},
        user::Caller,
        view::pod::SessionView,
    },
};

/// How long the first process may take to begin a session, or to reattach to one.
const BEGIN: Duration = Duration::from_secs(7);

/// Deadline of a request that the first process answers at once.
const ASK: Duration = Duration::from_secs(10);

const ANSWER_LIMIT: usize = 1 << 20;

/// Longest line beside the output, bytes: messages are short, and the engine's own complaints are a sentence.
const MAX_LINE: usize = 4 << 10;

/// Most output that is kept before a session has begun, bytes.
const MAX_EARLY: usize = 256 << 10;

/// The signal on which the first process detaches all users (`init/src/pid1.rs`).
const DETACH: i32 = 62;

/// `attach` processes may take this long to exit; then they are killed, which harms no session.
const LEAVE: Duration = Duration::from_secs(2);

/// `ENOENT`: there is no such session, program or first process. `EAGAIN`: no process can be created.
const NO_SUCH: i32 = 2;

const NO_PROCESS: i32 = 11;

/// A request for a terminal.
pub struct NewShell {
    /// `None` = a login shell.
    pub command: Option<String>,
    /// A session to reattach to, instead.
    pub session: Option<SessionId>,
    pub rows: u16,
    pub columns: u16,
}

/// An open terminal.
pub struct Shell {
    pods: Pods,
    container: ContainerId,
    source: Source,
}

enum Source {
    Exec(Terminal),
    Session(Session),
}

struct Session {
    id: SessionId,
    pipes: Pipes,
    /// Output that came before `started`.
    early: VecDeque<Bytes>,
    messages: Messages,
    last_word: Option<LastWord>,
}

#[derive(Clone, Copy)]
enum LastWord {
    Exit(i64),
    Detached,
}

/// A message of `pody-init` beside the output (`init/src/wire.rs`).
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Started,
    Exit(i64),
    Detached,
    Failed(i32),
}

impl std::str::FromStr for Said {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("started", "") => Ok(Self::Started),
            ("exit", code) => code.parse().map(Self::Exit).map_err(drop),
            ("detached", "") => Ok(Self::Detached),
            ("failed", error) => error.parse().map(Self::Failed).map_err(drop),
            _ => Err(()),
        }
    }
}

/// A line beside the output is longer than any message.
#[derive(Debug, PartialEq, Eq)]
struct TooLong;

/// Splits what comes beside the output into messages.
#[derive(Default)]
struct Messages {
    /// The incomplete last line.
    line: Vec<u8>,
}

impl Messages {
    /// The messages that are complete with this piece. Other lines are passed over.
    fn read(&mut self, mut piece: &[u8]) -> Result<Vec<Said>, TooLong> {
        let mut said = Vec::new();
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            self.extend(&piece[..end])?;
            said.extend(String::from_utf8_lossy(&self.line).trim().parse::<Said>());
            self.line.clear();
            piece = &piece[end + 1..];
        }
        self.extend(piece)?;
        Ok(said)
    }

    fn extend(&mut self, more: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + more.len() > MAX_LINE {
            return Err(TooLong);
        }
        self.line.extend_from_slice(more);
        Ok(())
    }
}

/// An event of a terminal.
#[derive(Debug)]
pub enum ShellEvent {
    Output(Bytes),
    /// With the exit code, if it is known.
    Ended(Option<i64>),
    /// The session continues without us; its id is for reattaching.
    Detached(SessionId),
}

/// Pods where attaching is blocked.
#[derive(Clone, Default)]
pub(super) struct BlockedShells(Arc<Mutex<HashSet<PodId>>>);

impl BlockedShells {
    fn contains(&self, pod: PodId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&pod)
    }
}

/// Blocks attaching to terminals of the pod as long as this lives.
#[must_use]
pub struct ShellBlock {
    held: BlockedShells,
    pod: PodId,
}

impl Drop for ShellBlock {
    fn drop(&mut self) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pod);
    }
}

impl Pods {
    /// Opens an interactive terminal with a shell, or with a command line run by `/bin/bash -c`; or reattaches to one.
    pub async fn open_shell(&self, caller: &Caller, wanted: &PodRef, new: NewShell) -> Result<Shell, PodError> {
        let pod = self.find(caller, wanted)?;
        new.command.as_deref().map_or(Ok(()), check_command)?;
        let begun = Instant::now();
        while self.shells_held.contains(pod.id) {
            if begun.elapsed() > LOCK_WAIT {
                return Err(PodError::Busy {
                    pod: pod.container_name.clone(),
                    what: "it is being checkpointed; see `pody actions`",
                });
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
        let container = self.running(&pod).await?;
        let event = NewEvent::by(&caller.into()).did("pod.shell", &pod.container_name).of(&pod.user);
        self.db.insert_event(event).await?;
        let command = match &new.command {
            Some(line) => vec!["/bin/bash".to_owned(), "-c".to_owned(), line.clone()],
            None => vec!["/bin/bash".to_owned(), "-l".to_owned()],
        };
        let env = vec!["TERM=xterm-256color".to_owned()];
        let session = match &pod.spec.init {
            Some(_) => self.open_session(&pod, &container, &new, &command, &env).await?,
            None => None,
        };
        let source = match (session, new.session) {
            (Some(session), _) => Source::Session(session),
            (None, Some(session)) => return Err(PodError::NoSession { pod: pod.container_name.clone(), session }),
            (None, None) => {
                let opened = self.engine.open_terminal(&container, command, env).await;
                let terminal = opened.map_err(|error| self.exec_error(&pod, error))?;
                let _ = self.engine.resize_terminal(&terminal.exec_id, new.rows, new.columns).await;
                Source::Exec(terminal)
            }
        };
        Ok(Shell { pods: self.clone(), container, source })
    }

    /// `None` = the first process cannot open it.
    async fn open_session(
        &self,
        pod: &Pod,
        container: &ContainerId,
        new: &NewShell,
        command: &[String],
        env: &[String],
    ) -> Result<Option<Session>, PodError> {
        let id = new.session.unwrap_or_else(SessionId::generate);
        let mut words = [Init::INSIDE, "attach"].map(str::to_owned).to_vec();
        words.extend([id.to_string(), new.rows.to_string(), new.columns.to_string()]);
        if new.session.is_none() {
            words.push("--".to_owned());
            words.extend_from_slice(command);
        }
        let opened = self.engine.open_pipes(container, words, env.to_vec()).await;
        let pipes = opened.map_err(|error| self.exec_error(pod, error))?;
        let mut session = Session { id, pipes, early: VecDeque::new(), messages: Messages::default(), last_word: None };
        match tokio::time::timeout(BEGIN, session.begun()).await {
            Ok(true) => Ok(Some(session)),
            Ok(false) => Ok(None),
            Err(_) => Err(EngineError::TimedOut(BEGIN).into()),
        }
    }

    /// Runs a command line in the background, as a detached session.
    pub async fn exec_detached(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        command: String,
    ) -> Result<SessionId, PodError> {
        let pod = self.find(caller, wanted)?;
        check_command(&command)?;
        let container = self.running(&pod).await?;
        let pod_name = || pod.container_name.clone();
        if pod.spec.init.is_none() {
            return Err(PodError::NoInit { pod: pod_name() });
        }
        let event = NewEvent::by(&caller.into()).did("pod.exec", &pod.container_name).of(&pod.user);
        self.db.insert_event(event).await?;
        let id = SessionId::generate();
        let words = ["start", &id.to_string(), "--", "/bin/bash", "-c", &command];
        match self.ask_init(&pod, &container, &words).await?.lines().find_map(|line| line.trim().parse().ok()) {
            Some(Said::Started) => Ok(id),
            Some(Said::Failed(NO_SUCH)) => Err(PodError::NoShell { pod: pod_name() }),
            Some(Said::Failed(NO_PROCESS)) => {
                Err(PodError::NoPids { pod: pod_name(), limit: pod.spec.pids.unwrap_or(0) })
            }
            other => Err(EngineError::AnswerLost(format!("the pod's first process answered {other:?}")).into()),
        }
    }

    /// Attached and detached sessions of a pod.
    pub async fn list_sessions(&self, caller: &Caller, wanted: &PodRef) -> Result<Vec<SessionView>, PodError> {
        let pod = self.find(caller, wanted)?;
        let container = self.running(&pod).await?;
        if pod.spec.init.is_none() {
            return Ok(Vec::new());
        }
        let answer = self.ask_init(&pod, &container, &["list"]).await?;
        let list = serde_json::from_str(answer.trim());
        Ok(list.map_err(|error| EngineError::AnswerLost(format!("the pod's first process: {error}")))?)
    }

    async fn ask_init(&self, pod: &Pod, container: &ContainerId, words: &[&str]) -> Result<String, PodError> {
        let command = std::iter::once(&Init::INSIDE).chain(words).map(|word| (*word).to_owned()).collect();
        let request = ExecRequest { command, timeout: ASK, output_limit: ANSWER_LIMIT };
        let inside = container.clone();
        let kill = |pid| async move { processes::end_session(pid, &inside) };
        let ran = self.engine.exec(container, request, kill).await.map_err(|error| self.exec_error(pod, error))?;
        Ok(String::from_utf8_lossy(&ran.output).into_owned())
    }

    /// Detaches all users from the terminals of the pod, and blocks attaching until the returned value is dropped:
    /// a socket whose other end is a process outside the checkpoint cannot be saved. The sessions continue inside.
    pub async fn detach_shells(&self, pod: &Pod) -> ShellBlock {
        let held = self.shells_held.clone();
        held.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.id);
        let held = ShellBlock { held, pod: pod.id };
        let (Some(_), Some(container)) = (&pod.spec.init, self.container(pod)) else { return held };
        let first = container.detail.as_ref().map_or(0, |detail| detail.pid);
        let id = container.id.clone();
        // Reading command lines may block.
        let done = tokio::task::spawn_blocking(move || detach_all(first, &id)).await;
        if let Ok(count @ 1..) = done {
            tracing::info!(pod = pod.container_name, count, "detached terminals");
        }
        held
    }
}

/// Blocks until nobody is attached. Returns how many were.
fn detach_all(first: i32, container: &ContainerId) -> usize {
    let attached = attached(container);
    // The PID may have been reused.
    let is_first = process::container_of(first).as_ref() == Some(container) && process::pid_inside(first) == Some(1);
    if attached.is_empty() || !is_first {
        return 0;
    }
    // SAFETY: numbers only. nix knows no real-time signals.
    unsafe { libc::kill(first, DETACH) };
    let begun = std::time::Instant::now();
    while attached.iter().any(processes::is_alive) && begun.elapsed() < LEAVE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let late: Vec<ProcessId> = attached.iter().copied().filter(processes::is_alive).collect();
    processes::signal(&late, Signal::SIGKILL);
    attached.len()
}

/// Processes of the container that relay the bytes of sessions.
fn attached(container: &ContainerId) -> Vec<ProcessId> {
    let command = format!("{} attach ", Init::INSIDE);
    let inside = process::list().into_iter().filter(|pid| process::container_of(*pid).as_ref() == Some(container));
    let carriers = inside.filter(|pid| process::command_line(*pid).is_some_and(|line| line.starts_with(&command)));
    carriers.filter_map(|pid| Stat::read(pid).map(|stat| stat.id)).collect()
}

impl Session {
    /// Waits until the session has begun; `false` = it cannot, and an exec has to replace it.
    async fn begun(&mut self) -> bool {
        let mut early = 0;
        while let Some(Ok(piece)) = self.pipes.output.next().await {
            match piece {
                Piece::Output(bytes) => {
                    early += bytes.len();
                    if early > MAX_EARLY {
                        return false;
                    }
                    self.early.push_back(bytes);
                }
                Piece::Stderr(bytes) => {
                    let Ok(said) = self.messages.read(&bytes) else { return false };
                    let mut first = None;
                    for said in said {
                        match said {
                            Said::Started | Said::Failed(_) => first = first.or(Some(said == Said::Started)),
                            Said::Exit(_) | Said::Detached => self.note(said),
                        }
                    }
                    if let Some(has_begun) = first {
                        return has_begun;
                    }
                }
            }
        }
        false
    }

    fn note(&mut self, said: Said) {
        match said {
            Said::Exit(code) => self.last_word = Some(LastWord::Exit(code)),
            Said::Detached => self.last_word = Some(LastWord::Detached),
            Said::Started | Said::Failed(_) => {}
        }
    }

    /// The next output, or `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.early.pop_front() {
            return Some(bytes);
        }
        loop {
            match self.pipes.output.next().await? {
                Ok(Piece::Output(bytes)) => return Some(bytes),
                // Any process of the pod can write there: who breaks the protocol ends the session.
                Ok(Piece::Stderr(bytes)) => {
                    self.messages.read(&bytes).ok()?.into_iter().for_each(|said| self.note(said))
                }
                Err(_) => return None,
            }
        }
    }

    async fn send(&mut self, kind: u8, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = BytesMut::with_capacity(5 + payload.len());
        frame.put_u8(kind);
        frame.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        frame.put_slice(payload);
        self.pipes.input.write_all(&frame).await?;
        self.pipes.input.flush().await
    }
}

impl Shell {
    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> ShellEvent {
        let (exec_id, last_word) = match &mut self.source {
            Source::Exec(terminal) => match terminal.output.next().await {
                Some(Ok(bytes)) => return ShellEvent::Output(bytes),
                Some(Err(_)) | None => (&terminal.exec_id, None),
            },
            Source::Session(session) => match session.next().await {
                Some(bytes) => return ShellEvent::Output(bytes),
                None if matches!(session.last_word, Some(LastWord::Detached)) => {
                    return ShellEvent::Detached(session.id);
                }
                None => (&session.pipes.exec_id, session.last_word),
            },
        };
        match last_word {
            Some(LastWord::Exit(code)) => ShellEvent::Ended(Some(code)),
            _ => ShellEvent::Ended(self.pods.engine.exit_code(exec_id).await.ok().flatten()),
        }
    }

    pub async fn type_in(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.source {
            Source::Exec(terminal) => {
                terminal.input.write_all(bytes).await?;
                terminal.input.flush().await
            }
            Source::Session(session) => session.send(b'i', bytes).await,
        }
    }

    pub async fn resize(&mut self, rows: u16, columns: u16) {
        match &mut self.source {
            Source::Exec(terminal) => {
                let _ = self.pods.engine.resize_terminal(&terminal.exec_id, rows, columns).await;
            }
            Source::Session(session) => {
                let [a, b] = rows.to_le_bytes();
                let [c, d] = columns.to_le_bytes();
                let _ = session.send(b'w', &[a, b, c, d]).await;
            }
        }
    }

    /// The user has disconnected: ends all processes that were started in the terminal.
    pub async fn end(self) {
        let (exec_id, container) = (
            match &self.source {
                Source::Exec(terminal) => terminal.exec_id.clone(),
                Source::Session(session) => session.pipes.exec_id.clone(),
            },
            self.container,
        );
        // The end of the input tells the first process. An engine may not forward it, so the relay is ended too.
        drop(self.source);
        if let Some(pid) = self.pods.engine.exec_pid(&exec_id).await {
            processes::end_session(pid, &container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_beside_the_output_are_parsed() {
        for (line, said) in [
            ("started", Ok(Said::Started)),
            ("exit 137", Ok(Said::Exit(137))),
            ("detached", Ok(Said::Detached)),
            ("failed 11", Ok(Said::Failed(NO_PROCESS))),
            ("exit", Err(())),
            ("started today", Err(())),
            ("OCI runtime exec failed", Err(())),
        ] {
            assert_eq!(line.parse::<Said>(), said, "{line}");
        }
    }

    #[test]
    fn messages_come_in_pieces_of_any_size() {
        let bytes = b"started\nnoise\nexit 3\ndetached";
        for size in 1..=bytes.len() {
            let mut messages = Messages::default();
            let said: Vec<Said> = bytes.chunks(size).flat_map(|piece| messages.read(piece).unwrap()).collect();
            assert_eq!(said, [Said::Started, Said::Exit(3)], "pieces of {size}");
            assert_eq!(messages.read(b"\n").unwrap(), [Said::Detached]);
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut messages = Messages::default();
        assert_eq!(messages.read(&[b'x'; MAX_LINE]), Ok(Vec::new()));
        assert_eq!(messages.read(b"x"), Err(TooLong));
        assert_eq!(Messages::default().read(&[b'x'; 2 * MAX_LINE]), Err(TooLong));
    }
}
