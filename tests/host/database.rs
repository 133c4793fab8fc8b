//! A database that is locked, full, damaged, gone, or of a newer version.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{Client, Server, client::Redactions, eventually, run},
    help::{
        DEADLINE, Proxied, RECOVERY, assert_reads_fast, assert_recovered, assert_unavailable, begin, create,
        create_path, delete, exec, state,
    },
    proxy::Fault,
};

const READS: [&str; 5] = ["/pod/list", "/pod/ps", "/user/info", "/image/list", "/events"];

#[test]
fn a_database_locked_by_another_program_stops_writes_but_not_reads() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    create(&alice, "other").ok();
    // A commit is in progress when the lock is taken, and ends while the lock is held.
    let commit_held = server.proxy.once("POST /commit*", Fault::HoldAnswer);
    let commit = begin(&alice, "/pod/commit?ins=main&tag=v1");
    commit_held.wait_hit();

    let locker = server.database();
    locker.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let locked = Instant::now();
    commit_held.lift();
    let requests: Vec<_> = [
        create_path("second"),
        create_path("third"),
        "/pod/delete?ins=other".to_owned(),
        "/pod/exec?ins=main&cmd=true".to_owned(),
        "/user/tokens/create".to_owned(),
        "/user/ch-passwd?passwd=another-secret".to_owned(),
    ]
    .iter()
    .map(|path| begin(&alice, path))
    .collect();
    assert_reads_fast(&alice, &READS);
    for request in requests {
        let (answer, took) = request.answer();
        assert_unavailable(&answer, took);
    }
    assert_reads_fast(&alice, &READS);
    assert_eq!(server.anon().get("/version").ok().text(), "[0,4,1]");
    let (commit, _) = commit.answer();
    assert!(matches!(commit.status, 200 | 503), "{commit}");
    // The lock is held for half a minute.
    thread::sleep(Duration::from_secs(20).saturating_sub(locked.elapsed()));
    assert_reads_fast(&alice, &READS);
    locker.execute_batch("ROLLBACK").expect("the lock is released");
    drop(locker);

    assert_recovered(&server);
    let listed = alice.get("/image/list").ok().text();
    assert!(listed.contains("alice-v1"), "the commit was made: {listed}");
    alice.post("/image/delete?image=alice-v1").ok();
    create(&alice, "second").ok();
    for name in ["second", "other", "main"] {
        delete(&alice, name).ok();
    }
}

/// The lock is taken while the engine works on a create: the create is completed or rolled back, and the state is
/// consistent.
#[test]
fn a_lock_during_a_create_leaves_a_consistent_state() {
    let Some(server) = Proxied::start() else { return };
    let alice = server.member("alice");
    let held = server.proxy.once("POST /containers/*/start*", Fault::Hold);
    let request = begin(&alice, &create_path("main"));
    held.wait_hit();
    let locker = server.database();
    locker.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    held.lift();
    let (answer, took) = request.answer();
    assert_unavailable(&answer, took);
    drop(locker);
    assert_recovered(&server);
    let is_there = alice.get("/pod/inspect?ins=main").status == 200;
    assert_eq!(is_there, state(&server, "alice", "main").as_deref() == Some("running"));
    if is_there {
        exec(&alice, "main", "true", 5).ok();
        delete(&alice, "main").ok();
    }
    create(&alice, "main").ok();
    delete(&alice, "main").ok();
}

