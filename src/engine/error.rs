//! Why a call to Docker failed.
//!
//! Docker's API reports a failure as an HTTP status and a sentence, and the status alone rarely says what happened.
//! The sentences are read here and nowhere else: [`SENTENCES`] turns them into variants of [`EngineError`].

use std::time::Duration;

use super::SHORT;

/// Docker's response to a request that it did not fulfil. Its sentence can be shown, and not read: what code decides by
/// is a variant of [`EngineError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Docker's sentence.
    message: String,
}

impl Answer {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, message } = self;
        match status {
            404 => write!(f, "Docker found no such object: {message}"),
            409 => write!(f, "Docker refused: {message}"),
            status => write!(f, "Docker answered {status}: {message}"),
        }
    }
}

/// Why a call to the engine failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum EngineError {
    #[error("Docker does not answer{}", detail(.0))]
    #[strum(serialize = "docker_unavailable")]
    Unavailable(String),
    /// The deadline passed: the engine may have done the work, or may do it later.
    #[error("Docker did not finish within {} s", .0.as_secs())]
    #[strum(serialize = "docker_timed_out")]
    TimedOut(Duration),
    /// The connection broke or the response could not be parsed: the work may have been done.
    #[error("Docker's response was lost: {0}")]
    #[strum(serialize = "docker_response_lost")]
    AnswerLost(String),
    #[error("port {0} of this host is in use by another program")]
    PortTaken(u16),
    #[error("the disk that holds Docker's data is full")]
    #[strum(serialize = "docker_disk_full")]
    DiskFull,
    #[error("{0}")]
    #[strum(serialize = "docker_no_image")]
    NoImage(Answer),
    #[error("{0}")]
    #[strum(serialize = "docker_no_network")]
    NoNetwork(Answer),
    /// A limit on processes is reached, the container's or the host's.
    #[error("{0}")]
    #[strum(serialize = "docker_no_pids")]
    NoPids(Answer),
    /// The program of a command or of a container does not exist, or cannot be executed.
    #[error("{answer}")]
    #[strum(serialize = "docker_cannot_execute")]
    CannotExecute { program: String, answer: Answer },
    #[error("{0}")]
    #[strum(serialize = "docker_already_paused")]
    AlreadyPaused(Answer),
    #[error("{0}")]
    #[strum(serialize = "docker_not_paused")]
    NotPaused(Answer),
    /// The container is paused, and the call needs its processes to run.
    #[error("{0}")]
    #[strum(serialize = "docker_paused")]
    Paused(Answer),
    #[error("{0}")]
    #[strum(serialize = "docker_not_running")]
    NotRunning(Answer),
    /// Another call is removing the container.
    #[error("{0}")]
    #[strum(serialize = "docker_removal_in_progress")]
    RemovalInProgress(Answer),
    /// The storage driver cannot limit a container's disk space.
    #[error("{0}")]
    #[strum(serialize = "docker_no_storage_limit")]
    StorageOptUnsupported(Answer),
    /// Docker cannot give GPUs to containers.
    #[error("{0}")]
    #[strum(serialize = "docker_no_gpu_driver")]
    NoGpuDriver(Answer),
    /// The processes did not freeze in time. The runtime has resumed all of them.
    #[error("{0}")]
    #[strum(serialize = "docker_not_frozen")]
    NotFrozen(Answer),
    /// Another 404: mostly, there is no such container.
    #[error("{0}")]
    #[strum(serialize = "docker_not_found")]
    NotFound(Answer),
    /// Another 409.
    #[error("{0}")]
    #[strum(serialize = "docker_conflict")]
    Conflict(Answer),
    /// Any other error status.
    #[error("{0}")]
    #[strum(serialize = "docker_failed")]
    Failed(Answer),
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl EngineError {
    /// Whether the work may have been done.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::AnswerLost(_) | Self::Unavailable(_))
    }

    /// Whether Docker accepted the request and then failed, as opposed to refusing it or not answering.
    pub fn is_failure(&self) -> bool {
        self.status().is_some_and(|status| !matches!(status, 404 | 409))
    }

    /// The HTTP status of Docker's response; `None` where there was none, or where it does not matter.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unavailable(_) | Self::TimedOut(_) | Self::AnswerLost(_) | Self::PortTaken(_) | Self::DiskFull => {
                None
            }
            Self::NoImage(answer)
            | Self::NoNetwork(answer)
            | Self::NoPids(answer)
            | Self::CannotExecute { answer, .. }
            | Self::AlreadyPaused(answer)
            | Self::NotPaused(answer)
            | Self::Paused(answer)
            | Self::NotRunning(answer)
            | Self::RemovalInProgress(answer)
            | Self::StorageOptUnsupported(answer)
            | Self::NoGpuDriver(answer)
            | Self::NotFrozen(answer)
            | Self::NotFound(answer)
            | Self::Conflict(answer)
            | Self::Failed(answer) => Some(answer.status),
        }
    }

    /// What the OCI runtime printed instead of starting a command. Docker passes it on as the command's output.
    pub(super) fn from_runtime(message: String) -> Self {
        recognize(Answer { status: 409, message })
    }
}

