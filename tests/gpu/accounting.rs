//! Who had how much.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
    },
    create, end, run, seat, sleep_in, wait_for,
};

fn seconds(server: &Server, route: &str, user: &str) -> f64 {
    server.admin().get(route).ok().json()[user].as_f64().unwrap_or(0.0)
}

/// A daemon killed in the middle neither loses nor doubles: within 1 % of the truth, as the clock and the cgroup have it.
#[test]
fn time_is_counted_over_a_kill_in_mid_run() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(mut server) = Server::builder().config(FAST).gpus(&gpus).start() else { return };
    let alice = create(&server, "alice", "main");
    run("docker", &["exec", "-d", &alice, "sh", "-c", "while :; do :; done"]);
    let job = sleep_in(&alice, 3001);
    wait_for(
        "the poller",
        || server.admin().get("/host/gpus").ok().json()["gpus"].as_array().map_or(0, Vec::len),
        |count| *count == 2,
    );
    let begun = Instant::now();
    // On two GPUs: two seconds a second.
    seat(&gpus, 0, &[(job, 1 << 30)]);
    seat(&gpus, 1, &[(job, 1 << 30)]);
    std::thread::sleep(Duration::from_secs(8));
    server.kill();
    std::thread::sleep(Duration::from_secs(4));
    server.start_again();
    std::thread::sleep(Duration::from_secs(12));
    // A process that is seen new counts from its start, if it was on no GPU before; this one was started just before.
    seat(&gpus, 0, &[]);
    seat(&gpus, 1, &[]);
    let truth = 2.0 * begun.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(1500));
    let counted = seconds(&server, "/stat/gputime", "alice");
    assert!((counted - truth).abs() <= 0.01 * truth + 0.4, "counted {counted}, true {truth}");
    assert_eq!(seconds(&server, "/stat/gputime?user=bob", "bob"), 0.0);

    // A window that begins in the middle counts its part.
    let part = seconds(&server, "/stat/gputime?t=11s", "alice");
    let inside = 2.0 * (11.0 - 1.5);
    assert!((part - inside).abs() <= 2.5, "counted {part}, true {inside}");

    let usage = server.admin().get("/stat/usage?by=pod,gpu").ok().json();
    let of_gpus: Vec<&Value> = usage.as_array().unwrap().iter().filter(|row| row.get("gpu").is_some()).collect();
    assert_eq!(of_gpus.len(), 2);
    let csv = server.admin().get("/stat/usage?by=user,hour&format=csv").ok().text();
    assert!(csv.lines().count() >= 2 && csv.contains(",alice,"), "{csv}");
    let series = server.member("alice").get("/pod/series?ins=main&t=1m").ok().json();
    assert!(
        series["points"].as_array().unwrap().iter().any(|point| point["cpu_cores"].as_f64().unwrap() > 0.1),
        "{series}"
    );
    assert!(!server.admin().get("/host/series?t=1m").ok().json()["points"].as_array().unwrap().is_empty());

    // CPU time: the cgroup knows.
    let stats = server.member("alice").get("/pod/stats?ins=main").ok().json();
    let truth = stats["cpu_seconds"].as_f64().unwrap();
    let counted =
        wait_for("the sampler", || seconds(&server, "/stat/cputime", "alice"), |counted| *counted >= 0.99 * truth);
    assert!(counted <= 1.01 * truth + 2.0, "counted {counted}, true {truth}");

    // What was used stays when the pod is gone.
    end(job);
    server.member("alice").post("/pod/delete?ins=main").ok();
    assert!(seconds(&server, "/stat/cputime", "alice") >= 0.99 * counted);
}
