//! Why CRIU failed, as a sentence with a remedy: from its log, from what runc said, and from the space that is left
//! where it wrote. A log may be whole, truncated by the very disk that is full, truncated by a kill, empty, or missing.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::error::{CriuError, CriuFailure, FailureKind};
use crate::{
    host::disk::{DiskError, left},
    model::quantities::ByteSize,
};

/// A log of this size means that CRIU is in a loop, bytes.
pub const LOG_LIMIT: u64 = 64 << 20;

/// Lines of CRIU that contain all of `parts`, and what they mean. The line is shown beside the meaning.
struct Known {
    parts: &'static [&'static str],
    kind: FailureKind,
    meaning: &'static str,
}

impl Known {
    const fn kind(mut self, kind: FailureKind) -> Self {
        self.kind = kind;
        self
    }
}

const fn known(parts: &'static [&'static str], meaning: &'static str) -> Known {
    Known { parts, kind: FailureKind::Other, meaning }
}

const KNOWN: &[Known] = &[
    known(
        &["anon_inode:[io_uring]"],
        "a program uses io_uring, which cannot be saved; start it with UV_USE_IO_URING=0",
    ),
    known(
        &["Can't open", "'s mapfile link"],
        "a program uses io_uring or a device's memory, which cannot be saved; end it, or start it with UV_USE_IO_URING=0",
    ),
    known(
        &["Can't dump ghost file"],
        "a program holds a large deleted file open; end it, or ask an admin to raise [checkpoint] deleted_file_limit",
    ),
    known(
        &["External socket is used"],
        "a program is connected to a socket outside the pod; end that connection first",
    ),
    known(
        &["Can't dump half of stream unix connection"],
        "a program is connected to a socket outside the pod; end that connection first",
    ),
    known(
        &["fsnotify:", "cannot be opened"],
        "a program watches a file outside [checkpoint] watch_paths; end it, or put the file on a volume",
    ),
    known(
        &["Can't dump that handle"],
        "a program watches a file outside [checkpoint] watch_paths; end it, or put the file on a volume",
    ),
    known(
        &["Can't get rlimit"],
        "this host does not grant CAP_SYS_RESOURCE: programs of other users than root cannot be saved",
    ),
    known(
        &["Can't get", "opt: Operation not supported"],
        "this CRIU cannot save network sockets on this kernel; upgrade CRIU to 4.2 or newer",
    ),
    known(&["/dev/nvidia"], "a program holds a GPU, which CRIU cannot save; end it first"),
    known(
        &["mnt:", "unreachable sharing"],
        "something was mounted in the pod without the engine, as NVIDIA's older hook does; ask an admin to have Docker pass GPUs by CDI",
    ),
    known(
        &["Dangling connection"],
        "a program holds one end of a connection whose other end is outside the pod or was never accepted; end that connection first",
    ),
    known(&["Unix socket", "peer"], "a program is connected to a socket outside the pod; end that connection first"),
    known(
        &["name-less external socket"],
        "a program is connected to a socket outside the pod; end that connection first",
    ),
    known(
        &["In-flight connection"],
        "a program has not accepted a waiting connection yet; try again, or end the program",
    )
    .kind(FailureKind::Transient),
    known(&["in-flight socket"], "a program has not accepted a waiting connection yet; try again, or end the program")
        .kind(FailureKind::Transient),
    known(
        &["netlink:", "has data to read"],
        "a program has not read a message from the kernel yet (netlink); try again",
    )
    .kind(FailureKind::Transient),
    known(&["Unsupported proto 262"], "a program uses MPTCP, which cannot be saved; have it use TCP"),
    known(&["Unknown socket collected"], "a program has a socket of a kind that cannot be saved; end it"),
    known(
        &["mqueue isn't empty"],
        "the pod has a POSIX message queue, which cannot be saved; remove it from /dev/mqueue",
    ),
    known(
        &["packetized mode for pipes"],
        "a program has a pipe with packets (O_DIRECT), which cannot be saved; end it",
    ),
    known(&["File name too long"], "a program has a file open whose path is longer than 4096 characters; close it"),
    known(&["secretmem"], "a program has secret memory (memfd_secret), which cannot be saved; end it"),
    known(
        &["zombie", "found while seizing"],
        "another program is tracing or saving the pod at the same time; try again",
    ),
    known(
        &["Unseizable non-zombie"],
        "another program traces a program of the pod, as gdb and strace do; end the tracer first",
    ),
    known(
        &["Timeout reached. Try to interrupt"],
        "a program of the pod cannot be frozen: it waits for a disk or a device; try again, or end it",
    ),
    known(
        &["Unable to freeze"],
        "a program of the pod cannot be frozen: it waits for a disk or a device; try again, or end it",
    ),
    known(&["Cannot allocate memory"], "there is not enough memory, within the pod's memory limit or on the host"),
    known(
        &["Can't lookup mount", "for fd"],
        "a program has a file open on a file system that was mounted after the pod's start; end it",
    ),
    known(
        &["No mapping for"],
        "a volume that the pod had at the checkpoint is not mounted; restore it with the original volume_mappings",
    ),
    known(
        &["has bad size"],
        "a file on a volume that a program had open has changed since the checkpoint; restore its old content",
    ),
    known(
        &["Can't open file", "on restore: No such file"],
        "a file that a program had open is missing; it was on a volume, or the checkpoint has no files (--kind simple)",
    ),
    known(
        &["Can't bind inet socket"],
        "the pod's original address is in use, and a connection or listener was bound to it",
    )
    .kind(FailureKind::AddressTaken),
    known(
        &["Cannot assign requested address"],
        "the pod's original address is in use, and a connection or listener was bound to it",
    )
    .kind(FailureKind::AddressTaken),
    known(
        &["Can't restore", "tar"],
        "the content of a tmpfs could not be put back; is it larger than the current quota allows?",
    ),
    known(
        &["killed by signal 9"],
        "a program was killed during the restore, by someone or for lack of memory; is the pod's memory limit smaller than it was?",
    ),
    known(
        &["si_code=", "si_status=9"],
        "a program of the pod was killed while it was saved, by someone or for lack of memory",
    ),
    known(
        &["Zombies with threads"],
        "the first thread of a program has ended while others run, which cannot be saved; end that program",
    ),
    known(
        &["Can't make VM id"],
        "two programs share their memory without being threads (clone with CLONE_VM), which cannot be saved; end them",
    ),
    known(
        &["Can't make FS id"],
        "two programs share their working directory (clone with CLONE_FS), which cannot be saved; end them",
    ),
    known(&["task interruption"], "a program was interrupted by a signal of its own while it was saved; try again")
        .kind(FailureKind::Transient),
    known(&["Preadv", "returned 0"], "an image file is truncated"),
    known(&["Unexpected EOF on"], "an image file is truncated or missing"),
    known(&["cpuinfo"], "this host's processor lacks what the checkpoint was made with"),
    known(
        &["Can't dump file", "of that type"],
        "a program has a file open of a kind that cannot be saved; end it, or have it close the file",
    ),
];

