//! Terminals and background commands survive checkpoint and restore: real CRIU, real pods.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use pody::{
    app::App,
    engine::Engine,
    model::{names::PodRef, user::Caller},
    pod::{NewShell, ShellBlock, ShellEvent},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::{
    common::{Client, Need, Server, docker, eventually, password, run},
    help::{container_id, create, delete, exec, inspect},
};

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.expect("in time") })
}

/// A terminal in alice's pod.
async fn open(server: &Server, query: &str) -> Socket {
    let url = format!("ws://127.0.0.1:{}/pod/shell?ins=main&{query}", server.port);
    let mut request = url.into_client_request().unwrap();
    let basic = Client::basic("alice", &password("alice"));
    request.headers_mut().insert("authorization", basic.parse().unwrap());
    tokio_tungstenite::connect_async(request).await.unwrap().0
}

/// Reads until a text is shown.
async fn read_until(socket: &mut Socket, text: &str) -> String {
    let mut shown = String::new();
    while !shown.contains(text) {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?} after {shown:?}"),
        }
    }
    shown
}

/// Reads to the end: what was shown, and the last message.
async fn read_to_end(socket: &mut Socket) -> (String, Value) {
    let mut shown = String::new();
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Ok(Message::Text(text))) => return (shown, serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?} after {shown:?}"),
        }
    }
}

/// The daemon's own functions, on its own directory, and alice as the caller.
async fn daemon(server: &Server) -> (App, Caller) {
    let app = App::open(&server.home, None, Engine::connect().await.unwrap()).unwrap();
    app.engine.look(&container_id(server, "alice", "main").parse().unwrap()).await.unwrap();
    (app, Caller { user: "alice".parse().unwrap(), is_admin: false, address: IpAddr::V4(Ipv4Addr::LOCALHOST) })
}

/// Detaches all shells, as a checkpoint does.
async fn detach_shells(server: &Server) -> ShellBlock {
    let (app, alice) = daemon(server).await;
    let pod = app.pods.find(&alice, &"main".parse().unwrap()).unwrap();
    app.pods.detach_shells(&pod).await
}

fn carriers(server: &Server) -> usize {
    docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]).matches("pody-init attach").count()
}

/// Dumps a running pod beside the engine, as checkpoints do, and resumes it.
fn dump(server: &Server, folder: &Path) {
    let id = container_id(server, "alice", "main");
    let (images, work) = (folder.join("images"), folder.join("work"));
    std::fs::create_dir_all(&images).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    docker(&["pause", &id]);
    let output = std::process::Command::new("runc")
        .args(["--root", "/var/run/docker/runtime-runc/moby", "checkpoint", "--leave-running", "--tcp-established"])
        .args(["--file-locks", "--empty-ns", "network", "--image-path"])
        .arg(&images)
        .arg("--work-path")
        .arg(&work)
        .arg(&id)
        .output()
        .unwrap();
    docker(&["unpause", &id]);
    let log = std::fs::read_to_string(work.join("dump.log")).unwrap_or_default();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    assert!(output.status.success(), "{}{errors:#?}", String::from_utf8_lossy(&output.stderr));
}

/// The last number that a loop has written to a file.
fn counted(client: &Client, file: &str) -> u64 {
    let answer = exec(client, "main", &format!("tail -n1 {file}"), 10).ok().json();
    answer["log"].as_str().unwrap().trim().parse().unwrap_or(0)
}

