//! What programs may hold during a checkpoint: each row of the table keeps running after its pod was checkpointed,
//! stopped and restored, and again in a clone. What cannot be checkpointed is in `refusals`, what is bound to the pod's
//! own address in `addresses`.
//!
//! This leaves out what our pods cannot have: the host's namespaces, shared IPC, `--init`, `--rm`, `--privileged`,
//! `--read-only`, devices, mounts by a symbolic link.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    common::{Client, eventually},
    help::{assert_clean, create, delete, delete_checkpoints, done, exec, run_python, save, start_with, wait},
};

/// A program: its setup, and a step that it repeats; an exception ends it.
struct Row {
    name: &'static str,
    setup: &'static str,
    step: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "listening_tcp_and_udp",
        setup: "
import socket
l = socket.create_server(('0.0.0.0', 7001))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 7002))
",
        step: "
c = socket.create_connection(('127.0.0.1', 7001)); s, _ = l.accept(); c.close(); s.close()
u.sendto(b'x', ('127.0.0.1', 7002)); assert u.recv(10) == b'x'
",
    },
    Row {
        name: "loopback_tcp",
        setup: "
import socket
l = socket.create_server(('127.0.0.1', 7003)); c = socket.create_connection(('127.0.0.1', 7003)); s, _ = l.accept()
",
        step: "
c.sendall(b'%d' % n); assert s.recv(64) == b'%d' % n
",
    },
    Row {
        name: "unix_sockets",
        setup: "
import socket
a, b = socket.socketpair()
l = socket.socket(socket.AF_UNIX); l.bind('/root/unix'); l.listen()
c = socket.socket(socket.AF_UNIX); c.connect('/root/unix'); s, _ = l.accept()
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind('\\0abstract')
e = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
",
        step: "
a.sendall(b'x'); assert b.recv(1) == b'x'
c.sendall(b'y'); assert s.recv(1) == b'y'
e.sendto(b'z', '\\0abstract'); assert d.recv(1) == b'z'
",
    },
    Row {
        name: "worker_processes",
        setup: "
import multiprocessing as m
q, r, sem = m.Queue(), m.Queue(), m.Semaphore(1)
def work():
    while True:
        x = q.get()
        with sem: r.put(x * 2)
p = m.Process(target=work); p.start()
",
        step: "
q.put(n); assert r.get(timeout=20) == 2 * n; assert p.is_alive()
",
    },
    Row {
        name: "threads_and_descriptors",
        setup: "
import threading, socket
event = threading.Event()
threads = [threading.Thread(target=event.wait, daemon=True) for _ in range(200)]
[t.start() for t in threads]
files = [open('/etc/passwd') for _ in range(300)]
pairs = [socket.socketpair() for _ in range(100)]
",
        step: "
assert all(t.is_alive() for t in threads)
files[n % 300].seek(0); assert files[n % 300].read(4) == 'root'
a, b = pairs[n % 100]; a.send(b'x'); assert b.recv(1) == b'x'
",
    },
    Row {
        name: "shared_memory",
        setup: "
import mmap
f = os.memfd_create('mine'); os.ftruncate(f, 8192); m = mmap.mmap(f, 8192)
anon = mmap.mmap(-1, 8192)
pid = os.fork()
if pid == 0:
    while True:
        anon[0:8] = m[0:8]; time.sleep(0.01)
",
        step: "
m[0:8] = n.to_bytes(8, 'little')
for _ in range(500):
    if anon[0:8] == n.to_bytes(8, 'little'): break
    time.sleep(0.01)
else: raise Exception('the child is gone')
",
    },
    Row {
        name: "open_and_deleted_files",
        setup: "
f = open('/root/open.txt', 'w+'); f.write('kept'); f.flush()
small = open('/root/small', 'w+b'); small.write(b's' * 100000); small.flush(); os.unlink('/root/small')
big = open('/root/big', 'w+b'); big.write(b'b' * (3 << 20)); big.flush(); os.unlink('/root/big')
",
        step: "
f.seek(0); assert f.read(4) == 'kept'
small.seek(0); assert small.read() == b's' * 100000
big.seek(0); assert big.read() == b'b' * (3 << 20)
",
    },
    Row {
        name: "tmpfs_mounts",
        setup: "
import hashlib
for d in ('/dev/shm', '/scratch'):
    open(d + '/kept', 'wb').write(b'k' * (1 << 20))
o = open('/scratch/open', 'w+b'); o.write(b'open'); o.flush()
g = open('/dev/shm/gone', 'w+b'); g.write(b'gone'); g.flush(); os.unlink('/dev/shm/gone')
",
        step: "
for d in ('/dev/shm', '/scratch'): assert open(d + '/kept', 'rb').read() == b'k' * (1 << 20)
o.seek(0); assert o.read() == b'open'
g.seek(0); assert g.read() == b'gone'
",
    },
    Row {
        name: "locks",
        setup: "
import fcntl
a = open('/root/flocked', 'w'); fcntl.flock(a, fcntl.LOCK_EX)
b = open('/root/fcntled', 'w'); fcntl.lockf(b, fcntl.LOCK_EX)
other = open('/root/flocked', 'w')
",
        step: "
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise Exception('the lock is lost')
except BlockingIOError: pass
",
    },
    Row {
        name: "events_and_pipes",
        setup: "
import select, signal
r, w = os.pipe(); ev = os.eventfd(0) if hasattr(os, 'eventfd') else None
ep = select.epoll(); ep.register(r, select.EPOLLIN)
",
        step: "
assert ep.poll(0) == []
os.write(w, b'x'); assert [fd for fd, _ in ep.poll(1)] == [r]; os.read(r, 1)
if ev is not None: os.eventfd_write(ev, n); assert os.eventfd_read(ev) == n
",
    },
    Row {
        name: "signals_by_descriptor",
        setup: "
import ctypes, signal
libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
mask = (ctypes.c_uint64 * 16)(1 << (signal.SIGUSR1 - 1))
fd = libc.signalfd(-1, mask, 0); assert fd >= 0
",
        step: "
os.kill(os.getpid(), signal.SIGUSR1); assert len(os.read(fd, 128)) == 128
",
    },
    Row {
        name: "files_on_a_volume",
        setup: "
f = open('/data/open', 'w+'); f.write('kept'); f.flush()
g = open('/data/gone', 'w+b'); g.write(b'g' * (2 << 20)); g.flush(); os.unlink('/data/gone')
h = open('/scratch/gone', 'w+b'); h.write(b'h' * (2 << 20)); h.flush(); os.unlink('/scratch/gone')
",
        step: "
f.seek(0); assert f.read() == 'kept'
g.seek(0); assert g.read() == b'g' * (2 << 20)
h.seek(0); assert h.read() == b'h' * (2 << 20)
",
    },
    Row {
        name: "inotify_on_a_volume_and_in_memory",
        setup: "
import ctypes
libc = ctypes.CDLL(None)
fds = []
for d in ('/data/watched', '/scratch/watched'):
    os.makedirs(d, exist_ok=True)
    fd = libc.inotify_init1(0o4000); assert libc.inotify_add_watch(fd, d.encode(), 0x100) >= 0
    fds.append((d, fd))
",
        step: "
for d, fd in fds:
    name = d + '/' + os.urandom(8).hex(); open(name, 'w').close(); os.unlink(name)
    assert os.read(fd, 65536)
",
    },
    Row {
        name: "large_memory_files",
        setup: "
import hashlib, random
content = random.Random(1).randbytes(16 << 20)
for d in ('/dev/shm', '/scratch'):
    os.makedirs(d + '/deep/er', exist_ok=True)
    open(d + '/deep/er/large', 'wb').write(content)
    os.chmod(d + '/deep/er/large', 0o640); os.chown(d + '/deep/er/large', 1234, 4321)
    os.symlink('/nowhere', d + '/link')
o = open('/dev/shm/deep/er/large', 'rb')
",
        step: "
for d in ('/dev/shm', '/scratch'):
    s = os.stat(d + '/deep/er/large')
    assert (s.st_size, s.st_mode & 0o7777, s.st_uid, s.st_gid) == (16 << 20, 0o640, 1234, 4321)
    assert os.readlink(d + '/link') == '/nowhere'
o.seek((n % 16) << 20); assert o.read(1 << 20) == content[(n % 16) << 20:((n % 16) + 1) << 20]
assert n % 20 or open('/scratch/deep/er/large', 'rb').read() == content
",
    },
    Row {
        name: "interval_timer",
        setup: "
import signal
ticks = 0
def tick(*_):
    global ticks; ticks += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
",
        step: "
before = ticks; end = time.monotonic() + 5
while ticks == before and time.monotonic() < end: time.sleep(0.01)
assert ticks > before
",
    },
    Row {
        name: "timers_by_descriptor",
        setup: "
import ctypes, struct
libc = ctypes.CDLL(None)
def timer(clock, flags, first, between):
    fd = libc.timerfd_create(clock, 0o4000)
    split = lambda t: (int(t), int(t % 1 * 1e9))
    assert libc.timerfd_settime(fd, flags, struct.pack('4q', *split(between), *split(first)), None) == 0
    return fd
periodic = [timer(1, 0, 0.02, 0.02), timer(0, 1, time.time() + 0.02, 0.03), timer(1, 0, 0.01, 1.5)]
idle = [timer(1, 0, 0, 0.02), timer(1, 0, 3600, 3600)]
def read(fd):
    try: return struct.unpack('Q', os.read(fd, 8))[0]
    except BlockingIOError: return 0
",
        step: "
end = time.monotonic() + 20
for fd in periodic:
    while not read(fd):
        assert time.monotonic() < end
        time.sleep(0.005)
assert [read(fd) for fd in idle] == [0, 0]
",
    },
    Row {
        name: "inotify_below_root",
        setup: "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs('/root/watched', exist_ok=True)
fd = libc.inotify_init1(0o4000)
assert libc.inotify_add_watch(fd, b'/root/watched', 0x100) >= 0
",
        step: "
open('/root/watched/f%d' % (n % 2), 'w').close(); os.unlink('/root/watched/f%d' % (n % 2))
assert os.read(fd, 65536)
",
    },
    Row {
        name: "a_stopped_job",
        setup: "
import signal, subprocess
job = subprocess.Popen(['sh', '-c', 'while :; do date +%s%N > /root/job; sleep 0.02; done'])
time.sleep(0.3); job.send_signal(signal.SIGSTOP); time.sleep(0.2); said = open('/root/job').read()
",
        step: "
late = time.monotonic() + 60
while open('/proc/%d/stat' % job.pid).read().rsplit(')')[1].split()[0] != 'T':
    assert time.monotonic() < late
    time.sleep(0.05)
assert open('/root/job').read() == said
",
    },
    Row {
        name: "processors_and_class_at_the_disk",
        setup: "
import ctypes
libc = ctypes.CDLL(None); last = {max(os.sched_getaffinity(0))}
os.sched_setaffinity(0, last); assert libc.syscall(251, 1, 0, 3 << 13) == 0
",
        step: "
late = time.monotonic() + 60
while os.sched_getaffinity(0) != last or libc.syscall(252, 1, 0) != 3 << 13:
    assert time.monotonic() < late
    time.sleep(0.05)
",
    },
    Row {
        name: "hosts_that_were_added",
        setup: "
f = open('/etc/hosts', 'a+'); f.write('10.1.2.3 another\\n'); f.flush()
",
        step: "
assert '10.1.2.3 another' in open('/etc/hosts').read()
",
    },
    Row {
        name: "a_socket_of_ping",
        setup: "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); s.settimeout(20)
",
        step: "
s.sendto(b'\\x08\\0\\0\\0\\0\\1\\0\\1x', ('127.0.0.1', 0)); s.recv(100)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
",
    },
    Row {
        name: "a_busy_server",
        setup: "
import socket, threading
l = socket.create_server(('127.0.0.1', 7010), backlog=128)
def serve():
    while True:
        s, _ = l.accept(); s.recv(10); s.sendall(b'ok'); s.close()
threading.Thread(target=serve, daemon=True).start()
",
        step: "
for _ in range(5):
    c = socket.create_connection(('127.0.0.1', 7010)); c.sendall(b'x'); assert c.recv(2) == b'ok'; c.close()
",
    },
    Row {
        name: "odd_names",
        setup: "
d = b'/root/odd'; os.makedirs(d)
names = [b'new\\nline', b'\\xff\\xfe', b'-rf', b'x.pody-link', b'q\\'uo\\x22te', b'back\\\\slash']
files = [open(d + b'/' + name, 'w+') for name in names]
for f in files: f.write('kept'); f.flush()
",
        step: "
assert sorted(os.listdir(d)) == sorted(names)
for f in files: f.seek(0); assert f.read() == 'kept'
",
    },
    Row {
        name: "a_terminal_of_its_own",
        setup: "
import pty
pid, master = pty.fork()
if pid == 0:
    os.execvp('cat', ['cat'])
",
        step: "
os.write(master, b'%d\\n' % n); text = b''
while text.count(b'%d\\r\\n' % n) < 2: text += os.read(master, 1024)
",
    },
];