/// Parts of errors that a retry may not meet, known or not.
const PASSING: [&str; 4] = ["In-flight connection", "in-flight socket", "has data to read", "task interruption"];

/// In a line of CRIU that is not known: it is about an address that sockets are bound to.
const ADDRESS: &str = "address";

/// The kind of a failure, by CRIU's own line.
fn kind_of(line: &str) -> FailureKind {
    match row(line) {
        _ if PASSING.iter().any(|part| line.contains(part)) => FailureKind::Transient,
        Some(known) => known.kind,
        None if line.contains(ADDRESS) => FailureKind::AddressTaken,
        None => FailureKind::Other,
    }
}

/// The errors of a full disk.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// A disk with less than this left counts as full, bytes: CRIU writes up to this much at a time.
const ROOM: u64 = 1 << 20;

/// What runc prints when it could not even start CRIU, and when CRIU exited.
const NEVER_BEGUN: &str = "CRIU version check failed";

const GONE: &str = "unixpacket";

/// CRIU's last line when all went well.
const FINISHED: &str = "finished successfully";

/// Where CRIU wrote.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub path: &'a Path,
    /// Bytes left when it failed.
    pub free: u64,
}

impl Place<'_> {
    fn full(self, line: Option<&str>) -> String {
        let echo = line.map(|line| format!(" (CRIU: {line})")).unwrap_or_default();
        match self.free < ROOM {
            true => format!("{}{echo}", DiskError::Full { path: self.path.to_owned(), free: self.free }),
            // The pod's own, in memory; or someone else freed space meanwhile.
            false => format!(
                "a file system is full: a tmpfs of the pod, or the disk of {}, which has {} left now{echo}",
                self.path.display(),
                ByteSize(self.free)
            ),
        }
    }
}

/// The same as [`explain`], for a log in a file. `directory` names, for people, the disk that CRIU wrote to.
pub fn of_log(log: &Path, said: &str, directory: &Path) -> Option<CriuFailure> {
    explain(&read(log), said, Place { path: directory, free: left(directory) })
}

