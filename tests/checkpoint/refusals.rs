//! What is refused, with the reason, and with the pod untouched.

use std::{
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    time::Duration,
};

use crate::{
    common::{Builder, Client, eventually},
    help::{
        COUNTER, STUBBORN, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec,
        keeps_counting, run_python, save, start, start_with, status,
    },
};

#[test]
fn missing_foreign_and_stopped_pods_are_refused() {
    let Some(server) = start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    let id = save(&alice, "ins=main");
    for (who, path, status) in [
        (&alice, "/pod/checkpoint?ins=nope".to_owned(), 404),
        (&bob, "/pod/checkpoint?ins=alice-main".to_owned(), 404),
        (&bob, "/checkpoint/check?ins=alice-main".to_owned(), 404),
        (&bob, format!("/checkpoint/inspect?checkpoint={id}"), 404),
        (&bob, format!("/checkpoint/delete?checkpoint={id}"), 404),
        (&bob, format!("/pod/restore?ins=main&checkpoint={id}"), 404),
        (&bob, "/pod/restore?ins=alice-main".to_owned(), 404),
        (&alice, "/pod/restore?ins=nope".to_owned(), 404),
        (&alice, "/pod/checkpoint?ins=main&kind=all".to_owned(), 400),
        (&alice, "/pod/checkpoint?ins=main&compression=rar".to_owned(), 400),
        (&alice, "/pod/checkpoint?ins=main&name=../x".to_owned(), 400),
        (&alice, "/pod/restore?ins=main&checkpoint=x".to_owned(), 400),
    ] {
        let is_read = path.starts_with("/checkpoint/check") || path.starts_with("/checkpoint/inspect");
        let answer = if is_read { who.get(&path) } else { who.post(&path) };
        assert_eq!(answer.status, status, "{path}: {answer}");
    }
    alice.post("/pod/stop?ins=main").ok();
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("is exited; only running pods can be saved"), "{refused}");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// As started by a systemd unit with `LockPersonality=` or similar: the kernel then does not let CRIU dump anything.
#[test]
fn a_daemon_under_a_seccomp_filter_says_so_first() {
    let Some(server) = start_with(Builder::filtered) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    for answer in [alice.post("/pod/checkpoint?ins=main"), alice.get("/checkpoint/check?ins=main")] {
        assert_eq!(answer.status, 501, "{answer}");
        assert!(answer.detail().contains("the daemon runs under a seccomp filter"), "{answer}");
        assert!(answer.detail().contains("LockPersonality="), "{answer}");
    }
    let doctor = server.command(&["doctor", "--json"]).output().expect("the binary runs");
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let told = findings.iter().find(|finding| finding["check"] == "seccomp").expect("it checks that");
    assert_eq!(told["level"], "fail");
    assert!(told["mend"].as_str().unwrap().contains("systemd.exec(5)"), "{told}");
    delete(&alice, "main");
}

#[test]
fn checkpoints_beyond_quota_or_disk_space_are_refused() {
    let Some(mut server) = start_with(|builder| builder.config("[default_quota]\ncheckpoint_count = 1")) else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "main");
    let id = save(&alice, "ins=main");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 403, "{refused}");
    assert!(refused.detail().starts_with("checkpoint_count is 1 and you have 1"), "{refused}");
    alice.post(&format!("/checkpoint/delete?checkpoint={id}")).ok();
    save(&alice, "ins=main");

    server.admin().post("/admin/quota/update?username=alice&checkpoint_count=5&checkpoint_size=1k").ok();
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 403, "{refused}");
    assert!(refused.detail().starts_with("checkpoint_size is 1k"), "{refused}");
    server.admin().post("/admin/quota/update?username=alice&checkpoint_size=unlimited").ok();

    server.reconfigure("[checkpoint]\nkeep_free = \"1000t\"");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 507, "{refused}");
    assert!(refused.detail().contains("delete old checkpoints"), "{refused}");
    assert_eq!(status(&alice, "main"), "running");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Processes that an exec from outside started are named, and the pod can be checkpointed nevertheless.
