//! Usage accounting of GPUs and CPUs.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, Process, State},
    },
    create, end, put_on_gpu, run, sleep_in, wait_for,
};

fn seconds(server: &Server, route: &str, user: &str) -> f64 {
    server.admin().get(route).ok().json()[user].as_f64().unwrap_or(0.0)
}

/// A daemon killed in the middle neither loses time nor counts it twice: within 1 % of the truth according to the clock
/// and the cgroup.
#[test]
fn time_is_counted_across_a_kill_of_the_daemon() {
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
    // On two GPUs: two seconds per second.
    put_on_gpu(&gpus, 0, &[(job, 1 << 30)]);
    put_on_gpu(&gpus, 1, &[(job, 1 << 30)]);
    std::thread::sleep(Duration::from_secs(8));
    server.kill();
    std::thread::sleep(Duration::from_secs(4));
    server.start_again();
    std::thread::sleep(Duration::from_secs(12));
    // A new process counts from its start if it was on no GPU before; this one was started just before.
    put_on_gpu(&gpus, 0, &[]);
    put_on_gpu(&gpus, 1, &[]);
    let truth = 2.0 * begun.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(1500));
    let counted = seconds(&server, "/stat/gputime", "alice");
    assert!((counted - truth).abs() <= 0.01 * truth + 0.4, "counted {counted}, true {truth}");
    assert_eq!(seconds(&server, "/stat/gputime?user=bob", "bob"), 0.0);

    // A window that begins in the middle counts in part.
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

    // The reference for CPU time is the cgroup.
    let stats = server.member("alice").get("/pod/stats?ins=main").ok().json();
    let truth = stats["cpu_seconds"].as_f64().unwrap();
    let counted =
        wait_for("the sampler", || seconds(&server, "/stat/cputime", "alice"), |counted| *counted >= 0.99 * truth);
    assert!(counted <= 1.01 * truth + 2.0, "counted {counted}, true {truth}");

    // Usage is kept when the pod is gone.
    end(job);
    server.member("alice").post("/pod/delete?ins=main").ok();
    assert!(seconds(&server, "/stat/cputime", "alice") >= 0.99 * counted);
}

/// A window that begins while a job runs counts the part inside it, on the CPU as on GPUs; GPUs are active, held or
/// free.
#[test]
fn a_window_counts_what_falls_inside_it() {
    let gpus = Gpus::new(State::with_gpus(3));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).start() else { return };
    let alice = create(&server, "alice", "main");
    wait_for(
        "the GPUs",
        || server.admin().get("/host/gpus").ok().json()["gpus"].as_array().map_or(0, Vec::len),
        |n| *n == 3,
    );
    // One core's worth, by a process that the cgroup's limit does not slow down.
    run("docker", &["exec", "-d", &alice, "sh", "-c", "while :; do :; done"]);
    let job = sleep_in(&alice, 3101);
    let stats = || server.member("alice").get("/pod/stats?ins=main").ok().json()["cpu_seconds"].as_f64().unwrap();
    gpus.change(|state| {
        state.devices[0].processes = vec![Process { sm_util: Some(90), ..Process::computing(job, 1 << 30) }];
        state.devices[1].processes = vec![Process { sm_util: Some(0), ..Process::computing(job, 1 << 30) }];
    });
    std::thread::sleep(Duration::from_secs(18));
    let (begun, cpu) = (Instant::now(), stats());
    std::thread::sleep(Duration::from_secs(22));
    // The job continues: the window begins and ends in it. Of the ten-second bucket in which it begins, a fraction is
    // counted as if the job had run at a constant rate, which it does not on a busy machine.
    let window = begun.elapsed().as_secs_f64().round();
    let t = format!("t={window}s");
    let used = stats() - cpu;
    let counted = seconds(&server, &format!("/stat/cputime?{t}"), "alice");
    assert!((counted - used).abs() <= 0.15 * used + 2.0, "CPU: counted {counted}, true {used}");
    assert!(seconds(&server, "/stat/cputime", "alice") > 1.3 * counted, "the total is more");
    let counted = seconds(&server, &format!("/stat/gputime?{t}"), "alice");
    assert!((counted - 2.0 * window).abs() <= 5.0, "GPU: counted {counted}, true {}", 2.0 * window);
    let all = seconds(&server, "/stat/gputime", "alice");
    assert!(all > counted + 30.0, "the total is {all}");

    let usage = server.admin().get(&format!("/stat/usage?by=gpu&{t}")).ok().json();
    let of = |gpu: usize, key: &str| {
        let uuid = &gpus_uuid(gpu);
        let rows = usage.as_array().unwrap();
        rows.iter().find(|row| row["gpu"] == *uuid).unwrap_or_else(|| panic!("no {uuid} in {usage}"))[key]
            .as_f64()
            .unwrap()
    };
    let near = |seconds: f64| (seconds - window).abs() <= 3.0;
    assert!(near(of(0, "gpu_active_seconds")) && of(0, "gpu_held_seconds") == 0.0, "{usage}");
    assert!(near(of(1, "gpu_held_seconds")) && of(1, "gpu_active_seconds") == 0.0, "{usage}");
    assert!(near(of(2, "gpu_free_seconds")) && of(0, "gpu_free_seconds") == 0.0, "{usage}");
    let csv = server.admin().get("/stat/usage?by=gpu&format=csv").ok().text();
    assert_eq!(csv.lines().next().and_then(|line| line.rsplit(',').next()), Some("gpu_free_seconds"));
    assert!(server.admin().get("/stat/usage?by=user").ok().json()[0].get("gpu_free_seconds").is_none());
    server.member("alice").post("/pod/delete?ins=main").ok();
}

