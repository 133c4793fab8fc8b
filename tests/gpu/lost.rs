//! Pods that can no longer open their GPUs: a real device, and real device rules of the pod's cgroup that forbid it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
        password,
    },
    engine::{Engine, TINY},
    run, wait_for,
};

/// Devices that containers may not open by default; every host has at least one of them.
const DEVICES: [&str; 4] = ["/dev/fuse", "/dev/loop-control", "/dev/net/tun", "/dev/kvm"];

/// Stands for `/dev/nvidiactl`: a node with a name of our own, on the host and in pods.
struct Node {
    path: PathBuf,
    major: u64,
    minor: u64,
}

impl Node {
    fn make() -> Self {
        let known = DEVICES.iter().find(|path| fs::File::options().read(true).write(true).open(path).is_ok());
        let number = fs::metadata(known.expect("a device to open")).expect("just opened").rdev();
        let path = PathBuf::from(format!("/dev/pody-test-{:08x}", rand::random::<u32>()));
        let node = Self { path, major: nix::libc::major(number).into(), minor: nix::libc::minor(number).into() };
        node.put(&node.path);
        node
    }

    fn put(&self, at: &Path) {
        run("mknod", &[&at.display().to_string(), "c", &self.major.to_string(), &self.minor.to_string()]);
    }

    /// Its path in a container, seen from the host.
    fn inside(&self, pid: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root{}", self.path.display()))
    }

    /// Writes the container's device rules, as runc, NVIDIA's toolkit and systemd do. Possible on version 1 only.
    fn rule(&self, pid: &str, file: &str) {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a running container");
        let group = groups.lines().find_map(|line| line.split_once(":devices:")).expect("version 1").1;
        let rule = format!("c {}:{} rw", self.major, self.minor);
        fs::write(format!("/sys/fs/cgroup/devices{group}/{file}"), rule).expect("root may");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn actions(server: &Server, user: &str) -> Vec<String> {
    let events = server.member(user).get("/events").ok().json();
    let actions = events.as_array().expect("a list").iter().filter_map(|event| event["action"].as_str());
    actions.filter(|action| action.starts_with("pod.gpu-")).map(str::to_owned).collect()
}

#[test]
fn a_pod_that_cannot_open_its_gpus_is_flagged_to_its_owner_until_it_can() {
    let Some(engine) = Engine::start() else { return };
    let node = Node::make();
    let gpus = Gpus::new(State::with_gpus(2));
    let config = format!("[gpu]\nprobe_seconds = 0.3\ncontrol_device = \"{}\"\n", node.path.display());
    let Some(mut server) = engine.server().config(FAST).config(&config).gpus(&gpus).start() else { return };
    server.pody(&["quota", "update", "alice", "--gpus", "all"]);
    let alice = server.member("alice");
    alice.post(&format!("/pod/create?ins=main&image={TINY}&gpus=1")).ok();
    alice.post(&format!("/pod/create?ins=plain&image={TINY}&gpus=none")).ok();
    let name = server.container("alice", "main");
    let first = || engine.docker(&["inspect", &name, "--format", "{{.State.Pid}}"]).trim().to_owned();
    let pid = first();
    let trouble = || alice.get("/pod/inspect?ins=main").ok().json()["gpu_trouble"].clone();

    // The stand-in toolkit has not put a device into it.
    let told = wait_for("the missing device", trouble, Value::is_string);
    assert!(told.as_str().unwrap().contains(&format!("there is no {} in the pod", node.path.display())), "{told}");
    wait_for("the event", || actions(&server, "alice"), |seen| seen == &["pod.gpu-lost"]);

    // The device exists, but the rules of the cgroup forbid it: this is what `systemctl daemon-reload` leaves behind.
    node.put(&node.inside(&pid));
    let denied = |told: &Value| told.as_str().is_some_and(|told| told.contains("may no longer open"));
    let told = wait_for("the denial", trouble, denied);
    for part in ["Failed to initialize NVML: Unknown Error", "systemctl daemon-reload", "`pody restart main`"] {
        assert!(told.as_str().unwrap().contains(part), "{told}");
    }
    assert_eq!(actions(&server, "alice"), ["pod.gpu-lost"], "it counts as one loss");

    // Shown where its owner and admins look, and nowhere else.
    let ps = alice.get("/pod/ps").ok().json();
    let flagged: Vec<&Value> = ps.as_array().unwrap().iter().filter(|pod| pod.get("gpu_trouble").is_some()).collect();
    assert!(flagged.len() == 1 && flagged[0]["instance"] == "main", "{ps}");
    let lost = |user: &str| server.member(user).get("/host/gpus").ok().json()["lost_pods"].clone();
    wait_for("the list", || lost("alice"), |list| list.as_array().is_some_and(|list| !list.is_empty()));
    assert_eq!((lost("alice")[0]["pod"].as_str(), lost("boss")[0]["user"].as_str()), (Some(&*name), Some("alice")));
    assert_eq!(lost("bob"), serde_json::json!([]));
    assert_eq!(actions(&server, "bob"), Vec::<String>::new());
    let shown = |arguments: &[&str]| {
        let mut command: Command = server.command(arguments);
        command
            .env("PODY_API_BASE", server.base())
            .env("PODY_USERNAME", "alice")
            .env("PODY_PASSWORD", password("alice"));
        String::from_utf8_lossy(&command.output().expect("the binary runs").stdout).into_owned()
    };
    for arguments in [&["ps"][..], &["gpu", "--once"], &["inspect", "main"]] {
        let text = shown(arguments);
        assert!(text.contains("this pod has lost its GPUs"), "{arguments:?}: {text}");
    }
    let log = || engine.docker(&["exec", &name, "/bin/sh", "-c", "cat /log/pody/*.warning.log || true"]);
    wait_for("the line in its log", log, |log| log.contains("this pod has lost its GPUs"));

    // A restarted daemon knows from the database that this was reported.
    server.restart();
    wait_for("the flag", trouble, denied);
    assert_eq!(actions(&server, "alice"), ["pod.gpu-lost"]);

    if Path::new("/sys/fs/cgroup/devices").exists() {
        node.rule(&pid, "devices.allow");
        wait_for("its return", trouble, Value::is_null);
        wait_for("the event", || actions(&server, "alice"), |seen| seen == &["pod.gpu-back", "pod.gpu-lost"]);
        assert_eq!(server.member("alice").get("/host/gpus").ok().json()["lost_pods"], serde_json::json!([]));
        node.rule(&pid, "devices.deny");
        wait_for("the loss", trouble, denied);
        assert_eq!(actions(&server, "alice"), ["pod.gpu-lost", "pod.gpu-back", "pod.gpu-lost"]);
        node.rule(&pid, "devices.allow");
        wait_for("its return", trouble, Value::is_null);
    }
    // Removed in the pod, as its root can: the missing device is named.
    fs::remove_file(node.inside(&pid)).expect("root may");
    let told = wait_for("the missing device", trouble, Value::is_string);
    assert!(told.as_str().unwrap().contains("there is no"), "{told}");
    // No probe process of ours stays in the pod, and the pod's processes are not affected.
    let inside = || engine.docker(&["top", &name, "-o", "pid"]).lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    // The first process of every pod is ours; the second is what the image runs.
    wait_for("the probe's end", inside, |pids| pids.len() == 2 && pids[0].trim() == pid);
    assert_eq!(first(), pid);
    alice.post("/pod/delete?ins=main").ok();
    alice.post("/pod/delete?ins=plain").ok();
}
