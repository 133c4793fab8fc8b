//! An engine that fails, hangs, loses its responses or garbles them.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{docker, eventually, pause},
    help::{
        DEADLINE, Pending, Proxied, RECOVERY, assert_reads_fast, assert_recovered, assert_unavailable, begin,
        container_id, create, create_path, delete, exec, inspect, runs, state,
    },
    proxy::Fault,
};

/// Reads that a fault of the engine or of another pod must not affect.
const READS: [&str; 4] = ["/pod/list", "/pod/ps", "/user/info", "/image/list"];

/// Changes made by hand are seen within this time, with or without events.
const SEEN: Duration = Duration::from_secs(5);

fn names(server: &Proxied) -> Vec<String> {
    server.containers()
}

/// The pod is listed once the engine has the request, whatever happens to the response.
#[test]
fn a_lost_response_to_a_create_leaves_one_pod() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    for fault in [Fault::LoseAnswer, Fault::Cut(3), Fault::Garble] {
        let rule = server.proxy.once("POST /containers/create*", fault);
        let answer = create(&alice, "main");
        assert_eq!(rule.hits(), 1);
        assert_eq!(answer.status, 200, "{fault:?}: {answer}");
        assert_eq!(names(&server), [server.container("alice", "main")], "{fault:?}");
        assert_recovered(&server);
        delete(&alice, "main").ok();
    }
}

#[test]
fn a_lost_response_to_a_start_leaves_one_pod() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let rule = server.proxy.once("POST /containers/*/start*", Fault::LoseAnswer);
    create(&alice, "main").ok();
    assert_eq!(rule.hits(), 1);
    assert_recovered(&server);
    assert_eq!(inspect(&server.container("alice", "main"), "{{.State.Status}}"), "running");
    drop(rule);

    // Lost every time: a refusal, and nothing is left behind.
    let _rule = server.proxy.on("POST /containers/*/start*", Fault::LoseAnswer);
    let begun = Instant::now();
    assert_unavailable(&create(&alice, "second"), begun.elapsed());
    assert_recovered(&server);
    assert_eq!(names(&server), [server.container("alice", "main")]);
    delete(&alice, "main").ok();
}

#[test]
fn a_delete_whose_response_is_lost_succeeds() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let rule = server.proxy.once("DELETE /containers/*", Fault::LoseAnswer);
    delete(&alice, "main").ok();
    assert_eq!(rule.hits(), 1);
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("deleted"));
}

#[test]
fn a_commit_whose_response_is_lost_succeeds() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let rule = server.proxy.once("POST /commit*", Fault::LoseAnswer);
    let answer = alice.post("/pod/commit?ins=main&tag=v1");
    assert_eq!(rule.hits(), 1);
    // The image exists: a client that got a refusal would conflict with it on retry.
    assert_eq!(answer.status, 200, "{answer}");
    assert_recovered(&server);
    assert!(alice.get("/image/list").ok().text().contains("alice-v1"));
    alice.post("/image/delete?image=alice-v1").ok();
    delete(&alice, "main").ok();
}

#[test]
fn a_hung_create_is_refused_in_time_and_leaves_nothing() {
    let Some(server) = Proxied::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&bob, "main").ok();
    let held = server.proxy.on("POST /containers/create*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    assert_reads_fast(&bob, &READS);
    assert_reads_fast(&alice, &READS);
    let (answer, took) = request.answer();
    assert_unavailable(&answer, took);
    held.lift();
    // The engine continues with it now, although it is no longer wanted.
    eventually(RECOVERY, "the late container is removed", || server.log().contains("leftover container"));
    assert_recovered(&server);
    assert_eq!(names(&server), [server.container("bob", "main")]);
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
    delete(&bob, "main").ok();
}

/// Creates wait for their turn at the engine: those behind hung ones must not wait forever either.
#[test]
fn many_creates_behind_hung_ones_are_refused_in_time() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.on("POST /containers/create*", Fault::Hold);
    let requests: Vec<Pending> = (0..10).map(|number| begin(&alice, &create_path(&format!("p{number}")))).collect();
    let answers: Vec<_> = requests.into_iter().map(Pending::answer).collect();
    for (answer, took) in answers {
        assert_unavailable(&answer, took);
    }
    held.lift();
    eventually(RECOVERY, "nothing is left", || names(&server).is_empty());
    assert_recovered(&server);
}

