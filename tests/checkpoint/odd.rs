//! States of a pod that CRIU alone dumps wrongly, or dumps but cannot restore.

use std::time::Duration;

use crate::{
    common::eventually,
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec, keeps_counting,
        run_python, save, start,
    },
};

/// A background process that an exec left in a restored pod has the host's clock, and the pod its own.
#[test]
fn a_process_left_by_an_exec_in_a_restored_pod_is_checkpointed_and_restored() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (_, identity) = count(&alice, "main");
    for round in 1..=2 {
        save(&alice, "ins=main&leave_running=false");
        done(&alice, "/pod/restore?ins=main");
        exec(&alice, "main", "(setsid sleep 100000 > /dev/null 2>&1 < /dev/null &); sleep 0.5");
        assert_eq!(exec(&alice, "main", "pgrep -cx sleep"), round.to_string());
    }
    let id = save(&alice, "ins=main&leave_running=false");
    for (to, name) in [("", "main"), ("&as=twin", "twin")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        assert_eq!(exec(&alice, name, "pgrep -cx sleep"), "2", "{name}");
        let (from, same) = count(&alice, name);
        assert_eq!(same, identity, "{name}");
        keeps_counting(&alice, name, from);
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "twin");
    delete_checkpoints(&alice);
}

/// A program in the pod writes faster than another reads: during a restore, CRIU sends the queued data before the other
/// end exists.
#[test]
fn connections_inside_the_pod_keep_their_unsent_data() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = r#"
import socket, threading, time
listener = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(listener.getsockname())
other, _ = listener.accept()
listener.close()
client.setblocking(False)
sent = 0
try:
    while True: sent += client.send(sent.to_bytes(8, 'big') * 8192)
except BlockingIOError: pass
tell('/root/sent', str(sent))
print('ready')
while not os.path.exists('/root/go'): time.sleep(0.05)
data = b''
other.settimeout(60)
while len(data) < sent: data += other.recv(1 << 20)
at = 0
good = len(data) == sent
client.setblocking(True)
client.sendall(b'end'); good = good and other.recv(3) == b'end'
tell('/root/result', 'good' if good else 'bad')
time.sleep(100000)
"#;
    run_python(&alice, "main", "full", program);
    let sent: u64 = exec(&alice, "main", "cat /root/sent").parse().expect("a number");
    assert!(sent > 1 << 20, "{sent}");
    let id = save(&alice, "ins=main&leave_running=false");
    for (to, name) in [("", "main"), ("&as=twin", "twin")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        let wait =
            "touch /root/go; for n in $(seq 600); do [ -e /root/result ] && break; sleep 0.1; done; cat /root/result";
        assert_eq!(exec(&alice, name, wait), "good", "{name}");
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "twin");
    delete_checkpoints(&alice);
}

