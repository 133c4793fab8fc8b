//! Restores: in place, under other names, after the pod was deleted, of files alone, compressed.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use serde_json::Value;

use crate::{
    common::{docker, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, exec, folder,
        keeps_counting, run_python, save, start, status,
    },
};

#[test]
fn a_pod_is_checkpointed_stopped_and_resumes_where_it_was() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    exec(
        &alice,
        "main",
        "rm /etc/motd; mkdir /opt/mine && echo kept > /opt/mine/file && head -c 3000000 /dev/urandom > /dev/shm/big",
    );
    let shm = exec(&alice, "main", "sha256sum /dev/shm/big");
    let (before, identity) = count(&alice, "main");

    let action = done(&alice, "/pod/checkpoint?ins=main&leave_running=false&name=first");
    assert_eq!((action["type"].as_str(), action["phase"].as_str()), (Some("checkpoint"), Some("stop")));
    assert!(action["frozen_ms"].as_u64().unwrap() > 0 && action["bytes"].as_u64().unwrap() > 4 << 20, "{action}");
    assert_eq!(status(&alice, "main"), "exited");
    // A reboot must not start it from scratch.
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "unless-stopped");
    let id = action["checkpoint"].as_str().unwrap().to_owned();
    let listed = alice.get("/pod/checkpoints?ins=main").ok().json();
    assert_eq!((listed[0]["id"].as_str(), listed[0]["status"].as_str()), (Some(id.as_str()), Some("ready")));
    assert_eq!(listed[0]["name"], "first");
    assert_eq!(fs::metadata(server.home.join("checkpoints")).unwrap().permissions().mode() & 0o777, 0o700);
    let inspected = alice.get(&format!("/checkpoint/inspect?checkpoint={id}")).ok().json();
    let files = inspected["content"]["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["path"] == "rootfs-diff.tar"), "{inspected}");

    // What is written after the checkpoint is undone by the restore.
    let restored = done(&alice, "/pod/restore?ins=main");
    assert_eq!(restored["checkpoint"], id.as_str());
    assert_eq!(status(&alice, "main"), "running");
    assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    let (after, same) = count(&alice, "main");
    assert_eq!(same, identity, "not the same process as before");
    assert!(after >= before, "{before} then, {after} now");
    keeps_counting(&alice, "main", after);
    assert_eq!(
        exec(&alice, "main", "cat /opt/mine/file; test ! -e /etc/motd; sha256sum /dev/shm/big"),
        format!("kept\n{shm}")
    );
    assert_clean(&server);

    let events = alice.get("/events").ok().json();
    for action in ["pod.checkpoint", "pod.restore"] {
        let event = events.as_array().unwrap().iter().find(|event| event["action"] == action).unwrap();
        assert_eq!(event["outcome"], "ok", "{event}");
    }
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert!(!folder(&server, &id).exists());
    assert_eq!(docker(&["images", "-q", "--filter", &format!("reference=pody-keep:{id}")]), "");
}

#[test]
fn a_pod_that_kept_running_is_rolled_back() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    exec(&alice, "main", "echo old > /root/state");
    let id = save(&alice, "ins=main");
    let (at_save, identity) = count(&alice, "main");
    assert_eq!(status(&alice, "main"), "running");
    // Seconds later: it keeps counting as soon as it is restored, before it can be asked.
    keeps_counting(&alice, "main", at_save + 250);
    exec(&alice, "main", "echo new > /root/state; touch /root/later");
    let (late, _) = count(&alice, "main");

    // A running pod is not overwritten.
    let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("pody stop"), "{refused}");

    alice.post("/pod/stop?ins=main").ok();
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(exec(&alice, "main", "cat /root/state; test ! -e /root/later"), "old");
    let (back, same) = count(&alice, "main");
    assert_eq!(same, identity);
    assert!(back < late, "{back} is not before {late}");

    // Three generations: a restored pod is checkpointed and restored again.
    save(&alice, "ins=main&leave_running=false");
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(count(&alice, "main").1, identity);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Processes that hold, share and map memory, and change it all the time: each round writes the same number over all
/// pages, so a mixture of memory from two moments is detected.
const MUCH: &str = r#"
import mmap, os, time
SIZE = 48 << 20
shared = mmap.mmap(-1, SIZE)
with open('/dev/shm/mapped', 'wb') as f: f.truncate(SIZE)
mapped = mmap.mmap(os.open('/dev/shm/mapped', os.O_RDWR), SIZE)
secret = os.urandom(8).hex()
fixed = os.urandom(1 << 20)
for at in range(0, SIZE, 1 << 20): shared[at:at + (1 << 20)] = mapped[at:at + (1 << 20)] = fixed
who = [os.fork() for both in range(2)].count(0)
own = bytearray(fixed * (SIZE >> 20))
if who == 0: print('ready')
n = 0
while True:
    n += 1
    for at in range(0, SIZE, 4096): own[at:at + 8] = n.to_bytes(8, 'little')
    assert all(own[at:at + 8] == own[:8] for at in range(0, SIZE, 4096)), 'pages of two moments'
    for memory in shared, mapped:
        assert all(memory[at:at + (1 << 20)] == fixed for at in range(0, SIZE, 1 << 20)), 'shared memory'
    assert own[4096 * 7 + 8:4096 * 8] == fixed[4096 * 7 + 8:4096 * 8], 'what does not change'
    if who == 0:
        tell('/root/count', '%d %s %d' % (n, secret, os.getpid()))
    time.sleep(0.01)
