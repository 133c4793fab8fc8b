//! Use beyond the quota: only the right process is killed.

use std::{
    io::Read,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
    },
    create, is_alive, put_on_gpu, run, sleep_in, wait_for,
};

/// The GPU events that alice can read.
fn actions(server: &Server) -> Vec<String> {
    let events = server.member("alice").get("/events").ok().json();
    let actions = events.as_array().expect("a list").iter().filter_map(|event| event["action"].as_str());
    actions.filter(|action| action.starts_with("gpu.")).map(str::to_owned).collect()
}

#[test]
fn overuse_is_warned_about_and_then_the_newest_excess_process_is_killed() {
    let gpus = Gpus::new(State::with_gpus(3));
    let Some(server) =
        Server::builder().config(FAST).config("[gpu]\noveruse_grace_seconds = 2.0\n").gpus(&gpus).start()
    else {
        return;
    };
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    let (alice, bob) = (create(&server, "alice", "main"), create(&server, "bob", "main"));
    let old = sleep_in(&alice, 2001);
    let others = sleep_in(&bob, 2002);
    // Start times are counted in hundredths of a second.
    std::thread::sleep(Duration::from_millis(50));
    let new = sleep_in(&alice, 2003);
    let bystander = sleep_in(&alice, 2004);
    put_on_gpu(&gpus, 0, &[(old, 1)]);
    put_on_gpu(&gpus, 1, &[(new, 1), (others, 1)]);
    put_on_gpu(&gpus, 2, &[(others, 1)]);
    let actions = || actions(&server);
    wait_for("the warning", actions, |seen| seen == &["gpu.overuse"]);
    assert!(is_alive(new), "there is a grace period");
    wait_for("the kill of the newest", || is_alive(new), |alive| !alive);
    assert!(is_alive(old) && is_alive(others) && is_alive(bystander), "nothing else is touched");
    wait_for("both events", actions, |seen| seen == &["gpu.end-process", "gpu.overuse"]);
    let message = || run("docker", &["exec", &alice, "sh", "-c", "cat /log/pody/*.critical.log 2>/dev/null || true"]);
    let message = wait_for("the message in the pod", message, |text| !text.is_empty());
    assert!(
        message.contains("gpu_count is 1 and your processes are on 2 GPUs (0, 1)") && message.contains("was killed"),
        "{message}"
    );
    assert!(run("docker", &["exec", &alice, "sh", "-c", "cat /log/pody/*.warning.log"]).contains("within 2 s"));
    server.member("alice").post("/pod/delete?ins=main").ok();
    server.member("bob").post("/pod/delete?ins=main").ok();
}

/// The warning appears on a terminal in the pod and in the pod's log, and nothing is ever killed.
#[test]
fn with_on_overuse_warn_there_is_only_a_warning() {
    let gpus = Gpus::new(State::with_gpus(2));
    let config = "[gpu]\noveruse_grace_seconds = 0.5\non_overuse = \"warn\"\n";
    let Some(server) = Server::builder().config(FAST).config(config).gpus(&gpus).start() else { return };
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    let alice = create(&server, "alice", "main");
    let (first, second) = (sleep_in(&alice, 2101), sleep_in(&alice, 2102));
    let mut terminal = Command::new("docker")
        .args(["exec", "--tty", &alice, "sh", "-c", "echo opened; exec sleep 2103"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("docker is installed");
    let mut shown = terminal.stdout.take().expect("a pipe");
    let mut opened = [0; 6];
    shown.read_exact(&mut opened).expect("the terminal opens");
    put_on_gpu(&gpus, 0, &[(first, 1)]);
    put_on_gpu(&gpus, 1, &[(second, 1)]);
    wait_for("the warning", || actions(&server), |seen| seen == &["gpu.overuse"]);
    let log = || run("docker", &["exec", &alice, "sh", "-c", "cat /log/pody/*.warning.log 2>/dev/null || true"]);
    let message = wait_for("the log", log, |text| !text.is_empty());
    assert_eq!(message.trim(), "gpu_count is 1 and your processes are on 2 GPUs (0, 1): stop some of them");
    std::thread::sleep(Duration::from_secs(3));
    assert!(is_alive(first) && is_alive(second), "nothing is killed");
    assert_eq!(actions(&server), ["gpu.overuse"], "it is reported once");
    server.member("alice").post("/pod/delete?ins=main").ok();
    let mut text = String::new();
    shown.read_to_string(&mut text).expect("what the terminal showed");
    assert!(text.contains(&format!("[pody] {}", message.trim())), "{text:?}");
    terminal.wait().expect("our own child");
}

/// The pod of the newest process is stopped, as `pody stop` does, and other pods of that user keep running.
#[test]
fn with_on_overuse_stop_pod_the_pod_is_stopped() {
    let gpus = Gpus::new(State::with_gpus(2));
    let config = "[gpu]\noveruse_grace_seconds = 1.0\non_overuse = \"stop_pod\"\n";
    let Some(server) = Server::builder().config(FAST).config(config).gpus(&gpus).start() else { return };
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    let (kept, newer) = (create(&server, "alice", "kept"), create(&server, "alice", "newer"));
    let bob = create(&server, "bob", "main");
    let (old, others) = (sleep_in(&kept, 2201), sleep_in(&bob, 2202));
    std::thread::sleep(Duration::from_millis(50));
    let new = sleep_in(&newer, 2203);
    put_on_gpu(&gpus, 0, &[(old, 1), (others, 1)]);
    put_on_gpu(&gpus, 1, &[(new, 1), (others, 1)]);
    let status = |user: &str, instance: &str| {
        let pod = server.member(user).get(&format!("/pod/inspect?ins={instance}")).ok().json();
        pod["status"].as_str().expect("a word").to_owned()
    };
    wait_for("the stop", || status("alice", "newer"), |status| status == "exited");
    assert!(is_alive(old) && is_alive(others) && !is_alive(new));
    assert_eq!((status("alice", "kept"), status("bob", "main")), ("running".to_owned(), "running".to_owned()));
    wait_for("the events", || actions(&server), |seen| seen == &["gpu.stop-pod", "gpu.overuse"]);
    let events = server.member("alice").get("/events?limit=1").ok().json();
    let detail = events[0]["detail"].as_str().expect("a sentence");
    assert!(
        detail.starts_with("gpu_count is 1 and your processes are on 2 GPUs (0, 1) for more than 1 s: pod ")
            && detail.ends_with(&format!("{newer} was stopped; start it with `pody start`")),
        "{detail}"
    );
    // It stays stopped until its owner starts it, although pods usually restart by themselves.
    put_on_gpu(&gpus, 1, &[]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(status("alice", "newer"), "exited");
    server.member("alice").post("/pod/start?ins=newer").ok();
    assert!(run("docker", &["logs", &newer]).contains("[pody] gpu_count is 1"), "it is on the pod's own terminal");
    for (user, instance) in [("alice", "kept"), ("alice", "newer"), ("bob", "main")] {
        server.member(user).post(&format!("/pod/delete?ins={instance}")).ok();
    }
}
