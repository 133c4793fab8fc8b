//! Which user, pod and container a process belongs to.

use serde_json::{Value, json};

use super::{
    FAST,
    common::{
        Server,
        gpus::{Gpus, State},
    },
    create, end, put_on_gpu, run, sleep_in, wait_for,
};

/// PID, pod, user, memory of each process on a GPU.
fn rows(answer: &Value, gpu: &str) -> Vec<Value> {
    let processes = answer[gpu].as_array().expect("a list");
    processes.iter().map(|p| json!([p["pid"], p["pod"], p["user"], p["gpu_memory_used"]])).collect()
}

#[test]
fn processes_of_pods_the_host_and_foreign_containers_are_distinguished_as_they_come_and_go() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(mut server) = Server::builder().config(FAST).gpus(&gpus).start() else { return };
    let (alice, bob) = (create(&server, "alice", "main"), create(&server, "bob", "main"));
    let foreign = format!("{}foreign", server.prefix);
    run("docker", &["run", "-d", "--name", &foreign, "pody-base"]);
    let mut host = std::process::Command::new("sleep").arg("4711").spawn().expect("sleep exists");

    let (first, second) = (sleep_in(&alice, 1001), sleep_in(&alice, 1002));
    let (other, strange) = (sleep_in(&bob, 1003), sleep_in(&foreign, 1004));
    put_on_gpu(&gpus, 0, &[(first, 100), (other, 200), (strange, 300), (host.id(), 400)]);
    put_on_gpu(&gpus, 1, &[(first, 500), (second, 600)]);
    let admin = server.admin();
    let look = || admin.get("/host/gpu-ps").ok().json();
    let expected = [
        json!([first, alice, "alice", 100]),
        json!([other, bob, "bob", 200]),
        json!([strange, foreign, null, 300]),
        json!([host.id(), "", null, 400]),
    ];
    let sorted = |mut rows: Vec<Value>| {
        rows.sort_by_key(|row| row[3].as_u64());
        rows
    };
    let seen = wait_for("all processes", look, |seen| {
        seen["0"].as_array().is_some_and(|list| list.len() == 4)
            && seen["1"].as_array().is_some_and(|list| list.len() == 2)
    });
    assert_eq!(sorted(rows(&seen, "0")), expected);
    assert_eq!(sorted(rows(&seen, "1")), [json!([first, alice, "alice", 500]), json!([second, alice, "alice", 600])]);
    let mine = seen["0"].as_array().unwrap().iter().find(|p| p["pid"] == first).unwrap();
    assert_eq!(mine["cmd"], "sleep 1001");
    let inside: i64 = mine["pid_in_pod"].as_i64().expect("a PID");
    assert_eq!(
        run("docker", &["exec", &alice, "cat", &format!("/proc/{inside}/cmdline")]).replace('\0', " ").trim(),
        "sleep 1001"
    );
    assert!(mine["uptime"].as_f64().unwrap() < 60.0 && mine["memory_used"].as_u64().unwrap() > 0);
    let of_host = seen["0"].as_array().unwrap().iter().find(|p| p["pod"] == "").unwrap();
    assert_eq!(of_host["cmd"], "[host process]");

    // Members see the owner, and not what others run.
    let seen = server.member("bob").get("/host/gpu-ps?id=0").ok().json();
    assert!(seen.get("1").is_none());
    let command = |pid: u32| seen["0"].as_array().unwrap().iter().find(|p| p["pid"] == pid).unwrap()["cmd"].clone();
    assert_eq!((command(first), command(other)), (json!("[hidden]"), json!("sleep 1003")));
    server.reconfigure("[gpu]\nshow_commands = true\n");
    let seen = server.member("bob").get("/host/gpu-ps?gpu-id=0").ok().json();
    assert_eq!(seen["0"].as_array().unwrap().iter().find(|p| p["pid"] == first).unwrap()["cmd"], "sleep 1001");

    // A process that has exited is gone, even if the driver still lists it.
    end(first);
    wait_for("the end of the first", look, |seen| !seen["0"].as_array().unwrap().iter().any(|p| p["pid"] == first));
    let devices = admin.get("/host/gpus").ok().json();
    assert_eq!(devices["gpus"][0]["users"], json!(["bob"]));
    assert_eq!(devices["gpus"][1]["users"], json!(["alice"]));
    assert_eq!(admin.get("/host/gpu-ps?id=7").status, 400);
    assert_eq!(admin.get("/host/gpu-ps?id=x").status, 400);

    host.kill().expect("our own child");
    host.wait().expect("our own child");
    run("docker", &["rm", "-f", &foreign]);
    server.member("alice").post("/pod/delete?ins=main").ok();
    server.member("bob").post("/pod/delete?ins=main").ok();
}

#[test]
fn a_host_without_the_toolkit_starts_pods_without_gpus_and_reports_what_is_missing() {
    let gpus = Gpus::new(State::with_gpus(2));
    let Some(server) = Server::builder().config(FAST).gpus(&gpus).start() else { return };
    let alice = server.member("alice");
    let made = alice.post("/pod/create?ins=main&image=pody-base&gpus=0").ok().json();
    assert_eq!(made["info"]["gpu_ids"], json!([]));
    alice.post("/pod/delete?ins=main").ok();
    server.pody(&["quota", "update", "alice", "--gpus", "all"]);
    let refused = alice.post("/pod/create?ins=main&image=pody-base&gpus=7,");
    assert_eq!(
        (refused.status, refused.detail().as_str()),
        (403, "your quota lets your pods see the GPUs 0,1 and you ask for 7; choose among those, or ask an admin")
    );
    server.pody(&["quota", "update", "alice", "--gpu-count", "1"]);
    assert_eq!(
        alice.post("/pod/create?ins=main&image=pody-base&gpus=2").detail(),
        "gpu_count is 1 and you ask for 2 GPUs; ask for fewer, or ask an admin"
    );
    assert_eq!(alice.post("/pod/create?ins=main&image=pody-base&gpus=x").status, 400);
    let has_hook = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join("nvidia-container-runtime-hook").exists());
    if !has_hook {
        let refused = alice.post("/pod/create?ins=main&image=pody-base&gpus=1");
        assert!(refused.detail().contains("NVIDIA Container Toolkit"), "{refused}");
    }
    assert_eq!(server.containers(), Vec::<String>::new());
}
