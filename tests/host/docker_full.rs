//! The disk with Docker's images and containers is full.

use std::{fs, io::Write};

use crate::{
    common::eventually,
    help::{RECOVERY, assert_reads_fast, create, delete, exec},
    private::PrivateDocker,
};

#[test]
fn with_the_engines_disk_full_writes_are_refused_and_leave_nothing_behind() {
    let Some(docker) = PrivateDocker::start_on_a_disk(1200) else { return };
    let Some(server) = docker.server().start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let containers = || String::from_utf8_lossy(&docker.docker(&["ps", "-aq"]).stdout).lines().count();

    exec(&alice, "main", "head -c 40000000 /dev/urandom > /root/large", 60).ok();
    let action = alice.post("/pod/checkpoint?ins=main&kind=rootfsonly").ok().json();
    let path = format!("/action/status?id={}", action["id"].as_str().unwrap());
    eventually(RECOVERY, "the checkpoint is complete", || alice.get(&path).ok().json()["status"] == "done");

    let filler = docker.data().join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let _ = file.sync_all();
    for _ in 0..3 {
        let answer = create(&alice, "second");
        assert_eq!(answer.status, 503, "{answer}");
        assert!(answer.text().contains("the disk that holds Docker's data is full"), "{answer}");
    }
    eventually(RECOVERY, "nothing is left of it", || containers() == 1);
    assert_eq!(server.count("SELECT count(*) FROM pods WHERE state NOT IN ('running', 'failed')"), 0);
    let answer = alice.post("/pod/commit?ins=main&tag=v1");
    assert!(answer.status == 503 && answer.text().contains("is full"), "{answer}");
    // The checkpoint is on another disk, which has room.
    let answer = alice.post("/pod/restore?ins=main&as=second");
    assert_eq!(answer.status, 507, "{answer}");
    assert!(answer.text().contains(&format!("in {}, but only 0b may be used", docker.data().display())), "{answer}");
    assert_reads_fast(&alice, &["/pod/list", "/pod/ps", "/pod/inspect?ins=main"]);
    // The existing pod is not affected, and can be deleted.
    eventually(RECOVERY, "it keeps running", || exec(&alice, "main", "true", 10).status == 200);
    delete(&alice, "main").ok();

    fs::remove_file(filler).expect("our own file");
    create(&alice, "second").ok();
    delete(&alice, "second").ok();
    eventually(RECOVERY, "nothing is left", || containers() == 0);
    assert_eq!(server.count("SELECT count(*) FROM events WHERE outcome = 'pending'"), 0);
    drop(server);
}
