//! A terminal of 30 rows and 100 columns.

use std::{
    io::{Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use super::fake::Fake;

/// How long the expected output may take.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Terminal {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    shown: Vec<u8>,
}

impl Terminal {
    /// Runs shell words, in which `$PODY` is the program, set up for the fake server.
    pub fn start(fake: &Fake, words: &str) -> Self {
        let mut command = Command::new("script");
        command.args(["-qec", &format!("stty rows 30 cols 100; {words}"), "/dev/null"]);
        command.env("PODY_API_BASE", &fake.base).env("PODY_TOKEN", "t").env("PODY", env!("CARGO_BIN_EXE_pody"));
        command.env("HOME", fake.home.path()).env("TERM", "xterm").env("TZ", "UTC").env_remove("NO_COLOR");
        command.env("SHELL", "/bin/sh"); // script runs the words with it
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output, shown: Vec::new() }
    }

    /// Reads until a text appears in new output. Returns that output.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let from = self.shown.len();
        let begin = Instant::now();
        let is_there = |shown: &[u8]| shown.windows(text.len()).any(|window| window == text.as_bytes());
        while !is_there(&self.shown[from..]) {
            let mut buffer = [0; 4096];
            let count = self.output.read(&mut buffer).unwrap();
            assert!(
                count > 0 && begin.elapsed() < OUTPUT_TIMEOUT,
                "no {text:?} in {:?}",
                String::from_utf8_lossy(&self.shown)
            );
            self.shown.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&self.shown[from..]).into_owned()
    }

    pub fn type_in(&mut self, keys: &[u8]) {
        self.input.write_all(keys).unwrap();
    }

    /// The whole output. The input stays open until the end: script exits when its input ends.
    pub fn end(mut self) -> String {
        self.output.read_to_end(&mut self.shown).unwrap();
        self.child.wait().unwrap();
        drop(self.input);
        String::from_utf8(self.shown).unwrap()
    }
}