fn program(row: &Row) -> String {
    let step: String = row.step.trim_matches('\n').lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "import os, time\n{}\nprint('ready')\nn = 0\nwhile True:\n    n += 1\n{step}    \
         tell('/root/{name}.beat', str(n))\n    time.sleep(0.05)\n",
        row.setup,
        name = row.name
    )
}

/// The progress of each row.
fn beats(client: &Client, instance: &str) -> BTreeMap<String, u64> {
    let text = exec(client, instance, "cd /root; for f in *.beat; do echo $f $(cat $f); done");
    let pairs = text.lines().filter_map(|line| line.split_once(".beat "));
    pairs.map(|(name, beat)| (name.to_owned(), beat.parse().unwrap_or(0))).collect()
}

#[track_caller]
fn all_keep_running(client: &Client, instance: &str) {
    let before = beats(client, instance);
    assert_eq!(before.len(), ROWS.len(), "{before:?}");
    let mut stuck: Vec<String> = Vec::new();
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let now = beats(client, instance);
        stuck = before.iter().filter(|(name, beat)| now[*name] < *beat + 2).map(|(name, _)| name.clone()).collect();
        if stuck.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let logs = exec(client, instance, "tail -n 3 /root/*.log");
    panic!("{stuck:?} in {instance} do not keep running:\n{logs}");
}

