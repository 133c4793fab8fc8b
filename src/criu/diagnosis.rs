//! Why CRIU failed, as a sentence with a remedy: from its log, from what runc said, and from the room that is left
//! where it wrote. A log may be whole, cut by the very disk that is full, cut by a kill, empty, or not there at all.

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

/// A log of this size is CRIU in a loop, bytes.
pub const LOG_LIMIT: u64 = 64 << 20;

/// A part of an error line, and what it means. `{pid}` and the like are not filled in: the line is shown beside it.
const KNOWN: &[(&[&str], &str)] = &[
    (&["anon_inode:[io_uring]"], "a program uses io_uring, which cannot be saved; start it with UV_USE_IO_URING=0"),
    (
        &["Can't open", "'s mapfile link"],
        "a program uses io_uring or a device's memory, which cannot be saved; end it, or start it with UV_USE_IO_URING=0",
    ),
    (
        &["Can't dump ghost file"],
        "a program holds a large deleted file open; end it, or ask an admin to raise [checkpoint] deleted_file_limit",
    ),
    (&["External socket is used"], "a program is connected to a socket outside the pod; end that connection first"),
    (
        &["Can't dump half of stream unix connection"],
        "a program is connected to a socket outside the pod; end that connection first",
    ),
    (
        &["fsnotify:", "cannot be opened"],
        "a program watches a file outside [checkpoint] watch_paths; end it, or put the file on a volume",
    ),
    (
        &["Can't dump that handle"],
        "a program watches a file outside [checkpoint] watch_paths; end it, or put the file on a volume",
    ),
    (
        &["Can't get rlimit"],
        "this host does not grant CAP_SYS_RESOURCE: programs of other users than root cannot be saved",
    ),
    (
        &["Can't get", "opt: Operation not supported"],
        "this CRIU cannot save network sockets on this kernel; upgrade CRIU to 4.2 or newer",
    ),
    (&["/dev/nvidia"], "a program holds a GPU, which CRIU cannot save; end it first"),
    (
        &["mnt:", "unreachable sharing"],
        "something was mounted in the pod behind the engine's back, as NVIDIA's older hook does; ask an admin to have Docker give GPUs by CDI",
    ),
    (
        &["Dangling connection"],
        "a program holds one end of a connection whose other end is outside the pod or was never accepted; end that connection first",
    ),
    (&["Unix socket", "peer"], "a program is connected to a socket outside the pod; end that connection first"),
    (&["name-less external socket"], "a program is connected to a socket outside the pod; end that connection first"),
    (
        &["In-flight connection"],
        "a connection waits that its program has not accepted yet; try again, or end the program",
    ),
    (&["in-flight socket"], "a connection waits that its program has not accepted yet; try again, or end the program"),
    (&["netlink:", "has data to read"], "a program has not read a message of the kernel's (netlink); try again"),
    (&["Unsupported proto 262"], "a program uses MPTCP, which cannot be saved; have it use TCP"),
    (&["Unknown socket collected"], "a program has a socket of a kind that cannot be saved; end it"),
    (&["mqueue isn't empty"], "the pod has a POSIX message queue, which cannot be saved; remove it from /dev/mqueue"),
    (&["packetized mode for pipes"], "a program has a pipe with packets (O_DIRECT), which cannot be saved; end it"),
    (&["File name too long"], "a program has a file open whose path is longer than 4096 characters; close it"),
    (&["secretmem"], "a program has secret memory (memfd_secret), which cannot be saved; end it"),
    (&["zombie", "found while seizing"], "another program traces the pod or saves it at the same time; try again"),
    (&["Unseizable non-zombie"], "another program traces one of the pod, as gdb and strace do; end that first"),
    (
        &["Timeout reached. Try to interrupt"],
        "a program of the pod does not stand still: it waits for a disk or a device; try again, or end it",
    ),
    (
        &["Unable to freeze"],
        "a program of the pod does not stand still: it waits for a disk or a device; try again, or end it",
    ),
    (&["Cannot allocate memory"], "there is too little memory, in the pod's memory limit or on the host"),
    (
        &["Can't lookup mount", "for fd"],
        "a program has a file open on a file system that was mounted after the pod's start; end it",
    ),
    (
        &["No mapping for"],
        "a folder that the pod had when it was saved is not mounted now; restore the volume_mappings of then",
    ),
    (
        &["has bad size"],
        "a file on a volume changed since the checkpoint, and a program had it open; put it back as it was",
    ),
    (
        &["Can't open file", "on restore: No such file"],
        "a file is missing that a program had open; it was on a volume, or the checkpoint is without files (--kind simple)",
    ),
    (
        &["Can't bind inet socket"],
        "the pod's address of then is not free now, and a connection or listener was bound to it",
    ),
    (
        &["Cannot assign requested address"],
        "the pod's address of then is not free now, and a connection or listener was bound to it",
    ),
    (
        &["Can't restore", "tar"],
        "the content of a memory file system could not be put back; is it larger than the quota allows now?",
    ),
    (
        &["killed by signal 9"],
        "a program was killed in the middle of it, by somebody or for lack of memory; is the pod's memory limit smaller than it was?",
    ),
    (
        &["si_code=", "si_status=9"],
        "a program of the pod was killed in the moment in which it was saved, by somebody or for lack of memory",
    ),
    (
        &["Zombies with threads"],
        "the first thread of a program has ended and others go on, which cannot be saved; end that program",
    ),
    (
        &["Can't make VM id"],
        "two programs share their memory without being threads (clone with CLONE_VM), which cannot be saved; end them",
    ),
    (
        &["Can't make FS id"],
        "two programs share their working folder (clone with CLONE_FS), which cannot be saved; end them",
    ),
    (
        &["task interruption"],
        "a program was interrupted by a signal of its own in the moment in which it was saved; try again",
    ),
    (&["Preadv", "returned 0"], "an image file is cut"),
    (&["Unexpected EOF on"], "an image file is cut or missing"),
    (&["cpuinfo"], "this host's processor lacks what the checkpoint was made with"),
    (
        &["Can't dump file", "of that type"],
        "a program has something open of a kind that cannot be saved; end it, or have it close that",
    ),
];

