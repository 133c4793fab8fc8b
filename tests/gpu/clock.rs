//! A host whose clock is set by a day, back and forward. Only the daemon sees it: libfaketime replaces its clock.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    FAST,
    common::{
        Client, Server, eventually,
        gpus::{Gpus, State},
        need,
    },
    create, end, is_alive, put_on_gpu, run, sleep_in,
};

#[test]
fn a_clock_set_by_a_day_changes_no_amount_and_ends_nothing() {
    if !need::Need::FakeTime.is_there() {
        return;
    }
    let gpus = Gpus::new(State::with_gpus(2));
    let shown = tempfile::NamedTempFile::new().expect("a file");
    let set_clock = |by: &str| fs::write(shown.path(), by).expect("our own file");
    set_clock("+0");
    let builder = Server::builder().config(FAST).config("[gpu]\noveruse_grace_seconds = 600").gpus(&gpus);
    let builder = builder
        .env("LD_PRELOAD", need::faketime().expect("it was checked").display().to_string())
        .env("FAKETIME_TIMESTAMP_FILE", shown.path().display().to_string())
        .env("FAKETIME_NO_CACHE", "1")
        // As on a host whose clock is set: the clock since boot is not affected.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let Some(server) = builder.start() else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    admin.post("/admin/quota/update?username=alice&gpu_count=1").ok();
    let container = create(&server, "alice", "main");
    run("docker", &["exec", "-d", &container, "sh", "-c", "while :; do :; done"]);
    let token = alice.post("/user/tokens/create?expires=1h").ok().json()["token"].as_str().expect("a token").to_owned();
    let by_token = server.anon().with_authorization(&Client::bearer(&token));

    let job = sleep_in(&container, 3001);
    let begun = Instant::now();
    put_on_gpu(&gpus, 0, &[(job, 1 << 30)]);
    put_on_gpu(&gpus, 1, &[(job, 1 << 30)]);
    eventually(Duration::from_secs(20), "the overuse is seen", || {
        server.count("SELECT count(*) FROM events WHERE action = 'gpu.overuse'") > 0
    });
    for (by, of_token) in [("-1d", 200), ("+0", 200), ("+1d", 401)] {
        set_clock(by);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(by_token.get("/user/info").status, of_token, "{by}: a token lasts until its time of day");
        assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["status"], "running");
        assert!(is_alive(job), "{by}: killed, although the grace period is not over");
    }
    put_on_gpu(&gpus, 0, &[]);
    put_on_gpu(&gpus, 1, &[]);
    let truth = begun.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(2));

    let counted = |route: &str| admin.get(&format!("{route}?t=30d")).ok().json()["alice"].as_f64().unwrap_or(0.0);
    let gpu = counted("/stat/gputime");
    assert!((gpu - 2.0 * truth).abs() < 3.0, "counted {gpu} s on two GPUs in {truth} s");
    let stats = alice.get("/pod/stats?ins=main").ok().json();
    let (cpu, used) = (counted("/stat/cputime"), stats["cpu_seconds"].as_f64().unwrap());
    assert!((cpu - used).abs() < 2.0, "counted {cpu} s, used {used} s");
    let usage = admin.get("/stat/usage?by=user&t=30d").ok().json();
    let memory = usage[0]["memory_byte_seconds"].as_f64().unwrap();
    let most = stats["memory_used"].as_f64().unwrap() * (truth + 30.0) * 3.0;
    assert!(memory > 0.0 && memory < most, "{memory} byte-seconds in {truth} s: {stats}");
    end(job);
    alice.post("/pod/delete?ins=main").ok();
}
