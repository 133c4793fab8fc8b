//! Terminals and background commands are part of a checkpoint, since they are children of the pod's first process. And
//! io_uring, which pods cannot use unless their image enables it.

use std::time::Duration;

use crate::{
    common::eventually,
    help::{assert_clean, create, delete, delete_checkpoints, done, exec, run_python, save, start, start_with},
};

#[test]
fn background_commands_survive_a_restore() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let command = "n=0; while :; do n=$((n+1)); echo $n > /root/n; sleep 0.05; done";
    let begun = alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", command), ("detach", "true")]).ok().json();
    eventually(Duration::from_secs(5), "it counts", || !exec(&alice, "main", "cat /root/n; true").is_empty());
    let sessions = |name: &str| alice.get(&format!("/pod/sessions?ins={name}")).ok().json();
    let before = sessions("main")[0]["session"].clone();
    assert!(begun.to_string().contains(before.as_str().unwrap()), "{begun}");
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["losses"].as_array().unwrap().len(), 0, "{verdict}");

    let id = save(&alice, "ins=main&leave_running=false");
    for (query, name) in [("", "main"), ("&as=clone", "clone")] {
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}{query}"));
        assert_eq!(sessions(name)[0]["session"], before);
        let number = || exec(&alice, name, "cat /root/n").parse::<u64>().unwrap_or(0);
        let from = number();
        eventually(Duration::from_secs(5), "it keeps counting", || number() > from);
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete(&alice, "clone");
    delete_checkpoints(&alice);
}

const RING: &str = "import ctypes, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                    fd = libc.syscall(425, 4, ctypes.create_string_buffer(120))\n\
                    print('ready', fd, os.strerror(ctypes.get_errno()))\ntime.sleep(100000)";

#[test]
fn io_uring_is_hidden_or_named() {
    let images = "images = [{ name = \"pody-base\", ports = [22], io_uring = true }]";
    let Some(server) = start_with(|builder| builder.config(images)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "ring", RING);
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("uses io_uring, which cannot be saved"), "{refused}");
    delete(&alice, "main");
    drop(server);

    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "ring", RING);
    assert!(exec(&alice, "main", "cat /root/ring.log").contains("ready -1 Function not implemented"));
    save(&alice, "ins=main");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