/// Parts of errors that another try may not meet.
const PASSING: [&str; 4] = ["In-flight connection", "in-flight socket", "has data to read", "task interruption"];

/// Parts of errors about an address that sockets are bound to: CRIU's own line, or what it means.
const ADDRESS: &str = "address";

/// A failure and its kind, named here and nowhere else.
fn failure(log: String) -> CriuFailure {
    let kind = match () {
        () if PASSING.iter().any(|part| log.contains(part)) => FailureKind::Transient,
        () if log.contains(ADDRESS) => FailureKind::AddressTaken,
        () => FailureKind::Other,
    };
    CriuFailure { kind, log }
}

/// What a disk that is full says, to CRIU and to everybody else.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// With less than this left a disk is full, bytes: CRIU writes up to so much at a time.
const ROOM: u64 = 1 << 20;

/// What runc says where it could not even begin with CRIU, and where CRIU went away.
const NEVER_BEGUN: &str = "CRIU version check failed";

const GONE: &str = "unixpacket";

/// CRIU's last words when all went well.
const FINISHED: &str = "finished successfully";

/// Where CRIU wrote.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub path: &'a Path,
    /// Bytes that were left when it failed.
    pub free: u64,
}

impl Place<'_> {
    fn full(self, line: Option<&str>) -> String {
        let echo = line.map(|line| format!(" (CRIU: {line})")).unwrap_or_default();
        match self.free < ROOM {
            true => format!("{}{echo}", DiskError::Full { path: self.path.to_owned(), free: self.free }),
            // The pod's own, in memory; or somebody else made room meanwhile.
            false => format!(
                "a file system ran full: one in the pod's memory, or the disk of {}, which has {} left now{echo}",
                self.path.display(),
                ByteSize(self.free)
            ),
        }
    }
}

/// The same as [`explain`], of a log in a file. `directory` is what people know the disk by that CRIU wrote to.
pub fn of_log(log: &Path, said: &str, directory: &Path) -> Option<CriuFailure> {
    explain(&read(log), said, Place { path: directory, free: left(directory) }).map(failure)
}