/// As much of a log as there is; empty where there is none.
fn read(log: &Path) -> String {
    let mut text = Vec::new();
    let reading = File::open(log).and_then(|file| file.take(LOG_LIMIT).read_to_end(&mut text));
    match reading {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(log = %log.display(), %error, "could not read CRIU's log");
        }
        _ => {}
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// CRIU did not end in time: what it did last, if its log shows it.
pub fn timed_out(log: &Path, limit: std::time::Duration) -> CriuError {
    let error = CriuError::TimedOut { what: "CRIU", limit };
    match last_words(&read(log)) {
        Some(words) => CriuError::Failed(CriuFailure {
            kind: kind_of(words),
            log: format!("{error}; the last line of its log: {words}"),
        }),
        None => error,
    }
}

/// What ended CRIU; `None` where nothing shows it. `said` is what runc or the engine said.
fn explain(log: &str, said: &str, place: Place) -> Option<CriuFailure> {
    // Every restore on a host without CAP_SYS_RESOURCE has this error, and continues.
    let is_harmless = |line: &&str| line.contains("rlimit: Can't setup RLIMIT_NOFILE");
    let errors: Vec<&str> = log.lines().filter(|line| !is_harmless(line)).filter_map(error_of).collect();
    // The rlimit line comes with every dump on some hosts and is the cause only where nothing else is wrong.
    let first = errors.iter().find(|line| !line.contains("rlimit")).or(errors.first()).copied();
    let full = errors.iter().copied().find(|line| FULL.iter().any(|words| line.contains(words)));
    // What follows the first error is often only its echo, but sometimes names the cause better.
    let known = match (first.and_then(row), full) {
        (Some(known), _) => Some(known),
        (None, Some(_)) => None,
        (None, None) => errors.iter().filter(|line| !line.contains("rlimit")).find_map(|line| row(line)),
    };
    match (known, full, first) {
        (Some(known), _, Some(first)) => {
            let kind = if known.kind == FailureKind::Other { kind_of(first) } else { known.kind };
            Some(CriuFailure { kind, log: format!("{} (CRIU: {first})", known.meaning) })
        }
        (_, Some(line), _) => Some(CriuFailure::other(place.full(Some(line)))),
        // The log lies on the same disk: the line that would show it may be the one that did not fit.
        (None, None, first) if place.free < ROOM => Some(CriuFailure::other(place.full(first))),
        (_, None, Some(first)) => Some(CriuFailure { kind: kind_of(first), log: format!("CRIU: {first}") }),
        (_, None, None) => without_errors(log, said, place),
    }
}

/// Where the log has no error: it does not exist, or CRIU ended before it wrote one.
fn without_errors(log: &str, said: &str, place: Place) -> Option<CriuFailure> {
    let runc = words_of_runc(said);
    if FULL.iter().any(|words| said.contains(words)) {
        return Some(CriuFailure::other(place.full(None)));
    }
    if said.contains(NEVER_BEGUN) {
        return Some(CriuFailure::other(format!(
            "CRIU ended before it began; `pody doctor` shows whether it works here (runc: {runc})"
        )));
    }
    let was_cut = !log.trim().is_empty() && !log.contains(FINISHED);
    match (was_cut, said.contains(GONE)) {
        (true, _) => {
            let words = last_words(log).unwrap_or_default();
            let log = format!(
                "CRIU was killed in the middle of its work, by someone or for lack of memory; try again (the last line of its log: {words})"
            );
            Some(CriuFailure { kind: kind_of(words), log })
        }
        (false, true) => Some(CriuFailure::other(
            "CRIU was killed before it wrote a log, by someone or for lack of memory; try again",
        )),
        (false, false) => None,
    }
}

/// The sentence in a line of runc's own log, `time="…" level=error msg="…\nlog file: …"`; else the last line.
pub fn words_of_runc(said: &str) -> String {
    let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed without a message");
    let message = line.split_once("msg=\"").map_or(line, |(_, rest)| rest.trim_end().trim_end_matches('"'));
    message.split("\\n").next().unwrap_or(message).replace("\\\"", "\"")
}

/// The last line of CRIU's log, without its time.
pub fn last_words(log: &str) -> Option<&str> {
    let last = log.lines().rev().map(|line| line.trim_matches(['\0', ' '])).find(|line| !line.is_empty())?;
    let plain = last.strip_prefix('(').and_then(|rest| rest.split_once(") ")).map_or(last, |(_, rest)| rest).trim();
    let end = plain.char_indices().nth(200).map_or(plain.len(), |(at, _)| at);
    Some(&plain[..end])
}

fn row(line: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.parts.iter().all(|part| line.contains(part)))
}