#[test]
fn terminals_and_background_commands_continue_after_a_restore() {
    if !Need::Criu.is_there() {
        return;
    }
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let name = server.container("alice", "main");
    let count = |file: &str| format!("i=0; while sleep 0.05; do i=$((i+1)); echo n$i=; echo $i >> {file}; done");
    // In the background as a session, and started by a foreground command.
    let begun =
        alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", &count("/root/back")), ("detach", "true")]).ok().json();
    let background = begun["session"].as_str().unwrap().to_owned();
    let behind = format!("nohup bash -c '{}' >/dev/null 2>&1 & sleep 0.3", count("/root/behind"));
    exec(&alice, "main", &behind, 10).ok();

    let session = block_on(async {
        let mut shell = open(&server, "rows=30&cols=100").await;
        shell.send(Message::binary(format!("stty size; mark=kept; {}\n", count("/root/shell")))).await.unwrap();
        assert!(read_until(&mut shell, "n3=").await.contains("30 100"));
        let held = detach_shells(&server).await;
        assert_eq!(carriers(&server), 0, "nothing outside is attached any longer");
        let (_, last) = read_to_end(&mut shell).await;
        drop(held);
        last["detached"]["session"].as_str().unwrap_or_else(|| panic!("{last}")).to_owned()
    });
    let folder = tempfile::tempdir().unwrap();
    dump(&server, folder.path());
    eventually(Duration::from_secs(10), "the daemon sees it running", || {
        alice.post("/pod/exec?ins=main&cmd=true").status == 200
    });

    // The resumed pod has its terminal: it shows what was written meanwhile, and then what follows.
    let files = ["/root/back", "/root/behind", "/root/shell"];
    let before = files.map(|file| counted(&alice, file));
    block_on(async {
        let mut shell = open(&server, &format!("session={session}")).await;
        read_until(&mut shell, &format!("n{}=", before[2] + 3)).await;
        let _held = detach_shells(&server).await;
        read_to_end(&mut shell).await;
    });

    docker(&["update", "--restart=no", &name]);
    docker(&["checkpoint", "create", &name, "test"]);
    eventually(Duration::from_secs(10), "it has ended", || inspect(&name, "{{.State.Status}}") == "exited");
    let saved = inspect(&name, "{{.State.Pid}}");
    run("docker", &["start", "--checkpoint", "test", &name]);
    remove_copies(&inspect(&name, "{{.Id}}"));
    eventually(Duration::from_secs(10), "the daemon sees it running", || {
        alice.post("/pod/exec?ins=main&cmd=true").status == 200
    });
    assert_ne!(inspect(&name, "{{.State.Pid}}"), saved);
    let before = files.map(|file| counted(&alice, file));
    eventually(Duration::from_secs(10), "all of them keep counting", || {
        files.iter().zip(before).all(|(file, before)| counted(&alice, file) > before + 3)
    });
    let sessions = alice.get("/pod/sessions?ins=main").ok().json();
    let ids: Vec<&str> = sessions.as_array().unwrap().iter().filter_map(|s| s["session"].as_str()).collect();
    assert_eq!(ids, [background.as_str(), session.as_str()], "{sessions}");

    // It is the same shell: it knows what was typed before, Ctrl-C reaches it, its size changes, its exit code arrives.
    block_on(async {
        let mut shell = open(&server, &format!("session={session}&rows=40&cols=120")).await;
        read_until(&mut shell, "=").await;
        // More than once: between two commands of a loop there is no foreground process to receive it.
        for _ in 0..10 {
            shell.send(Message::binary("\x03")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        shell.send(Message::binary("\nstty size; echo $mark-$((40+2)); exit 5\n")).await.unwrap();
        let (shown, last) = read_to_end(&mut shell).await;
        assert!(shown.contains("40 120") && shown.contains("kept-42"), "{shown}");
        assert_eq!(last, json!({"exit_code": 5}));
    });
    delete(&alice, "main").ok();
}

/// Removes the copy that containerd leaves of a checkpoint after a start; one of its files names the container.
fn remove_copies(container: &str) {
    for entry in fs::read_dir("/tmp").unwrap().filter_map(Result::ok) {
        let of_whom = fs::read(entry.path().join("cgroup.img")).unwrap_or_default();
        let is_copy = entry.file_name().to_string_lossy().starts_with("ctrd-checkpoint");
        if is_copy && String::from_utf8_lossy(&of_whom).contains(container) {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

/// How a session ended while no client was attached is reported once, to the next client.
#[test]
fn the_end_of_a_detached_session_is_reported_on_reattach() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let cmd = "for i in $(seq 100000); do echo line $i; done; echo over; exit 9";
    let begun = alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", cmd), ("detach", "true")]).ok().json();
    let session = begun["session"].as_str().unwrap().to_owned();
    eventually(Duration::from_secs(20), "it has ended without being blocked", || {
        alice.get("/pod/sessions?ins=main").ok().json()[0]["exit_code"] == 9
    });
    block_on(async {
        let (shown, last) = read_to_end(&mut open(&server, &format!("session={session}")).await).await;
        assert_eq!(last, json!({"exit_code": 9}));
        // The end of its output, and not more than is kept.
        assert!(shown.ends_with("line 100000\r\nover\r\n") && shown.len() <= 256 << 10, "{} bytes", shown.len());
        assert!(shown.len() > 200 << 10 && !shown.contains("line 1\r\n"));
    });
    assert_eq!(alice.get("/pod/sessions?ins=main").ok().json(), json!([]));
    let gone = alice.get(&format!("/pod/shell?ins=main&session={session}"));
    assert_eq!(gone.status, 400, "{gone}");
    delete(&alice, "main").ok();
}

/// While a checkpoint is being made no client can attach; afterwards they can.
#[test]
fn attaching_is_refused_during_a_checkpoint() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    block_on(async {
        let (app, caller) = daemon(&server).await;
        let main: PodRef = "main".parse().unwrap();
        let new = || NewShell { command: Some("exit 3".to_owned()), session: None, rows: 24, columns: 80 };
        let held = app.pods.detach_shells(&app.pods.find(&caller, &main).unwrap()).await;
        let refused = app.pods.open_shell(&caller, &main, new()).await.err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|text| text.contains("it is being checkpointed")), "{refused:?}");
        drop(held);
        let mut shell = app.pods.open_shell(&caller, &main, new()).await.unwrap();
        loop {
            match shell.next().await {
                ShellEvent::Output(_) => {}
                ShellEvent::Ended(code) => break assert_eq!(code, Some(3)),
                ShellEvent::Detached(session) => panic!("{session} was detached"),
            }
        }
    });
    delete(&alice, "main").ok();
}

#[test]
fn a_second_client_takes_a_session_from_the_first_and_its_processes_end_with_it() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    block_on(async {
        let mut shell = open(&server, "").await;
        shell.send(Message::binary("sleep 98711 & nohup sleep 98712 & sleep 98713\n")).await.unwrap();
        read_until(&mut shell, "98713").await;
        drop(detach_shells(&server).await);
        let (_, last) = read_to_end(&mut shell).await;
        let session = last["detached"]["session"].as_str().unwrap().to_owned();
        let first = open(&server, &format!("session={session}")).await;
        // A later client takes the session; the earlier one is detached.
        let second = open(&server, &format!("session={session}")).await;
        let mut first = first;
        assert_eq!(read_to_end(&mut first).await.1["detached"]["session"], session.as_str());
        eventually(Duration::from_secs(5), "all of it is running", || {
            docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]).matches("sleep 9871").count() == 3
        });
        drop(second);
    });
    eventually(Duration::from_secs(5), "its processes are gone", || {
        !docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]).contains("sleep 9871")
    });
    assert_eq!(alice.get("/pod/sessions?ins=main").ok().json(), json!([]));
    delete(&alice, "main").ok();
}