/// As much of a log as there is; nothing where there is none.
fn read(log: &Path) -> String {
    let mut text = Vec::new();
    let reading = File::open(log).and_then(|file| file.take(LOG_LIMIT).read_to_end(&mut text));
    match reading {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(log = %log.display(), %error, "CRIU's log does not read");
        }
        _ => {}
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// CRIU did not end in time: what it was at, if it told.
pub fn timed_out(log: &Path, limit: std::time::Duration) -> CriuError {
    let error = CriuError::TimedOut { what: "CRIU", limit };
    match last_words(&read(log)) {
        Some(words) => CriuError::Failed(failure(format!("{error}; its last words: {words}"))),
        None => error,
    }
}

/// A sentence for what ended CRIU; `None` where nothing tells of it. `said` is what runc or the engine said.
fn explain(log: &str, said: &str, place: Place) -> Option<String> {
    // This one every restore has on hosts without CAP_SYS_RESOURCE, and goes on.
    let is_harmless = |line: &&str| line.contains("rlimit: Can't setup RLIMIT_NOFILE");
    let errors: Vec<&str> = log.lines().filter(|line| !is_harmless(line)).filter_map(error_of).collect();
    // The rlimit line comes with every dump on some hosts and is the cause only where nothing else is wrong.
    let first = errors.iter().find(|line| !line.contains("rlimit")).or(errors.first()).copied();
    let told_full = errors.iter().copied().find(|line| FULL.iter().any(|words| line.contains(words)));
    // What stands behind the first error is often only its echo, but sometimes names the cause better.
    let known = match (first.and_then(meaning), told_full) {
        (Some(meaning), _) => Some(meaning),
        (None, Some(_)) => None,
        (None, None) => errors.iter().filter(|line| !line.contains("rlimit")).find_map(|line| meaning(line)),
    };
    match (known, told_full, first) {
        (Some(meaning), _, Some(first)) => Some(format!("{meaning} (CRIU: {first})")),
        (_, Some(line), _) => Some(place.full(Some(line))),
        // The log lies on the same disk: the line that would tell of it may be the one that did not fit.
        (None, None, first) if place.free < ROOM => Some(place.full(first)),
        (_, None, Some(first)) => Some(format!("CRIU: {first}")),
        (_, None, None) => without_errors(log, said, place),
    }
}

/// Where the log has no error: it is not there, or CRIU did not come to write one.
fn without_errors(log: &str, said: &str, place: Place) -> Option<String> {
    let runc = words_of_runc(said);
    if FULL.iter().any(|words| said.contains(words)) {
        return Some(place.full(None));
    }
    if said.contains(NEVER_BEGUN) {
        return Some(format!("CRIU ended before it began; `pody doctor` tells whether it works here (runc: {runc})"));
    }
    let was_cut = !log.trim().is_empty() && !log.contains(FINISHED);
    match (was_cut, said.contains(GONE)) {
        (true, _) => Some(format!(
            "CRIU was ended in the middle of its work, by somebody or for lack of memory; try again (its last words: {})",
            last_words(log).unwrap_or_default()
        )),
        (false, true) => {
            Some("CRIU was ended before it wrote a log, by somebody or for lack of memory; try again".into())
        }
        (false, false) => None,
    }
}

/// The sentence in a line of runc's own log, `time="…" level=error msg="…\nlog file: …"`; else the last line.
pub fn words_of_runc(said: &str) -> String {
    let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed and said nothing");
    let message = line.split_once("msg=\"").map_or(line, |(_, rest)| rest.trim_end().trim_end_matches('"'));
    message.split("\\n").next().unwrap_or(message).replace("\\\"", "\"")
}

/// What CRIU wrote last, without its time.
pub fn last_words(log: &str) -> Option<&str> {
    let last = log.lines().rev().map(|line| line.trim_matches(['\0', ' '])).find(|line| !line.is_empty())?;
    let plain = last.strip_prefix('(').and_then(|rest| rest.split_once(") ")).map_or(last, |(_, rest)| rest).trim();
    let end = plain.char_indices().nth(200).map_or(plain.len(), |(at, _)| at);
    Some(&plain[..end])
}

fn meaning(line: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(parts, _)| parts.iter().all(|part| line.contains(part))).map(|(_, meaning)| *meaning)
}

