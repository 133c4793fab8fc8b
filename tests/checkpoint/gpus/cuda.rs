//! Stand-ins for GPUs, CUDA and `cuda-checkpoint`. The driver's library is that of `tests/nvml`; a program in a pod
//! stands for one that uses CUDA, and a program on the host for NVIDIA's tool: with its command line, its messages, its
//! exit codes.
//!
//! As with the real ones, the state is in the process, and a thread of it carries out the requests: a frozen process
//! does nothing, CRIU dumps the state at that time, and a program whose memory is off the GPU has no device open.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    common::{
        Builder, Client, Gpus, Server, docker,
        gpus::{Process, State},
    },
    help::{exec, run_python, start_with},
};

/// The memory that a program has on a GPU.
pub const BYTES: u64 = 64 << 20;

/// A program that computes on a GPU: it counts as long as CUDA allows.
const PROGRAM: &str = r#"
import os, threading, time
folder, me = '/root/cuda', os.getpid()
os.makedirs(folder, exist_ok=True)
DEVICE = '/dev/nvidia0'
state, device = 'running', os.open(DEVICE, os.O_RDWR | os.O_CREAT)
secret = os.urandom(8).hex()

def act(word):
    global state, device
    steps = {('lock', 'running'): 'locked', ('checkpoint', 'locked'): 'checkpointed',
             ('restore', 'checkpointed'): 'locked', ('unlock', 'locked'): 'running'}
    if word == 'state': return '0 ' + state
    if (word, state) not in steps: return '1 "operation not permitted in state %s"' % state
    if word == 'checkpoint': os.close(device)
    if word == 'restore': device = os.open(DEVICE, os.O_RDWR | os.O_CREAT)
    state = steps[word, state]
    return '0 '

def serve():
    while True:
        try:
            with open('%s/%d.ask' % (folder, me)) as f: nonce, word = f.read().split()
            os.unlink('%s/%d.ask' % (folder, me))
            tell('%s/%d.answer' % (folder, me), nonce + ' ' + act(word) + '\n')
        except FileNotFoundError: time.sleep(0.01)

threading.Thread(target=serve, daemon=True).start()
open('%s/%d.cuda' % (folder, me), 'w').close()
print('ready')
n = 0
while True:
    if state == 'running':
        n += 1
        tell('/root/NAME.count', '%d %s %d' % (n, secret, me))
    time.sleep(0.02)
"#;

/// `cuda-checkpoint`. A file beside it with the name of an action selects the fault of that action: `fail`,
/// `fail-once`, `hang`, `hang-once`, `slow`.
const TOOL: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$1" = --help ]; then
    echo "CUDA checkpoint and restore utility."
    echo "Version $(cat "$here/version"). A stand-in for tests."
    echo "--get-state --pid <pid>"
    echo "--action lock | checkpoint | restore | unlock --pid <pid> [--timeout <ms>]$(cat "$here/more")"
    exit 0
fi
[ -z "$CUDA_VISIBLE_DEVICES" ] || { echo "CUDA_VISIBLE_DEVICES is set"; exit 1; }
action= pid= timeout= map=
while [ $# -gt 0 ]; do
    case $1 in
        --get-state) action=state ;;
        --action) action=$2; shift ;;
        --pid) pid=$2; shift ;;
        --timeout) timeout=$2; shift ;;
        --device-map) map=$2; shift ;;
        *) echo "Unknown option $1" >&2; exit 1 ;;
    esac
    shift
done
inside=$(sed -n 's/^NSpid:.*[[:space:]]//p' "/proc/$pid/status" 2>/dev/null)
complain() {
    echo "$action $inside failed" >> "$here/calls"
    if [ "$action" = state ]; then echo "Could not get state of process ID $pid: \"$1\"" >&2
    else echo "Could not $action on process ID $pid: \"$1\"" >&2; fi
    exit 1
}
[ -n "$inside" ] || complain "invalid argument"
[ "$action" != lock ] || [ -n "$timeout" ] || complain "this test wants a timeout"
folder=/proc/$pid/root/root/cuda
[ -e "$folder/$inside.cuda" ] || complain "initialization error"
fault=$(cat "$here/$action" 2>/dev/null)
case $fault in
    *-once) rm "$here/$action" ;;
esac
case $fault in
    fail*) complain "out of memory" ;;
    hang*) echo "$action $inside hangs" >> "$here/calls"; exec sleep 1000 ;;
    slow) echo "$action $inside begins" >> "$here/calls"; sleep 3 ;;
esac
rm -f "$folder/$inside.answer"
echo "$$ $action" > "$folder/$inside.ask.$$"
mv "$folder/$inside.ask.$$" "$folder/$inside.ask"
until [ -e "$folder/$inside.answer" ]; do
    [ -e "/proc/$pid" ] || complain "no such process"
    sleep 0.02