#[test]
fn losses_are_named_in_advance() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(
        (verdict["can_be_saved"].as_bool(), verdict["losses"].as_array().unwrap().len()),
        (Some(true), 0),
        "{verdict}"
    );
    assert!(verdict["memory"].as_u64().unwrap() > 0 && verdict["space_free"].as_u64().unwrap() > 0);

    let long = {
        let alice = alice.clone();
        std::thread::spawn(move || alice.post("/pod/exec?ins=main&cmd=exec+sleep+31415&timeout=60"))
    };
    eventually(Duration::from_secs(5), "the exec is named", || {
        let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
        verdict["losses"].to_string().contains("sleep[") && verdict["can_be_saved"] == true
    });
    let action = done(&alice, "/pod/checkpoint?ins=main");
    assert!(action["losses"].to_string().contains("was started by an exec"), "{action}");
    delete(&alice, "main");
    drop(long.join());
    delete_checkpoints(&alice);
}

/// A dump that CRIU refuses leaves the pod running with its network, and names the remedy.
#[test]
fn what_cannot_be_dumped_is_named_and_the_pod_keeps_running() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    run_python(&alice, "main", "deleted", STUBBORN);
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], false, "{verdict}");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("deleted_file_limit") && refused.detail().contains("/root/large"), "{refused}");
    let (from, _) = count(&alice, "main");
    keeps_counting(&alice, "main", from);
    // Files alone can be saved.
    save(&alice, "ins=main&kind=rootfsonly");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Refused before anything is touched: 409 with the process, the object and the remedy. Once that is fixed, it can be
/// checkpointed.
#[track_caller]
fn is_refused(alice: &Client, what: &str, words: &[&str]) {
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], false, "{what}: {verdict}");
    let refused = alice.post("/pod/checkpoint?ins=main&leave_running=false");
    assert_eq!(refused.status, 409, "{what}: {refused}");
    for word in words {
        assert!(refused.detail().contains(word), "{what}: no {word:?} in {refused}");
    }
    assert_eq!(status(alice, "main"), "running");
    assert_eq!(alice.get("/pod/checkpoints").ok().json().as_array().unwrap().len(), 0);
}

/// Kills the program of that name.
fn end(alice: &Client, name: &str) {
    // The bracket keeps this command's own shell from being matched.
    let found = format!("'[/]root/{name}.py'");
    exec(alice, "main", &format!("pkill -KILL -f {found}; while pgrep -f {found}; do sleep 0.1; done"));
}

