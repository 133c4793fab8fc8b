//! The first process of pods: what it runs, how it ends, its effect on commits, and io_uring.

use serde_json::{Value, json};

use super::{create, delete, engine_says, exec};
use crate::common::{Client, IMAGE, Server, docker, eventually};

use std::time::Duration;

/// An image based on `IMAGE` that runs something else, for this server only.
struct Made(String);

impl Made {
    fn make(server: &mut Server, name: &str, changes: &[&str]) -> Self {
        let image = format!("{}_{name}", server.commit_name());
        let from = docker(&["create", IMAGE]);
        let changes = changes.iter().flat_map(|change| ["-c", change]);
        docker(&["commit"].into_iter().chain(changes).chain([from.as_str(), image.as_str()]).collect::<Vec<_>>());
        docker(&["rm", &from]);
        server.reconfigure(&format!("[[images]]\nname = \"{image}\"\nports = []"));
        let alice = server.member("alice");
        eventually(Duration::from_secs(5), "the image is seen", || {
            alice.get("/image/list").ok().json() == json!([format!("{image}:latest")])
        });
        Self(image)
    }

    fn create(&self, client: &Client) {
        client.post_with("/pod/create", &[("ins", "main"), ("image", &self.0)]).ok();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output();
    }
}

fn image_config(image: &str) -> Value {
    let text = docker(&["image", "inspect", image]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list[0]["Config"].clone()
}

/// Whether the row says that the pod has it, and which program it starts.
fn init_of(server: &Server) -> Value {
    let spec: String =
        server.database().query_row("SELECT spec FROM pods WHERE state = 'running'", [], |row| row.get(0)).unwrap();
    serde_json::from_str::<Value>(&spec).unwrap()["init"].clone()
}

#[test]
fn it_runs_the_images_command() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let container = engine_says(&server, "alice", "main");
    // Bind-mounted read-only from a file below our own directory, by a path without links.
    let mounts = container["Mounts"].as_array().unwrap().clone();
    let mount = mounts.iter().find(|mount| mount["Destination"] == "/dev/pody-init").unwrap();
    let source = std::path::Path::new(mount["Source"].as_str().unwrap());
    assert_eq!((&mount["RW"], source.canonicalize().unwrap().as_path()), (&json!(false), source));
    assert!(source.starts_with(server.home.join("init").canonicalize().unwrap()), "{source:?}");
    assert_eq!(init_of(&server)["command"], json!(["/usr/local/sbin/pody-entrypoint"]));
    // It is PID 1, and the image's command is its child, in the foreground of the container's terminal.
    assert_eq!(
        exec(
            &alice,
            "main",
            "cat /proc/1/comm; cat /proc/$(pgrep -o pody-entrypoint)/stat | cut -d' ' -f4,6,8 | \
              sed s/$(pgrep -o pody-entrypoint)/main/"
        ),
        "pody-init\n1 1 main"
    );
    // It leaves nothing in the container's writable layer.
    assert!(!docker(&["diff", &server.container("alice", "main")]).contains("pody-init"));
    delete(&alice, "main");

    // Entrypoint and command with special characters; working directory and environment are the image's.
    let entrypoint =
        r#"ENTRYPOINT ["/bin/bash","-c","echo \"$1|$2|$PWD|$ODD\" > /root/said; exec sleep 1000","it's \\ \"x\""]"#;
    let changes = [entrypoint, r#"CMD ["a b","$HOME"]"#, "WORKDIR /tmp", "ENV ODD=o=d"];
    let made = Made::make(&mut server, "both", &changes);
    made.create(&alice);
    eventually(Duration::from_secs(5), "it runs", || {
        exec(&alice, "main", "cat /root/said 2>/dev/null; true") == "a b|$HOME|/tmp|o=d"
    });
    delete(&alice, "main");
}

/// With a command only, and with an entrypoint too: a pod's commit runs the command of the pod's image.
#[test]
fn a_commit_runs_the_images_command() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    let image = format!("{}:alice", server.commit_name());
    let of_interest = |config: &Value| {
        let keys = ["Entrypoint", "Cmd", "WorkingDir", "User", "Volumes", "ExposedPorts"];
        // To the engine an empty list and no list are the same.
        keys.map(|key| Some(config[key].clone()).filter(|value| *value != json!([])).unwrap_or_default())
    };
    let commit = |server: &mut Server, parent: &str| {
        alice.post("/pod/commit?ins=main").ok();
        assert_eq!(of_interest(&image_config(&image)), of_interest(&image_config(parent)), "{parent}");
        assert_eq!(docker(&["run", "--rm", "--entrypoint", "", &image, "ls", "/dev"]).find("pody"), None);
        // A pod of it runs the same, with one init process and not two.
        let before = init_of(server);
        delete(&alice, "main");
        alice.post("/pod/create?ins=main&image=alice").ok();
        assert_eq!(init_of(server), before);
        delete(&alice, "main");
        alice.post("/image/delete?image=alice").ok();
    };
    create(&alice, "main");
    commit(&mut server, IMAGE);
    let changes = [r#"ENTRYPOINT ["/bin/bash","-c"]"#, r#"CMD ["sleep 1000 # \"quoted\" \\ $HOME"]"#];
    let made = Made::make(&mut server, "parent", &changes);
    made.create(&alice);
    commit(&mut server, &made.0);
    drop(made);
    let made = Made::make(&mut server, "entry", &[r#"ENTRYPOINT ["/bin/sleep","1000"]"#, "CMD []"]);
    made.create(&alice);
    commit(&mut server, &made.0);
}

/// It reaps orphans, forwards signals to the image's command, and exits with its exit code.
#[test]
fn it_reaps_orphans_forwards_signals_and_exits_with_the_commands_code() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    let script = "for s in INT HUP QUIT USR1 USR2 WINCH; do trap \"echo $s >> /root/got\" $s; done; \
                  trap 'exit 7' TERM; echo up > /root/up; while :; do sleep 0.05; done";
    let made = Made::make(&mut server, "signals", &[&format!("CMD {}", json!(["/bin/bash", "-c", script]))]);
    made.create(&alice);
    let name = server.container("alice", "main");
    eventually(Duration::from_secs(5), "it is up", || exec(&alice, "main", "cat /root/up; true") == "up");
    for signal in ["INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"] {
        docker(&["kill", "-s", signal, &name]);
        eventually(Duration::from_secs(5), signal, || exec(&alice, "main", "cat /root/got; true").contains(signal));
    }
    // Orphans become children of PID 1 and leave no zombie.
    exec(&alice, "main", "for i in 1 2 3 4 5; do (setsid sleep 0.3 & ); done; sleep 0.6");
    eventually(Duration::from_secs(3), "no zombie is left", || {
        exec(&alice, "main", "ps -eo stat,args | grep -c '^Z' ; true") == "0"
    });
    alice.post("/pod/stop?ins=main").ok();
    assert_eq!(engine_says(&server, "alice", "main")["State"]["ExitCode"], 7);
    // An end by a signal gives the exit code that shells give.
    alice.post("/pod/start?ins=main").ok();
    docker(&["update", "--restart=no", &name]);
    // The command ends with the pod.
    alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "kill -9 $(pgrep -o -P 1)")]).ok();
    eventually(Duration::from_secs(5), "it has ended", || {
        engine_says(&server, "alice", "main")["State"]["Status"] == "exited"
    });
    assert_eq!(engine_says(&server, "alice", "main")["State"]["ExitCode"], 137);
    delete(&alice, "main");
}