fn gpus_uuid(gpu: usize) -> String {
    State::with_gpus(3).devices[gpu].uuid.clone()
}

/// Buckets are removed after their retention, those of hours summed up per user and GPU, and pods of which nothing is
/// left are removed with them.
#[test]
fn old_usage_is_bounded_and_its_sums_are_kept() {
    const DAY: i64 = 86_400;
    let gpus = Gpus::new(State::with_gpus(1));
    let Some(mut server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    server.terminate();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let database = server.database();
    for (id, pod, gpu) in [(1, "p-alice-a", ""), (2, "p-alice-b", ""), (3, "p-alice-b", "GPU-1")] {
        let insert = "INSERT INTO usage_subjects (id, user, pod, gpu) VALUES (?1, 'alice', ?2, ?3)";
        database.execute(insert, rusqlite::params![id, pod, gpu]).unwrap();
    }
    let insert = "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, 0, ?5, 0, 0, 0)";
    for (step, kept) in [(10, DAY), (60, 14 * DAY), (3600, 730 * DAY)] {
        for age in [kept - 7200, kept + 7200] {
            let at = (now - age).div_euclid(step) * step;
            for (subject, cpu, gpu) in [(1, 1.0, 0.0), (2, 2.0, 0.0), (3, 0.0, 4.0)] {
                // `a` has only an old bucket of an hour, so nothing is left of that pod.
                if subject != 1 || step == 3600 && age > kept {
                    database.execute(insert, rusqlite::params![step, at, subject, cpu, gpu]).unwrap();
                }
            }
            let insert = "INSERT INTO gpu_usage VALUES (?1, ?2, 'GPU-1', 1, 1, 0, 0, 0)";
            database.execute(insert, rusqlite::params![step, at]).unwrap();
        }
    }
    drop(database);
    server.start_again();
    let count = |query: &str| server.count(query);
    wait_for("the clearing", || count("SELECT count(*) FROM usage WHERE step > 0 AND subject <= 3"), |rows| *rows == 6);
    // The test's GPU is polled meanwhile and has rows of its own.
    assert_eq!(count("SELECT count(*) FROM gpu_usage WHERE gpu = 'GPU-1'"), 3);
    assert_eq!(count("SELECT count(*) FROM usage_subjects WHERE pod = 'p-alice-a'"), 0);
    let sums = server.admin().get("/stat/usage?by=user,pod").ok().json();
    let sum = |pod: &str| {
        let row = sums.as_array().unwrap().iter().find(|row| row["pod"] == pod).cloned().unwrap_or_default();
        (row["cpu_seconds"].as_f64(), row["gpu_active_seconds"].as_f64())
    };
    assert_eq!((sum(""), sum("p-alice-b")), ((Some(3.0), Some(4.0)), (Some(2.0), Some(4.0))), "{sums}");
    assert_eq!(seconds(&server, "/stat/cputime", "alice"), 5.0);
}
