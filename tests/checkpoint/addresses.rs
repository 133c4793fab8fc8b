//! Programs that are bound to the pod's own address, which differs after a restore: they keep communicating.

use std::{
    net::{TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use crate::{
    common::{Client, Server, eventually},
    help::{
        address, assert_clean, create, delete, delete_checkpoints, done, engine_says, exec, run_python, save, start,
        wait,
    },
};

/// Two processes that communicate over the pod's own address, as torchrun's and Ray's do, with a listener for new
/// connections and a UDP socket; any wrong data ends both.
const TALK: &str = r#"
import os, socket, time
own = socket.gethostbyname(socket.gethostname())
assert not own.startswith('127.'), own
l = socket.create_server((own, 7301))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((own, 7302))
if os.fork() == 0:
    c = socket.create_connection((own, 7301))
    while True:
        n = c.recv(64)
        assert n
        c.sendall(n)
s, peer = l.accept()
assert peer[0] == own
tell('/root/own', own)
print('ready')
n = 0
while True:
    n += 1
    s.sendall(b'%d' % n); assert s.recv(64) == b'%d' % n
    c = socket.create_connection((own, 7301)); t, _ = l.accept(); c.sendall(b'new'); assert t.recv(3) == b'new'; c.close(); t.close()
    v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.sendto(b'u', (own, 7302)); assert u.recv(10) == b'u'; v.close()
    tell('/root/talk', '%d' % n)
    time.sleep(0.05)
"#;

#[track_caller]
fn keeps_talking(client: &Client, instance: &str) {
    let said = || exec(client, instance, "cat /root/talk").parse::<u64>().expect("a number");
    let from = said();
    eventually(Duration::from_secs(60), "they keep communicating", || said() > from + 2);
}

#[test]
fn programs_bound_to_the_pods_own_address_keep_working_with_another() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "talk", TALK);
    let then = address(&server, "main");
    assert_eq!(exec(&alice, "main", "cat /root/own"), then);
    let id = save(&alice, "ins=main&leave_running=false");

    // Another container has the address by then: this one, or one that others create on this machine meanwhile.
    create(&alice, "other");
    let restored = done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    let is_another = address(&server, "main") != then;
    assert_eq!(restored["losses"].to_string().contains("is reachable only inside the pod"), is_another, "{restored}");
    assert!(!restored["losses"].to_string().contains("were closed"), "{restored}");
    keeps_talking(&alice, "main");

    // Two twins at once, and each pod can be reached under its own address.
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let (alice, id) = (&alice, &id);
            scope.spawn(move || done(alice, &format!("/pod/restore?ins=main&checkpoint={id}&as={name}")));
        }
    });
    for name in ["main", "one", "two"] {
        keeps_talking(&alice, name);
        assert_eq!(exec(&alice, name, "cat /root/own"), then, "the original address in each");
    }
    let macs: Vec<String> = ["other", "main", "one", "two"].iter().map(|name| who_answers(&server, name)).collect();
    let different: std::collections::HashSet<&String> = macs.iter().collect();
    assert_eq!(different.len(), macs.len(), "{macs:?}");
    assert_eq!(macs[0], engine_says(&server, "alice", "other", "{{.NetworkSettings.MacAddress}}"));
    // Outgoing connections work as in every pod.
    exec(&alice, "one", "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 22), 5)\"");

    // Programs bound to the original address can be checkpointed again, in a pod that has another.
    let again = save(&alice, "ins=one&leave_running=false");
    done(&alice, &format!("/pod/restore?ins=one&checkpoint={again}"));
    keeps_talking(&alice, "one");

    for name in ["main", "one", "two", "other"] {
        delete(&alice, name);
    }
    // After the deletion the address is free, and the pod may get it or not.
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    keeps_talking(&alice, "main");
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The hardware address that answers for a pod's address, as the host sees it.
fn who_answers(server: &Server, instance: &str) -> String {
    let address = address(server, instance);
    // Clear the ARP cache, then ask.
    let _ = Command::new("ip").args(["neigh", "flush", "to", &address]).output();
    let answered = TcpStream::connect_timeout(&format!("{address}:22").parse().unwrap(), Duration::from_secs(10));
    drop(answered);
    let neighbours = std::fs::read_to_string("/proc/net/arp").unwrap();
    let line = neighbours.lines().find(|line| line.split_whitespace().next() == Some(&address));
    line.and_then(|line| line.split_whitespace().nth(3)).unwrap_or_else(|| panic!("{address}: {neighbours}")).to_owned()
}

/// With a connection to the outside and one over the own address: the first is closed if it cannot continue, the
/// listener is restored.
#[test]
fn a_listener_on_the_own_address_is_restored_beside_connections_that_are_closed() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let gateway = engine_says(&server, "alice", "main", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}");
    let listener = TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        "import socket, time\nown = socket.gethostbyname(socket.gethostname())\nl = socket.create_server((own, 7310))\n\
         s = socket.create_connection(('{gateway}', {port}))\nprint('ready')\nwhile True:\n    \
         try:\n        s.sendall(b'x'); state = 'open'\n    except OSError: state = 'closed'\n    \
         c = socket.create_connection((own, 7310)); t, _ = l.accept(); c.close(); t.close()\n    \
         tell('/root/state', state)\n    time.sleep(0.05)\n"
    );
    run_python(&alice, "main", "outside", &program);
    let (_connection, _) = listener.accept().unwrap();
    let id = save(&alice, "ins=main&leave_running=false");
    create(&alice, "other");
    for (to, name) in [("", "main"), ("&as=clone", "clone")] {
        let action = wait(&alice, &alice.post(&format!("/pod/restore?ins=main&checkpoint={id}{to}")).ok());
        assert_eq!(action["status"], "done", "{action}");
        assert!(action["losses"].to_string().contains("TCP connections were closed"), "{action}");
        exec(&alice, name, "rm -f /root/state");
        eventually(Duration::from_secs(60), "the listener takes connections, the other is closed", || {
            exec(&alice, name, "cat /root/state; true") == "closed"
        });
    }
    assert_clean(&server);
    for name in ["main", "clone", "other"] {
        delete(&alice, name);
    }
    delete_checkpoints(&alice);
}