/// Output to the container's terminal is the log, from whichever process, and the command has that terminal.
#[test]
fn the_images_command_has_the_containers_terminal() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    let script = "echo to-tty > /dev/tty; test -t 0 && tty; exec sleep 1000";
    let made = Made::make(&mut server, "tty", &[&format!("CMD {}", json!(["/bin/bash", "-c", script]))]);
    made.create(&alice);
    exec(&alice, "main", "echo from-elsewhere > /proc/1/fd/1");
    eventually(Duration::from_secs(5), "all of it is in the log", || {
        let log = alice.get("/pod/logs?ins=main").ok().json()["log"].as_str().unwrap().to_owned();
        ["to-tty", "/dev/pts/0", "from-elsewhere"].iter().all(|text| log.contains(text))
    });
    delete(&alice, "main");
}

/// The errno of `io_uring_setup`, `_enter` and `_register` with nothing in their arguments.
const TRY_IO_URING: &str = "python3 -c 'import ctypes; c = ctypes.CDLL(None, use_errno=True)
print(*[(c.syscall(n, -1, 0, 0, 0, 0, 0), ctypes.get_errno())[1] for n in (425, 426, 427)])'";

#[test]
fn io_uring_is_disabled_unless_the_image_enables_it() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // ENOSYS, for commands and for children of PID 1; in addition to the engine's own filter.
    assert_eq!(exec(&alice, "main", TRY_IO_URING), "38 38 38");
    let background = format!("{TRY_IO_URING} > /root/uring 2>&1");
    alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", &background), ("detach", "true")]).ok();
    eventually(Duration::from_secs(5), "it has tried", || exec(&alice, "main", "cat /root/uring; true") == "38 38 38");
    assert_eq!(
        exec(&alice, "main", "grep Seccomp: /proc/1/status /proc/self/status | uniq -f1"),
        "/proc/1/status:Seccomp:\t2"
    );
    delete(&alice, "main");

    for key in ["io_uring", "new_privileges"] {
        server.reconfigure(&format!("[[images]]\nname = \"pody-base\"\nports = [22]\n{key} = true"));
        create(&alice, "main");
        // The engine's own profile may refuse the calls, but they exist.
        assert!(!exec(&alice, "main", TRY_IO_URING).contains("38"), "{key}");
        assert_eq!(init_of(&server)["io_uring"], true);
        delete(&alice, "main");
    }
}

/// A pod from an older version has no such process; everything works as before.
#[test]
fn a_pod_without_it_works_as_before() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let name = server.container("alice", "old");
    docker(&["run", "-dt", "--name", &name, IMAGE]);
    eventually(Duration::from_secs(5), "it is adopted", || alice.get("/pod/list").ok().json() == json!(["old"]));
    assert!(init_of(&server).is_null());
    assert_eq!(exec(&alice, "old", "cat /proc/1/comm"), "pody-entrypoint");
    assert_eq!(alice.get("/pod/sessions?ins=old").ok().json(), json!([]));
    let answer = alice.post("/pod/exec?ins=old&cmd=true&detach=true");
    assert_eq!(answer.status, 409, "{answer}");
    alice.post("/pod/commit?ins=old").ok();
    let commit = image_config(&format!("{}:alice", server.commit_name()));
    assert_eq!(commit["Cmd"], json!(["/usr/local/sbin/pody-entrypoint"]));
    alice.post("/image/delete?image=alice").ok();
    delete(&alice, "old");
}
