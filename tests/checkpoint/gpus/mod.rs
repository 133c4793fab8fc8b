//! Pods whose programs use GPUs.

mod cuda;
#[path = "../../gpu/engine.rs"]
mod engine;
mod faults;
mod given;
mod kills;
mod refusals;

use std::{process::Command, time::Duration};

use self::cuda::{Cuda, count, keeps_computing};
use crate::{
    common::{self, eventually},
    help::{assert_clean, create, delete, delete_checkpoints, done, fails, save, status},
};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program exists");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn all_programs_are_locked_before_the_first_is_copied_and_restored_in_reverse_order() {
    let cuda = Cuda::new("570.86.10");
    let Some(server) = cuda.start(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let one = cuda.run(&server, &alice, "main", "one", 0);
    let two = cuda.run(&server, &alice, "main", "two", 1);
    let identities = ["one", "two"].map(|name| count(&alice, "main", name).1);

    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], true, "{verdict}");
    assert_eq!(verdict["gpu_memory"], 2 * cuda::BYTES, "{verdict}");
    let notes = verdict["processes"].to_string();
    assert!(notes.contains("it uses GPU 0: 64m of GPU memory is saved with it"), "{notes}");
    assert!(cuda.calls().is_empty(), "a check changes nothing");

    let action = done(&alice, "/pod/checkpoint?ins=main");
    assert_eq!(action["losses"].as_array().map(Vec::len), Some(0), "{action}");
    let calls = cuda.calls();
    let (first, second) = if calls[0] == format!("lock {one}") { (&one, &two) } else { (&two, &one) };
    let expected = [
        ("lock", first),
        ("lock", second),
        ("checkpoint", first),
        ("checkpoint", second),
        ("restore", second),
        ("restore", first),
        ("unlock", second),
        ("unlock", first),
    ];
    assert_eq!(calls, expected.map(|(action, pid)| format!("{action} {pid}")));
    for (name, identity) in ["one", "two"].into_iter().zip(&identities) {
        keeps_computing(&alice, "main", name, identity);
    }
    assert_clean(&server);

    // Files alone do not concern the GPUs.
    save(&alice, "ins=main&kind=rootfsonly");
    assert!(cuda.calls().is_empty());
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn a_pod_on_a_gpu_is_stopped_and_resumes_where_it_was() {
    let cuda = Cuda::new("570.86.10");
    let Some(server) = cuda.start(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");

    let action = done(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    assert_eq!(cuda.calls(), [format!("lock {pid}"), format!("checkpoint {pid}")], "{action}");
    assert_eq!(status(&alice, "main"), "exited");
    cuda.gpus.change(|state| state.devices[0].processes.clear());
    // Restored in place.
    let id = action["checkpoint"].as_str().unwrap();
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(cuda.calls(), [format!("restore {pid}"), format!("unlock {pid}")]);
    keeps_computing(&alice, "main", "one", &identity);

    // A second pod beside it: the same process, with its own PID on the host.
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
    keeps_computing(&alice, "twin", "one", &identity);
    assert_ne!(cuda::host_pid(&server, "main", "one"), cuda::host_pid(&server, "twin", "one"));
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "twin");
    delete_checkpoints(&alice);
}

#[test]
fn a_restore_uses_other_gpus_of_the_same_model_or_is_refused() {
    let cuda = Cuda::new("570.86.10");
    let Some(mut server) = cuda.start(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let pid = cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    let id = save(&alice, "ins=main&leave_running=false");
    let restore = format!("/pod/restore?ins=main&checkpoint={id}");
    cuda.calls();
    let uuids = |uuid: &str, model: &str| {
        cuda.gpus.change(|state| {
            for (index, gpu) in state.devices.iter_mut().enumerate() {
                gpu.processes.clear();
                gpu.uuid = format!("GPU-{uuid}-{index}");
                model.clone_into(&mut gpu.name);
            }
        });
    };

    uuids("other", "NVIDIA H200");
    for path in [restore.clone(), format!("{restore}&as=twin")] {
        let refused = alice.post(&path);
        assert_eq!(refused.status, 409, "{refused}");
        assert!(refused.detail().contains("1 of NVIDIA A100-SXM4-80GB, but it now has 2 of NVIDIA H200"), "{refused}");
    }
    assert_eq!(alice.get("/pod/inspect?ins=twin").status, 404);
    // The same model, and a driver that cannot move memory to another GPU.
    uuids("new", "NVIDIA A100-SXM4-80GB");
    let refused = alice.post(&restore);
    assert!(refused.detail().contains("needs driver 580+") && refused.status == 409, "{refused}");
    // Full.
    cuda.upgrade("580.65.06");
    eventually(Duration::from_secs(40), "the driver is reopened", || {
        server.admin().get("/host/spec").ok().json()["nvidia_driver_version"] == "580.65.06"
    });
    cuda.gpus.change(|state| state.devices.iter_mut().for_each(|gpu| gpu.memory_used = gpu.memory_total - 1));
    let refused = alice.post(&restore);
    assert!(refused.detail().contains("had 64m on a GPU, and GPU 0 has 1b free"), "{refused}");
    // Off: the checkpoint stays as it is.
    cuda.gpus.change(|state| state.devices.iter_mut().for_each(|gpu| gpu.memory_used = 0));
    server.reconfigure("[checkpoint]\ngpu = \"off\"");
    let refused = alice.post(&restore);
    assert!(refused.status == 501 && refused.detail().contains("is \"off\" on this host"), "{refused}");
    server.reconfigure("[checkpoint]\ngpu = \"experimental\"");
    assert!(cuda.calls().is_empty() && status(&alice, "main") == "exited");

    // The driver fails: as with every failed restore, nothing is left behind and it can be retried.
    cuda.fault("restore", "fail");
    let error = fails(&alice, &restore);
    assert!(error.starts_with("gpu-on: cuda-checkpoint cannot restore python3["), "{error}");
    assert!(error.contains("out of memory"), "{error}");
    assert_eq!(status(&alice, "main"), "exited");
    assert_clean(&server);
    cuda.clear_fault("restore");
    cuda.calls();

    done(&alice, &restore);
    let map = "GPU-00000000-0000-0000-0000-000000000000=GPU-new-0";
    assert_eq!(cuda.calls(), [format!("restore {pid} {map}"), format!("unlock {pid}")]);
    keeps_computing(&alice, "main", "one", &identity);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