"#;

/// Images of a pod that keeps running are captured in memory, in more than one chunk, and written after it resumes.
#[test]
fn a_large_dump_of_a_pod_that_keeps_running_is_consistent() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "much", MUCH);
    eventually(Duration::from_secs(30), "it counts", || exec(&alice, "main", "cat /root/count; true").contains(' '));
    let id = save(&alice, "ins=main");
    let (at, identity) = count(&alice, "main");
    keeps_counting(&alice, "main", at);
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
    for name in ["main", "twin"] {
        let (at, same) = count(&alice, name);
        assert_eq!(same, identity, "{name}");
        keeps_counting(&alice, name, at + 2);
        assert_eq!(exec(&alice, name, "pgrep -fc root/much.p[y]"), "4", "each started another");
        let log = exec(&alice, name, "cat /root/much.log");
        assert!(!log.contains("Error"), "{name}: {log}");
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "twin");
    delete_checkpoints(&alice);
}

#[test]
fn clones_run_side_by_side_and_after_the_pod_is_deleted() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    exec(&alice, "main", "echo kept > /root/kept");
    let id = save(&alice, "ins=main");
    let (_, identity) = count(&alice, "main");
    let port = |instance: &str| -> Value {
        alice.get(&format!("/pod/inspect?ins={instance}")).ok().json()["port_mapping"].clone()
    };

    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let (alice, id) = (&alice, &id);
            scope.spawn(move || done(alice, &format!("/pod/restore?ins=main&checkpoint={id}&as={name}")));
        }
    });
    let mut ports = vec![port("main")];
    for name in ["one", "two", "three"] {
        let (from, same) = count(&alice, name);
        assert_eq!(same, identity, "{name}");
        keeps_counting(&alice, name, from);
        assert_eq!(exec(&alice, name, "cat /root/kept"), "kept");
        // The program still sees the original host name.
        assert_eq!(exec(&alice, name, "cat /proc/sys/kernel/hostname"), "main");
        ports.push(port(name));
        assert_eq!(engine_says(&server, "alice", name, "{{.HostConfig.RestartPolicy.Name}}"), "always");
    }
    let different: std::collections::HashSet<String> = ports.iter().map(Value::to_string).collect();
    assert_eq!(different.len(), 4, "{ports:?}");
    let taken = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=one"));
    assert_eq!(taken.status, 409, "{taken}");

    for name in ["main", "one", "two", "three"] {
        delete(&alice, name);
    }
    assert!(folder(&server, &id).exists(), "a checkpoint outlives its pod");
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(count(&alice, "main").1, identity);
    assert_eq!(exec(&alice, "main", "cat /root/kept"), "kept");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn files_alone_are_saved_of_running_and_of_stopped_pods() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    exec(&alice, "main", "echo one > /root/state; rm -rf /srv; mkdir /srv; echo opaque > /srv/new");
    let running = save(&alice, "ins=main&kind=rootfsonly");
    exec(&alice, "main", "echo two > /root/state");
    alice.post("/pod/stop?ins=main").ok();
    let stopped = save(&alice, "ins=main&kind=rootfsonly");
    assert!(!folder(&server, &stopped).join("checkpoint/pages-1.img").exists());

    done(&alice, &format!("/pod/restore?ins=main&checkpoint={running}"));
    assert_eq!(status(&alice, "main"), "running");
    assert_eq!(exec(&alice, "main", "cat /root/state; ls /srv; pgrep -c python3 || true"), "one\nnew\n0");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={stopped}&as=other"));
    assert_eq!(exec(&alice, "other", "cat /root/state"), "two");
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "other");
    delete_checkpoints(&alice);
}

