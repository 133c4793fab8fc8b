//! GPUs that are lost, hang, and come back.

use serde_json::{Value, json};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Code, Fault, Faults, Gpus, State},
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
fn a_lost_gpu_is_unknown_the_others_go_on_and_it_comes_back_by_itself() {
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
fn a_call_that_hangs_costs_its_gpu_alone() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).without_docker().start() else { return };
    wait_for("two GPUs", || states(&server), |seen| *seen == ["ok", "ok"]);
    gpus.change(|state| state.devices[0].faults = Faults::from([("*".to_owned(), Fault::Hang)]));
    wait_for("the hang", || states(&server), |seen| *seen == ["unknown", "ok"]);
    gpus.change(|state| state.devices[0].faults.clear());
    wait_for("its return", || states(&server), |seen| *seen == ["ok", "ok"]);
}

#[test]
fn a_driver_that_was_upgraded_under_us_says_so() {
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
    let mut host = std::process::Command::new("sleep").arg("4712").spawn().expect("sleep is there");
    super::seat(&gpus, 0, &[(host.id(), 400)]);
    let look = || server.admin().get("/host/gpu-ps").ok().json();
    wait_for("the process", look, |seen| seen["0"][0]["pid"] == host.id());
    host.kill().expect("our own child");
    host.wait().expect("our own child");
    wait_for("its end", look, |seen| seen["0"] == json!([]));
}