/// An error without time and place: `(00.012) Error (criu/files-ext.c:98): Can't dump …`. `None` for other lines, and
/// for one that ends before its text.
fn error_of(line: &str) -> Option<&str> {
    let (_, after) = line.split_once("Error (")?;
    let (_, text) = after.split_once("): ")?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: u64 = 5 << 30;
    const NO_ROOM: u64 = 0;
    /// Every log on a host without CAP_SYS_RESOURCE has it.
    const HARMLESS: &str =
        "(00.048773) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n";
    const FAILED: &str = "time=\"2026-11-21T18:16:06Z\" level=error msg=\"criu failed: type NOTIFY errno 0\\nlog file: /srv/checkpoints/.tmp-1/work/dump.log\"\n";

    fn explain(log: &str, said: &str, free: u64) -> Option<String> {
        super::explain(log, said, Place { path: Path::new("/srv/checkpoints"), free }).map(|failure| failure.log)
    }

    fn explained(log: &str) -> Option<String> {
        explain(log, "", ROOMY)
    }

    #[test]
    fn known_errors_become_sentences() {
        let log = "(00.01) Warn  (criu/x.c:1): w\n\
                   (00.02) Error (criu/cr-dump.c:3): Can't get rlimit 0: Operation not permitted\n\
                   (00.03) Error (criu/files-reg.c:1): Can't dump ghost file /root/bigdel of 3145728 size, increase limit\n\
                   (00.04) Error (criu/cr-dump.c:2): Dumping FAILED.\n";
        let sentence = explained(log).unwrap();
        assert!(sentence.contains("deleted_file_limit") && sentence.contains("/root/bigdel"), "{sentence}");
        for (line, words) in [
            ("unix: Dangling connection 4711", "whose other end is outside the pod or was never accepted"),
            ("unix: Found a closed in-flight socket to 0x12", "has not accepted a waiting connection"),
            ("unix: In-flight connection on non-listening socket 12", "has not accepted a waiting connection"),
            ("unix: Unix socket 12 without peer 13", "outside the pod"),
            ("unix: Can't dump half of stream unix connection.", "outside the pod"),
            ("Timeout reached. Try to interrupt: 0", "cannot be frozen"),
            ("Unseizable non-zombie 77 found, state t, err -1/1", "gdb and strace"),
            (
                "Can't dump file 3 of that type [600] (unknown anon_inode:[perf_event])",
                "of a kind that cannot be saved",
            ),
            ("Can't dump file 3 of that type [600] (unknown anon_inode:[io_uring])", "UV_USE_IO_URING=0"),
            ("Unexpected EOF on (empty-image)", "truncated or missing"),
            ("inet: Can't bind inet socket (id 21): Cannot assign requested address", "the pod's original address"),
        ] {
            let sentence = explained(&format!("{HARMLESS}(00.2) Error (criu/a.c:1): {line}\n")).unwrap();
            assert!(sentence.contains(words) && sentence.contains(line), "{line}: {sentence}");
        }
    }

    #[test]
    fn each_failure_has_its_kind() {
        let place = Place { path: Path::new("/srv/address"), free: ROOMY };
        let kind = |text: &str| {
            let log = format!("{HARMLESS}(00.2) Error (criu/a.c:1): {text}\n");
            super::explain(&log, "", place).unwrap().kind
        };
        for line in [
            "unix: In-flight connection on non-listening socket 12",
            "unix: Found a closed in-flight socket to 0x12",
            "netlink: The socket 12 has data to read",
            "another socket has data to read",
            "Unexpected task interruption",
        ] {
            assert_eq!(kind(line), FailureKind::Transient, "{line}");
        }
        for line in [
            "inet: Can't bind inet socket (id 21): Permission denied",
            "inet: Cannot assign requested address",
            "inet: some other address is in use",
        ] {
            assert_eq!(kind(line), FailureKind::AddressTaken, "{line}");
        }
        for line in [
            "unix: Dangling connection 4711",
            "Can't write img file: No space left on device",
            "Can't dump ghost file /root/address of 5 size",
            "Address in capitals",
            "Something new",
        ] {
            assert_eq!(kind(line), FailureKind::Other, "{line}");
        }
        // The known error may come after one that is not known.
        assert_eq!(kind("Something new\n(00.3) Error (criu/a.c:1): In-flight connection"), FailureKind::Transient);
        // Of a CRIU that was killed the last line counts.
        let killed = |line: &str| super::explain(&format!("(00.2) {line}\n"), "", place).unwrap().kind;
        assert_eq!(killed("inet: restoring an address"), FailureKind::AddressTaken);
        assert_eq!(killed("Running network-lock scripts"), FailureKind::Other);
    }

    #[test]
    fn unknown_errors_are_shown_as_they_are() {
        assert_eq!(explained("(00.1) Error (criu/a.c:1): Something new\n").unwrap(), "CRIU: Something new");
        assert_eq!(explained(""), None);
        assert_eq!(explained("(00.1) all is well\n(00.2) Dumping finished successfully\n"), None);
        assert_eq!(explained(&format!("{HARMLESS}(00.2) Dumping finished successfully\n")), None);
    }

    /// As CRIU 4.2.1 wrote them on file systems of 200 KiB to 1.8 MiB.
    #[test]
    fn a_full_disk_is_reported_with_its_path_and_space() {
        let whole = format!(
            "{HARMLESS}\
             (00.084080) Error (criu/page-xfer.c:263): page-xfer: Unable to spice data: No space left on device\n\
             (00.084104) Error (criu/bfd.c:131): bfd: Error flushing image: No space left on device\n\
             (00.084165) Error (criu/mem.c:718): Can't dump page with parasite\n\
             (00.179068) Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
        );
        let cut_in_a_word = format!("{HARMLESS}(00.073298) Dumping core (pid: 8)\npie:");
        let cut_in_an_error = format!("{HARMLESS}(00.084080) Error (c");
        let cut_before_the_text = format!("{HARMLESS}(00.084080) Error (criu/page-xfer.c:263): ");
        let cut_between =
            format!("{HARMLESS}(00.084165) Error (criu/mem.c:718): Can't dump page with parasite\n(00.0841");
        for log in [whole.as_str(), &cut_in_a_word, &cut_in_an_error, &cut_before_the_text, &cut_between, ""] {
            let sentence = explain(log, FAILED, NO_ROOM).unwrap();
            assert!(sentence.starts_with("the disk is full: /srv/checkpoints has 0b left; "), "{log}: {sentence}");
            assert!(sentence.contains("pody checkpoint rm ID") && !sentence.contains("(CRIU: c)"), "{sentence}");
        }
        assert!(explain(&whole, FAILED, NO_ROOM).unwrap().contains("(CRIU: page-xfer: Unable to spice data"));
        // There is space: a tmpfs of the pod was full, or space was freed.
        let elsewhere = explain(&whole, FAILED, ROOMY).unwrap();
        assert!(
            elsewhere.starts_with("a file system is full: ") && elsewhere.contains("has 5g left now"),
            "{elsewhere}"
        );
        // A known other cause is not blamed on the disk.
        let other = format!("{HARMLESS}(00.1) Error (criu/sk-unix.c:1): unix: Dangling connection 5\n");
        assert!(explain(&other, FAILED, NO_ROOM).unwrap().contains("never accepted"));
        let quota = "(00.1) Error (criu/image.c:1): Can't write img file: Disk quota exceeded\n";
        assert!(explain(quota, FAILED, NO_ROOM).unwrap().starts_with("the disk is full"));
    }

    /// As runc 1.1.5 reported a CRIU that was killed at once, before its log, and in the middle.
    #[test]
    fn a_criu_that_was_killed_is_distinguished_from_one_that_failed() {
        let never = "time=\"2026-11-21T18:16:44Z\" level=error msg=\"CRIU version check failed: read criu-xprt-cln: connection reset by peer\"\n";
        let sentence = explain("", never, ROOMY).unwrap();
        assert!(sentence.starts_with("CRIU ended before it began; `pody doctor`"), "{sentence}");
        assert!(sentence.ends_with("(runc: CRIU version check failed: read criu-xprt-cln: connection reset by peer)"));
        let gone = "time=\"2026-11-21T18:17:20Z\" level=error msg=\"read unixpacket @->@: EOF\"\n";
        let log = format!("{HARMLESS}(00.202922) Running network-lock scripts\n(00.202924) \tRPC\n");
        let sentence = explain(&log, gone, ROOMY).unwrap();
        assert!(sentence.starts_with("CRIU was killed in the middle of its work"), "{sentence}");
        assert!(sentence.ends_with("(the last line of its log: RPC)"), "{sentence}");
        assert!(explain("", gone, ROOMY).unwrap().contains("before it wrote a log"));
        assert_eq!(explain("", FAILED, ROOMY), None);
        assert_eq!(words_of_runc(FAILED), "criu failed: type NOTIFY errno 0");
        assert_eq!(words_of_runc("plain words\n\n"), "plain words");
        assert_eq!(words_of_runc(""), "it failed without a message");
        assert_eq!(last_words("(00.1) a\n(00.2) pie: 8: b\0\0\n"), Some("pie: 8: b"));
    }
}
