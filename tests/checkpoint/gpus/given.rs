//! Pods to which the engine assigned GPUs: a restore considers the GPUs that the pod has now.

use std::{process::Command, time::Duration};

use super::{
    cuda::{BYTES, Cuda},
    engine::{Engine, TINY},
};
use crate::{
    common::{Client, Need, eventually, gpus::Process},
    help::{done, exec, save, status},
};

/// The program of [`super::cuda`] for an image that has a shell and little more. Its children do not get its device.
const PROGRAM: &str = r#"
mkdir -p /root/cuda
me=$$ folder=/root/cuda state=running n=0
exec 9<>/dev/nvidia0
: > $folder/$me.cuda
answer() { echo "$1" > $folder/$me.new; mv $folder/$me.new $folder/$me.answer 9>&-; }
while :; do
    if [ -e $folder/$me.ask ]; then
        read -r nonce word < $folder/$me.ask
        rm $folder/$me.ask 9>&-
        case $word-$state in
            state-*) answer "$nonce 0 $state" ;;
            lock-running) state=locked; answer "$nonce 0 " ;;
            checkpoint-locked) exec 9>&-; state=checkpointed; answer "$nonce 0 " ;;
            restore-checkpointed) exec 9<>/dev/nvidia0; state=locked; answer "$nonce 0 " ;;
            unlock-locked) state=running; answer "$nonce 0 " ;;
            *) answer "$nonce 1 not permitted" ;;
        esac
    fi
    if [ $state = running ]; then n=$((n + 1)); echo $n > /root/new; mv /root/new /root/count 9>&-; fi
    sleep 0.02 9>&-
done
"#;

fn count(client: &Client, instance: &str) -> u64 {
    exec(client, instance, "cat /root/count").parse().expect("a number")
}

fn keeps_counting(client: &Client, instance: &str) {
    let from = count(client, instance);
    eventually(Duration::from_secs(30), "it keeps counting", || count(client, instance) > from);
}

#[test]
fn gpu_memory_is_restored_onto_the_gpus_that_the_pod_has() {
    if !Need::Criu.is_there() {
        return;
    }
    let Some(engine) = Engine::start() else { return };
    let cuda = Cuda::new("580.65.06");
    let Some(mut server) = engine.server().config(&cuda.config()).gpus(&cuda.gpus).start() else { return };
    let alice = server.member("alice");
    server.pody(&["quota", "update", "alice", "--gpus", "all"]);
    alice.post(&format!("/pod/create?ins=main&image={TINY}&gpus=1,")).ok();
    exec(&alice, "main", &format!("mkdir -p /root; cat > /root/program <<'END'\n{PROGRAM}\nEND\n"));
    alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "exec sh /root/program"), ("detach", "true")]).ok();
    let container = server.container("alice", "main");
    let find = || {
        let processes = engine.docker(&["top", &container, "-eo", "pid,args"]);
        let line = processes.lines().find(|line| line.ends_with("sh /root/program"))?.to_owned();
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    eventually(Duration::from_secs(20), "it is running", || find().is_some());
    let pid = find().expect("just seen");
    eventually(Duration::from_secs(20), "it has the GPU", || {
        Command::new("sh").args(["-c", &format!("ls -l /proc/{pid}/fd | grep -q nvidia0")]).status().unwrap().success()
    });
    cuda.gpus.change(|state| state.devices[1].processes.push(Process::computing(pid, BYTES)));

    let id = save(&alice, "ins=main&leave_running=false");
    let calls = cuda.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    let uuid = |index: u32| format!("GPU-00000000-0000-0000-0000-{index:012x}");
    cuda.gpus.change(|state| state.devices[1].processes.clear());

    // On the original GPU.
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert!(!cuda.calls().iter().any(|call| call.contains("GPU-")), "its own GPU");
    keeps_counting(&alice, "main");

    // A twin may use all of the current quota: the original GPU if it has room, otherwise another one.
    cuda.gpus.change(|state| state.devices[1].memory_used = state.devices[1].memory_total);
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
    let map = format!("{}={}", uuid(1), uuid(0));
    assert!(cuda.calls().iter().any(|call| call.starts_with("restore") && call.ends_with(&map)), "{map}");
    keeps_counting(&alice, "twin");
    alice.post("/pod/delete?ins=twin").ok();

    // Without any GPU.
    server.pody(&["quota", "update", "alice", "--gpus", "none"]);
    let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("1 of NVIDIA A100-SXM4-80GB, but it now has none"), "{refused}");
    assert_eq!(status(&alice, "main"), "running");
    alice.post("/pod/delete?ins=main").ok();
    alice.post(&format!("/checkpoint/delete?checkpoint={id}")).ok();
    server.terminate();
}
