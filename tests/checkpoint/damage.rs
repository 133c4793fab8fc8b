//! Damaged checkpoints: refused before CRIU sees them, naming the file, and leaving the pod as it was.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    common::{Client, Server},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, exec, folder, run_python, save, start, wait,
    },
};

fn largest_image(folder: &Path) -> PathBuf {
    let images = fs::read_dir(folder.join("checkpoint")).unwrap().map(|entry| entry.unwrap().path());
    images.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The error of the restore: an immediate refusal, or that of its action.
fn restore(client: &Client, id: &str) -> String {
    let answer = client.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    if answer.status == 409 {
        return answer.detail();
    }
    let action = wait(client, &answer.ok());
    assert_eq!((action["status"].as_str(), action["phase"].as_str()), (Some("error"), Some("verify")), "{action}");
    action["error"].as_str().unwrap().to_owned()
}

#[test]
fn damaged_files_are_refused_by_name() {
    let Some(server) = start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let id = save(&alice, "ins=main&leave_running=false");
    exec_on_stopped(&server);
    create(&bob, "main");
    let foreign = save(&bob, "ins=main");
    let path = folder(&server, &id);
    let good = server.home.join("good");
    copy(&path, &good);
    let image = largest_image(&path);
    let name = image.file_name().unwrap().to_string_lossy().into_owned();

    let damages: [(&str, &dyn Fn(), String); 7] = [
        (
            "cut",
            &|| fs::File::options().write(true).open(&image).unwrap().set_len(100_000).unwrap(),
            format!("{name}: expected"),
        ),
        (
            "one bit",
            &|| {
                let mut bytes = fs::read(&image).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&image, bytes).unwrap();
            },
            format!("{name}: its content changed"),
        ),
        (
            "file missing",
            &|| fs::remove_file(path.join("checkpoint/pstree.img")).unwrap(),
            "pstree.img: it is missing".to_owned(),
        ),
        (
            "manifest garbled",
            &|| fs::write(path.join("manifest.json"), b"{\"format\": 1, ").unwrap(),
            "manifest.json".to_owned(),
        ),
        ("manifest missing", &|| fs::remove_file(path.join("manifest.json")).unwrap(), "manifest.json".to_owned()),
        (
            "foreign",
            &|| {
                fs::copy(folder(&server, &foreign).join("manifest.json"), path.join("manifest.json")).unwrap();
            },
            format!("manifest.json: it belongs to checkpoint {foreign}"),
        ),
        (
            "a link in place of a file",
            &|| {
                fs::rename(&image, path.join("elsewhere")).unwrap();
                std::os::unix::fs::symlink(path.join("elsewhere"), &image).unwrap();
            },
            format!("{name}: it is not a regular file"),
        ),
    ];
    for (what, damage, named) in damages {
        damage();
        let error = restore(&alice, &id);
        assert!(error.contains(&named) && error.contains("it was not started"), "{what}: {error}");
        assert_clean(&server);
        fs::remove_dir_all(&path).unwrap();
        copy(&good, &path);
    }
    // It also contains the owner.
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    fs::write(path.join("manifest.json"), manifest.replace("\"user\": \"alice\"", "\"user\": \"bob\"")).unwrap();
    assert!(restore(&alice, &id).contains("it belongs to bob"));
    fs::write(path.join("manifest.json"), manifest).unwrap();

    // Whole again, it works.
    crate::help::done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    count(&alice, "main");
    delete(&alice, "main");
    delete(&bob, "main");
    delete_checkpoints(&alice);
    delete_checkpoints(&bob);
}

/// The pod is stopped, so its files are changed on the host.
fn exec_on_stopped(server: &Server) {
    let upper =
        crate::common::docker(&["inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", &server.container("alice", "main")]);
    fs::write(Path::new(&upper).join("root/after"), b"written after the checkpoint").unwrap();
}

/// The hashes are right but CRIU fails: files on a volume changed. The pod's files are rolled back, and it starts.
#[test]
fn a_restore_that_fails_rolls_the_files_back() {
    let volume = tempfile::tempdir().unwrap();
    let config = format!("volume_mappings = [\"{}:/outside\"]", volume.path().display());
    let Some(server) = crate::help::start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let program = "import time\nf = open('/outside/data', 'w+')\nf.write('0123456789')\nf.flush()\nprint('ready')\ntime.sleep(100000)";
    run_python(&alice, "main", "open", program);
    let id = save(&alice, "ins=main");
    exec(&alice, "main", "echo later > /root/later");
    alice.post("/pod/stop?ins=main").ok();
    fs::write(volume.path().join("data"), b"another content").unwrap();
    let action = wait(&alice, &alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok());
    assert_eq!((action["status"].as_str(), action["phase"].as_str()), (Some("error"), Some("start")), "{action}");
    let error = action["error"].as_str().unwrap();
    assert!(error.contains("a file on a volume that a program had open has changed since the checkpoint"), "{error}");
    assert_clean(&server);
    alice.post("/pod/start?ins=main").ok();
    assert_eq!(exec(&alice, "main", "cat /root/later"), "later");
    // The same restore under another name leaves no pod.
    let action = wait(&alice, &alice.post(&format!("/pod/restore?ins=main&checkpoint={id}&as=clone")).ok());
    assert_eq!(action["status"], "error", "{action}");
    assert_eq!(alice.get("/pod/inspect?ins=clone").status, 404);
    assert_clean(&server);
    // The checkpoint is kept.
    assert_eq!(alice.get(&format!("/checkpoint/inspect?checkpoint={id}")).ok().json()["status"], "ready");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// The directory of a volume is gone: reported, and rolled back; once it exists again, the restore works.
#[test]
fn a_volume_that_is_gone_is_reported() {
    let volume = tempfile::tempdir().unwrap();
    let config = format!("volume_mappings = [\"{}/data:/outside\"]", volume.path().display());
    let Some(server) = crate::help::start_with(|builder| builder.config(&config)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (_, identity) = count(&alice, "main");
    let id = save(&alice, "ins=main&leave_running=false");
    fs::rename(volume.path().join("data"), volume.path().join("away")).unwrap();
    let action = wait(&alice, &alice.post(&format!("/pod/restore?ins=main&checkpoint={id}")).ok());
    assert_eq!((action["status"].as_str(), action["phase"].as_str()), (Some("error"), Some("start")), "{action}");
    assert!(action["error"].as_str().unwrap().contains(&format!("{}/data", volume.path().display())), "{action}");
    assert_clean(&server);
    // Neither a restart of Docker nor a reboot starts it from scratch.
    let rule = crate::help::engine_says(&server, "alice", "main", "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(rule, "no");
    fs::rename(volume.path().join("away"), volume.path().join("data")).unwrap();
    crate::help::done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(count(&alice, "main").1, identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
