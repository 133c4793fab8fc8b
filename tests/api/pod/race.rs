//! Concurrent operations on the same pod.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{create, delete, try_create};
use crate::common::{Client, Need, Server};

fn at_once(count: usize, work: impl Fn(usize) -> u16 + Sync) -> Vec<u16> {
    let mut statuses = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    statuses.sort_unstable();
    statuses
}

#[test]
fn twenty_concurrent_creates_of_one_name_make_one_pod() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let statuses = at_once(20, |_| try_create(&alice, "main").status);
    assert_eq!(statuses, [[200].as_slice(), &[409; 19]].concat());
    assert_eq!(server.containers(), [server.container("alice", "main")]);
    assert_eq!(server.count("SELECT count(*) FROM ports"), 1);
    delete(&alice, "main");
}

#[test]
fn one_of_many_concurrent_deletes_succeeds() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let statuses = at_once(10, |_| alice.post("/pod/delete?ins=main").status);
    assert_eq!(statuses[0], 200, "{statuses:?}");
    assert!(statuses[1..].iter().all(|status| [404, 409].contains(status)), "{statuses:?}");
    assert_eq!(server.containers().len(), 0);
}

#[test]
fn a_pod_that_is_being_created_is_not_listed_yet() {
    if !Need::Failpoints.is_there() {
        return;
    }
    let Some(server) = Server::builder().env("FAILPOINTS", "create-made=1*sleep(1500)").start() else { return };
    let alice = server.member("alice");
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| create(&alice, "main"));
        crate::common::eventually(std::time::Duration::from_secs(5), "it has begun", || {
            server.count("SELECT count(*) FROM pods WHERE state = 'creating'") == 1
        });
        assert_eq!(alice.get("/pod/list").ok().json(), serde_json::json!([]));
        assert_eq!(try_create(&alice, "main").status, 409);
        let answer = alice.post("/pod/exec?ins=main&cmd=true");
        assert!([404, 409].contains(&answer.status), "{answer}");
        // This waits for the pod's lock, for a while.
        let answer = alice.post("/pod/restart?ins=main");
        assert!([200, 409].contains(&answer.status), "{answer}");
        creating.join().unwrap();
    });
    super::exec(&alice, "main", "true");
    delete(&alice, "main");
}

/// A pod may end during a command at any moment: that causes no internal error, and adds nothing to the command's
/// output.
#[test]
fn commands_in_a_pod_that_is_deleted() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = alice.post("/pod/exec?ins=main&cmd=echo+hello");
                    assert!([200, 404, 409].contains(&answer.status), "{answer}");
                    if answer.status == 200 {
                        let log = answer.json()["log"].as_str().unwrap().to_owned();
                        assert!(["hello\r\n", ""].contains(&log.as_str()), "{answer}");
                    }
                }
            });
        }
        for _ in 0..3 {
            alice.post("/pod/stop?ins=main").ok();
            alice.post("/pod/start?ins=main").ok();
            alice.post("/pod/restart?ins=main").ok();
        }
        delete(&alice, "main");
        done.store(true, Ordering::Relaxed);
    });
}

/// After any operations in any order, all lists agree.
#[test]
fn everything_at_once() {
    let Some(server) = Server::start() else { return };
    let clients: Vec<Client> = ["alice", "bob"].map(|name| server.member(name)).into();
    at_once(16, |number| {
        let client = &clients[number % 2];
        let name = format!("p{}", number % 3);
        for step in 0..4 {
            let answer = match (number + step) % 5 {
                0 | 1 => try_create(client, &name),
                2 => client.post_with("/pod/delete", &[("ins", &name)]),
                3 => client.post_with("/pod/restart", &[("ins", &name)]),
                _ => client.post_with("/pod/exec", &[("ins", &name), ("cmd", "true")]),
            };
            assert!([200, 404, 409].contains(&answer.status), "{answer}");
        }
        200
    });
    for (client, name) in clients.iter().zip(["alice", "bob"]) {
        let pods = client.get("/pod/list").ok().json();
        let mut listed: Vec<String> =
            pods.as_array().unwrap().iter().map(|pod| server.container(name, pod.as_str().unwrap())).collect();
        listed.sort();
        let start = format!("{}-{name}-", server.prefix);
        let there: Vec<String> = server.containers().into_iter().filter(|pod| pod.starts_with(&start)).collect();
        assert_eq!(listed, there);
        super::delete_all(client);
    }
}
