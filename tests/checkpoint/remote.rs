//! Copies of checkpoints in a remote store: a directory, and a server that speaks S3. Made in the background, restored
//! when the local directory is gone, on another host too; failures of the store, and kills.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    common::{
        Client, Need, Server, eventually,
        s3::{S3, WayState},
    },
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, engine_says, fails, folder,
        keeps_counting, run_python, save, start_with, status,
    },
};

const PATIENCE: Duration = Duration::from_secs(90);
/// A counter with enough memory for several parts.
fn large_counter() -> String {
    COUNTER.replace("os.urandom(4 << 20)", "os.urandom(20 << 20)")
}

fn store() -> TempDir {
    tempfile::Builder::new().prefix("pody-test-store-").tempdir().unwrap()
}

fn folder_config(store: &Path, more: &str) -> String {
    format!("[checkpoint.remote]\nurl = \"file://{}\"\n{more}\n", store.display())
}

fn row(client: &Client, id: &str) -> Value {
    client.get(&format!("/checkpoint/inspect?checkpoint={id}")).ok().json()
}

fn remote(client: &Client, id: &str) -> String {
    row(client, id)["remote"].as_str().unwrap_or("none").to_owned()
}

#[track_caller]
fn copied(client: &Client, id: &str) {
    eventually(PATIENCE, "it is copied", || remote(client, id) == "copied");
}

/// The directory of a copy.
fn copy_of(store: &Path, user: &str, id: &str) -> PathBuf {
    store.join("pody/checkpoints").join(user).join(id)
}

