//! `/pod/exec`: output, exit code, deadline, limits.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use insta::assert_snapshot;
use serde_json::{Value, json};

use super::{create, delete, exec};
use crate::common::{Client, Server, docker, eventually, password};

fn run(client: &Client, command: &str, timeout: &str) -> Value {
    client.post_with("/pod/exec", &[("ins", "main"), ("cmd", command), ("timeout", timeout)]).ok().json()
}

/// Command lines of the processes in a pod.
fn processes(server: &Server) -> String {
    docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"])
}

#[test]
fn a_command_returns_output_and_exit_code() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    assert_snapshot!(alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "echo out; echo err >&2; exit 3")]), @r#"
    200
    {
      "exit_code": 3,
      "log": "out\r\nerr\r\n",
      "truncated": false
    }
    "#);
    assert_snapshot!(alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "kill -9 $$")]), @r#"
    200
    {
      "exit_code": 137,
      "log": "",
      "truncated": false
    }
    "#);
    assert_snapshot!(alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "no-such-command")]), @r#"
    200
    {
      "exit_code": 127,
      "log": "/bin/bash: line 1: no-such-command: command not found\r\n",
      "truncated": false
    }
    "#);
    assert_snapshot!(alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "")]), @r#"
    200
    {
      "exit_code": 0,
      "log": "",
      "truncated": false
    }
    "#);
    // As root, by bash, on a terminal, in UTF-8.
    assert_eq!(exec(&alice, "main", "test -t 1 && [[ -n $BASH_VERSION ]] && id -u"), "0");
    assert_eq!(exec(&alice, "main", "echo 'käse & <b> \"quotes\" $HOME' | cat"), "käse & <b> \"quotes\" $HOME");
    assert_eq!(exec(&alice, "main", r"printf 'a\xffb\0c'"), "a\u{fffd}b\0c");
    // A background process does not delay the response.
    let begun = Instant::now();
    assert_eq!(run(&alice, "nohup sleep 20 >/dev/null 2>&1 & echo started", "15")["log"], "started\r\n");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // The daemon records that a command was run, but not which.
    assert!(!server.log().contains("no-such-command"));
    assert!(!server.admin().get("/events").ok().text().contains("no-such-command"));
    delete(&alice, "main");
}

#[test]
fn bad_commands_and_deadlines_are_refused() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true&timeout=0"), @r#"
    400
    {
      "code": "timeout_out_of_range",
      "detail": "a command's timeout is 1 to 3600 s, you asked for 0"
    }
    "#);
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true&timeout=3601"), @r#"
    400
    {
      "code": "timeout_out_of_range",
      "detail": "a command's timeout is 1 to 3600 s, you asked for 3601"
    }
    "#);
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true&timeout=-1"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "-1",
          "loc": [
            "query",
            "timeout"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        }
      ]
    }
    "#);
    assert_eq!(alice.post("/pod/exec?ins=main&cmd=true&timeout=99999999999999999999").status, 422);
    let nul = alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", "echo a\0b")]);
    assert_eq!(nul.status, 400, "{nul}");
    exec(&alice, "main", "rm /bin/bash");
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true"), @r#"
    409
    {
      "code": "no_shell",
      "detail": "/bin/bash does not run in [prefix]-alice-main; install it in the image"
    }
    "#);
    delete(&alice, "main");
}

/// A form body allows commands longer than a URL, and than the kernel's limit on one argument.
#[test]
fn long_commands_work_up_to_the_limit_that_the_error_names() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let post = |length: usize| {
        let command = format!("echo {} | wc -c", "x".repeat(length));
        let body = form_urlencoded::Serializer::new(String::new()).append_pair("cmd", &command).finish();
        let form = [("content-type", "application/x-www-form-urlencoded")];
        alice.send_body("POST", "/pod/exec?ins=main", &form, body.as_bytes())
    };
    assert_eq!(post(100_000).ok().json()["log"], "100001\r\n");
    let answer = post(400_000);
    let worked = answer.status == 200 && answer.json()["log"] == "400001\r\n";
    assert!(worked || answer.status == 400, "{}", &answer.text()[..answer.text().len().min(500)]);
    delete(&alice, "main");
}