/// Python, make and shells start programs with vfork(2), and CRIU waits in vain for a process that is in it.
#[test]
fn programs_that_keep_starting_others_are_checkpointed() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = "import subprocess\nprint('ready')\nn = 0\nwhile True:\n    subprocess.run(['true']); n += 1\n    \
                   tell('/root/begun', str(n))";
    run_python(&alice, "main", "starter", program);
    run_python(&alice, "main", "counter", COUNTER);
    for _ in 0..6 {
        done(&alice, "/pod/checkpoint?ins=main");
    }
    let action = done(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={}", action["checkpoint"].as_str().expect("an id")));
    let begun = "cat /root/begun; echo; sleep 1; cat /root/begun";
    let counts = exec(&alice, "main", begun);
    let (before, after) = counts.split_once('\n').expect("two lines");
    assert_ne!(before.trim(), after.trim(), "it keeps running");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Directories within directories, created one by one: no path can name the innermost, and tar could not create them
/// again.
#[test]
fn a_path_that_is_too_long_is_refused_before_the_pause() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let dig =
        "python3 -c \"\nimport os\nos.chdir('/root')\nfor n in range(25): os.mkdir('d' * 200); os.chdir('d' * 200)\n\"";
    exec(&alice, "main", dig);
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(
        refused.detail().contains("it has a path longer than 4096 bytes") && refused.text().len() < 1000,
        "{refused}"
    );
    // A checkpoint of memory alone has no paths.
    done(&alice, "/pod/checkpoint?ins=main&kind=simple");
    let hold = "import os, time\nos.chdir('/root')\nfor n in range(25): os.chdir('d' * 200)\nf = open('far', 'w')\n\
                print('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "holder", hold);
    let verdict = alice.get("/checkpoint/check?ins=main&kind=simple").ok().json();
    let problems = verdict["problems"].to_string();
    assert!(problems.contains("python3[") && problems.contains("a file open whose path is longer"), "{verdict}");
    exec(&alice, "main", "pkill -f [h]older.py");
    let undo = "python3 -c \"\nimport os\nos.chdir('/root')\nfor n in range(25): os.chdir('d' * 200)\nos.unlink('far')\nfor n in range(25): os.chdir('..'); os.rmdir('d' * 200)\n\"";
    exec(&alice, "main", undo);
    done(&alice, "/pod/checkpoint?ins=main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// CRIU would report this only after the pause, and without naming the program.
#[test]
fn a_program_without_its_first_thread_is_refused_by_name() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=[100000]).start()\n\
                   print('ready', flush=True)\nctypes.CDLL(None).pthread_exit(None)";
    run_python(&alice, "main", "headless", program);
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    let told = refused.detail();
    assert!(told.contains("python3[") && told.contains("runs without its first thread"), "{refused}");
    delete(&alice, "main");
}

/// CRIU creates a deleted directory again at its place, and removes what it finds there.
#[test]
fn a_deleted_directory_with_a_successor_is_refused_and_one_without_is_restored() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let stand = |folder: &str| {
        let job = format!("mkdir {folder}; cd {folder}; setsid sleep 100000 > /dev/null 2>&1 < /dev/null & sleep 0.3");
        exec(&alice, "main", &job);
    };
    stand("/root/build");
    exec(&alice, "main", "rm -r /root/build");
    let id = save(&alice, "ins=main&leave_running=false");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(exec(&alice, "main", "readlink /proc/$(pgrep -x sleep)/cwd"), "/root/build (deleted)");
    for successor in ["mkdir /root/build", "rmdir /root/build; touch /root/build"] {
        exec(&alice, "main", successor);
        let refused = alice.post("/pod/checkpoint?ins=main&leave_running=false");
        assert_eq!(refused.status, 409, "{refused}");
        assert!(refused.detail().contains("works in the deleted folder /root/build"), "{refused}");
    }
    exec(&alice, "main", "rm /root/build");
    // Two deleted directories of the same name.
    stand("/root/build");
    exec(&alice, "main", "rm -r /root/build");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert!(refused.status == 409 && refused.detail().contains("another of that name exists"), "{refused}");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A job that an exec left behind and that writes to its terminal, the other end of which is the engine's.
#[test]
fn the_terminal_of_an_exec_is_refused_and_the_pods_own_are_not() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "tmux new-session -d -s work; sleep 0.5");
    assert_eq!(alice.get("/checkpoint/check?ins=main").ok().json()["problems"], serde_json::json!([]));
    let container = engine_says(&server, "alice", "main", "{{.Id}}");
    let mut left = std::process::Command::new("docker")
        .args(["exec", "-t", &container, "sh", "-c", "(setsid sleep 2001 &); sleep 1000"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("docker runs");
    eventually(Duration::from_secs(20), "the job runs", || exec(&alice, "main", "pgrep -xc sleep; true") == "2");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("has the terminal of an exec from outside open (/dev/pts/"), "{refused}");
    exec(&alice, "main", "pkill -x sleep");
    left.wait().expect("our own child");
    done(&alice, "/pod/checkpoint?ins=main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
