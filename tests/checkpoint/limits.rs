//! A pod's memory limit has changed when it is restored: the current one applies, and one that is too small is refused.

use std::time::Duration;

use crate::{
    common::{docker, eventually},
    help::{
        assert_clean, count, create, delete, delete_checkpoints, done, engine_says, keeps_counting, run_python, save,
        start_with, status,
    },
};

/// Holds this many MiB of distinct content, and verifies it again and again.
const HOLDER: &str = r#"
import hashlib, os, random, time
content = random.Random(7).randbytes(150 << 20)
sum = hashlib.sha256(content).hexdigest()
secret = os.urandom(8).hex()
print('ready')
n = 0
while True:
    n += 1
    if n % 20 == 0: assert hashlib.sha256(content).hexdigest() == sum
    tell('/root/count', '%d %s %d' % (n, secret, os.getpid()))
    time.sleep(0.02)
"#;

#[test]
fn the_current_memory_limit_applies_to_a_restore() {
    let Some(server) = start_with(|builder| builder.config("[default_quota]\nmemory_limit = \"600m\"")) else { return };
    let (alice, admin) = (server.member("alice"), server.admin());
    create(&alice, "main");
    run_python(&alice, "main", "holder", HOLDER);
    let (_, identity) = count(&alice, "main");
    let container = server.container("alice", "main");
    let limit = |value: &str| docker(&["update", "--memory", value, "--memory-swap", value, &container]);
    let id = save(&alice, "ins=main&leave_running=false");

    // Larger and smaller ones that are sufficient.
    for (value, bytes) in [("800m", 800u64 << 20), ("500m", 500 << 20)] {
        limit(value);
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        assert_eq!(engine_says(&server, "alice", "main", "{{.HostConfig.Memory}}"), bytes.to_string());
        let pid: i32 = engine_says(&server, "alice", "main", "{{.State.Pid}}").parse().unwrap();
        assert_eq!(limit_of(pid), bytes, "the kernel's limit");
        let (from, same) = count(&alice, "main");
        assert_eq!(same, identity);
        keeps_counting(&alice, "main", from + 25);
        alice.post("/pod/stop?ins=main").ok();
    }

    // One that cannot be sufficient is refused with both numbers, in place and under another name, and nothing is
    // touched.
    limit("100m");
    admin.post("/admin/quota/update?username=alice&memory_limit=100m").ok();
    for to in ["", "&as=clone"] {
        let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}{to}"));
        assert_eq!(refused.status, 409, "{refused}");
        let said = refused.detail();
        assert!(said.contains("the checkpoint holds 1") && said.contains("the memory limit is now 100m"), "{said}");
    }
    assert_eq!(status(&alice, "main"), "exited");
    assert_eq!(alice.get("/pod/inspect?ins=clone").status, 404);

    limit("600m");
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    eventually(Duration::from_secs(20), "it is restored", || count(&alice, "main").1 == identity);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// What the kernel enforces on a process: both versions of cgroups.
fn limit_of(pid: i32) -> u64 {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |controllers: &str| {
        let line = cgroup.lines().find(|line| line.split(':').nth(1).unwrap().split(',').any(|c| c == controllers))?;
        Some(line.splitn(3, ':').nth(2).unwrap().to_owned())
    };
    let file = match path("memory") {
        Some(path) => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
        None => format!("/sys/fs/cgroup{}/memory.max", path("").unwrap()),
    };
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}