#[test]
fn a_hung_start_or_delete_is_refused_in_time_and_completed_later() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.on("POST /containers/*/start*", Fault::Hold);
    let (answer, took) = begin(&alice, &create_path("main")).answer();
    assert_unavailable(&answer, took);
    held.lift();
    assert_recovered(&server);
    assert_eq!(names(&server), Vec::<String>::new());

    create(&alice, "main").ok();
    let held = server.proxy.on("DELETE /containers/*", Fault::Hold);
    let (answer, took) = begin(&alice, "/pod/delete?ins=main").answer();
    assert_unavailable(&answer, took);
    assert_reads_fast(&alice, &READS);
    held.lift();
    eventually(RECOVERY, "the delete is finished", || state(&server, "alice", "main").as_deref() == Some("deleted"));
    assert_recovered(&server);
}

#[test]
fn an_engine_that_hangs_altogether_is_noticed_and_reads_continue() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let held = server.proxy.on("*", Fault::Hold);
    // Before the daemon has noticed, and after.
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    eventually(DEADLINE, "it is noticed", || server.anon().get("/healthz").ok().json()["docker"] == "down");
    for path in [
        create_path("third"),
        "/pod/delete?ins=main".into(),
        "/pod/stop?ins=main".into(),
        "/pod/exec?ins=main&cmd=true".into(),
    ] {
        let (answer, took) = begin(&alice, &path).answer();
        assert_unavailable(&answer, took);
        assert!(took < Duration::from_secs(3), "{path} took {took:?} although the engine is known to be down");
    }
    assert_reads_fast(&alice, &READS);
    let listed = alice.get("/pod/inspect?ins=main").ok();
    let age = listed.header("x-pody-inventory-age").and_then(|age| age.parse::<f64>().ok());
    assert!(age.is_some_and(|age| age > 0.5), "the age is {age:?}");
    assert_eq!(listed.json()["status"], "running");
    held.lift();
    eventually(RECOVERY, "it is back", || create(&alice, "fourth").status == 200);
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().header("x-pody-inventory-age"), None);
    delete(&alice, "fourth").ok();
    delete(&alice, "main").ok();
    eventually(RECOVERY, "nothing is left", || names(&server).is_empty());
    assert_recovered(&server);
}

#[test]
fn one_container_whose_inspect_hangs_does_not_block_others() {
    let Some(server) = Proxied::start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "bad").ok();
    create(&alice, "good").ok();
    create(&bob, "main").ok();
    let bad = container_id(&server, "alice", "bad");
    let held = server.proxy.on(&format!("GET /containers/{bad}/json*"), Fault::Hold);
    // So that the inspect is needed.
    pause(&bad);
    held.wait_hit();
    assert_reads_fast(&alice, &READS);
    assert_reads_fast(&alice, &["/pod/inspect?ins=bad", "/pod/inspect?ins=good"]);
    assert_reads_fast(&bob, &READS);
    eventually(SEEN, "the list's status is shown", || {
        alice.get("/pod/inspect?ins=bad").ok().json()["status"] == "paused"
    });
    exec(&alice, "good", "true", 5).ok();
    create(&bob, "second").ok();
    delete(&bob, "second").ok();
    // Changes of other pods are still seen.
    pause(&container_id(&server, "bob", "main"));
    eventually(SEEN, "the pause is seen", || bob.get("/pod/inspect?ins=main").ok().json()["status"] == "paused");
    docker(&["unpause", &container_id(&server, "bob", "main")]);
    let begun = Instant::now();
    delete(&alice, "bad").ok();
    assert!(begun.elapsed() < DEADLINE);
    held.lift();
    assert_recovered(&server);
    delete(&alice, "good").ok();
    delete(&bob, "main").ok();
}

/// When one of many requests hangs, a create whose container cannot be inspected also ends in time.
#[test]
fn a_create_whose_inspects_hang_is_refused_in_time() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let create_held = server.proxy.on("POST /containers/create*", Fault::Hold);
    let look_held = server.proxy.on(&format!("GET /containers/{}*", server.prefix), Fault::Hold);
    let (answer, took) = begin(&alice, &create_path("main")).answer();
    assert_unavailable(&answer, took);
    create_held.lift();
    look_held.lift();
    eventually(RECOVERY, "nothing is left", || names(&server).is_empty());
    assert_recovered(&server);
}

#[test]
fn an_engine_that_answers_500_leaks_nothing_and_leaves_nothing_behind() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let secret = r#"{"message":"open /var/lib/docker/internal: broken"}"#;
    for pattern in ["POST /containers/create*", "POST /containers/*/start*"] {
        let rule = server.proxy.on(pattern, Fault::Answer(500, secret));
        let answer = create(&alice, "main");
        assert_eq!((answer.status, answer.code().as_str()), (500, "internal"), "{pattern}: {answer}");
        assert!(!answer.text().contains("internal: broken"), "an internal error of the engine in an answer: {answer}");
        rule.lift();
        assert_recovered(&server);
        assert_eq!(names(&server), Vec::<String>::new(), "{pattern}");
    }
    create(&alice, "main").ok();
    let rule = server.proxy.on("DELETE /containers/*", Fault::Answer(500, secret));
    assert_eq!(delete(&alice, "main").status, 500);
    rule.lift();
    // What was begun is completed.
    eventually(RECOVERY, "the delete is finished", || state(&server, "alice", "main").as_deref() == Some("deleted"));
    assert_recovered(&server);
}

