//! Failing restores: CRIU hangs or is killed, a disk fills up. The pod is as before, and can be started.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    common::{Client, Need, Server, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec, keeps_counting,
        run_python, save, start_with, status, wait,
    },
    trouble::Disk,
};

/// A pod that is checkpointed and stopped, with a file newer than the checkpoint.
fn saved(server: &Server, program: &str, query: &str) -> (Client, String, String) {
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", program);
    let (_, identity) = count(&alice, "main");
    let id = save(&alice, &format!("ins=main{query}"));
    exec(&alice, "main", "echo later > /root/later");
    alice.post("/pod/stop?ins=main").ok();
    (alice, id, identity)
}

/// The failed restore left everything as it was, and the next one works.
#[track_caller]
fn is_as_before(server: &Server, alice: &Client, id: &str, identity: &str) {
    assert_clean(server);
    assert_eq!(status(alice, "main"), "exited");
    let policy = || engine_says(server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy(), "no", "a restart of Docker would begin it from its beginning");
    let container = engine_says(server, "alice", "main", "{{.Id}}");
    assert!(processes_of(&container).is_empty(), "something of it is left");
    alice.post("/pod/start?ins=main").ok();
    assert_eq!(policy(), "always", "from now on it is a pod like others");
    assert_eq!(exec(alice, "main", "cat /root/later"), "later");
    alice.post("/pod/stop?ins=main").ok();
    assert_eq!(alice.get(&format!("/checkpoint/inspect?checkpoint={id}")).ok().json()["status"], "ready");
    done(alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(count(alice, "main").1, identity);
}

/// Processes in a container's cgroup, and the runc and CRIU that restore it.
fn processes_of(container: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let text = |pid: i32, file: &str| {
        String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()).into_owned()
    };
    let is_its = |pid: &i32| {
        let command = text(*pid, "cmdline");
        text(*pid, "cgroup").contains(container) || command.contains("\0restore\0") && command.contains(container)
    };
    pids.filter(is_its).collect()
}

/// The CRIU that restores this container: a child of its runc.
fn criu_of(container: &str) -> Option<i32> {
    // It may be started by a script, and changes its title.
    let is_criu = |pid: i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.windows(4).any(|part| part == b"criu"))
    };
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat[stat.rfind(')')? + 1..].split_whitespace().nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut criu = pids.filter(|&pid| is_criu(pid));
    criu.find(|&pid| {
        let command = parent(pid).and_then(|runc| fs::read(format!("/proc/{runc}/cmdline")).ok()).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
        words.contains(&b"restore".as_slice()) && words.contains(&container.as_bytes())
    })
}

