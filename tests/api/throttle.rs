//! Wrong passwords: 429 with `Retry-After`, before any hashing, on every route that checks passwords.

use std::time::{Duration, Instant};

use crate::common::Server;

fn server(account: u32, address: u32) -> Server {
    let config =
        format!("[throttle]\naccount_failures = {account}\naddress_failures = {address}\nforget_seconds = 600");
    Server::builder().without_docker().config(&config).start().unwrap()
}

#[test]
fn an_account_is_throttled_after_some_wrong_passwords() {
    let server = server(3, 1000);
    server.member("bob").get("/user/info").ok();
    for _ in 0..3 {
        assert_eq!(server.client("alice", "wrong").get("/user/info").status, 401);
    }
    let answer = server.client("alice", "wrong").get("/user/info");
    assert_eq!(answer.status, 429, "{answer}");
    let seconds: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((500..=600).contains(&seconds), "{seconds}");
    // The right password is refused too, on every route; other accounts are not affected.
    assert_eq!(server.member("alice").get("/user/info").status, 429);
    assert_eq!(server.member("alice").post("/pod/delete?ins=x").status, 429);
    server.member("bob").get("/user/info").ok();
    server.admin().get("/user/info").ok();
    assert!(!server.log().contains("wrong"), "a password reached the log");
}

#[test]
fn a_recently_authenticated_user_is_not_locked_out_by_a_guesser() {
    let server = server(3, 1000);
    let alice = server.member("alice");
    alice.get("/user/info").ok();
    for _ in 0..6 {
        server.client("alice", "wrong").get("/user/info");
    }
    assert_eq!(server.client("alice", "wrong").get("/user/info").status, 429);
    alice.get("/user/info").ok();
    // Tokens are not locked out either.
    let token = alice.post("/user/tokens/create").ok().json()["token"].as_str().unwrap().to_owned();
    server.anon().with_authorization(&format!("Bearer {token}")).get("/user/info").ok();
}

#[test]
fn an_address_is_throttled_after_guesses_at_many_accounts() {
    let server = server(1000, 5);
    for number in 0..5 {
        assert_eq!(server.client(&format!("user{number}"), "wrong").get("/user/info").status, 401);
    }
    let refused = server.client("user9", "wrong").get("/user/info");
    assert_eq!(refused.status, 429, "{refused}");
    let seconds = refused.header("retry-after").expect("Retry-After");
    assert_eq!(refused.json()["detail"], format!("too many wrong passwords; try again in {seconds} s"));
    assert_eq!(server.member("alice").get("/user/info").status, 429);
}

#[test]
fn invalid_names_are_counted_too() {
    let server = server(1000, 5);
    let names = ["a-b", "../x", "", "share", "ünï", "1a", "x y", "_a"];
    let statuses: Vec<u16> = names.iter().map(|name| server.client(name, "wrong").get("/user/info").status).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
}

#[test]
fn a_refusal_costs_no_hash() {
    let server = server(3, 1000);
    let wrong = server.client("alice", "wrong");
    let time = |status: u16| {
        let begun = Instant::now();
        assert_eq!(wrong.get("/user/info").status, status);
        begun.elapsed()
    };
    let hashed = (0..3).map(|_| time(401)).min().unwrap();
    let mut refused: Vec<Duration> = (0..21).map(|_| time(429)).collect();
    refused.sort();
    assert!(refused[10] * 2 < hashed, "a refusal takes {:?}, a hash {hashed:?}", refused[10]);
}

/// One hash runs at a time, so a flood must not lock out users with a token or a recently verified password.
#[test]
fn a_flood_of_guesses_does_not_block_others() {
    let server = Server::builder()
        .without_docker()
        .config("[throttle]\naccount_failures = 100000\naddress_failures = 100000")
        .start()
        .unwrap();
    let alice = server.member("alice");
    alice.get("/user/info").ok();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for guesser in 0..8 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    number += 1;
                    let status = server.client(&format!("user{guesser}"), &number.to_string()).get("/user/info").status;
                    assert!([401, 503].contains(&status), "{status}");
                }
            });
        }
        let begun = Instant::now();
        let mut times = Vec::new();
        while begun.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            alice.get("/user/info").ok();
            times.push(asked.elapsed());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Waiting for eight hashes would take most of a second.
        times.sort();
        assert!(times[times.len() / 2] < Duration::from_millis(200), "{times:?}");
    });
}

/// Another node asks for many users from one address and sends no names.
#[test]
fn requests_of_other_nodes_are_throttled() {
    let server = Server::builder()
        .without_docker()
        .config(
            "[throttle]\naccount_failures = 3\nforget_seconds = 600\n\
             [remote_user_profile.service]\nenabled = true\naccess_token = \"between-nodes\"",
        )
        .start()
        .unwrap();
    let node = server.anon().with_authorization("Bearer between-nodes");
    let guess = |number: u32| node.get(&format!("/user_api/check_user?credential={number:064x}"));
    for number in 0..3 {
        assert_eq!(guess(number).ok().json()["userid"], 0);
    }
    let answer = guess(4);
    assert_eq!(answer.status, 429, "{answer}");
    assert!(answer.header("retry-after").is_some());
}