/// A separate small disk mounted at `$PODY_HOME`.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Moves the directory onto the disk. The daemon must not be running.
    fn under(home: &Path, kind: &str) -> Self {
        let kept = home.with_extension("kept");
        fs::rename(home, &kept).expect("our own directory");
        fs::create_dir(home).expect("our own directory");
        let shown = home.display().to_string();
        if kind == "tmpfs" {
            run("mount", &["-t", "tmpfs", "-o", "size=12m,mode=700", "none", &shown]);
        } else {
            let image = home.with_extension("img").display().to_string();
            run("truncate", &["-s", "16M", &image]);
            run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
            run("mount", &["-o", "loop", &image, &shown]);
        }
        run("cp", &["-a", &format!("{}/.", kept.display()), &shown]);
        Self(home.to_owned())
    }

    /// Fills the disk to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).expect("a file");
        for size in [1 << 20, 4096, 512, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn full_disk(kind: &str) {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    server.terminate();
    let disk = SmallDisk::under(&server.home, kind);
    server.start_again();
    for name in ["a", "b", "c"] {
        create(&alice, name).ok();
    }

    let filler = disk.fill();
    let (answer, took) = begin(&alice, &create_path("d")).answer();
    assert_unavailable(&answer, took);
    assert_reads_fast(&alice, &READS);
    let (answer, took) = begin(&alice, "/user/tokens/create").answer();
    assert_unavailable(&answer, took);
    // Deletes make room, so they must work.
    for name in ["a", "b"] {
        let answer = delete(&alice, name);
        assert_eq!(answer.status, 200, "{name}: {answer}");
    }
    assert_reads_fast(&alice, &READS);
    assert_eq!(alice.get("/pod/list").ok().text(), "[\"c\"]");

    fs::remove_file(filler).expect("our own file");
    eventually(RECOVERY, "it recovers by itself", || create(&alice, "d").status == 200);
    assert_recovered(&server);
    // What was acknowledged on the full disk is durable.
    server.kill();
    server.start_again();
    assert_recovered(&server);
    assert_eq!(alice.get("/pod/list").ok().text(), "[\"c\",\"d\"]");
    delete(&alice, "c").ok();
    delete(&alice, "d").ok();
    assert_recovered(&server);
    server.terminate();
    drop(disk);
    // The harness checks for leaks in the original database, which is below the mount now.
    let kept = server.home.with_extension("kept");
    run("cp", &["-a", &format!("{}/.", kept.display()), &server.home.display().to_string()]);
}

#[test]
fn a_full_tmpfs_refuses_writes_and_allows_deletes() {
    full_disk("tmpfs");
}

#[test]
fn a_full_ext4_refuses_writes_and_allows_deletes() {
    full_disk("ext4");
}

/// The log may be on the very disk that is full.
#[test]
fn the_daemon_keeps_running_when_its_log_cannot_be_written() {
    let Some(mut server) = Server::start() else { return };
    server.terminate();
    let port = server.spare_port();
    let full = || fs::File::options().write(true).open("/dev/full").expect("a device");
    let mut child = server
        .command(&["serve", "--host", "127.0.0.1", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn()
        .expect("the binary runs");
    let anon = Client::new(&format!("http://127.0.0.1:{port}"), None, Redactions(Arc::default()));
    // Each request writes a line to the log.
    for path in ["/version", "/user/info", "/version"] {
        eventually(RECOVERY, "it answers", || {
            assert!(child.try_wait().expect("our own child").is_none(), "it exited");
            anon.try_send("GET", path, &[], b"").is_ok_and(|answer| matches!(answer.status, 200 | 401))
        });
    }
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    server.start_again();
}

/// Starts the daemon on the server's directory and waits until it exits.
fn failing_start(server: &Server, port: u16) -> (bool, String, Duration) {
    let begun = Instant::now();
    let mut child = server
        .command(&["serve", "--host", "127.0.0.1", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    while child.try_wait().expect("our own child").is_none() {
        if begun.elapsed() > DEADLINE {
            let _ = child.kill();
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let status = child.wait().expect("our own child");
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    (status.success(), text, begun.elapsed())
}

#[test]
fn a_database_of_a_newer_pody_is_refused() {
    let Some(mut server) = Server::builder().without_docker().start() else { return };
    server.terminate();
    let ours = server.count("PRAGMA user_version");
    server.database().execute_batch("PRAGMA user_version = 99").expect("a pragma");
    let known = "format 99";
    let (started, text, took) = failing_start(&server, server.spare_port());
    assert!(!started && took < DEADLINE, "{text}");
    assert!(text.contains(known) && text.contains(&format!("up to {ours};")), "it names both: {text}");
    // An admin command does not touch it either.
    let output = server.command(&["user", "list"]).output().expect("the binary runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(known), "{output:?}");
    server.database().execute_batch(&format!("PRAGMA user_version = {ours}")).expect("a pragma");
    server.start_again();
    server.member("alice").get("/user/info").ok();
}

#[test]
fn a_second_daemon_in_one_directory_is_refused() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let (started, text, took) = failing_start(&server, server.spare_port());
    assert!(!started && took < DEADLINE, "{text}");
    assert!(text.contains("another pody serves"), "{text}");
    // The first one and its socket are not affected.
    assert_eq!(pody::control::notify_daemon(&server.home), pody::control::NotifyOutcome::Yes);
    alice.get("/user/info").ok();
    assert_recovered(&server);
    delete(&alice, "main").ok();
}

/// A page of the file is overwritten while the daemon is down.
#[test]
fn a_damaged_page_is_noticed_and_does_not_crash_the_daemon() {
    let Some(mut server) = Server::builder().without_docker().start() else { return };
    let alice = server.member("alice");
    for number in 0..90 {
        alice.post(&format!("/user/tokens/create?name=number-{number}")).ok();
    }
    server.terminate();
    let path = server.home.join("pody.db");
    let good = fs::read(&path).expect("the database");
    assert!(!server.home.join("pody.db-wal").exists(), "everything is in the file after a clean shutdown");
    let pages = good.len() / 4096;
    let mut outcomes = Vec::new();
    for page in 0..pages {
        let mut file = fs::File::options().write(true).open(&path).expect("the database");
        file.seek(SeekFrom::Start(page as u64 * 4096 + 100)).expect("a file");
        file.write_all(&[0xa5; 2000]).expect("a file");
        drop(file);
        if page % 5 != 0 && page > 6 {
            // Not every page, to save time: those near the front hold the tables' roots.
        } else if let Some((status, text)) = try_serving(&server) {
            assert!(matches!(status, 200 | 401 | 500 | 503), "page {page}: {status} {text}");
            outcomes.push("served");
        } else {
            outcomes.push("refused");
        }
        fs::write(&path, &good).expect("our own file");
        for name in ["pody.db-wal", "pody.db-shm"] {
            let _ = fs::remove_file(server.home.join(name));
        }
    }
    assert!(outcomes.contains(&"refused"), "a damaged file must be noticed at least once: {outcomes:?}");
    server.start_again();
    alice.get("/user/info").ok();
}

/// Status of a read and of a write by a daemon on the directory; `None` if it refuses to start, which it must report.
fn try_serving(server: &Server) -> Option<(u16, String)> {
    let port = server.spare_port();
    let mut child = server
        .command(&["serve", "--host", "127.0.0.1", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let begun = Instant::now();
    let answer = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            let mut text = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
            assert!(!status.success());
            assert!(status.code().is_some(), "it crashed: {status}");
            assert!(text.contains("database") && !text.contains("panicked"), "it does not say why: {text}");
            return None;
        }
        let client = crate::common::Client::new(&format!("http://127.0.0.1:{port}"), None, Default::default())
            .with_authorization(&crate::common::Client::basic("alice", "alice-secret"));
        if let Ok(answer) = client.try_send("POST", "/user/tokens/create?name=last", &[], b"") {
            break (answer.status, answer.text());
        }
        assert!(begun.elapsed() < DEADLINE, "neither serves nor exits");
        thread::sleep(Duration::from_millis(10));
    };
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    Some(answer)
}

/// What is acknowledged must survive a restart: without its file the database accepts no more writes.
#[test]
fn writes_are_refused_while_the_database_file_is_removed() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let aside = server.home.join("aside");
    fs::create_dir(&aside).expect("our own directory");
    for name in ["pody.db", "pody.db-wal", "pody.db-shm"] {
        let _ = fs::rename(server.home.join(name), aside.join(name));
    }
    assert_reads_fast(&alice, &["/pod/list", "/user/info"]);
    let (answer, took) = begin(&alice, &create_path("second")).answer();
    assert_unavailable(&answer, took);
    let (answer, took) = begin(&alice, "/pod/delete?ins=main").answer();
    assert_unavailable(&answer, took);
    assert_ne!(server.anon().get("/healthz").ok().json()["database"], "ok");
    // Once it is put back, writes work again.
    for name in ["pody.db", "pody.db-wal", "pody.db-shm"] {
        let _ = fs::rename(aside.join(name), server.home.join(name));
    }
    create(&alice, "second").ok();
    server.kill();
    server.start_again();
    assert_eq!(alice.get("/pod/list").ok().text(), "[\"main\",\"second\"]");
    delete(&alice, "main").ok();
    delete(&alice, "second").ok();
    assert_recovered(&server);
}
