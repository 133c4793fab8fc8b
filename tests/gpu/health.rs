//! GPUs that are lost, hang, and come back.

use serde_json::{Value, json};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Code, Fault, Faults, Gpus, Mig, MigInstance, State},
    },
    wait_for,
};

fn states(server: &Server) -> Vec<Value> {
    let answer = server.admin().get("/host/gpus").ok().json();
    answer["gpus"].as_array().expect("a list").iter().map(|gpu| gpu["state"].clone()).collect()
}

fn actions(server: &Server) -> Vec<Value> {
    let answer = server.admin().get("/events").ok().json();
    let actions = answer.as_array().expect("a list").iter().map(|event| event["action"].clone());
    actions.filter(|action| action.as_str().is_some_and(|action| action.starts_with("gpu."))).collect()
}

#[test]
fn a_lost_gpu_is_unknown_without_affecting_others_and_comes_back_by_itself() {
    let gpus = Gpus::new(State::with_gpus(3));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    wait_for("three GPUs", || states(&server), |seen| *seen == ["ok", "ok", "ok"]);
    gpus.change(|state| state.devices[1].faults = Faults::from([("*".to_owned(), Fault::Error(Code::GpuIsLost))]));
    wait_for("the loss", || states(&server), |seen| *seen == ["ok", "unknown", "ok"]);
    let lost = server.admin().get("/host/gpus").ok().json()["gpus"][1].clone();
    assert_eq!(lost["reading"], Value::Null, "never zero");
    assert!(lost["reason"].as_str().unwrap().contains("lost"), "{lost}");
    assert!(
        !server
            .admin()
            .get("/metrics")
            .ok()
            .text()
            .contains("pody_gpu_memory_bytes{gpu=\"GPU-00000000-0000-0000-0000-000000000001\"")
    );
    gpus.change(|state| state.devices[1].faults.clear());
    wait_for("its return", || states(&server), |seen| *seen == ["ok", "ok", "ok"]);
    wait_for("the events", || actions(&server), |seen| *seen == ["gpu.back", "gpu.lost"]);
}

#[test]
fn a_call_that_hangs_makes_only_its_own_gpu_unknown() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    wait_for("two GPUs", || states(&server), |seen| *seen == ["ok", "ok"]);
    gpus.change(|state| state.devices[0].faults = Faults::from([("*".to_owned(), Fault::Hang)]));
    wait_for("the hang", || states(&server), |seen| *seen == ["unknown", "ok"]);
    gpus.change(|state| state.devices[0].faults.clear());
    wait_for("its return", || states(&server), |seen| *seen == ["ok", "ok"]);
}

#[test]
fn an_upgraded_driver_that_was_not_reloaded_is_reported() {
    let gpus = Gpus::new(State { init_error: Some(Code::LibRmVersionMismatch), ..State::with_gpus(1) });
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    let library = || server.admin().get("/host/gpus").ok().json()["library"].clone();
    let seen = wait_for("the mismatch", library, |seen| seen["state"] == "failing");
    assert!(seen["reason"].as_str().unwrap().contains("reboot"), "{seen}");
    gpus.change(|state| state.init_error = None);
    wait_for("the driver", library, |seen| seen["state"] == "working");
    assert_eq!(
        server.admin().get("/host/spec").ok().json()["nvidia_driver_version"],
        json!(State::default().driver_version)
    );
}

#[test]
fn an_older_driver_lists_its_processes_too() {
    let gpus = Gpus::new(State { driver_version: "470.256.02".to_owned(), ..State::with_gpus(1) });
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    let mut host = std::process::Command::new("sleep").arg("4712").spawn().expect("sleep exists");
    super::put_on_gpu(&gpus, 0, &[(host.id(), 400)]);
    // Its memory as well, which is read with another call.
    gpus.change(|state| state.devices[0].memory_used = 5 << 30);
    let reading = || server.admin().get("/host/gpus").ok().json()["gpus"][0]["reading"].clone();
    let total = State::with_gpus(1).devices[0].memory_total;
    let seen = wait_for("its memory", reading, |seen| seen["memory_used"].as_u64().is_some_and(|used| used >= 5 << 30));
    assert_eq!(seen["memory_total"], json!(total));
    let look = || server.admin().get("/host/gpu-ps").ok().json();
    wait_for("the process", look, |seen| seen["0"][0]["pid"] == host.id());
    host.kill().expect("our own child");
    host.wait().expect("our own child");
    wait_for("its end", look, |seen| seen["0"] == json!([]));
}