/// Unix sockets whose peer is outside: a server outside, and a client outside.
#[test]
fn connections_to_sockets_outside_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().display().to_string();
    let Some(server) = start_with(|builder| builder.config(&format!("volume_mappings = [\"{volume}:/outside\"]")))
    else {
        return;
    };
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let log = UnixDatagram::bind(folder.path().join("log")).unwrap();
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (from, _) = count(&alice, "main");

    let client = "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.connect('/outside/socket')\nprint('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "client", client);
    let accepted = listener.accept().unwrap();
    let named = format!("({volume}/socket)");
    is_refused(
        &alice,
        "a client",
        &["python3[", "connected to a socket outside the pod", &named, "disconnect it first"],
    );
    end(&alice, "client");
    drop(accepted);

    let client = client.replace("AF_UNIX", "AF_UNIX, socket.SOCK_DGRAM").replace("/socket", "/log");
    run_python(&alice, "main", "logger", &client);
    is_refused(&alice, "datagrams", &["python3[", "connected to a socket outside the pod"]);
    end(&alice, "logger");
    drop(log);

    let program = "import socket, time\nl = socket.socket(socket.AF_UNIX)\nl.bind('/outside/mine')\nl.listen()\n\
                   print('ready')\ns, _ = l.accept()\ntime.sleep(100000)";
    run_python(&alice, "main", "server", program);
    let connected = UnixStream::connect(folder.path().join("mine")).unwrap();
    eventually(Duration::from_secs(10), "it is accepted", || {
        alice.get("/checkpoint/check?ins=main").ok().json()["can_be_saved"] == false
    });
    is_refused(&alice, "a server", &["python3[", "connected to a socket outside the pod"]);
    end(&alice, "server");
    drop(connected);

    assert_clean(&server);
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    keeps_counting(&alice, "main", from);
    // Packets pass, and no obstacle is left.
    exec(&alice, "main", "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 22), 5)\"");
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Connected to a program that an exec from outside started, which is not part of a checkpoint.
#[test]
fn connections_to_programs_of_an_exec_are_refused() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = "import socket, time\nl = socket.socket(socket.AF_UNIX)\nl.bind('/root/socket')\nl.listen()\n\
                   print('ready')\ns, _ = l.accept()\nprint('accepted')\ntime.sleep(100000)";
    run_python(&alice, "main", "server", program);
    let connect = "python3 -c \"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect('/root/socket'); time.sleep(20)\"";
    let long = {
        let alice = alice.clone();
        std::thread::spawn(move || {
            alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", connect), ("timeout", "60")])
        })
    };
    eventually(Duration::from_secs(10), "connected", || {
        exec(&alice, "main", "cat /root/server.log").contains("accepted")
    });
    is_refused(&alice, "an exec", &["python3[", "connected to a socket outside the pod", "disconnect it first"]);
    long.join().unwrap().ok();
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// What CRIU cannot dump, or dumps but cannot restore: a name, a program, and the message about it.
const CANNOT: &[(&str, &str, &str)] = &[
    (
        "traced",
        "import ctypes, os, time\nlibc = ctypes.CDLL(None)\npid = os.fork()\nif pid == 0:\n    libc.ptrace(0, 0, 0, 0)\n    time.sleep(100000)\ntime.sleep(0.5)",
        "is traced by python3",
    ),
    (
        "no_file",
        "import os, subprocess\nfd = os.memfd_create('mine', 0)\nos.write(fd, open('/bin/sleep', 'rb').read())\nsubprocess.Popen(['/proc/self/fd/%d' % fd, '100000'], pass_fds=[fd])",
        "runs a program that has no file (/memfd:mine",
    ),
    (
        "queue",
        "import ctypes\nq = ctypes.CDLL('librt.so.1').mq_open(b'/mine', 0o102, 0o600, None)\nassert q >= 0",
        "has a POSIX message queue (/mine) open",
    ),
    (
        "waiting",
        "import socket\nl = socket.create_server(('127.0.0.1', 7020))\nc = socket.create_connection(('127.0.0.1', 7020))",
        "has not accepted a waiting connection",
    ),
    (
        "waiting_unix",
        "import socket\nl = socket.socket(socket.AF_UNIX)\nl.bind('/root/waiting')\nl.listen()\nc = socket.socket(socket.AF_UNIX)\nc.connect('/root/waiting')",
        "has not accepted a waiting connection",
    ),
    ("terminals", "import pty\nkept = [pty.openpty() for _ in range(40)]", "terminals above 31 cannot be restored"),
    ("packets", "import os\nr, w = os.pipe2(os.O_DIRECT)", "has a pipe with packets (O_DIRECT)"),
    (
        "unread",
        "import socket, struct\ns = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\ns.send(struct.pack('IHHIIBxHiII', 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))",
        "has not read a message from the kernel (netlink)",
    ),
];

/// All of them are named at once, before the pod is paused.
#[test]
fn what_criu_cannot_dump_is_named_with_its_process() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    for (name, program, _) in CANNOT {
        run_python(&alice, "main", name, &format!("{program}\nprint('ready')\nimport time\ntime.sleep(100000)"));
    }
    let mut words: Vec<&str> = CANNOT.iter().map(|(_, _, words)| *words).collect();
    words.push("the pod has a POSIX message queue (/mine)");
    let (from, _) = count(&alice, "main");
    is_refused(&alice, "all", &words);
    keeps_counting(&alice, "main", from);
    for (name, _, _) in CANNOT {
        end(&alice, name);
    }
    exec(&alice, "main", "pkill -KILL -f '[1]00000'; rm -f /dev/mqueue/mine; true");
    save(&alice, "ins=main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A multicast group is lost, and reported.
#[test]
fn a_multicast_group_is_reported_as_lost() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                   s.setsockopt(0, 35, socket.inet_aton('239.1.2.3') + socket.inet_aton('127.0.0.1'))\nprint('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "group", program);
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], true, "{verdict}");
    assert!(verdict["losses"].to_string().contains("the multicast group 239.1.2.3"), "{verdict}");
    delete(&alice, "main");
}