/// A kill of the daemon ends the terminals that it served, but neither the pod nor the commands in its background.
#[test]
fn terminals_end_with_the_daemon_and_background_commands_do_not() {
    let Some(mut server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let begun =
        alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "sleep 98721"), ("detach", "true")]).ok().json();
    let processes = |server: &Server| docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]);
    block_on(async {
        let mut shell = open(&server, "").await;
        shell.send(Message::binary("sleep 98722\n")).await.unwrap();
        read_until(&mut shell, "98722").await;
        eventually(Duration::from_secs(5), "it is running", || processes(&server).contains("sleep 98722"));
        server.kill();
    });
    eventually(Duration::from_secs(5), "the terminal's process is gone", || {
        !processes(&server).contains("sleep 98722")
    });
    server.start_again();
    let sessions = alice.get("/pod/sessions?ins=main").ok().json();
    assert_eq!((sessions.as_array().unwrap().len(), &sessions[0]["session"]), (1, &begun["session"]), "{sessions}");
    assert!(processes(&server).contains("sleep 98721"));
    delete(&alice, "main").ok();
}

/// Not a byte of what a command writes at its end is lost, and the processes that it leaves behind do not block the
/// session.
#[test]
fn the_last_output_of_a_terminal_is_shown() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main").ok();
    let query = |command: &str| form_urlencoded::Serializer::new(String::new()).append_pair("cmd", command).finish();
    block_on(async {
        for round in 0..20 {
            let (shown, last) = read_to_end(&mut open(&server, &query("seq 2000; exit 6")).await).await;
            assert_eq!(last, json!({"exit_code": 6}));
            assert!(
                shown.ends_with("\r\n1999\r\n2000\r\n") && shown.lines().count() == 2000,
                "{round}: {}",
                shown.len()
            );
        }
        let left = "trap '' HUP; (trap '' HUP; sleep 98731) & setsid yes flood & sleep 0.2; exit 7";
        let (_, last) = read_to_end(&mut open(&server, &query(left)).await).await;
        assert_eq!(last, json!({"exit_code": 7}));
    });
    let processes = || docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]);
    assert!(processes().contains("sleep 98731") && processes().contains("yes flood"), "{}", processes());
    assert_eq!(alice.get("/pod/sessions?ins=main").ok().json(), json!([]));
    delete(&alice, "main").ok();
}