done
read -r nonce code text < "$folder/$inside.answer"
[ "$code" = 0 ] || complain "$text"
case $action in
    state) echo "$text"; echo "state $inside $text" >> "$here/calls" ;;
    *) echo "$action $inside${map:+ $map}" >> "$here/calls" ;;
esac
"#;

pub struct Cuda {
    pub gpus: Gpus,
    folder: tempfile::TempDir,
}

impl Cuda {
    /// Two GPUs, a driver and a program of this version.
    pub fn new(version: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("pody-cuda-").tempdir().expect("a temporary directory");
        let cuda = Self { gpus: Gpus::new(State::with_gpus(2)), folder };
        fs::write(cuda.program(), TOOL).expect("our own directory");
        fs::set_permissions(cuda.program(), fs::Permissions::from_mode(0o755)).expect("our own file");
        cuda.upgrade(version);
        cuda
    }

    pub fn upgrade(&self, version: &str) {
        let maps = version.split('.').next().and_then(|branch| branch.parse::<u32>().ok()).is_some_and(|b| b >= 580);
        fs::write(self.folder.path().join("version"), version).expect("our own directory");
        let more = if maps { " [--device-map <uuids>]" } else { "" };
        fs::write(self.folder.path().join("more"), more).expect("our own directory");
        self.gpus.change(|state| {
            version.clone_into(&mut state.driver_version);
            state.generation += 1;
        });
    }

    pub fn program(&self) -> PathBuf {
        self.folder.path().join("cuda-checkpoint")
    }

    pub fn config(&self) -> String {
        format!(
            "[gpu]\npoll_seconds = 0.2\nidle_poll_seconds = 0.2\n[checkpoint]\ngpu = \"experimental\"\ncuda_checkpoint = \"{}\"\n",
            self.program().display()
        )
    }

    /// A server on a host with these GPUs.
    pub fn start(&self, change: impl FnOnce(Builder) -> Builder) -> Option<Server> {
        // Variables that would confuse the driver are not passed on.
        start_with(|builder| change(builder.config(&self.config()).gpus(&self.gpus).env("CUDA_VISIBLE_DEVICES", "1")))
    }

    /// Sets a fault until it is cleared.
    pub fn fault(&self, action: &str, how: &str) {
        fs::write(self.folder.path().join(action), how).expect("our own directory");
    }

    pub fn clear_fault(&self, action: &str) {
        let _ = fs::remove_file(self.folder.path().join(action));
    }

    /// The requests to the program since the last call, without queries of the state.
    pub fn calls(&self) -> Vec<String> {
        let path = self.folder.path().join("calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        calls.lines().filter(|line| !line.starts_with("state")).map(str::to_owned).collect()
    }

    pub fn was_called(&self, call: &str) -> bool {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().any(|line| line == call)
    }

    /// Runs a program on a GPU; returns its PID in the pod.
    pub fn run(&self, server: &Server, client: &Client, instance: &str, name: &str, gpu: usize) -> String {
        run_python(client, instance, name, &PROGRAM.replace("NAME", name));
        let pid = host_pid(server, instance, name);
        self.gpus.change(|state| state.devices[gpu].processes.push(Process::computing(pid, BYTES)));
        wait_for(server, pid);
        count(client, instance, name).1.split(' ').next_back().expect("a PID").to_owned()
    }
}

/// Waits until the daemon has seen the process.
fn wait_for(server: &Server, pid: u32) {
    let begun = Instant::now();
    loop {
        let gpus = server.admin().get("/host/gpus").ok().json();
        if gpus.to_string().contains(&format!("\"pid\":{pid}")) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the driver's {pid} is not seen: {gpus}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Its PID on the host.
pub fn host_pid(server: &Server, instance: &str, name: &str) -> u32 {
    let container = server.container("alice", instance);
    let processes = docker(&["top", &container, "-eo", "pid,args"]);
    let wanted = format!("/root/{name}.py");
    let line = processes.lines().find(|line| line.contains("python3") && line.ends_with(&wanted));
    let line = line.unwrap_or_else(|| panic!("no {name}:\n{processes}"));
    line.split_whitespace().next().expect("a PID").parse().expect("a PID")
}

/// A program's count, and its secret with its PID.
#[track_caller]
pub fn count(client: &Client, instance: &str, name: &str) -> (u64, String) {
    let begun = Instant::now();
    loop {
        let text = exec(client, instance, &format!("cat /root/{name}.count; true"));
        if let Some((number, rest)) = text.split_once(' ') {
            return (number.parse().expect("a number"), rest.to_owned());
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{name} does not count: {text:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same process as before has its GPU, and keeps counting.
#[track_caller]
pub fn keeps_computing(client: &Client, instance: &str, name: &str, identity: &str) {
    let (from, same) = count(client, instance, name);
    assert_eq!(same, identity, "{name} is another process");
    let begun = Instant::now();
    while count(client, instance, name).0 <= from {
        assert!(begun.elapsed() < Duration::from_secs(30), "{name} is stuck at {from}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