impl From<bollard::errors::Error> for EngineError {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code, message } => from_answer(status_code, message),
            Error::RequestTimeoutError => Self::TimedOut(SHORT),
            Error::SocketNotFoundError(path) => Self::Unavailable(format!("no socket {path}")),
            Error::HyperLegacyError { err } if err.is_connect() => Self::Unavailable(root_cause(&err)),
            other => Self::AnswerLost(root_cause(&other)),
        }
    }
}

fn from_answer(status: u16, message: String) -> EngineError {
    let lower = message.to_ascii_lowercase();
    if lower.contains("no space left on device") {
        return EngineError::DiskFull;
    }
    if (lower.contains("address already in use") || lower.contains("port is already allocated"))
        && let Some(port) = taken_port(&message)
    {
        return EngineError::PortTaken(port);
    }
    recognize(Answer { status, message })
}

/// The statuses with which Docker sends a sentence.
#[derive(Clone, Copy)]
enum Sent {
    /// 404
    Missing,
    /// Any error status but 404. Docker has changed the status of several sentences between its versions.
    Otherwise,
}

/// A sentence of Docker's: it contains all of these parts, in lower case, and means this error.
///
/// Each part contains a space, a colon or a quote, except `--storage-opt`, so that the name of a container or an image
/// that Docker quotes in another sentence never matches.
type Sentence = (Sent, &'static [&'static str], fn(Answer) -> EngineError);

/// The first that matches counts. Files are those of <https://github.com/moby/moby>, from Docker 20.10 to 29.
const SENTENCES: &[Sentence] = &[
    // daemon/images/image.go, `ErrImageDoesNotExist`
    (Sent::Missing, &["no such image:"], EngineError::NoImage),
    // daemon/images/image.go and daemon/containerd/image.go: an image for another platform
    (Sent::Missing, &["image with reference ", " was found but "], EngineError::NoImage),
    // libnetwork/error.go, `ErrNoSuchNetwork`; since Docker 28 behind "failed to set up container networking: "
    (Sent::Missing, &["network ", " not found"], EngineError::NoNetwork),
    // libnetwork/error.go, `UnknownNetworkError`
    (Sent::Missing, &["unknown network "], EngineError::NoNetwork),
    // The kernel's EAGAIN from fork(2), as runc and containerd's shim pass it on. Before what names the program.
    (Sent::Otherwise, &["resource temporarily unavailable"], EngineError::NoPids),
    // Go's os/exec, as runc passes it on; see daemon/errors.go, `translateContainerdStartErr`
    (Sent::Otherwise, &["exec: \""], cannot_execute),
    // daemon/pause.go
    (Sent::Otherwise, &[" is already paused"], EngineError::AlreadyPaused),
    // daemon/unpause.go
    (Sent::Otherwise, &[" is not paused"], EngineError::NotPaused),
    // daemon/errors.go, `errExecPaused`; daemon/attach.go
    (Sent::Otherwise, &[" is paused, unpause the container "], EngineError::Paused),
    // daemon/start.go; and exec.go of runc, where the container was paused after Docker's own check
    (Sent::Otherwise, &[" a paused container"], EngineError::Paused),
    // daemon/errors.go, `errNotRunning`; daemon/kill.go puts "Cannot kill container: … " before it
    (Sent::Otherwise, &[" is not running"], EngineError::NotRunning),
    // daemon/delete.go
    (Sent::Otherwise, &["removal of container ", " is already in progress"], EngineError::RemovalInProgress),
    // daemon/graphdriver/: overlay2/overlay.go, vfs/driver.go, fuse-overlayfs/fuseoverlayfs.go
    (Sent::Otherwise, &["--storage-opt "], EngineError::StorageOptUnsupported),
    // daemon/graphdriver/vfs/driver.go
    (Sent::Otherwise, &["storage opt "], EngineError::StorageOptUnsupported),
    // daemon/errors.go, `incompatibleDeviceRequest`
    (Sent::Otherwise, &["could not select device driver "], EngineError::NoGpuDriver),
    // libcontainer/cgroups/fs/freezer.go of runc
    (Sent::Otherwise, &["unable to freeze"], EngineError::NotFrozen),
];

