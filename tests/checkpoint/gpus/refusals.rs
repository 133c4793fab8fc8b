//! What is refused, with the reason, and with pod and GPU untouched.

use super::cuda::{BYTES, Cuda, count, keeps_computing};
use crate::{
    common::{
        Client, Server, eventually,
        gpus::{Kind, Mig, MigInstance},
    },
    help::{create, delete, delete_checkpoints, run_python, save},
};

/// Refused with these words, by the check as well, without touching the GPU.
#[track_caller]
fn refused(cuda: &Cuda, client: &Client, words: &str) {
    // The daemon sees the driver's changes a moment later.
    eventually(std::time::Duration::from_secs(20), words, || {
        client.get("/checkpoint/check?ins=main").ok().json()["problems"].to_string().contains(words)
    });
    let verdict = client.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], false, "{verdict}");
    let refused = client.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains(words), "{refused}");
    assert_eq!(cuda.calls(), [""; 0], "{words}");
}

fn start(cuda: &Cuda) -> Option<(Server, Client, String)> {
    let server = cuda.start(|builder| builder)?;
    let alice = server.member("alice");
    create(&alice, "main");
    cuda.run(&server, &alice, "main", "one", 0);
    let (_, identity) = count(&alice, "main", "one");
    Some((server, alice, identity))
}

#[test]
fn gpu_checkpoints_are_off_by_default() {
    let cuda = Cuda::new("570.86.10");
    let Some((mut server, alice, identity)) = start(&cuda) else { return };
    server.reconfigure("[checkpoint]\ngpu = \"off\"");
    let words =
        "uses a GPU (/dev/nvidia0), which cannot be saved; end it first, or save only the files with --kind rootfsonly";
    refused(&cuda, &alice, words);
    save(&alice, "ins=main&kind=rootfsonly");
    keeps_computing(&alice, "main", "one", &identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn a_missing_driver_or_tool_is_reported() {
    let cuda = Cuda::new("565.57.01");
    let Some((mut server, alice, identity)) = start(&cuda) else { return };
    let needed = "uses GPU 0; GPU checkpoints need driver 570+ and cuda-checkpoint (found: ";
    refused(&cuda, &alice, &format!("{needed}driver 565.57.01, cuda-checkpoint 565.57.01)"));
    server.reconfigure("[checkpoint]\ncuda_checkpoint = \"/nonexistent/cuda-checkpoint\"");
    refused(&cuda, &alice, &format!("{needed}driver 565.57.01, no cuda-checkpoint)"));
    server.reconfigure("[checkpoint]\ncuda_checkpoint = \"/bin/cat\"");
    refused(&cuda, &alice, "driver 565.57.01, cuda-checkpoint of an unknown version without --action)");
    keeps_computing(&alice, "main", "one", &identity);
    delete(&alice, "main");
}

#[test]
fn uses_of_a_gpu_other_than_plain_cuda_are_refused() {
    let cuda = Cuda::new("570.86.10");
    let Some((_server, alice, identity)) = start(&cuda) else { return };
    let kinds = |kinds: &[Kind]| cuda.gpus.change(|state| state.devices[0].processes[0].kinds = kinds.to_vec());
    kinds(&[Kind::Mps]);
    refused(&cuda, &alice, "uses GPU 0 through MPS, which cuda-checkpoint cannot save");
    kinds(&[Kind::Compute, Kind::Graphics]);
    refused(&cuda, &alice, "uses GPU 0 for graphics, and only CUDA can be saved");
    kinds(&[Kind::Compute]);
    cuda.gpus.change(|state| {
        let instance = MigInstance { uuid: "MIG-1".to_owned(), gpu_instance: 1, ..MigInstance::default() };
        state.devices[0].mig = Some(Mig { enabled: true, instances: vec![instance] });
        state.devices[0].processes[0].gpu_instance = Some(1);
    });
    refused(&cuda, &alice, "uses a MIG device of GPU 0, which cuda-checkpoint cannot save");
    cuda.gpus.change(|state| {
        state.devices[0].mig = None;
        state.devices[0].processes[0].gpu_instance = None;
    });

    // More than the host's available memory.
    cuda.gpus.change(|state| state.devices[0].processes[0].used_memory = Some(70 << 40));
    refused(&cuda, &alice, "its programs have 70t of GPU memory, which is copied into the host's memory");
    cuda.gpus.change(|state| state.devices[0].processes[0].used_memory = Some(BYTES));

    // A program that only watches the GPU.
    let watcher =
        "import os, time\nf = os.open('/dev/nvidia0', os.O_RDWR | os.O_CREAT)\nprint('ready')\ntime.sleep(10000)";
    run_python(&alice, "main", "watcher", watcher);
    eventually(std::time::Duration::from_secs(20), "it is refused", || {
        alice.get("/checkpoint/check?ins=main").ok().json()["can_be_saved"] == false
    });
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    let problems = verdict["problems"].to_string();
    assert!(problems.contains("holds /dev/nvidia0 without CUDA of its own, as nvidia-smi does"), "{verdict}");
    assert_eq!(verdict["problems"].as_array().map(Vec::len), Some(1), "{verdict}");
    assert_eq!(alice.post("/pod/checkpoint?ins=main").status, 409);
    keeps_computing(&alice, "main", "one", &identity);
    delete(&alice, "main");
}

#[test]
fn gpu_memory_beyond_the_pods_memory_limit_is_refused() {
    let cuda = Cuda::new("570.86.10");
    let Some(server) = cuda.start(|builder| builder.config("[default_quota]\nmemory_limit = \"256m\"")) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    cuda.run(&server, &alice, "main", "one", 0);
    cuda.gpus.change(|state| state.devices[0].processes[0].used_memory = Some(300 << 20));
    refused(&cuda, &alice, "its programs have 300m of GPU memory");
    refused(&cuda, &alice, "of the pod's memory limit of 256m");
    delete(&alice, "main");
}