#[test]
fn every_row_keeps_running_after_a_restore() {
    let volume = tempfile::tempdir().unwrap();
    let config = format!(
        "volume_mappings = [\"tmpfs:/scratch\", \"{}:/data\"]\n[default_quota]\ntmpfs_size = \"64m\"",
        volume.path().display()
    );
    let Some(server) = start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    for row in ROWS {
        run_python(&alice, "main", row.name, &program(row));
    }
    eventually(Duration::from_secs(10), "all have started", || beats(&alice, "main").len() == ROWS.len());
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(
        (verdict["can_be_saved"].as_bool(), verdict["losses"].to_string().as_str()),
        (Some(true), "[]"),
        "{verdict}"
    );
    let id = save(&alice, "ins=main&leave_running=false");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    all_keep_running(&alice, "main");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=clone"));
    all_keep_running(&alice, "clone");
    // The restored processes differ from those that were dumped first, but they can be dumped as well.
    all_keep_running(&alice, "main");
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// A file whose opened name was unlinked, but which has another name.
#[test]
fn an_unlinked_file_with_another_name_is_restored() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let row = Row {
        name: "linked",
        setup: "d = '/root/a\\nfolder'; os.mkdir(d); f = open(d + '/a', 'w+'); f.write('both'); f.flush(); os.link(d + '/a', '/root/b'); os.unlink(d + '/a')",
        step: "f.seek(0); assert f.read() == 'both'",
    };
    run_python(&alice, "main", row.name, &program(&row));
    for leave_running in [true, false] {
        let id = save(&alice, &format!("ins=main&leave_running={leave_running}"));
        if leave_running {
            alice.post("/pod/stop?ins=main").ok();
        }
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        let before = beats(&alice, "main")["linked"];
        eventually(Duration::from_secs(5), "it keeps running", || beats(&alice, "main")["linked"] > before);
    }
    assert_eq!(exec(&alice, "main", "cat /root/b; echo; ls /root | grep -c link_remap || true"), "both\n0");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// A connection with the host: the host's end still exists, but the pod has another address, or its twin has the
/// address.
#[test]
fn connections_with_the_outside_are_closed_if_they_cannot_continue() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let gateway =
        crate::help::engine_says(&server, "alice", "main", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}");
    let listener = std::net::TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        r#"
import socket, threading, time
def pair(address):
    listener = socket.create_server((address, 0))
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]
pairs = [pair('127.0.0.1'), pair(socket.gethostbyname(socket.gethostname()))]
sender, reader = [socket.create_connection(('{gateway}', {port})) for _ in range(2)]
def read(): tell('/root/end', repr(reader.recv(1)))
threading.Thread(target=read).start()
print('ready')
n = 0
while True:
    n += 1
    for client, server in pairs:
        client.sendall(n.to_bytes(4, 'big'))
        assert server.recv(4) == n.to_bytes(4, 'big')
    try: sender.sendall(b'x'); state = 'open'
    except OSError: state = 'closed'
    tell('/root/state', state)
    tell('/root/inside', str(n))
    time.sleep(0.05)
