//! A user's limits on pods: a refusal names the rule, the numbers and the next step, and leaves nothing behind.

use insta::assert_snapshot;
use serde_json::json;

use super::{create, delete, delete_all, try_create};
use crate::common::Server;

#[test]
fn max_pods() {
    let Some(server) = Server::builder().config("[default_quota]\nmax_pods = 2").start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "one");
    create(&alice, "two");
    let before = server.count("SELECT count(*) FROM events");
    assert_snapshot!(try_create(&alice, "three"), @r#"
    403
    {
      "code": "max_pods",
      "detail": "max_pods is 2 and you have 2: [prefix]-alice-one, [prefix]-alice-two; delete one with `pody rm NAME`"
    }
    "#);
    assert_eq!(server.count("SELECT count(*) FROM ports"), 2);
    assert_eq!(server.count("SELECT count(*) FROM pods"), 2);
    assert_eq!(server.count("SELECT count(*) FROM events"), before);
    assert_eq!(server.containers().len(), 2);
    // Counted per user; stopped pods count; a limit set by an admin applies at once.
    create(&bob, "one");
    delete(&bob, "one");
    alice.post("/pod/stop?ins=one").ok();
    assert_eq!(try_create(&alice, "three").status, 403);
    server.admin().post("/admin/quota/update?username=alice&max_pods=3").ok();
    create(&alice, "three");
    // A limit below the current number ends no pod, but allows no new one.
    server.pody(&["quota", "update", "alice", "--max-pods", "1"]);
    assert_eq!(alice.get("/pod/list").ok().json().as_array().unwrap().len(), 3);
    assert_eq!(try_create(&alice, "four").status, 403);
    alice.post("/pod/start?ins=one").ok();
    delete_all(&alice);
    create(&alice, "four");
    delete(&alice, "four");
}

#[test]
fn max_pods_of_zero() {
    let Some(server) = Server::builder().config("[default_quota]\nmax_pods = 0").start() else { return };
    assert_snapshot!(try_create(&server.member("alice"), "main"), @r#"
    403
    {
      "code": "max_pods",
      "detail": "max_pods is 0 and lets you have none; ask an admin for more"
    }
    "#);
}

#[test]
fn total_memory_with_a_limit_per_pod() {
    let Some(server) =
        Server::builder().config("[default_quota]\nmemory_limit = \"200m\"\ntotal_memory = \"500m\"").start()
    else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "one");
    create(&alice, "two");
    assert_snapshot!(try_create(&alice, "three"), @r#"
    403
    {
      "code": "total_memory",
      "detail": "total_memory is 500m and your pods hold 400m of it; this one would take 200m; delete one with `pody rm NAME`, or ask an admin"
    }
    "#);
    delete(&alice, "two");
    create(&alice, "three");
    delete_all(&alice);
}

/// Without a limit per pod, a pod gets what is left of the total.
#[test]
fn total_memory_without_a_limit_per_pod() {
    let Some(server) = Server::builder().config("[default_quota]\ntotal_memory = \"300m\"").start() else { return };
    let alice = server.member("alice");
    assert_eq!(create(&alice, "one")["info"]["memory_limit"], json!(300 << 20));
    assert_snapshot!(try_create(&alice, "two"), @r#"
    403
    {
      "code": "total_memory",
      "detail": "total_memory is 300m and your pods hold 300m of it; none is left for another; delete one with `pody rm NAME`, or ask an admin"
    }
    "#);
    delete(&alice, "one");
}

#[test]
fn total_memory_with_an_existing_pod_without_limit() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "one");
    server.reconfigure("[default_quota]\ntotal_memory = \"300m\"");
    assert_snapshot!(try_create(&alice, "two"), @r#"
    403
    {
      "code": "unlimited_pod",
      "detail": "total_memory is 300m and [prefix]-alice-one has no limit of its own; create it again, or ask an admin"
    }
    "#);
    delete(&alice, "one");
}

#[test]
fn thirty_concurrent_creates_on_a_quota_of_five() {
    let Some(server) = Server::builder().config("[default_quota]\nmax_pods = 5").start() else { return };
    let alice = server.member("alice");
    let mut statuses = std::thread::scope(|scope| {
        let create = |number: usize| try_create(&alice, &format!("p{number}")).status;
        let threads: Vec<_> = (0..30).map(|number| scope.spawn(move || create(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [[200; 5].as_slice(), &[403; 25]].concat());
    assert_eq!(server.containers().len(), 5);
    assert_eq!(alice.get("/pod/list").ok().json().as_array().unwrap().len(), 5);
    delete_all(&alice);
}

/// The total memory is not exceeded by concurrent creates either.
#[test]
fn ten_concurrent_creates_on_memory_for_three() {
    let Some(server) =
        Server::builder().config("[default_quota]\nmemory_limit = \"100m\"\ntotal_memory = \"350m\"").start()
    else {
        return;
    };
    let alice = server.member("alice");
    let created = std::thread::scope(|scope| {
        let create = |number: usize| try_create(&alice, &format!("p{number}")).status == 200;
        let threads: Vec<_> = (0..10).map(|number| scope.spawn(move || create(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|created| *created).count()
    });
    assert_eq!(created, 3);
    delete_all(&alice);
}