/// Begins the restore and sends CRIU a signal during it.
fn restore_with(server: &Server, alice: &Client, id: &str, signal: Signal) -> Value {
    let container = engine_says(server, "alice", "main", "{{.Id}}");
    let begun = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok();
    let since = Instant::now();
    let criu = loop {
        if let Some(criu) = criu_of(&container) {
            break criu;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no CRIU was found");
    };
    kill(Pid::from_raw(criu), signal).unwrap();
    wait(alice, &begun)
}

#[test]
fn a_criu_that_hangs_in_a_restore_is_killed_and_the_pod_is_as_before() {
    let config = "[checkpoint]\ntimeout_seconds = 3";
    let Some(server) = start_with(|builder| builder.config(config)) else { return };
    let (alice, id, identity) =
        saved(&server, &COUNTER.replace("os.urandom(4 << 20)", "os.urandom(1 << 20) * 300"), "");
    let action = restore_with(&server, &alice, &id, Signal::SIGSTOP);
    assert_eq!((action["status"].as_str(), action["phase"].as_str()), (Some("error"), Some("start")), "{action}");
    let error = action["error"].as_str().unwrap();
    assert!(error.contains("CRIU") && (error.contains("was ended") || error.contains("was killed")), "{error}");
    is_as_before(&server, &alice, &id, &identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The restore is retried once, since an engine that sometimes fails without a reason may accept the same request
/// again.
#[test]
fn a_restore_whose_criu_is_killed_is_retried() {
    let Some(server) = start_with(|builder| builder) else { return };
    let (alice, id, identity) =
        saved(&server, &COUNTER.replace("os.urandom(4 << 20)", "os.urandom(1 << 20) * 300"), "");
    let action = restore_with(&server, &alice, &id, Signal::SIGKILL);
    if action["status"] == "done" {
        assert!(server.log().contains("retrying"), "{action}");
        assert_clean(&server);
        let (from, same) = count(&alice, "main");
        assert_eq!(same, identity);
        keeps_counting(&alice, "main", from);
    } else {
        assert_eq!(action["phase"], "start", "{action}");
        is_as_before(&server, &alice, &id, &identity);
    }
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The images are compressed, and there is no room for them uncompressed: refused in advance if that is known,
/// otherwise rolled back.
#[test]
fn a_restore_that_fills_the_disk_is_rolled_back() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let disk = Disk::new("200m");
    let config = format!("[checkpoint]\nkeep_free = \"0\"\ndirectory = \"{}\"", disk.path().display());
    let slow =
        |builder: crate::common::Builder| builder.config(&config).env("FAILPOINTS", "restore-prepare=sleep(2000)");
    let Some(server) = start_with(slow) else { return };
    let program = COUNTER.replace("os.urandom(4 << 20)", "b'0123456789abcdef' * (4 << 20)");
    let (alice, id, identity) = saved(&server, &program, "&compression=zstd");

    let filler = disk.path().join("filler");
    let fill = || fs::write(&filler, vec![1; 160 << 20]).unwrap();
    let begun = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok();
    fill();
    let action = wait(&alice, &begun);
    assert_eq!((action["status"].as_str(), action["phase"].as_str()), (Some("error"), Some("prepare")), "{action}");
    assert!(action["error"].as_str().unwrap().contains("No space left on device"), "{action}");
    let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(refused.status, 507, "{refused}");
    fs::remove_file(&filler).unwrap();
    is_as_before(&server, &alice, &id, &identity);

    // The same restore under another name leaves no pod.
    let begun = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=clone")).ok();
    fill();
    let action = wait(&alice, &begun);
    assert_eq!(action["status"], "error", "{action}");
    assert_eq!(alice.get("/pod/inspect?ins=clone").status, 404);
    eventually(Duration::from_secs(10), "main is not affected", || status(&alice, "main") == "running");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The processes of a restore in progress, from the one that the shim starts to CRIU.
const OF_A_RESTORE: [&str; 4] = ["hook", "runc", "supervisor", "criu"];

/// One of them, of the restore of this container.
fn of_a_restore(which: &str, container: &str) -> Option<i32> {
    let words = |pid: i32| -> Vec<String> {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    let parent = |pid: i32| -> Option<i32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids: Vec<i32> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let has = |pid: i32, word: &str| words(pid).iter().any(|own| own == word);
    let hook =
        || pids.iter().copied().find(|&pid| has(pid, "restore-hook") && words(pid).join(" ").contains(container));
    let runc =
        || pids.iter().copied().find(|&pid| words(pid)[0] == "runc" && has(pid, "restore") && has(pid, container));
    match which {
        "hook" => hook(),
        "runc" => runc(),
        "supervisor" => parent(runc()?).filter(|&pid| has(pid, "supervise")),
        _ => {
            let runc = runc()?;
            pids.iter().copied().find(|&pid| parent(pid) == Some(runc) && has(pid, "swrk"))
        }
    }
}

/// Restores until one of these processes was caught and killed: some of them live for a few milliseconds.
fn killed_in_a_restore(alice: &Client, id: &str, which: &str, container: &str) -> Value {
    for _ in 0..20 {
        let begun = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok();
        let action = begun.json()["id"].as_str().unwrap().to_owned();
        let ended = || alice.get(&format!("/action/status?id={action}")).ok().json()["status"] != "running";
        let mut killed = false;
        while !killed && !ended() {
            // Many looks for one question.
            killed = (0..20).any(|_| {
                of_a_restore(which, container).is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
            });
        }
        let action = wait(alice, &begun);
        if killed {
            return action;
        }
        assert_eq!(action["status"], "done", "{which}: {action}");
        exec(alice, "main", "echo later > /root/later");
        alice.post("/pod/stop?ins=main").ok();
    }
    panic!("no {which} was seen in 20 restores");
}

/// Whichever process of a restore is killed, the restore ends, with a second try or an error; nothing is left of it, and
/// the pod can be restored.
#[test]
fn a_restore_of_which_a_process_is_killed_ends_and_leaves_nothing() {
    let Some(server) = start_with(|builder| builder) else { return };
    let (alice, id, identity) = saved(&server, COUNTER, "");
    let container = engine_says(&server, "alice", "main", "{{.Id}}");
    for which in OF_A_RESTORE {
        let action = killed_in_a_restore(&alice, &id, which, &container);
        match action["status"].as_str() {
            Some("error") => {
                is_as_before(&server, &alice, &id, &identity);
            }
            _ => keeps_counting(&alice, "main", 0),
        }
        assert_eq!(count(&alice, "main").1, identity, "{which}");
        assert_clean(&server);
        // What the next one has to leave.
        exec(&alice, "main", "echo later > /root/later");
        alice.post("/pod/stop?ins=main").ok();
    }
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