fn recognize(answer: Answer) -> EngineError {
    let lower = answer.message.to_ascii_lowercase();
    let matches = |(sent, parts, _): &&Sentence| {
        let has_status = match sent {
            Sent::Missing => answer.status == 404,
            Sent::Otherwise => answer.status != 404,
        };
        has_status && parts.iter().all(|part| lower.contains(part))
    };
    match SENTENCES.iter().find(matches) {
        Some((_, _, error)) => error(answer),
        None => match answer.status {
            404 => EngineError::NotFound(answer),
            409 => EngineError::Conflict(answer),
            _ => EngineError::Failed(answer),
        },
    }
}

/// The program in `exec: "/bin/bash": stat /bin/bash: no such file or directory`.
fn cannot_execute(answer: Answer) -> EngineError {
    let after = answer.message.split_once("exec: \"").map_or("", |(_, after)| after);
    let program = after.split_once('"').map_or(after, |(program, _)| program).to_owned();
    EngineError::CannotExecute { program, answer }
}

/// The port in "Bind for 0.0.0.0:20001 failed: port is already allocated" and "listen tcp4 0.0.0.0:20001: bind: address
/// already in use".
fn taken_port(message: &str) -> Option<u16> {
    let mut found = None;
    for (at, _) in message.match_indices(':') {
        let digits: String = message[at + 1..].chars().take_while(char::is_ascii_digit).collect();
        let ends = message[at + 1 + digits.len()..].chars().next();
        if let Ok(port @ 1..) = digits.parse::<u16>()
            && matches!(ends, Some(':' | ' ') | None)
        {
            found = Some(port);
        }
    }
    found
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of the variant, and what it shows.
    fn read(status: u16, message: &str) -> (String, String) {
        let error = from_answer(status, message.to_owned());
        let name = format!("{error:?}");
        (name.split([' ', '(']).next().unwrap().to_owned(), error.to_string())
    }

    #[test]
    fn errors_about_ports_name_the_port() {
        for (message, port) in [
            (
                "driver failed programming external connectivity on endpoint a-b (c2f): Bind for 0.0.0.0:20001 failed: port is already allocated",
                20001,
            ),
            (
                "driver failed: Error starting userland proxy: listen tcp4 0.0.0.0:20002: bind: address already in use",
                20002,
            ),
            ("listen tcp4 [::]:20003: bind: address already in use", 20003),
        ] {
            assert!(
                matches!(from_answer(500, message.to_owned()), EngineError::PortTaken(found) if found == port),
                "{message}"
            );
        }
        assert!(matches!(from_answer(500, "write /x: no space left on device".into()), EngineError::DiskFull));
        assert!(matches!(from_answer(404, String::new()), EngineError::NotFound(_)));
    }

    /// As Docker 20.10, 26, 28 and 29 word them. A variant shows the sentence as the bare status would.
    #[test]
    fn docker_sentences_have_variants() {
        for (status, message, variant) in [
            (404, "No such image: pody-base:latest", "NoImage"),
            (
                404,
                "image with reference sha256:1f was found but does not match the specified platform: wanted linux/arm64, actual: linux/amd64",
                "NoImage",
            ),
            (
                404,
                "image with reference pody-base:latest was found but does not provide the specified platform (linux/arm64)",
                "NoImage",
            ),
            (404, "network lab not found", "NoNetwork"),
            (404, "failed to set up container networking: network lab not found", "NoNetwork"),
            (404, "unknown network lab id 2f1e", "NoNetwork"),
            (409, "Container 2f1e is paused, unpause the container before exec", "Paused"),
            (409, "cannot start a paused container, try unpause instead", "Paused"),
            (409, "Container 2f1e is already paused", "AlreadyPaused"),
            (409, "container 2f1e is already paused", "AlreadyPaused"),
            (500, "Container 2f1e is not paused", "NotPaused"),
            (409, "Container 2f1e is not running", "NotRunning"),
            (409, "container 2f1e is not running", "NotRunning"),
            (409, "Cannot kill container: 2f1e: Container 2f1e is not running", "NotRunning"),
            (409, "cannot kill container: 2f1e: container 2f1e is not running", "NotRunning"),
            (500, "container 2f1e is not running", "NotRunning"),
            (409, "removal of container 2f1e is already in progress", "RemovalInProgress"),
            (
                500,
                "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
                "StorageOptUnsupported",
            ),
            (500, "--storage-opt is not supported for vfs", "StorageOptUnsupported"),
            (400, "Storage opt size not supported", "StorageOptUnsupported"),
            (400, "could not select device driver \"\" with capabilities: [[gpu]]", "NoGpuDriver"),
            (500, "could not select device driver \"\" with capabilities: [[gpu]]", "NoGpuDriver"),
            (500, "Cannot pause container 2f1e: OCI runtime pause failed: unable to freeze: unknown", "NotFrozen"),
            (
                500,
                "cannot pause container 2f1e: runc did not terminate successfully: exit status 1: unable to freeze: unknown",
                "NotFrozen",
            ),
            (
                500,
                "failed to start shim: fork/exec /usr/bin/containerd-shim-runc-v2: resource temporarily unavailable: unknown",
                "NoPids",
            ),
            (
                400,
                "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"run-all\": executable file not found in $PATH: unknown",
                "CannotExecute",
            ),
        ] {
            let shown = Answer { status, message: message.to_owned() }.to_string();
            assert_eq!(read(status, message), (variant.to_owned(), shown), "{status} {message}");
        }
    }

    #[test]
    fn other_sentences_keep_their_status() {
        for (status, message, variant) in [
            (404, "No such container: alice-image", "NotFound"),
            (404, "No such exec instance: 2f1e", "NotFound"),
            (404, "Could not find the file /image in container 2f1e", "NotFound"),
            (
                409,
                "Conflict. The container name \"/alice-paused\" is already in use by container \"2f1e\". You have to remove (or rename) that container to be able to reuse that name.",
                "Conflict",
            ),
            (409, "Container 2f1e is restarting, wait until the container is running", "Conflict"),
            (
                409,
                "conflict: unable to remove repository reference \"storage-opt\" (must force) - container 2f1e is using its referenced image 9c",
                "Conflict",
            ),
            (500, "failed to create task for container: context canceled", "Failed"),
        ] {
            let shown = Answer { status, message: message.to_owned() }.to_string();
            assert_eq!(read(status, message), (variant.to_owned(), shown), "{status} {message}");
        }
    }

    /// What Docker passes on as the output of a command that it could not start.
    #[test]
    fn messages_of_the_runtime_have_variants() {
        let read = |message: &str| EngineError::from_runtime(message.to_owned());
        for message in [
            "OCI runtime exec failed: exec failed: container_linux.go:380: starting container process caused: exec: \"/bin/bash\": stat /bin/bash: no such file or directory: unknown",
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/bash\": permission denied: unknown",
        ] {
            let error = read(message);
            assert!(
                matches!(&error, EngineError::CannotExecute { program, .. } if program == "/bin/bash"),
                "{error:?}"
            );
        }
        let error = read(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/bash\": resource temporarily unavailable",
        );
        assert!(matches!(error, EngineError::NoPids(_)), "{error:?}");
        let error =
            read("OCI runtime exec failed: cannot exec in a paused container (use --ignore-paused to override)");
        assert!(matches!(error, EngineError::Paused(_)), "{error:?}");
        let error = read("OCI runtime exec failed: exec failed: cannot exec a container that has stopped: unknown");
        assert!(matches!(error, EngineError::Conflict(_)), "{error:?}");
    }

    #[test]
    fn only_a_failure_of_docker_itself_is_a_failure() {
        let failed = |status, message: &str| from_answer(status, message.to_owned()).is_failure();
        assert!(failed(500, "no such runtime") && failed(500, "Container 2f1e is not paused") && failed(400, "bad"));
        assert!(!failed(404, "No such image: a") && !failed(409, "container 2f1e is not running") && !failed(409, ""));
        assert!(!EngineError::TimedOut(SHORT).is_failure() && !EngineError::DiskFull.is_failure());
    }
}