/// A list or an inspect that cannot be parsed changes nothing.
#[test]
fn garbled_responses_change_nothing() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    for fault in
        [Fault::Garble, Fault::Cut(40), Fault::Answer(500, r#"{"message":"broken"}"#), Fault::Answer(200, "[]x")]
    {
        let list = server.proxy.on("GET /containers/json*", fault);
        let look = server.proxy.on("GET /containers/*/json*", fault);
        thread::sleep(Duration::from_millis(1500));
        assert!(list.hits() > 0, "{fault:?}");
        assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running", "{fault:?}");
        assert_reads_fast(&alice, &READS);
        drop((list, look));
        assert_recovered(&server);
    }
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("running"));
    eventually(RECOVERY, "it is healthy again", || server.anon().get("/healthz").ok().json()["docker"] == "ok");
    delete(&alice, "main").ok();
}

/// An engine that has lost its state would make the list empty for a moment: that alone is no reason to give up pods.
#[test]
fn an_empty_list_alone_ends_no_pods() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let list = server.proxy.on("GET /containers/json*", Fault::Answer(200, "[]"));
    thread::sleep(Duration::from_secs(3));
    assert!(list.hits() > 1);
    drop(list);
    assert_recovered(&server);
    assert_eq!(state(&server, "alice", "main").as_deref(), Some("running"));
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
    delete(&alice, "main").ok();
}

/// Without events, the list shows changes within a few seconds.
#[test]
fn changes_are_seen_without_the_event_stream() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let id = container_id(&server, "alice", "main");
    let status = || alice.get("/pod/inspect?ins=main").ok().json()["status"].clone();

    let mute = server.proxy.on("GET /events*", Fault::Mute);
    assert_eq!(server.proxy.cut("GET /events*"), 1, "one stream was open");
    mute.wait_hit();
    pause(&id);
    eventually(SEEN, "the pause is seen", || status() == "paused");
    docker(&["unpause", &id]);
    docker(&["stop", "-t", "0", &id]);
    eventually(SEEN, "the stop is seen", || status() == "exited");
    drop(mute);

    let refuse = server.proxy.on("GET /events*", Fault::Refuse);
    server.proxy.cut("GET /events*");
    docker(&["start", &id]);
    eventually(SEEN, "the start is seen", || status() == "running");
    docker(&["rm", "-f", &id]);
    eventually(SEEN, "the removal is seen", || alice.get("/pod/inspect?ins=main").status == 404);
    let attempts = refuse.hits();
    thread::sleep(Duration::from_secs(2));
    assert!(refuse.hits() - attempts <= 4, "it tries again too often");
    drop(refuse);
    eventually(SEEN, "it listens to events again", || server.proxy.open("GET /events*") == 1);
    assert_recovered(&server);
}

/// Connections of the daemon break at random while pods are created and deleted.
#[test]
fn pods_stay_consistent_while_connections_keep_breaking() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let workers: Vec<_> = (0..3)
        .map(|number| {
            let alice = alice.clone();
            let name = format!("w{number}");
            thread::spawn(move || {
                let begun = Instant::now();
                let mut made = 0;
                while begun.elapsed() < Duration::from_secs(8) {
                    made += usize::from(create(&alice, &name).status == 200);
                    let answer = delete(&alice, &name);
                    assert!(matches!(answer.status, 200 | 404 | 409 | 503), "{answer}");
                }
                made
            })
        })
        .collect();
    while workers.iter().any(|worker| !worker.is_finished()) {
        thread::sleep(Duration::from_millis(300 + u64::from(rand::random::<u16>() % 700)));
        server.proxy.cut("*");
    }
    let made: usize = workers.into_iter().map(|worker| worker.join().expect("expected answers only")).sum();
    assert!(made > 0, "no pod was created at all");
    assert_recovered(&server);
    for pod in alice.get("/pod/list").ok().json().as_array().expect("names") {
        delete(&alice, pod.as_str().expect("a name")).ok();
    }
    assert_recovered(&server);
}