#[test]
fn every_compression_can_be_restored() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // Memory that compresses well.
    let program = COUNTER.replace("blob = os.urandom(4 << 20)", "blob = b'0123456789abcdef' * (1 << 20)");
    run_python(&alice, "main", "counter", &program);
    let (_, identity) = count(&alice, "main");
    let plain = alice.get(&format!("/checkpoint/inspect?checkpoint={}", save(&alice, "ins=main"))).ok().json();
    for compression in ["zstd", "lz4", "gzip"] {
        let id = save(&alice, &format!("ins=main&compression={compression}"));
        let packed = alice.get(&format!("/checkpoint/inspect?checkpoint={id}")).ok().json();
        assert!(
            packed["size"].as_u64().unwrap() < plain["size"].as_u64().unwrap() / 2,
            "{compression}: {} of {}",
            packed["size"],
            plain["size"]
        );
        let name = format!("of_{compression}");
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as={name}"));
        let (from, same) = count(&alice, &name);
        assert_eq!(same, identity, "{compression}");
        keeps_counting(&alice, &name, from);
        delete(&alice, &name);
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A connection within the pod survives, in place and in a clone.
#[test]
fn connections_inside_the_pod_survive_a_restore() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = r#"
import socket, threading, time
server = socket.create_server(('127.0.0.1', 7777))
def echo():
    peer, _ = server.accept()
    while True: peer.sendall(peer.recv(64))
threading.Thread(target=echo, daemon=True).start()
client = socket.create_connection(('127.0.0.1', 7777))
print('ready')
n = 0
while True:
    n += 1
    client.sendall(b'%d' % n)
    assert client.recv(64) == b'%d' % n
    tell('/root/echo', '%d' % n)
    time.sleep(0.02)
"#;
    run_python(&alice, "main", "echo", program);
    let id = save(&alice, "ins=main&leave_running=false");
    let echoes = |name: &str| exec(&alice, name, "cat /root/echo").parse::<u64>().unwrap_or(0);
    for (query, name) in [(String::new(), "main"), ("&as=clone".to_owned(), "clone")] {
        let action = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{query}"));
        assert_eq!(action["losses"].as_array().unwrap().len(), 0, "{action}");
        let from = echoes(name);
        eventually(Duration::from_secs(5), "it keeps echoing", || echoes(name) > from + 2);
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// Programs choose their names and how many objects they hold: a pod must not be stopped for a checkpoint whose
/// manifest cannot be read.
#[test]
fn odd_names_and_long_lists_are_restored() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = r#"
import ctypes, os, time
libc = ctypes.CDLL(None)
def count():
    assert libc.eventfd(1, 1) > 0
for n in range(3):
    if os.fork() == 0:
        for m in range(700): count()
        time.sleep(10000)
for n in range(120):
    if os.fork() == 0:
        count()
        libc.prctl(15, b'\x1b[31m\n\xff%d' % n, 0, 0, 0)
        time.sleep(10000)
time.sleep(2)
print('ready')
time.sleep(10000)
"#;
    run_python(&alice, "main", "counts", program);
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    let losses: Vec<&str> = verdict["losses"].as_array().unwrap().iter().map(|loss| loss.as_str().unwrap()).collect();
    assert!(losses.iter().filter(|loss| loss.contains("python3[") && loss.ends_with("(700 times)")).count() == 3);
    assert!(losses.iter().any(|loss| loss.starts_with("\\u{1b}[31m\\n\u{fffd}")), "{losses:?}");
    assert_eq!((losses.len(), *losses.last().unwrap()), (101, "and 23 more like these"));

    let saved = done(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    assert_eq!(saved["losses"], verdict["losses"]);
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(exec(&alice, "main", "pgrep -cf '^python3 -u /root/counts'"), "124");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A socket that was renamed after it was bound can be reached by the new name again, however often the pod is
/// checkpointed; one that lost its name has none. A name that is too long to bind to is reported.
#[test]
fn sockets_keep_names_that_they_got_after_bind() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = r#"
import os, socket, threading
def serve(server):
    while True:
        server.accept()[0].sendall(b'here')
def listen(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    threading.Thread(target=serve, args=[server]).start()
listen('/root/first.tmp'); os.link('/root/first.tmp', '/root/linked'); os.unlink('/root/first.tmp')
listen('/root/second.tmp'); os.rename('/root/second.tmp', '/root/renamed')
listen('/dev/shm/third.tmp'); os.rename('/dev/shm/third.tmp', '/dev/shm/in memory')
os.chdir('/root'); listen('relative')
listen('/root/plain')
listen('/root/gone'); os.unlink('/root/gone')
os.mkdir('/root/' + 'x' * 120)
listen('/root/long.tmp'); os.rename('/root/long.tmp', '/root/' + 'x' * 120 + '/long')
print('ready')
"#;
    run_python(&alice, "main", "names", program);
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    let losses: Vec<&str> = verdict["losses"].as_array().unwrap().iter().map(|loss| loss.as_str().unwrap()).collect();
    assert!(losses.len() == 1 && losses[0].contains("/long was renamed after it was bound"), "{losses:?}");
    let connect = r#"python3 -c "
import socket
for path in ['/root/linked', '/root/renamed', '/dev/shm/in memory', '/root/relative', '/root/plain']:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    assert client.recv(9) == b'here'
""#;
    exec(&alice, "main", connect);
    for _ in 0..2 {
        let id = save(&alice, "ins=main&leave_running=false");
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        exec(&alice, "main", connect);
        assert_eq!(
            exec(&alice, "main", "cd /root; ls gone first.tmp second.tmp /dev/shm/third.tmp 2>/dev/null | wc -l"),
            "0"
        );
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