#[test]
fn a_command_that_times_out_is_killed_with_its_descendants() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    // A process that SIGTERM ends, one that ignores SIGTERM, and their children.
    let command = "(sleep 98765; true) & (trap '' TERM; sleep 98766; sleep 98767) & echo begun; sleep 98768";
    let begun = Instant::now();
    let answer = run(&alice, command, "1");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(answer, json!({"exit_code": -1, "log": "Timeout", "truncated": false, "output": "begun\r\n"}));
    eventually(Duration::from_secs(5), "its processes are gone", || !processes(&server).contains("sleep 9876"));
    // Other processes keep running.
    assert!(processes(&server).contains("sshd"), "{}", processes(&server));
    exec(&alice, "main", "true");
    delete(&alice, "main");
}

#[test]
fn long_output_is_truncated_and_says_so() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let answer = run(&alice, "head -c 1048576 /dev/zero | tr '\\0' x", "20");
    assert_eq!((answer["log"].as_str().unwrap().len(), &answer["truncated"]), (1 << 20, &json!(false)));
    let answer = run(&alice, "head -c 3000000 /dev/zero | tr '\\0' x; exit 7", "20");
    let log = answer["log"].as_str().unwrap();
    assert_eq!(log.len() - log.rfind('x').unwrap() - 1, "\n[pody: the output was cut after 1m]".len());
    assert_eq!(log.rfind('x').unwrap() + 1, 1 << 20);
    assert!(log.ends_with("\n[pody: the output was cut after 1m]"));
    assert_eq!((&answer["truncated"], &answer["exit_code"]), (&json!(true), &json!(7)));
    delete(&alice, "main");
}

#[test]
fn endless_output_does_not_fill_memory() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = peak();
    let begun = Instant::now();
    let answer = run(&alice, "yes 'a line that is not short, many times over'", "3");
    let took = begun.elapsed();
    assert_eq!((&answer["exit_code"], &answer["log"]), (&json!(-1), &json!("Timeout")));
    assert_eq!(answer["output"].as_str().unwrap().len(), 1 << 20);
    assert!((Duration::from_secs(3)..Duration::from_secs(7)).contains(&took), "{took:?}");
    assert!(peak() - before < 32 << 10, "{before} KiB before, {} KiB after", peak());
    eventually(Duration::from_secs(5), "it is gone", || !processes(&server).contains("yes a line"));
    delete(&alice, "main");
}

#[test]
fn a_command_keeps_running_when_its_client_disconnects() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let basic = Client::basic("alice", &password("alice"));
    let head = format!(
        "POST /pod/exec?ins=main&cmd=touch+/tmp/begun;sleep+1;touch+/tmp/done HTTP/1.1\r\nhost: x\r\nauthorization: {basic}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    eventually(Duration::from_secs(5), "it has begun", || exec(&alice, "main", "ls /tmp").contains("begun"));
    drop(stream);
    eventually(Duration::from_secs(5), "it has ended", || exec(&alice, "main", "ls /tmp").contains("done"));
    delete(&alice, "main");
}

#[test]
fn a_pod_at_its_pids_limit_recovers_by_a_restart() {
    let Some(server) = Server::builder().config("[default_quota]\npids_limit = 20").start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let begun = run(&alice, "for i in $(seq 40); do setsid -f sleep 300 >/dev/null 2>&1; done", "20");
    assert!(begun["exit_code"].is_i64(), "{begun}");
    let answer = alice.post("/pod/exec?ins=main&cmd=true");
    assert_snapshot!(answer, @r#"
    200
    {
      "exit_code": 0,
      "log": "",
      "truncated": false
    }
    "#);
    // The remedy for a full pod.
    alice.post("/pod/restart?ins=main").ok();
    exec(&alice, "main", "true");
    delete(&alice, "main");
}

#[test]
fn many_commands_run_concurrently() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    std::thread::scope(|scope| {
        for number in 0..12 {
            let alice = &alice;
            scope.spawn(move || {
                assert_eq!(exec(alice, "main", &format!("sleep 0.2; echo {number}")), number.to_string())
            });
        }
    });
    delete(&alice, "main");
}
