//! What is refused, in words that say why, with the pod untouched.

use crate::{
    common::eventually,
    help::{
        COUNTER, count, counts_on, create, delete, delete_checkpoints, done, exec, fails, run_python, save, start,
        start_with, status,
    },
};
use std::time::Duration;

#[test]
fn pods_that_are_not_there_not_yours_or_not_running() {
    let Some(server) = start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    let id = save(&alice, "ins=main");
    for (who, path, status) in [
        (&alice, "/pod/checkpoint?ins=nope".to_owned(), 404),
        (&bob, "/pod/checkpoint?ins=alice-main".to_owned(), 404),
        (&bob, "/checkpoint/check?ins=alice-main".to_owned(), 404),
        (&bob, format!("/checkpoint/inspect?checkpoint={id}"), 404),
        (&bob, format!("/checkpoint/delete?checkpoint={id}"), 404),
        (&bob, format!("/pod/restore?ins=main&checkpoint={id}"), 404),
        (&bob, "/pod/restore?ins=alice-main".to_owned(), 404),
        (&alice, "/pod/restore?ins=nope".to_owned(), 404),
        (&alice, "/pod/checkpoint?ins=main&kind=all".to_owned(), 400),
        (&alice, "/pod/checkpoint?ins=main&compression=rar".to_owned(), 400),
        (&alice, "/pod/checkpoint?ins=main&name=../x".to_owned(), 400),
        (&alice, "/pod/restore?ins=main&checkpoint=x".to_owned(), 400),
    ] {
        let is_read = path.starts_with("/checkpoint/check") || path.starts_with("/checkpoint/inspect");
        let answer = if is_read { who.get(&path) } else { who.post(&path) };
        assert_eq!(answer.status, status, "{path}: {answer}");
    }
    alice.post("/pod/stop?ins=main").ok();
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("is exited; only running pods can be saved"), "{refused}");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn quotas_and_space() {
    let Some(mut server) = start_with(|builder| builder.config("[default_quota]\ncheckpoint_count = 1")) else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "main");
    let id = save(&alice, "ins=main");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 403, "{refused}");
    assert!(refused.detail().starts_with("checkpoint_count is 1 and you have 1"), "{refused}");
    alice.post(&format!("/checkpoint/delete?checkpoint={id}")).ok();
    save(&alice, "ins=main");

    server.admin().post("/admin/quota/update?username=alice&checkpoint_count=5&checkpoint_size=1k").ok();
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 403, "{refused}");
    assert!(refused.detail().starts_with("checkpoint_size is 1k"), "{refused}");
    server.admin().post("/admin/quota/update?username=alice&checkpoint_size=unlimited").ok();

    server.reconfigure("[checkpoint]\nkeep_free = \"1000t\"");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 507, "{refused}");
    assert!(refused.detail().contains("delete old checkpoints"), "{refused}");
    assert_eq!(status(&alice, "main"), "running");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// What an exec started from outside is named, and the pod can be saved all the same.
#[test]
fn what_would_be_lost_is_named() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(
        (verdict["can_be_saved"].as_bool(), verdict["losses"].as_array().unwrap().len()),
        (Some(true), 0),
        "{verdict}"
    );
    assert!(verdict["memory"].as_u64().unwrap() > 0 && verdict["space_free"].as_u64().unwrap() > 0);

    let long = {
        let alice = alice.clone();
        std::thread::spawn(move || alice.post("/pod/exec?ins=main&cmd=exec+sleep+31415&timeout=60"))
    };
    eventually(Duration::from_secs(5), "the exec is named", || {
        let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
        verdict["losses"].to_string().contains("sleep[") && verdict["can_be_saved"] == true
    });
    let action = done(&alice, "/pod/checkpoint?ins=main");
    assert!(action["losses"].to_string().contains("was started by an exec"), "{action}");
    delete(&alice, "main");
    drop(long.join());
    delete_checkpoints(&alice);
}

/// A dump that CRIU refuses leaves the pod running with its network, and says what to do.
#[test]
fn what_cannot_be_saved_is_named_and_the_pod_goes_on() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let program = r#"
import socket, os, time
# A file system that only this process sees cannot be saved: an open file on a mount of another namespace.
a = os.open('/root/large', os.O_RDWR | os.O_CREAT)
os.ftruncate(a, 2 << 30)
os.unlink('/root/large')
print('ready')
time.sleep(100000)
"#;
    run_python(&alice, "main", "deleted", program);
    let verdict = alice.get("/checkpoint/check?ins=main").ok().json();
    assert_eq!(verdict["can_be_saved"], false, "{verdict}");
    let refused = alice.post("/pod/checkpoint?ins=main");
    assert_eq!(refused.status, 409, "{refused}");
    assert!(refused.detail().contains("deleted_file_limit") && refused.detail().contains("/root/large"), "{refused}");
    let (from, _) = count(&alice, "main");
    counts_on(&alice, "main", from);
    // Files alone can be saved.
    save(&alice, "ins=main&kind=rootfsonly");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// CRIU itself refuses: a unix socket whose other end is outside.
#[test]
fn a_dump_that_fails_leaves_the_pod_running_with_its_network() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().display().to_string();
    let Some(server) = start_with(|builder| builder.config(&format!("volume_mappings = [\"{volume}:/outside\"]")))
    else {
        return;
    };
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let program = "import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.connect('/outside/socket')\nprint('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "outside", program);
    let accepted = listener.accept().unwrap();
    let error = fails(&alice, "/pod/checkpoint?ins=main&leave_running=false");
    assert!(error.starts_with("dump: ") && error.contains("connected to a socket outside the pod"), "{error}");
    assert_eq!(status(&alice, "main"), "running");
    let (from, _) = count(&alice, "main");
    counts_on(&alice, "main", from);
    crate::help::assert_clean(&server);
    assert_eq!(crate::help::engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    // Packets pass.
    exec(&alice, "main", "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 22), 5)\"");
    drop(accepted);
    delete(&alice, "main");
}

#[test]
fn without_criu_it_is_said_and_nothing_else_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["docker", "tar", "gzip", "sh", "runc", "nsenter", "iptables"] {
        let path =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|p| p.join(program)).find(|p| p.exists());
        if let Some(path) = path {
            std::os::unix::fs::symlink(path, folder.path().join(program)).unwrap();
        }
    }
    let Some(server) = start_with(|builder| builder.env("PATH", folder.path().display().to_string())) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    for answer in [alice.post("/pod/checkpoint?ins=main"), alice.get("/checkpoint/check?ins=main")] {
        assert_eq!(answer.status, 501, "{answer}");
        assert!(answer.detail().contains("install CRIU 4.2 or newer"), "{answer}");
    }
    assert_eq!(status(&alice, "main"), "running");
    save(&alice, "ins=main&kind=rootfsonly");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
