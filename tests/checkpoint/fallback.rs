//! If runc's own directory cannot be found, the engine dumps the processes: slower, never with a stop, and the result
//! is a checkpoint like any other.

use std::{fs, time::Duration};

use crate::{
    common::{Server, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec, fails,
        keeps_counting, run_python, save, start_with, status,
    },
};

/// A server that cannot see where Docker has runc keep its containers.
fn start_without_runc() -> Option<Server> {
    start_with(|builder| builder.hide("/run/docker/runtime-runc"))
}

#[track_caller]
fn was_the_engine(server: &Server, times: usize) {
    let said = server.log().matches("the engine dumps the processes").count();
    assert_eq!(said, times, "{}", server.log());
}

/// The copies of images that containerd makes for itself, of this pod: their description names its container.
fn copies_of(container: &str) -> Vec<String> {
    let folders = fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path());
    let is_copy = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let config = fs::read(path.join("config.dump")).or_else(|_| fs::read(path.join("descriptors.json")));
        name.starts_with("ctrd-checkpoint") && String::from_utf8_lossy(&config.unwrap_or_default()).contains(container)
    };
    folders.filter(is_copy).map(|path| path.display().to_string()).collect()
}

#[test]
fn the_engine_dumps_a_pod_that_keeps_running_and_one_that_is_stopped() {
    let Some(server) = start_without_runc() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    exec(
        &alice,
        "main",
        "echo kept > /root/kept; ln /root/kept /root/second; head -c 3000000 /dev/urandom > /dev/shm/big",
    );
    let watcher = "import ctypes, os, time\nfd = ctypes.CDLL(None).inotify_init()\nassert ctypes.CDLL(None).inotify_add_watch(fd, b'/root', 0x100) >= 0\n\
                   f = open('/root/a', 'w+'); os.link('/root/a', '/root/b'); os.unlink('/root/a')\nprint('ready')\n\
                   while True: f.seek(0); f.read(); time.sleep(0.1)";
    run_python(&alice, "main", "watcher", watcher);
    let shm = exec(&alice, "main", "sha256sum /dev/shm/big");
    let (from, identity) = count(&alice, "main");
    let container = engine_says(&server, "alice", "main", "{{.Id}}");

    let running = save(&alice, "ins=main");
    was_the_engine(&server, 1);
    assert_eq!(status(&alice, "main"), "running");
    assert_eq!(engine_says(&server, "alice", "main", "{{.State.Paused}}"), "false");
    keeps_counting(&alice, "main", from);
    assert_clean(&server);

    let stopped = save(&alice, "ins=main&leave_running=false");
    was_the_engine(&server, 2);
    assert_eq!(status(&alice, "main"), "exited");
    assert_clean(&server);
    for (id, to, name) in [(&stopped, "", "main"), (&running, "&as=clone", "clone")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        let (from, same) = count(&alice, name);
        assert_eq!(same, identity, "{name}");
        keeps_counting(&alice, name, from);
        assert_eq!(
            exec(&alice, name, "cat /root/kept; sha256sum /dev/shm/big; pgrep -f [w]atcher.py | wc -l"),
            format!("kept\n{shm}\n1")
        );
    }
    assert_clean(&server);
    assert!(copies_of(&container).is_empty(), "{:?}", copies_of(&container));
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// The dump exceeds its deadline: the pod keeps running, with its network, and the engine keeps nothing of the dump.
#[test]
fn a_dump_by_the_engine_that_fails_leaves_the_pod_running() {
    let Some(server) = start_with(|builder| {
        builder.hide("/run/docker/runtime-runc").config("[checkpoint]\ntimeout_seconds = 0\nslowest_rate = \"1000t\"")
    }) else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &COUNTER.replace("os.urandom(4 << 20)", "os.urandom(1 << 20) * 600"));
    let (from, identity) = count(&alice, "main");
    let error = fails(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    was_the_engine(&server, 1);
    assert!(error.starts_with("dump: "), "{error}");
    eventually(Duration::from_secs(10), "it is running", || status(&alice, "main") == "running");
    keeps_counting(&alice, "main", from);
    assert_eq!(count(&alice, "main").1, identity);
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    let pid = engine_says(&server, "alice", "main", "{{.State.Pid}}");
    let rules = std::process::Command::new("nsenter").args(["-t", &pid, "-n", "iptables-save"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("CRIU"));
    assert_clean(&server);
    assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
    delete(&alice, "main");
}
