//! `pody gpu`: printed once, as JSON, and live on a terminal, which is restored.

use pody::model::{
    gpu::{Library, MigInstance, ProcessKind, Reading},
    usage::GpuUuid,
    view::gpu::{DeviceState, DeviceView, GpusView, LostPod, ProcessView},
};
use serde_json::json;

use super::{fake::Fake, terminal::Terminal};

/// Enter and leave the alternate screen of a terminal.
const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

fn process(user: &str, pod: &str, pid: i32) -> ProcessView {
    ProcessView {
        pid,
        pod: pod.to_owned(),
        cmd: "python train.py".into(),
        uptime: 3661.5,
        memory_used: 1,
        gpu_memory_used: Some(10 << 30),
        user: Some(user.parse().unwrap()),
        pid_in_pod: Some(7),
        utilization: Some(40),
        kinds: vec![ProcessKind::Compute],
        gpu_instance: None,
    }
}

fn gpu(index: u32, processes: Vec<ProcessView>) -> DeviceView {
    let reading = Reading {
        memory_total: Some(140 << 30),
        memory_used: Some(70 << 30),
        utilization: Some(50),
        power: Some(411.6),
        power_limit: Some(700.0),
        temperature: Some(45),
        sm_clock: Some(1980),
        ecc_errors: Some(0),
        ..Reading::default()
    };
    DeviceView {
        index,
        uuid: GpuUuid(format!("GPU-{index}")),
        name: "NVIDIA H200".to_owned(),
        state: DeviceState::Ok,
        reason: None,
        reading: Some(reading),
        users: Vec::new(),
        processes,
        mig: Vec::new(),
    }
}

/// An instance that reports nothing but its utilization, if at all.
fn instance(utilization: Option<u32>) -> MigInstance {
    let (uuid, name) = (GpuUuid(String::new()), String::new());
    MigInstance { index: 0, uuid, name, memory_total: None, memory_used: None, utilization }
}

fn answer(library: Library, gpus: Vec<DeviceView>) -> GpusView {
    GpusView { at: "2026-01-02T03:04:05Z".to_owned(), age: 0.2, library, gpus, lost_pods: Vec::new() }
}

fn working() -> Library {
    Library::Working { driver: "570.86.15".to_owned() }
}

/// Two GPUs, of which one is lost; processes of two users and of the host.
fn some_gpus() -> GpusView {
    let host = ProcessView {
        cmd: "[host process]".into(),
        gpu_memory_used: None,
        user: None,
        pid_in_pod: None,
        utilization: None,
        ..process("root", "", 5)
    };
    let rude =
        ProcessView { cmd: "a\x1b[2J\nb\u{202e}c".into(), gpu_instance: Some(1), ..process("alice", "alice-main", 9) };
    let partition = MigInstance {
        index: 1,
        uuid: GpuUuid("MIG-1".to_owned()),
        name: "NVIDIA H200 MIG 1g.18gb".to_owned(),
        memory_total: Some(16 << 30),
        memory_used: Some(4 << 30),
        utilization: None,
    };
    let first = DeviceView {
        users: ["alice", "bob"].map(|user| user.parse().unwrap()).to_vec(),
        mig: vec![partition],
        ..gpu(0, vec![process("bob", "bob-x", 8), rude, host])
    };
    let lost = DeviceView {
        state: DeviceState::Unknown,
        reason: Some("the GPU is lost".to_owned()),
        reading: None,
        ..gpu(1, vec![process("alice", "alice-b", 10)])
    };
    answer(working(), vec![first, lost])
}

#[test]
fn in_a_pipe_it_is_printed_once() {
    let fake = Fake::start();
    fake.on("/host/gpus", some_gpus());
    let shown = fake.run(&["gpu"]).ok();
    assert_eq!(fake.seen_one().line, "GET /host/gpus");
    let lines: Vec<_> = shown.lines().collect();
    let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>();
    assert_eq!(lines[0], "NVIDIA driver 570.86.15");
    assert_eq!(words(1), ["GPU", "NAME", "UTILIZATION", "MEMORY", "POWER", "TEMP", "USERS"]);
    let half = "██████████░░░░░░░░░░";
    let first = ["0", "H200", half, "50%", half, "70.0G/140.0G", "412/700W", "45°C", "alice", "bob", "(host)"];
    assert_eq!(words(2), first);
    assert_eq!(words(3), ["└", "MIG", "1", "1g.18gb", "█████░░░░░░░░░░░░░░░", "4.0G/16.0G"]);
    // Not zero, and with the reason.
    assert_eq!(words(4), ["1", "H200", "unknown", "-", "-", "-"]);
    assert_eq!(lines[5], "GPU 1 is unknown: the GPU is lost");
    assert_eq!(lines[6], "");
    assert_eq!(words(7)[..8], ["GPU", "PID", "IN", "POD", "USER", "POD", "MEMORY", "UTIL"]);
    // By owner, and nothing that moves the cursor or reorders the text.
    let tail = ["10.0G", "40%", "1h", "1m"];
    assert_eq!(words(8), [&["1", "10", "7", "alice", "alice-b"][..], &tail, &["python", "train.py"]].concat());
    let rude = "a\u{fffd}[2J\u{fffd}b\u{fffd}c";
    assert_eq!(words(9), [&["0:1", "9", "7", "alice", "alice-main"][..], &tail, &[rude]].concat());
    assert_eq!(words(10)[..5], ["0", "8", "7", "bob", "bob-x"]);
    assert_eq!(words(11), ["0", "5", "-", "-", "-", "-", "-", "1h", "1m", "[host", "process]"]);
    assert_eq!(lines.len(), 12);
}

