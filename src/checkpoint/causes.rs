//! What CRIU's logs mean: its first error line as a sentence with a remedy, or the line itself where none is known.

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
    (&["No space left on device"], "the disk is full"),
    (&["zombie", "found while seizing"], "another program traces the pod or saves it at the same time; try again"),
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
    (&["Preadv", "returned 0"], "an image file is cut"),
    (&["cpuinfo"], "this host's processor lacks what the checkpoint was made with"),
];

/// Parts of errors that another try may not meet.
const PASSING: [&str; 3] = ["In-flight connection", "in-flight socket", "has data to read"];

/// Whether what stood against a dump may be over in a moment.
pub fn may_pass(cause: &str) -> bool {
    PASSING.iter().any(|part| cause.contains(part))
}

/// A sentence for the first error of a log; `None` where it tells of none.
pub fn explain(log: &str) -> Option<String> {
    // This one every restore has on hosts without CAP_SYS_RESOURCE, and goes on.
    let is_harmless = |line: &&str| line.contains("rlimit: Can't setup RLIMIT_NOFILE");
    let errors = log.lines().filter(|line| line.contains("Error (") && !is_harmless(line));
    let errors: Vec<&str> = errors.map(text).collect();
    // The rlimit line comes with every dump on some hosts and is the cause only where nothing else is wrong.
    let first = errors.iter().find(|line| !line.contains("rlimit")).or(errors.first())?;
    // What stands behind the first error is often only its echo, but sometimes names the cause better.
    let known =
        meaning(first).or_else(|| errors.iter().filter(|line| !line.contains("rlimit")).find_map(|line| meaning(line)));
    Some(match known {
        Some(meaning) => format!("{meaning} (CRIU: {first})"),
        None => format!("CRIU: {first}"),
    })
}

fn meaning(line: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(parts, _)| parts.iter().all(|part| line.contains(part))).map(|(_, meaning)| *meaning)
}

/// The line without time and place: `(00.012) Error (criu/files-ext.c:98): Can't dump …`.
fn text(line: &str) -> &str {
    let after = line.split_once("Error (").map_or(line, |(_, rest)| rest);
    after.split_once("): ").map_or(after, |(_, text)| text).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_become_sentences() {
        let log = "(00.01) Warn  (criu/x.c:1): w\n\
                   (00.02) Error (criu/cr-dump.c:3): Can't get rlimit 0: Operation not permitted\n\
                   (00.03) Error (criu/files-reg.c:1): Can't dump ghost file /root/bigdel of 3145728 size, increase limit\n\
                   (00.04) Error (criu/cr-dump.c:2): Dumping FAILED.\n";
        let sentence = explain(log).unwrap();
        assert!(sentence.contains("deleted_file_limit") && sentence.contains("/root/bigdel"), "{sentence}");
    }

    #[test]
    fn unknown_errors_are_shown_as_they_are() {
        assert_eq!(explain("(00.1) Error (criu/a.c:1): Something new\n").unwrap(), "CRIU: Something new");
        assert_eq!(explain("(00.1) all is well\n"), None);
        let harmless =
            "(00.1) Error (criu/rlimit.c:11): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n";
        assert_eq!(explain(harmless), None);
    }
}