/// inotify watches on the pod's own file system outside `watch_paths`.
#[test]
fn watches_outside_the_watch_paths_are_refused() {
    let Some(server) = start_with(|builder| builder.config("[checkpoint]\nwatch_paths = [\"/root\"]")) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "mkdir -p /opt/project");
    let program = "import ctypes, time\nlibc = ctypes.CDLL(None)\nfd = libc.inotify_init()\n\
                   assert libc.inotify_add_watch(fd, b'/root', 0x100) >= 0\nassert libc.inotify_add_watch(fd, b'/opt/project', 0x100) >= 0\n\
                   print('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "watcher", program);
    is_refused(
        &alice,
        "a watch",
        &["python3[", "watches a file outside [checkpoint] watch_paths (/root)", "put the file on a volume"],
    );
    end(&alice, "watcher");
    run_python(&alice, "main", "fewer", &program.replace("/opt/project", "/root"));
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn without_criu_checkpoints_are_refused_and_nothing_else_is_affected() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["docker", "tar", "gzip", "sh", "runc", "nsenter", "iptables"] {
        let path =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|p| p.join(program)).find(|p| p.exists());
        if let Some(path) = path {
            std::os::unix::fs::symlink(path, folder.path().join(program)).unwrap();
        }
    }
    let Some(server) = start_with(|builder| builder.env("PATH", folder.path().display().to_string())) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    for answer in [alice.post("/pod/checkpoint?ins=main"), alice.get("/checkpoint/check?ins=main")] {
        assert_eq!(answer.status, 501, "{answer}");
        assert!(answer.detail().contains("install CRIU 4.2 or newer"), "{answer}");
    }
    assert_eq!(status(&alice, "main"), "running");
    save(&alice, "ins=main&kind=rootfsonly");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A CRIU that is too old, and one that finds its kernel insufficient: 501 with the remedy.
#[test]
fn an_unsuitable_criu_is_reported() {
    let path = std::env::var("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|part| part.join("criu")).find(|program| program.is_file()).unwrap();
    for (does, said) in [
        (
            "[ \"$1\" = --version ] && { echo 'Version: 3.10'; exit; }",
            "CRIU 3.10 is too old; install CRIU 4.2 or newer",
        ),
        (
            "[ \"$1\" = check ] && { echo 'no soft-dirty here' >&2; exit 1; }",
            "`criu check` fails on this host: no soft-dirty here",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("criu");
        std::fs::write(&program, format!("#!/bin/sh\n{does}\nexec {} \"$@\"\n", real.display())).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{path}", folder.path().display());
        let Some(server) = start_with(|builder| builder.env("PATH", &path)) else { return };
        let alice = server.member("alice");
        create(&alice, "main");
        let refused = alice.post("/pod/checkpoint?ins=main");
        assert_eq!(refused.status, 501, "{refused}");
        assert!(refused.detail().contains(said), "{refused}");
        assert_eq!(status(&alice, "main"), "running");
        delete(&alice, "main");
    }
}

/// One at a time: a second checkpoint is refused at once, and so is a restore.
#[test]
fn a_pod_that_is_being_checkpointed_is_busy() {
    if !crate::common::Need::Failpoints.is_there() {
        return;
    }
    let slow = |builder: crate::common::Builder| builder.env("FAILPOINTS", "checkpoint-preflight=sleep(3000)");
    let Some(server) = start_with(slow) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let begun = alice.post("/pod/checkpoint?ins=main").ok();
    let id = begun.json()["checkpoint"].as_str().unwrap().to_owned();
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("is already in progress"), "{refused}");
    for path in
        [format!("/pod/restore?ins=main&checkpoint={id}&as=clone"), format!("/checkpoint/delete?checkpoint={id}")]
    {
        assert_eq!(alice.post(&path).status, 409, "{path}");
    }
    assert_eq!(crate::help::wait(&alice, &begun)["status"], "done");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