"#
    );
    run_python(&alice, "main", "outside", &program);
    let _connections = [listener.accept().unwrap(), listener.accept().unwrap()];
    let id = save(&alice, "ins=main");
    assert_eq!(exec(&alice, "main", "sleep 0.2; cat /root/state"), "open", "the pod that keeps running keeps it");
    let action = wait(&alice, &alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=clone")).ok());
    assert_eq!(action["status"], "done", "{action}");
    assert!(action["losses"].to_string().contains("\"2 open TCP connections were closed"), "{action}");
    eventually(Duration::from_secs(5), "the program notices", || exec(&alice, "clone", "cat /root/state") == "closed");
    eventually(Duration::from_secs(5), "the end of the stream is read", || {
        exec(&alice, "clone", "cat /root/end; true") == "b''"
    });
    let inside = || exec(&alice, "clone", "cat /root/inside").parse::<u64>().unwrap_or(0);
    let from = inside();
    eventually(Duration::from_secs(5), "those inside continue", || inside() > from);
    assert_eq!(exec(&alice, "main", "sleep 0.2; cat /root/state"), "open", "a clone takes no connection away");
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// A terminal multiplexer with programs in it: typing works after the restore.
#[test]
fn tmux_works_after_a_restore() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "cd /root && tmux new-session -d -s work && tmux send-keys -t work 'x=kept' Enter && sleep 1");
    let id = save(&alice, "ins=main&leave_running=false");
    for (to, name) in [("", "main"), ("&as=clone", "clone")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        exec(&alice, name, "tmux send-keys -t work 'echo $x > /root/said' Enter");
        eventually(Duration::from_secs(10), "the shell in it answers", || {
            exec(&alice, name, "cat /root/said; true") == "kept"
        });
        delete(&alice, name);
    }
    assert_clean(&server);
    delete_checkpoints(&alice);
}

