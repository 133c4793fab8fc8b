//! GPUs over HTTP: real pods, real cgroups, real PIDs, and the stand-in for NVIDIA's library. `run.sh` beside this
//! tests with a real card.

#[path = "../common/mod.rs"]
mod common;

mod accounting;
mod assignment;
mod attribution;
mod clock;
mod engine;
mod health;
mod lost;
mod mix;
mod overuse;
mod reuse;
mod twin;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use common::{
    Server,
    gpus::{Gpus, Process},
};

/// Polls often, so that tests need not wait.
const FAST: &str = "[gpu]\npoll_seconds = 0.2\nidle_poll_seconds = 0.2\n[usage]\nsample_seconds = 0.5\n";

/// Starts `sleep` in a pod and returns its PID on the host. The number of seconds distinguishes it from others.
fn sleep_in(container: &str, seconds: u32) -> u32 {
    run("docker", &["exec", "-d", container, "sleep", &seconds.to_string()]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let processes = run("docker", &["top", container, "-eo", "pid,args"]);
        let wanted = format!("sleep {seconds}");
        let found = processes.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        if let Some((pid, _)) = found.into_iter().find(|(_, command)| command.trim() == wanted) {
            return pid.parse().expect("a PID");
        }
        assert!(Instant::now() < deadline, "no {wanted} in {container}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program exists");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_alive(pid: u32) -> bool {
    // A zombie counts as gone.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn end(pid: u32) {
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
}

/// Puts processes on a GPU, replacing the previous ones.
fn put_on_gpu(gpus: &Gpus, gpu: usize, processes: &[(u32, u64)]) {
    gpus.change(|state| {
        state.devices[gpu].processes = processes.iter().map(|(pid, bytes)| Process::computing(*pid, *bytes)).collect();
    });
}

/// Waits until `done` returns true; fails the test with the last value.
#[track_caller]
fn wait_for<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let seen = look();
        if done(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited for {what}, and saw {seen:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn create(server: &Server, user: &str, instance: &str) -> String {
    server.member(user).post(&format!("/pod/create?ins={instance}&image=pody-base")).ok();
    server.container(user, instance)
}