/// The connection of a command breaks: its timeout still applies, and it is killed then.
#[test]
fn a_command_whose_connection_breaks_is_killed_at_its_timeout() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let request = begin(&alice, "/pod/exec?ins=main&cmd=exec+sleep+7654&timeout=3");
    eventually(Duration::from_secs(3), "the command runs", || runs(&alice, "main", "sleep 7654"));
    assert_eq!(server.proxy.cut("POST /exec/*/start*"), 1);
    let (answer, took) = request.answer();
    assert!(took < DEADLINE, "{took:?}: {answer}");
    assert!(answer.status == 503 || answer.ok().json()["log"] == "Timeout");
    eventually(RECOVERY, "the command is killed", || !runs(&alice, "main", "sleep 7654"));
    delete(&alice, "main").ok();
}

/// The engine starts the command without answering: the command must not run forever either.
#[test]
fn a_command_whose_start_is_not_answered_is_killed() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let rule = server.proxy.once("POST /exec/*/start*", Fault::LoseAnswer);
    let request = begin(&alice, "/pod/exec?ins=main&cmd=exec+sleep+7655&timeout=3600");
    rule.wait_hit();
    eventually(Duration::from_secs(3), "the command runs", || runs(&alice, "main", "sleep 7655"));
    let (answer, took) = request.answer();
    assert_unavailable(&answer, took);
    eventually(RECOVERY, "the command is killed", || !runs(&alice, "main", "sleep 7655"));
    delete(&alice, "main").ok();
}

/// A command that closes its terminal is waited for like any other.
#[test]
fn a_command_that_closes_its_terminal_is_waited_for() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let begun = Instant::now();
    let answer = exec(&alice, "main", "exec </dev/null >/dev/null 2>&1; sleep 3; exit 7", 20).ok().json();
    assert_eq!(answer["exit_code"], 7, "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(3));
    let answer = exec(&alice, "main", "exec </dev/null >/dev/null 2>&1; exec sleep 7656", 3).ok().json();
    assert_eq!(answer["log"], "Timeout", "{answer}");
    eventually(RECOVERY, "the command is killed", || !runs(&alice, "main", "sleep 7656"));
    delete(&alice, "main").ok();
}

/// The engine goes away for good while a command runs. Its process is known by then, and is killed from outside.
#[test]
fn a_command_whose_engine_goes_away_is_killed() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let request = begin(&alice, "/pod/exec?ins=main&cmd=exec+sleep+7657&timeout=3600");
    eventually(Duration::from_secs(3), "the command runs", || runs(&alice, "main", "sleep 7657"));
    thread::sleep(Duration::from_secs(1));
    server.proxy.vanish();
    let (answer, took) = request.answer();
    assert_unavailable(&answer, took);
    thread::sleep(Duration::from_secs(2));
    let left = docker(&["top", &server.container("alice", "main"), "-o", "pid,args"]);
    assert!(!left.contains("sleep 7657"), "{left}");
    server.proxy.appear();
    eventually(RECOVERY, "it is back", || server.anon().get("/healthz").ok().json()["docker"] == "ok");
    delete(&alice, "main").ok();
}

/// Two clients delete a pod that cannot be deleted: the second waits for the first, and no longer than it may.
#[test]
fn deletes_that_wait_for_one_another_are_refused_in_time() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let held = server.proxy.on("DELETE /containers/*", Fault::Hold);
    let first = begin(&alice, "/pod/delete?ins=main");
    held.wait_hit();
    thread::sleep(Duration::from_millis(2500));
    let second = begin(&alice, "/pod/delete?ins=main");
    let (answer, took) = first.answer();
    assert_unavailable(&answer, took);
    let (answer, took) = second.answer();
    assert!(matches!(answer.status, 409 | 503) && took < DEADLINE, "after {took:?}: {answer}");
    held.lift();
    eventually(RECOVERY, "the delete is finished", || state(&server, "alice", "main").as_deref() == Some("deleted"));
    assert_recovered(&server);
}

/// The same for starts: the wait for the turn and for the engine together stays below the limit.
#[test]
fn starts_that_wait_for_one_another_are_refused_in_time() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    alice.post("/pod/stop?ins=main").ok();
    let held = server.proxy.on("POST /containers/*/start*", Fault::Hold);
    let first = begin(&alice, "/pod/start?ins=main");
    held.wait_hit();
    // The second gets its turn just before it would give up.
    thread::sleep(Duration::from_secs(4));
    let second = begin(&alice, "/pod/start?ins=main");
    let (answer, took) = first.answer();
    assert_unavailable(&answer, took);
    let (answer, took) = second.answer();
    assert!(matches!(answer.status, 409 | 503) && took < DEADLINE, "after {took:?}: {answer}");
    held.lift();
    eventually(RECOVERY, "the pod is running or can be started", || alice.post("/pod/start?ins=main").status == 200);
    assert_recovered(&server);
    delete(&alice, "main").ok();
}