/// Published ports: connections through them are cut, and new ones work, also to a clone.
#[test]
fn published_ports_accept_new_connections_after_a_restore() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // sshd takes a while to start, and the port is open before that.
    let knock = |name: &str| {
        let port = alice.get(&format!("/pod/inspect?ins={name}")).ok().json()["port_mapping"].clone();
        let port: u16 = port[0].as_str().unwrap().trim_end_matches(":22").parse().unwrap();
        let mut answered = None;
        eventually(Duration::from_secs(20), "sshd answers", || {
            let Ok(mut connection) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
            connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut banner = [0; 4];
            let is_ssh = std::io::Read::read_exact(&mut connection, &mut banner).is_ok() && &banner == b"SSH-";
            answered = Some(connection);
            is_ssh
        });
        answered.unwrap()
    };
    let before = knock("main");
    let id = save(&alice, "ins=main&leave_running=false");
    for (to, name) in [("", "main"), ("&as=clone", "clone")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        knock(name);
    }
    // After the rest of the banner comes the end, and not the silence of an open connection.
    match std::io::Read::read_to_end(&mut { before }, &mut Vec::new()) {
        Ok(_) => {}
        Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is not cut"),
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// A clone gets the current limits.
#[test]
fn a_clone_gets_the_current_memory_limit() {
    let Some(server) = start_with(|builder| builder) else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    let id = save(&alice, "ins=main");
    admin.post("/admin/quota/update?username=alice&memory_limit=700m").ok();
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=clone"));
    assert_eq!(crate::help::engine_says(&server, "alice", "clone", "{{.HostConfig.Memory}}"), (700 << 20).to_string());
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

/// Programs of another user than root: checkpointed if this host grants CAP_SYS_RESOURCE, otherwise named and refused.
#[test]
fn programs_of_normal_users_are_checkpointed_or_refused_with_the_reason() {
    let Some(server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let row =
        Row { name: "user", setup: "os.chmod('/root', 0o777); os.setuid(1000)", step: "assert os.getuid() == 1000" };
    run_python(&alice, "main", row.name, &program(&row));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    let may_exceed = u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1;
    if may_exceed {
        let id = save(&alice, "ins=main&leave_running=false");
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        let before = beats(&alice, "main")["user"];
        eventually(Duration::from_secs(10), "it keeps running", || beats(&alice, "main")["user"] > before);
        delete_checkpoints(&alice);
    } else {
        let refused = alice.post("/pod/checkpoint?ins=main");
        assert_eq!(refused.status, 409, "{refused}");
        let said = refused.detail();
        assert!(said.contains("runs as a normal user") && said.contains("CAP_SYS_RESOURCE"), "{refused}");
    }
    delete(&alice, "main");
}