fn largest(folder: &Path) -> PathBuf {
    let images = fs::read_dir(folder.join("files/checkpoint")).unwrap().map(|entry| entry.unwrap().path());
    images.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

/// Copies and checkpoints are deleted, and nothing is left in the store.
#[track_caller]
fn assert_empty(server: &Server, store: &Path) {
    eventually(PATIENCE, "copies are deleted", || server.count("SELECT count(*) FROM copies") == 0);
    let left: Vec<_> = fs::read_dir(store.join("pody/checkpoints/alice")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_pod_is_restored_from_a_copy_in_a_directory_when_the_checkpoint_is_lost() {
    let store = store();
    let config = folder_config(store.path(), "");
    let Some(server) = start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &large_counter());
    // No copy was requested.
    let plain = save(&alice, "ins=main");
    assert_eq!(remote(&alice, &plain), "none");
    assert!(!copy_of(store.path(), "alice", &plain).exists());

    let action = done(&alice, "/pod/checkpoint?ins=main&leave_running=false&compression=zstd&remote=true");
    let id = action["checkpoint"].as_str().unwrap().to_owned();
    let identity = stopped_identity(&server);
    copied(&alice, &id);
    let action = alice.get(&format!("/action/status?id={}", action["id"].as_str().unwrap())).ok().json();
    assert_eq!(action["remote"], "copied");
    let there = copy_of(store.path(), "alice", &id);
    assert!(there.join("manifest.json").exists() && there.join("manifest.b3").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(store.path().join("pody")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700, "it contains memory");

    // One file is lost: only that one is downloaded.
    let here = folder(&server, &id);
    let images: Vec<_> = fs::read_dir(here.join("checkpoint")).unwrap().map(|entry| entry.unwrap().path()).collect();
    fs::remove_file(&images[0]).unwrap();
    // Everything is lost.
    for all in [false, true] {
        if all {
            fs::remove_dir_all(&here).unwrap();
        }
        assert!(
            row(&alice, &id)["content"]["files"].as_array().unwrap().len() > 5,
            "the manifest is read in the store"
        );
        done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        let (from, found) = count(&alice, "main");
        assert_eq!(found, identity, "the same process as before");
        keeps_counting(&alice, "main", from);
        assert!(here.join("manifest.json").exists() && images[0].exists());
        alice.post("/pod/stop?ins=main").ok();
    }
    assert_clean(&server);

    // A damaged copy is refused, and the file is named.
    let image = largest(&there);
    let name = image.file_name().unwrap().to_string_lossy().into_owned();
    let good = fs::read(&image).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    let manifest = fs::read(there.join("manifest.json")).unwrap();
    let damages: [(&dyn Fn(), String); 3] = [
        (&|| fs::write(&image, &bad).unwrap(), format!("{name}: in its copy in the remote store: its content changed")),
        (&|| fs::write(&image, &good[..1000]).unwrap(), format!("{name}: in its copy in the remote store: expected")),
        (&|| fs::remove_file(&image).unwrap(), format!("{name}: it is also missing in the remote store")),
    ];
    for (damage, words) in damages {
        fs::remove_dir_all(&here).unwrap();
        damage();
        let error = fails(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
        assert!(error.contains(&words) && error.starts_with("fetch: "), "{error}");
        assert_eq!(status(&alice, "main"), "exited");
    }
    fs::write(&image, &good).unwrap();
    // A modified manifest, and one of another user with the right hash.
    let mut other: Value = serde_json::from_slice(&manifest).unwrap();
    other["user"] = "bob".into();
    let other = serde_json::to_vec_pretty(&other).unwrap();
    for (text, hash, words) in [
        (&manifest[1..], None, "its content changed"),
        (&other[..], Some(blake3::hash(&other).to_hex().to_string()), "it belongs to bob"),
    ] {
        let _ = fs::remove_dir_all(&here);
        fs::write(there.join("manifest.json"), text).unwrap();
        if let Some(hash) = hash {
            fs::write(there.join("manifest.b3"), hash).unwrap();
        }
        let answer = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
        assert_eq!(answer.status, 409, "{answer}");
        assert!(answer.detail().contains("manifest.json") && answer.detail().contains(words), "{answer}");
    }
    // Missing on both sides.
    fs::remove_file(there.join("manifest.json")).unwrap();
    let answer = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(answer.status, 409, "{answer}");
    for words in ["is damaged (manifest.json: ", "it is also missing in the remote store", "it was not started"] {
        assert!(answer.detail().contains(words), "{answer}");
    }
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert_empty(&server, store.path());
}

/// The content of the counter's file in the layer of a stopped pod.
fn stopped_identity(server: &Server) -> String {
    let upper = engine_says(server, "alice", "main", "{{.GraphDriver.Data.UpperDir}}");
    let text = fs::read_to_string(Path::new(upper.trim()).join("root/count")).unwrap();
    text.split_once(' ').unwrap().1.to_owned()
}

#[test]
fn with_keep_local_false_a_checkpoint_is_kept_in_s3_only() {
    let Some(s3) = S3::start() else { return };
    let config = s3.config("copy = \"all\"\nkeep_local = false");
    let Some(server) = start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &large_counter());
    let (_, identity) = count(&alice, "main");
    let id = save(&alice, "ins=main&leave_running=false&compression=lz4");
    copied(&alice, &id);
    let here = folder(&server, &id);
    eventually(PATIENCE, "the local directory is gone", || !here.exists());
    let listed = alice.get("/checkpoint/remote").ok().json();
    assert_eq!(
        (&listed[0]["id"], &listed[0]["is_here"], &listed[0]["instance"]),
        (&id.clone().into(), &true.into(), &"main".into())
    );
    // Two concurrent restores download it once.
    let second = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=twin")).ok();
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(crate::help::wait(&alice, &second)["status"], "done");
    for name in ["main", "twin"] {
        let (from, found) = count(&alice, name);
        assert_eq!(found, identity, "the same process as before");
        keeps_counting(&alice, name, from);
        delete(&alice, name);
    }
    assert_clean(&server);
    delete_checkpoints(&alice);
    eventually(PATIENCE, "copies are deleted", || server.count("SELECT count(*) FROM copies") == 0);
    assert_eq!(alice.get("/checkpoint/remote").ok().json(), Value::Array(Vec::new()));
    assert!(!server.log().contains(&s3.secret()), "no key in the log");
}

#[test]
fn a_checkpoint_is_registered_and_restored_on_another_host() {
    let store = store();
    let config = folder_config(store.path(), "copy = \"all\"");
    let Some(first) = start_with(|builder| builder.config(&config)) else { return };
    let alice = first.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (_, identity) = count(&alice, "main");
    let id = save(&alice, "ins=main");
    copied(&alice, &id);

    let Some(second) = start_with(|builder| builder.config(&config)) else { return };
    let (alice2, bob, admin) = (second.member("alice"), second.member("bob"), second.admin());
    assert_eq!(alice2.get("/pod/checkpoints").ok().json(), Value::Array(Vec::new()));
    let listed = alice2.get("/checkpoint/remote").ok().json();
    assert_eq!((&listed[0]["id"], &listed[0]["is_here"]), (&id.clone().into(), &false.into()));
    assert_eq!(admin.get("/checkpoint/remote?user=alice").ok().json(), listed);
    // Alice's checkpoints are visible to her only.
    assert_eq!(bob.get("/checkpoint/remote").ok().json(), Value::Array(Vec::new()));
    assert_eq!(bob.get("/checkpoint/remote?user=alice").status, 403);
    assert_eq!(bob.post(&format!("/checkpoint/fetch?checkpoint={id}&user=alice")).status, 403);
    assert_eq!(bob.post(&format!("/checkpoint/fetch?checkpoint={id}")).status, 404);
    // The quota of this host applies.
    second.pody(&["quota", "update", "alice", "--checkpoint-count", "0"]);
    assert_eq!(alice2.post(&format!("/checkpoint/fetch?checkpoint={id}")).status, 403);
    second.pody(&["quota", "update", "alice", "--checkpoint-count", "5"]);

    // Manifests with malicious paths are rejected.
    let there = copy_of(store.path(), "alice", &id);
    let manifest = fs::read(there.join("manifest.json")).unwrap();
    let put = |text: &[u8]| {
        fs::write(there.join("manifest.json"), text).unwrap();
        fs::write(there.join("manifest.b3"), blake3::hash(text).to_hex().as_str()).unwrap();
    };
    let mut trick: Value = serde_json::from_slice(&manifest).unwrap();
    let file = trick["files"].as_object().unwrap().values().next().unwrap().clone();
    trick["files"]["../../../../etc/cron.d/x"] = file;
    put(&serde_json::to_vec(&trick).unwrap());
    let answer = alice2.post(&format!("/checkpoint/fetch?checkpoint={id}"));
    assert_eq!(answer.status, 409, "{answer}");
    assert!(answer.detail().contains("it names"), "{answer}");
    let listed = alice2.get("/checkpoint/remote").ok().json();
    assert!(listed[0]["problem"].as_str().unwrap().contains("it names"), "{listed}");
    put(&manifest);

    alice2.post(&format!("/checkpoint/fetch?checkpoint={id}")).ok();
    assert_eq!(alice2.post(&format!("/checkpoint/fetch?checkpoint={id}")).status, 409);
    assert_eq!(remote(&alice2, &id), "copied");
    done(&alice2, &format!("/pod/restore?ins=main&checkpoint={id}"));
    let (from, found) = count(&alice2, "main");
    assert_eq!(found, identity, "the same process as on the other host");
    keeps_counting(&alice2, "main", from);
    // The pod on the first host keeps running.
    assert_eq!(status(&alice, "main"), "running");
    assert_clean(&second);
    delete(&alice2, "main");
    delete(&alice, "main");
    delete_checkpoints(&alice2);
    assert_empty(&second, store.path());
    delete_checkpoints(&alice);
    assert_empty(&first, store.path());
}

#[test]
fn a_copy_to_a_failing_store_is_retried() {
    let Some(s3) = S3::start() else { return };
    let Some(server) = start_with(|builder| builder.config(&s3.config(""))) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    for (state, words) in
        [(WayState::Cut, "failed: the remote store failed"), (WayState::Hangs, "failed: the remote store failed")]
    {
        s3.set(state);
        let id = save(&alice, "ins=main&remote=true");
        eventually(PATIENCE, "it has failed", || remote(&alice, &id).starts_with(words));
        let told = remote(&alice, &id);
        assert!(told.contains("next try at") && !told.contains(&s3.secret()), "{told}");
        // The local checkpoint is not affected.
        assert_eq!(row(&alice, &id)["status"], "ready");
        s3.set(WayState::Open);
        copied(&alice, &id);
    }
    // A restore that needs the store reports its failure.
    let id = save(&alice, "ins=main&remote=true&leave_running=false");
    copied(&alice, &id);
    fs::remove_dir_all(folder(&server, &id)).unwrap();
    s3.set(WayState::Cut);
    let answer = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(answer.status, 502, "{answer}");
    assert!(answer.detail().contains("the remote store failed"), "{answer}");
    // A checkpoint that is deleted meanwhile is deleted in the store later.
    delete_checkpoints(&alice);
    assert_eq!(alice.get("/pod/checkpoints").ok().json(), Value::Array(Vec::new()));
    s3.set(WayState::Open);
    eventually(PATIENCE, "copies are deleted", || server.count("SELECT count(*) FROM copies") == 0);
    assert_eq!(alice.get("/checkpoint/remote").ok().json(), Value::Array(Vec::new()));
    assert!(!server.log().contains(&s3.secret()), "no key in the log");
    delete(&alice, "main");
    assert_clean(&server);
}

/// A tmpfs that is unmounted after the test.
struct Small(TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let small = Self(store());
        small.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        small
    }

    fn grow(&self, size: &str) {
        self.mount(&["-o", &format!("remount,size={size}")]);
    }

    fn mount(&self, arguments: &[&str]) {
        let mounted = Command::new("mount").args(arguments).arg(self.0.path()).status().expect("mount runs");
        assert!(mounted.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_copy_to_a_full_store_completes_when_there_is_room() {
    let small = Small::new("2m");
    let config = folder_config(small.0.path(), "");
    let Some(server) = start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &large_counter());
    let id = save(&alice, "ins=main&remote=true");
    eventually(PATIENCE, "it has failed", || remote(&alice, &id).starts_with("failed: "));
    assert!(remote(&alice, &id).contains("No space left"), "{}", remote(&alice, &id));
    assert!(!copy_of(small.0.path(), "alice", &id).join("manifest.json").exists());
    small.grow("200m");
    copied(&alice, &id);
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert_empty(&server, small.0.path());
}

#[test]
fn a_copy_is_refused_without_a_store() {
    let Some(mut server) = start_with(|builder| builder) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let answer = alice.post("/pod/checkpoint?ins=main&remote=true");
    assert_eq!(answer.status, 400, "{answer}");
    assert!(answer.detail().contains("[checkpoint.remote]"), "{answer}");
    assert_eq!(server.count("SELECT count(*) FROM actions"), 0);
    assert_eq!(alice.get("/checkpoint/remote").status, 400);
    delete(&alice, "main");
    server.terminate();
    for (config, words) in [
        ("[checkpoint.remote]\nurl = \"ftp://x/y\"\n", "s3://bucket/prefix"),
        ("[checkpoint.remote]\ncopy = \"all\"\n", "set url"),
        (
            "[checkpoint.remote]\nurl = \"s3://x\"\n[checkpoint.remote.options]\naws_acess_key_id = \"x\"\n",
            "aws_acess_key_id",
        ),
    ] {
        let error = server.fails_to_start(config);
        assert!(error.contains(words), "{error}");
    }
}

/// SIGKILL at a fail point of a copy; the next start completes it.
fn killed_at(point: &str, what: impl Fn(&Server, &Client) -> String, after: impl Fn(&Server, &Client, &str)) {
    if !Need::Failpoints.is_there() {
        return;
    }
    let store = store();
    let config = folder_config(store.path(), "");
    let server = start_with(|builder| {
        builder.config(&config).env("FAILPOINTS", format!("{point}=pause")).env("TOKIO_WORKER_THREADS", "16")
    });
    let Some(mut server) = server else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", &large_counter());
    let id = what(&server, &alice);
    server.kill();
    server.set_env("FAILPOINTS", None);
    server.start_again();
    let alice = server.member("alice");
    after(&server, &alice, &id);
    assert_clean(&server);
    delete(&alice, "main");
    delete_checkpoints(&alice);
    assert_empty(&server, store.path());
}

#[test]
fn a_kill_while_files_are_copied_is_recovered() {
    copy_killed_at("copy-file");
}

#[test]
fn a_kill_before_the_manifest_is_copied_is_recovered() {
    copy_killed_at("copy-manifest");
}

fn copy_killed_at(point: &str) {
    killed_at(
        point,
        |_, alice| {
            let id = save(alice, "ins=main&remote=true");
            eventually(PATIENCE, "it is being copied", || remote(alice, &id) == "copying");
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(remote(alice, &id), "copying");
            id
        },
        |server, alice, id| {
            copied(alice, id);
            fs::remove_dir_all(folder(server, id)).unwrap();
            done(alice, &format!("/pod/restore?ins=main&checkpoint={id}&as=twin"));
            delete(alice, "twin");
        },
    );
}

#[test]
fn a_kill_while_a_copy_is_deleted_is_recovered() {
    killed_at(
        "copy-delete",
        |server, alice| {
            let id = save(alice, "ins=main&remote=true");
            copied(alice, &id);
            delete_checkpoints(alice);
            eventually(PATIENCE, "it is marked for deletion", || {
                server.count("SELECT count(*) FROM copies WHERE status = 'deleting'") == 1
            });
            id
        },
        |server, alice, id| {
            eventually(PATIENCE, "it is deleted", || server.count("SELECT count(*) FROM copies") == 0);
            assert_eq!(alice.get(&format!("/checkpoint/inspect?checkpoint={id}")).status, 404);
        },
    );
}

#[test]
fn a_kill_before_files_are_fetched_is_recovered() {
    fetch_killed_at("restore-fetch");
}

#[test]
fn a_kill_before_the_manifest_is_here_is_recovered() {
    fetch_killed_at("fetch-manifest");
}

fn fetch_killed_at(point: &str) {
    killed_at(
        point,
        |server, alice| {
            let id = save(alice, "ins=main&remote=true&leave_running=false");
            copied(alice, &id);
            fs::remove_dir_all(folder(server, &id)).unwrap();
            alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok();
            let query = "SELECT count(*) FROM actions WHERE status = 'running' AND phase = 'fetch'";
            eventually(PATIENCE, "it is being fetched", || server.count(query) == 1);
            std::thread::sleep(Duration::from_millis(500));
            id
        },
        |server, alice, id| {
            eventually(PATIENCE, "the action has ended", || {
                server.count("SELECT count(*) FROM actions WHERE status = 'running'") == 0
            });
            let query = "SELECT count(*) FROM actions WHERE error LIKE 'fetch: pody was stopped while it downloaded%'";
            assert_eq!(server.count(query), 1);
            assert_eq!(status(alice, "main"), "exited");
            done(alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
            let (from, _) = count(alice, "main");
            keeps_counting(alice, "main", from);
        },
    );
}
