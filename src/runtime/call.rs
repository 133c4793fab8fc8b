//! What the shim asks of the runtime: runc's command line, as far as it matters here.

use std::{ffi::OsString, path::PathBuf};

use crate::model::ids::ContainerId;

/// runc's options before the verb that are followed by a value.
const WITH_VALUE: [&str; 5] = ["--root", "--log", "--log-format", "--criu", "--rootless"];

/// Those of the verbs below.
const VERB_WITH_VALUE: [&str; 11] = [
    "--bundle",
    "-b",
    "--console-socket",
    "--pid-file",
    "--pidfd-socket",
    "--preserve-fds",
    "--image-path",
    "--work-path",
    "--parent-path",
    "--manage-cgroups-mode",
    "--status-fd",
];

/// The verbs that are not always runc's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Verb {
    Create,
    Start,
    Kill,
    Delete,
    Checkpoint,
}

#[derive(Debug, PartialEq)]
pub struct Call {
    pub verb: Verb,
    pub container: ContainerId,
    /// The options before the verb, as they are.
    pub options: Vec<String>,
    pub log: Option<PathBuf>,
    pub bundle: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub console: Option<PathBuf>,
}

impl Call {
    /// `None` where it is runc's alone: another verb, or no container of the engine's.
    pub fn parse(arguments: &[OsString]) -> Option<Self> {
        let words: Vec<&str> = arguments.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
        let mut at = 0;
        while words.get(at)?.starts_with('-') {
            at += if WITH_VALUE.contains(&words[at]) { 2 } else { 1 };
        }
        let verb: Verb = words[at].parse().ok()?;
        let (options, rest) = (&words[..at], &words[at + 1..]);
        let value = |words: &[&str], names: &[&str]| {
            let mut found = words.iter().enumerate().filter_map(|(at, word)| match word.split_once('=') {
                Some((name, value)) if names.contains(&name) => Some(value.to_owned()),
                None if names.contains(word) => words.get(at + 1).map(|&value| value.to_owned()),
                _ => None,
            });
            found.next().map(PathBuf::from)
        };
        let mut positional = Vec::new();
        let mut at = 0;
        while let Some(word) = rest.get(at) {
            match word.starts_with('-') {
                true if VERB_WITH_VALUE.contains(word) => at += 1,
                true => {}
                false => positional.push(*word),
            }
            at += 1;
        }
        Some(Self {
            verb,
            container: positional.first()?.parse().ok()?,
            options: options.iter().map(|&word| word.to_owned()).collect(),
            log: value(options, &["--log"]),
            bundle: value(rest, &["--bundle", "-b"]),
            pid_file: value(rest, &["--pid-file"]),
            console: value(rest, &["--console-socket"]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Call> {
        Call::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_calls_of_a_shim_are_understood() {
        let id = "a".repeat(64);
        let create = parse(&format!(
            "--root /run/docker/runtime-runc/moby --log /b/log.json --log-format json --systemd-cgroup create \
             --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock {id}"
        ))
        .unwrap();
        assert_eq!(create.verb, Verb::Create);
        assert_eq!(create.container.as_str(), id);
        assert_eq!(create.options.last().unwrap(), "--systemd-cgroup");
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!((create.log, create.bundle), (path("/b/log.json"), path("/b")));
        assert_eq!((create.pid_file, create.console), (path("/b/init.pid"), path("/tmp/pty.sock")));

        assert_eq!(parse(&format!("--log=/l start {id}")).unwrap().log, path("/l"));
        assert_eq!(parse(&format!("--root /r kill --all {id} 9")).unwrap().verb, Verb::Kill);
        assert_eq!(parse(&format!("delete --force {id}")).unwrap().container.as_str(), id);
        let dump = parse(&format!("checkpoint --image-path /i --leave-running {id}")).unwrap();
        assert_eq!((dump.verb, dump.container.as_str()), (Verb::Checkpoint, id.as_str()));
    }

    #[test]
    fn everything_else_is_runcs_own() {
        let id = "a".repeat(64);
        for line in ["", "--version", "--root", "features", "create --bundle /b", "create --bundle /b short", "start"] {
            assert_eq!(parse(line), None, "{line}");
        }
        for verb in ["exec", "state", "pause", "resume", "update", "ps", "events", "restore"] {
            assert_eq!(parse(&format!("--root /r {verb} {id}")), None, "{verb}");
        }
    }
}