#[test]
fn unreported_values_are_not_zero_and_problems_are_noted() {
    let fake = Fake::start();
    let reading = Reading {
        memory_total: Some(140 << 30),
        memory_used: Some(70 << 30),
        ecc_errors: Some(3),
        throttle_reasons: vec!["sw_power_cap".to_owned()],
        ..Reading::default()
    };
    let quiet = DeviceView { reading: Some(reading), mig: vec![instance(None)], ..gpu(0, Vec::new()) };
    fake.on("/host/gpus", answer(working(), vec![quiet]));
    let shown = fake.run(&["gpu", "--once"]).ok();
    let row: Vec<_> = shown.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!((row[2], &row[5..]), ("-", &["-", "-"][..]), "{shown}");
    assert!(shown.contains("└ MIG 0                -\n"), "{shown}");
    assert!(shown.contains("\nGPU 0 is throttled: sw_power_cap\n"), "{shown}");
    assert!(shown.contains("\nGPU 0 has uncorrected memory errors since boot: 3\n"), "{shown}");
    assert!(shown.ends_with("\n\nno processes on the GPUs\n"), "{shown}");
}

#[test]
fn pods_that_lost_their_gpus_are_named() {
    let fake = Fake::start();
    let reason = "this pod has lost its GPUs: \u{1b}[2Jwhy".to_owned();
    let lost = LostPod { pod: "alice-main".to_owned(), user: "alice".parse().unwrap(), reason };
    let shared = DeviceView { mig: vec![instance(Some(25))], ..gpu(0, Vec::new()) };
    let seen = GpusView { lost_pods: vec![lost], ..answer(working(), vec![shared]) };
    fake.on("/host/gpus", seen);
    let shown = fake.run(&["gpu"]).ok();
    assert!(shown.contains("\nalice-main: this pod has lost its GPUs: \u{fffd}[2Jwhy\n"), "{shown}");
    assert!(shown.contains("└ MIG 0   █████░░░░░░░░░░░░░░░  25%"), "{shown}");
}

