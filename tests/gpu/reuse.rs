//! PIDs that are reused by another process.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Fault, Faults, Gpus, State},
    },
    create, end, put_on_gpu, sleep_in,
    twin::Twin,
    wait_for,
};

/// The driver lists a process, which ends before the poller examines it; its PID is reused by a process of another pod,
/// which has nothing to do with the GPU. Later that one uses the GPU as well.
#[test]
fn a_pid_reused_between_the_drivers_list_and_proc_is_credited_to_no_user() {
    let gpus = Gpus::new(State::with_gpus(1));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).start() else { return };
    let (alice, bob) = (create(&server, "alice", "main"), create(&server, "bob", "main"));
    let pid = sleep_in(&alice, 5001);
    put_on_gpu(&gpus, 0, &[(pid, 1 << 20)]);
    let admin = server.admin();
    let look = || {
        let seen = admin.get("/host/gpus").ok().json();
        let owners = seen["gpus"][0]["processes"].as_array().cloned().unwrap_or_default();
        let owners: Vec<Value> = owners.into_iter().filter(|p| p["pid"] == pid).map(|p| p["pod"].clone()).collect();
        (seen["at"].clone(), owners)
    };
    wait_for("alice", look, |(_, owners)| *owners == [json!(alice)]);

    // Each poll now takes more than a second between the list and /proc.
    let slow = || Faults::from([("nvmlDeviceGetProcessUtilization".to_owned(), Fault::DelayMs(1500))]);
    gpus.change(|state| state.devices[0].faults = slow());
    for _ in 0..2 {
        let (before, _) = look();
        wait_for("the next poll", look, |(at, _)| *at != before);
    }
    // The list of the poll that runs now was read some 0.2 s after that.
    std::thread::sleep(Duration::from_millis(700));
    end(pid);
    let twin = Twin::start(pid, Some(&bob), 5002);
    let taken = Instant::now();
    put_on_gpu(&gpus, 0, &[]);
    let (before, _) = look();
    let mut polls = 0;
    let mut last = before;
    while polls < 2 {
        let (at, owners) = look();
        if at != last {
            polls += 1;
            assert_eq!(owners, Vec::<Value>::new(), "poll {polls} after {:?}", taken.elapsed());
            last = at;
        }
        assert!(taken.elapsed() < Duration::from_secs(15), "polling has stopped");
        std::thread::sleep(Duration::from_millis(20));
    }

    // Now it uses the GPU itself: the process is bob's, and alice's time no longer grows.
    gpus.change(|state| state.devices[0].faults.clear());
    put_on_gpu(&gpus, 0, &[(pid, 1 << 20)]);
    wait_for("bob", look, |(_, owners)| *owners == [json!(bob)]);
    let seconds = |user: &str| admin.get("/stat/gputime").ok().json()[user].as_f64().unwrap_or(0.0);
    let (hers, his) = (seconds("alice"), seconds("bob"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(seconds("alice"), hers);
    let more = seconds("bob") - his;
    assert!((2.0..5.0).contains(&more), "{more}");
    drop(twin);
    server.member("alice").post("/pod/delete?ins=main").ok();
    server.member("bob").post("/pod/delete?ins=main").ok();
}
