//! Host ports: none is given twice, and none that another program uses.

use std::{
    collections::HashSet,
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use insta::assert_snapshot;

use super::{create, delete, delete_all, host_port, try_create};
use crate::common::{IMAGE, Need, Server, docker, eventually};

#[test]
fn a_port_with_a_listener_is_not_given_to_a_pod() {
    let Some(server) = Server::builder().pod_ports(2).start() else { return };
    let alice = server.member("alice");
    let (first, last) = (server.port + 1, server.port + 2);
    let mut refusals = Vec::new();
    for address in ["0.0.0.0", "127.0.0.1", "::"] {
        let listener = TcpListener::bind((address, first)).unwrap();
        create(&alice, "main");
        assert_eq!(host_port(&alice, "main", 22), last, "beside {address}");
        refusals.push(try_create(&alice, "other").to_string());
        drop(listener);
        delete(&alice, "main");
    }
    refusals.dedup();
    assert_snapshot!(refusals.join("\n"), @r#"
    409
    {
      "code": "no_free_port",
      "detail": "no free port: the pod needs 1, and 0 of the 2 ports of this host are free; delete a pod, or ask an admin for more in available_ports"
    }
    "#);
    // UDP ports are separate.
    let _udp = UdpSocket::bind(("0.0.0.0", first)).unwrap();
    create(&alice, "main");
    create(&alice, "other");
    delete_all(&alice);
}

#[test]
fn a_port_of_a_foreign_container_is_not_given_to_a_pod() {
    let Some(server) = Server::builder().pod_ports(2).start() else { return };
    let alice = server.member("alice");
    let name = format!("{}_foreign", server.prefix);
    docker(&["run", "-d", "--name", &name, "-p", &format!("{}:22", server.port + 1), IMAGE]);
    create(&alice, "main");
    let port = host_port(&alice, "main", 22);
    delete(&alice, "main");
    docker(&["rm", "-f", &name]);
    assert_eq!(port, server.port + 2);
}

/// Between the choice of a port and the start of the container another program may take it.
#[test]
fn a_port_taken_in_between_is_replaced() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let Some(server) = Server::builder().pod_ports(2).env("FAILPOINTS", "create-made=1*sleep(2500)").start() else {
        return;
    };
    let alice = server.member("alice");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&alice, "main"));
        let mut chosen = 0;
        eventually(Duration::from_secs(5), "the container is made", || {
            chosen = server.count("SELECT coalesce(max(host_port), 0) FROM ports");
            !server.containers().is_empty()
        });
        let chosen = u16::try_from(chosen).unwrap();
        let _listener = TcpListener::bind(("0.0.0.0", chosen)).unwrap();
        creating.join().unwrap();
        assert_ne!(host_port(&alice, "main", 22), chosen);
        assert_eq!(server.count("SELECT count(*) FROM ports"), 1);
    });
    delete(&alice, "main");
}

#[test]
fn a_create_without_free_ports_is_refused() {
    let Some(server) = Server::builder().pod_ports(0).start() else { return };
    assert_snapshot!(try_create(&server.member("alice"), "main"), @r#"
    409
    {
      "code": "no_free_port",
      "detail": "no free port: the pod needs 1, and 0 of the 0 ports of this host are free; delete a pod, or ask an admin for more in available_ports"
    }
    "#);
}

#[test]
fn a_stopped_pod_keeps_its_ports() {
    let Some(server) = Server::builder().pod_ports(2).start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let port = host_port(&alice, "main", 22);
    alice.post("/pod/stop?ins=main").ok();
    create(&alice, "other");
    assert_ne!(host_port(&alice, "other", 22), port);
    assert_eq!(try_create(&alice, "third").status, 409);
    alice.post("/pod/start?ins=main").ok();
    assert_eq!(host_port(&alice, "main", 22), port);
    delete_all(&alice);
}

#[test]
fn fifty_concurrent_creates_on_ten_ports() {
    let Some(server) = Server::builder().pod_ports(10).start() else { return };
    let alice = server.member("alice");
    let mut statuses = std::thread::scope(|scope| {
        let create = |number: usize| try_create(&alice, &format!("p{number}")).status;
        let threads: Vec<_> = (0..50).map(|number| scope.spawn(move || create(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 10].as_slice(), &[409; 40]].concat());
    assert_eq!(server.containers().len(), 10);
    let pods = alice.get("/pod/ps").ok().json();
    let ports: HashSet<&str> =
        pods.as_array().unwrap().iter().map(|pod| pod["port_mapping"][0].as_str().unwrap()).collect();
    assert_eq!(ports.len(), 10, "{pods}");
    delete_all(&alice);
}