#[test]
fn json_is_the_servers_answer() {
    let fake = Fake::start();
    fake.on("/host/gpus", some_gpus());
    assert_eq!(fake.run(&["gpu", "--json"]).json(), json!(some_gpus()));
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn a_host_without_gpus_is_a_sentence() {
    let fake = Fake::start();
    for (library, sentence) in [
        (Library::Absent, "no NVIDIA driver on this host: no GPUs for pods"),
        (Library::Starting, "the GPUs have not been read yet: the daemon has just started"),
        (Library::Failing { reason: "reboot".to_owned() }, "the NVIDIA driver does not work: reboot"),
        (working(), "NVIDIA driver 570.86.15 sees no GPU"),
    ] {
        fake.on("/host/gpus", answer(library, Vec::new()));
        assert_eq!(fake.run(&["gpu"]).ok(), format!("{sentence}\n"));
    }
    // Also on a terminal: without GPUs there is nothing to watch.
    fake.on("/host/gpus", answer(Library::Absent, Vec::new()));
    let shown = Terminal::start(&fake, "$PODY gpu; echo code $?").end();
    assert!(shown.starts_with("no NVIDIA driver") && shown.contains("code 0"), "{shown:?}");
}

/// Runs a command, then prints its exit code and whether the terminal is restored.
fn watched(command: &str) -> String {
    format!("before=$(stty -g); {command}; echo code $?; [ \"$before\" = \"$(stty -g)\" ] && echo restored")
}

/// Shell words that wait for `signal`.
const UNTIL_SIGNALLED: &str = "until [ -e $HOME/signal ]; do sleep 0.05; done";

fn signal(fake: &Fake) {
    std::fs::write(fake.home.path().join("signal"), "").unwrap();
}

#[track_caller]
fn assert_restored(shown: &str, code: u8) {
    let (_, after) = shown.split_once(LEFT).unwrap_or_else(|| panic!("still on the alternate screen: {shown:?}"));
    assert!(shown.contains(ENTERED) && shown.contains("\x1b[?25h") && shown.contains("\x1b[?7h"), "{shown:?}");
    assert!(after.contains(&format!("code {code}")) && after.contains("restored"), "{after:?}");
}

#[test]
fn on_a_terminal_it_is_live_until_q_or_control_c() {
    let fake = Fake::start();
    for end in [b"q", b"\x03"] {
        fake.on("/host/gpus", some_gpus());
        let mut terminal = Terminal::start(&fake, &watched("$PODY gpu"));
        let first = terminal.wait_for("[host process]");
        assert!(first.contains("03:04:05  q to quit") && first.contains("\x1b[31mGPU 1 is unknown"), "{first:?}");
        // Redrawn with the next response.
        let mut next = some_gpus();
        next.gpus[0].reading.as_mut().unwrap().temperature = Some(77);
        fake.on("/host/gpus", next);
        terminal.wait_for("77°C");
        terminal.type_in(end);
        assert_restored(&terminal.end(), 0);
    }
}

#[test]
fn no_color_holds_for_the_live_screen_too() {
    let fake = Fake::start();
    fake.on("/host/gpus", some_gpus());
    let mut terminal = Terminal::start(&fake, "NO_COLOR=1 $PODY gpu");
    terminal.wait_for("[host process]");
    terminal.type_in(b"q");
    let shown = terminal.end();
    let is_style =
        |rest: &&str| rest.trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, ';' | ':')).starts_with('m');
    assert_eq!(shown.split("\x1b[").skip(1).find(is_style), None, "{shown:?}");
}

#[test]
fn a_signal_restores_the_terminal() {
    let fake = Fake::start();
    fake.on("/host/gpus", some_gpus());
    let command = format!("($PODY gpu & pid=$!; {UNTIL_SIGNALLED}; kill -TERM $pid; wait $pid) < /dev/tty");
    let mut terminal = Terminal::start(&fake, &watched(&command));
    terminal.wait_for("[host process]");
    signal(&fake);
    assert_restored(&terminal.end(), 143);
}

#[test]
fn an_unreachable_server_is_shown_and_a_refusal_ends_the_view() {
    let fake = Fake::start();
    fake.on("/host/gpus", some_gpus());
    let mut terminal = Terminal::start(&fake, &watched("$PODY gpu"));
    terminal.wait_for("[host process]");
    fake.on_status("/host/gpus", 503, json!({"detail": "the daemon is stopping"}));
    terminal.wait_for("as of 03:04:05: the daemon is stopping");
    fake.on("/host/gpus", some_gpus());
    terminal.wait_for("q to quit");
    fake.on_status("/host/gpus", 401, json!({"detail": "the token was revoked"}));
    let shown = terminal.end();
    assert_restored(&shown, 4);
    // On the normal screen.
    assert!(shown.split_once(LEFT).unwrap().1.contains("the token was revoked"), "{shown:?}");
}

#[test]
fn the_view_fits_a_terminal_that_shrinks_and_scrolls() {
    let fake = Fake::start();
    let mut gpus = some_gpus();
    gpus.gpus[0].processes = (100..120).map(|pid| process("bob", "bob-x", pid)).collect();
    let reason = "it fell off the bus or needs a reset; a reboot usually brings it back";
    gpus.gpus[1].reason = Some(reason.to_owned());
    fake.on("/host/gpus", gpus);
    let shrink = format!("{UNTIL_SIGNALLED}; stty rows 12 cols 70");
    let words = format!("(NO_COLOR=1 $PODY gpu & pid=$!; {shrink}; wait $pid) < /dev/tty");
    let mut terminal = Terminal::start(&fake, &words);
    terminal.wait_for("\x1b[30;1H");
    signal(&fake);
    terminal.wait_for("more lines");
    // The next one: crossterm may hold back a key that arrives together with a new size until the next key.
    let small = terminal.wait_for("more lines");
    // The whole reason, broken at the end of the line.
    assert!(small.contains("brings it back") && !small.contains("\x1b[13;1H"), "{small:?}");
    for line in small.split(";1H").skip(1) {
        let text = line.trim_start_matches("\x1b[2K").split('\x1b').next().unwrap();
        assert!(text.chars().count() <= 70, "{text:?}");
    }
    terminal.type_in(&b"\x1b[6~".repeat(6));
    terminal.wait_for(" 119 ");
    terminal.type_in(b"q");
    terminal.end();
}