/// An Xid error is an event for admins; its GPU stays healthy as long as it answers.
#[test]
fn an_xid_error_is_reported() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    wait_for("two GPUs", || states(&server), |seen| *seen == ["ok", "ok"]);
    // A later registration does not receive earlier errors.
    let number = std::cell::Cell::new(0);
    let told = || {
        number.set(number.get() + 1);
        gpus.change(|state| state.devices[1].xids.push(79));
        actions(&server)
    };
    wait_for("the event", told, |seen| seen.iter().any(|action| *action == "gpu.xid"));
    let events = server.admin().get("/events").ok().json();
    let event = events.as_array().unwrap().iter().find(|event| event["action"] == "gpu.xid").unwrap().clone();
    assert_eq!(event["object"], json!(State::with_gpus(2).devices[1].uuid));
    assert_eq!(event["detail"], "Xid 79: `dmesg | grep Xid` shows the process");
    assert_eq!(states(&server), ["ok", "ok"]);
    let of_members = server.member("alice").get("/events").ok().json();
    let is_xid = |event: &Value| event["action"] == "gpu.xid";
    assert!(!of_members.as_array().unwrap().iter().any(is_xid), "it concerns no user in particular");
}

/// A GPU that is split reports memory per instance but no utilization: that is null, never zero.
#[test]
fn mig_instances_are_listed_and_values_that_nvml_does_not_report_are_null() {
    let mut state = State::with_gpus(1);
    let instance = |number: u32| MigInstance {
        uuid: format!("MIG-{number}"),
        name: "NVIDIA A100-SXM4-80GB MIG 3g.40gb".to_owned(),
        gpu_instance: number,
        compute_instance: 0,
        memory_total: 40 << 30,
        memory_used: 1 << 30,
    };
    state.devices[0].mig = Some(Mig { enabled: true, instances: vec![instance(1), instance(2)] });
    let gpus = Gpus::new(state);
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    let first = || server.admin().get("/host/gpus").ok().json()["gpus"][0].clone();
    let seen = wait_for("the instances", first, |gpu| gpu["mig"].as_array().is_some_and(|list| list.len() == 2));
    assert_eq!(
        seen["mig"][1],
        json!({"index": 1, "uuid": "MIG-2", "name": "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "memory_total": 40u64 << 30,
            "memory_used": 1u64 << 30, "utilization": null})
    );
    assert_eq!(seen["reading"]["utilization"], Value::Null);
}

/// At the configured rates: rarely while no client watches, often while one does.
#[test]
fn gpus_are_polled_more_often_while_a_client_watches() {
    const SECONDS: u64 = 6;
    let gpus = Gpus::new(State::with_gpus(1));
    let config = "[gpu]\npoll_seconds = 0.25\nidle_poll_seconds = 1.0\n";
    let Some(server) = Server::builder().config(config).gpus(&gpus).without_docker().start() else { return };
    let polls = || {
        // Prometheus, which scrapes all the time, does not count as watching.
        let text = server.admin().get("/metrics").ok().text();
        let line = text.lines().find_map(|line| line.strip_prefix("pody_gpu_polls ")).expect("the number");
        line.trim().parse::<i64>().expect("a number")
    };
    wait_for("the first", polls, |count| *count > 0);
    let before = polls();
    std::thread::sleep(std::time::Duration::from_secs(SECONDS));
    let idle = polls() - before;
    assert!((5..=7).contains(&idle), "{idle} while no client watched");
    let before = polls();
    for _ in 0..SECONDS * 2 {
        server.member("alice").get("/host/gpu-ps").ok();
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let watched = polls() - before;
    assert!((18..=26).contains(&watched), "{watched} while a client watched");
}