/// An error without time and place: `(00.012) Error (criu/files-ext.c:98): Can't dump …`. `None` for other lines, and
/// for one that ends before it tells.
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
        super::explain(log, said, Place { path: Path::new("/srv/checkpoints"), free })
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
            ("unix: Found a closed in-flight socket to 0x12", "has not accepted yet"),
            ("unix: In-flight connection on non-listening socket 12", "has not accepted yet"),
            ("unix: Unix socket 12 without peer 13", "outside the pod"),
            ("unix: Can't dump half of stream unix connection.", "outside the pod"),
            ("Timeout reached. Try to interrupt: 0", "does not stand still"),
            ("Unseizable non-zombie 77 found, state t, err -1/1", "gdb and strace"),
            (
                "Can't dump file 3 of that type [600] (unknown anon_inode:[perf_event])",
                "of a kind that cannot be saved",
            ),
            ("Can't dump file 3 of that type [600] (unknown anon_inode:[io_uring])", "UV_USE_IO_URING=0"),
            ("Unexpected EOF on (empty-image)", "cut or missing"),
            ("inet: Can't bind inet socket (id 21): Cannot assign requested address", "the pod's address of then"),
        ] {
            let sentence = explained(&format!("{HARMLESS}(00.2) Error (criu/a.c:1): {line}\n")).unwrap();
            assert!(sentence.contains(words) && sentence.contains(line), "{line}: {sentence}");
        }
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
    fn a_full_disk_is_told_with_its_place_and_room() {
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
        // There is room: it was the pod's own, or there is again.
        let elsewhere = explain(&whole, FAILED, ROOMY).unwrap();
        assert!(
            elsewhere.starts_with("a file system ran full: ") && elsewhere.contains("has 5g left now"),
            "{elsewhere}"
        );
        // What is known to be something else is not put down to the disk.
        let other = format!("{HARMLESS}(00.1) Error (criu/sk-unix.c:1): unix: Dangling connection 5\n");
        assert!(explain(&other, FAILED, NO_ROOM).unwrap().contains("never accepted"));
        let quota = "(00.1) Error (criu/image.c:1): Can't write img file: Disk quota exceeded\n";
        assert!(explain(quota, FAILED, NO_ROOM).unwrap().starts_with("the disk is full"));
    }

    /// As runc 1.1.5 said it of a CRIU that was killed at once, before its log, and in the middle.
    #[test]
    fn a_criu_that_was_ended_is_told_from_one_that_failed() {
        let never = "time=\"2026-11-21T18:16:44Z\" level=error msg=\"CRIU version check failed: read criu-xprt-cln: connection reset by peer\"\n";
        let sentence = explain("", never, ROOMY).unwrap();
        assert!(sentence.starts_with("CRIU ended before it began; `pody doctor`"), "{sentence}");
        assert!(sentence.ends_with("(runc: CRIU version check failed: read criu-xprt-cln: connection reset by peer)"));
        let gone = "time=\"2026-11-21T18:17:20Z\" level=error msg=\"read unixpacket @->@: EOF\"\n";
        let log = format!("{HARMLESS}(00.202922) Running network-lock scripts\n(00.202924) \tRPC\n");
        let sentence = explain(&log, gone, ROOMY).unwrap();
        assert!(sentence.starts_with("CRIU was ended in the middle of its work"), "{sentence}");
        assert!(sentence.ends_with("(its last words: RPC)"), "{sentence}");
        assert!(explain("", gone, ROOMY).unwrap().contains("before it wrote a log"));
        assert_eq!(explain("", FAILED, ROOMY), None);
        assert_eq!(words_of_runc(FAILED), "criu failed: type NOTIFY errno 0");
        assert_eq!(words_of_runc("plain words\n\n"), "plain words");
        assert_eq!(words_of_runc(""), "it failed and said nothing");
        assert_eq!(last_words("(00.1) a\n(00.2) pie: 8: b\0\0\n"), Some("pie: 8: b"));
    }
}
