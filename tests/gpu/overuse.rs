//! Past the quota: the right process and nothing else.

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
    },
    create, is_alive, run, seat, sleep_in, wait_for,
};

#[test]
fn over_use_is_warned_of_and_ends_the_newest_process_too_many() {
    let gpus = Gpus::new(State::with_gpus(3));
    let Some(server) =
        Server::builder().config(FAST).config("[gpu]\noveruse_grace_seconds = 2.0\n").gpus(&gpus).start()
    else {
        return;
    };
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    let (alice, bob) = (create(&server, "alice", "main"), create(&server, "bob", "main"));
    let old = sleep_in(&alice, 2001);
    let others = sleep_in(&bob, 2002);
    // Start times are counted in hundredths of a second.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let new = sleep_in(&alice, 2003);
    let bystander = sleep_in(&alice, 2004);
    seat(&gpus, 0, &[(old, 1)]);
    seat(&gpus, 1, &[(new, 1), (others, 1)]);
    seat(&gpus, 2, &[(others, 1)]);
    let actions = || {
        let events = server.member("alice").get("/events").ok().json();
        events
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["action"].as_str().unwrap().to_owned())
            .filter(|a| a.starts_with("gpu."))
            .collect::<Vec<_>>()
    };
    wait_for("the warning", actions, |seen| seen == &["gpu.overuse"]);
    assert!(is_alive(new), "there is a grace");
    wait_for("the end of the newest", || is_alive(new), |alive| !alive);
    assert!(is_alive(old) && is_alive(others) && is_alive(bystander), "nothing else is touched");
    wait_for("both events", actions, |seen| seen == &["gpu.end-process", "gpu.overuse"]);
    let message = || run("docker", &["exec", &alice, "sh", "-c", "cat /log/pody/*.critical.log 2>/dev/null || true"]);
    let message = wait_for("the message in the pod", message, |text| !text.is_empty());
    assert!(
        message.contains("gpu_count is 1 and your processes are on 2 GPUs (0, 1)") && message.contains("was ended"),
        "{message}"
    );
    assert!(run("docker", &["exec", &alice, "sh", "-c", "cat /log/pody/*.warning.log"]).contains("within 2 s"));
    server.member("alice").post("/pod/delete?ins=main").ok();
    server.member("bob").post("/pod/delete?ins=main").ok();
}
