//! Limits of any request: size, speed, form and origin.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use insta::assert_snapshot;

use crate::common::{Client, Server, password};

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

/// Sends raw bytes and reads until the server closes the connection or is silent for a while.
fn raw(server: &Server, parts: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for part in parts {
        // The server may refuse before it has read everything.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn parameters_come_from_query_or_form() {
    let server = server();
    let alice = server.member("alice");
    let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
    let made = alice.send_body("POST", "/user/tokens/create?name=query", &form, b"name=form+%2B").ok();
    assert_eq!(made.json()["name"], "form +");
    assert_eq!(alice.post("/user/tokens/create?name=one&name=two&unknown=3").ok().json()["name"], "two");
    // A body of another type is not a form.
    let made = alice.send_body("POST", "/user/tokens/create?name=query", &[("content-type", "text/plain")], b"name=x");
    assert_eq!(made.ok().json()["name"], "query");
}

/// An unexpected body must not make the client lose its connection without a response.
#[test]
fn an_unexpected_body_leaves_the_connection_usable() {
    let server = server();
    let basic = Client::basic("alice", &password("alice"));
    server.member("alice").get("/user/info").ok();
    let head = format!("POST /user/tokens/revoke?id=9 HTTP/1.1\r\nhost: x\r\nauthorization: {basic}\r\n");
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    let json = format!("{head}content-type: application/json\r\ncontent-length: 2\r\n\r\n");
    for (head, body) in [(&chunked, "0\r\n\r\n"), (&chunked, "2\r\n{}\r\n0\r\n\r\n"), (&json, "{}")] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for number in 0..20 {
            stream.write_all(head.as_bytes()).unwrap();
            // Some clients send head and body in two packets.
            std::thread::sleep(Duration::from_millis(2));
            stream.write_all(body.as_bytes()).unwrap();
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap_or_default();
            let answer = String::from_utf8_lossy(&buffer[..count]);
            assert!(answer.starts_with("HTTP/1.1 404"), "request {number} with {body:?}: {answer:?}");
        }
    }
}

#[test]
fn all_missing_parameters_are_reported_at_once_as_fastapi_does() {
    let server = server();
    let alice = server.member("alice");
    assert_snapshot!(alice.post("/pod/create"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "ins"
          ],
          "msg": "Field required",
          "type": "missing"
        },
        {
          "input": null,
          "loc": [
            "query",
            "image"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(alice.post("/pod/exec?ins=main"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": null,
          "loc": [
            "query",
            "cmd"
          ],
          "msg": "Field required",
          "type": "missing"
        }
      ]
    }
    "#);
    assert_snapshot!(alice.post("/pod/exec?ins=main&cmd=true&timeout=long"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "long",
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
    assert_snapshot!(alice.get("/pod/logs?ins=main&follow=perhaps&tail=-1"), @r#"
    422
    {
      "code": "invalid_parameters",
      "detail": [
        {
          "input": "-1",
          "loc": [
            "query",
            "tail"
          ],
          "msg": "Input should be a valid integer, unable to parse string as an integer",
          "type": "int_parsing"
        },
        {
          "input": "perhaps",
          "loc": [
            "query",
            "follow"
          ],
          "msg": "Input should be a valid boolean, unable to interpret input",
          "type": "bool_parsing"
        }
      ]
    }
    "#);
    // A type error is reported before a broken rule.
    assert_eq!(alice.post("/pod/exec?ins=a:b&timeout=x").status, 422);
}

#[test]
fn too_large_requests_are_refused() {
    let server = server();
    let alice = server.member("alice");
    let query = |length: usize| alice.get(&format!("/help?path={}", "x".repeat(length)));
    query(30_000).ok();
    assert_snapshot!(query(40_000), @r#"
    413
    {
      "code": "request_too_large",
      "detail": "the query of a request has at most 32768 bytes"
    }
    "#);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let body = |length: usize| alice.send_body("POST", "/user/tokens/create", &form, "x".repeat(length).as_bytes());
    body(1_000_000).ok();
    assert_snapshot!(body(1_100_000), @r#"
    413
    {
      "code": "request_too_large",
      "detail": "the body of a request has at most 1048576 bytes"
    }
    "#);
    // A head that hyper rejects: the connection must end and the daemon must survive.
    let head = format!("GET /version HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = raw(&server, &[head.as_bytes()]);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = format!("GET /version HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let answer = raw(&server, &[many.as_bytes()]);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    server.anon().get("/version").ok();
}

/// A refusal before the body is read announces that the connection ends: a next request would be read as the body.
#[test]
fn an_early_refusal_announces_the_end_of_the_connection() {
    let server = server();
    let member = format!("authorization: {}\r\n", Client::basic("alice", &password("alice")));
    for (who, path, status) in [("", "/pod/create", 401), (member.as_str(), "/admin/user/add", 403)] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{who}content-length: 900000\r\n\r\n");
        let answer = raw(&server, &[head.as_bytes()]).to_ascii_lowercase();
        let announces = answer.contains("\r\nconnection: close\r\n");
        assert!(answer.starts_with(&format!("http/1.1 {status}")) && announces, "{answer}");
    }
    // Without a body the connection stays open.
    let twice =
        b"GET /pod/list HTTP/1.1\r\nhost: x\r\n\r\nGET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = raw(&server, &[twice]);
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("HTTP/1.1 200"), "{answer}");
}

#[test]
fn invalid_http_is_refused() {
    let server = server();
    for bytes in [
        &b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET /version HTTP/9.9\r\n\r\n",
        b"GET /version HTTP/1.1\r\nhost : x\r\n\r\n",
        b"POST /pod/create HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /pod/create HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /version\0 HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let answer = raw(&server, &[bytes, b"\r\n\r\n"]);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{bytes:?}: {answer}");
    }
    server.anon().get("/version").ok();
}

#[test]
fn connections_of_slow_clients_are_closed() {
    let server = Server::builder()
        .without_docker()
        .config("[server]\nheader_timeout_seconds = 1\nbody_timeout_seconds = 1")
        .start()
        .unwrap();
    let begun = Instant::now();
    let answer = raw(&server, &[b"GET /version HTTP/1.1\r\nhost: x\r\nx-slow: "]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");

    let begun = Instant::now();
    let basic = Client::basic("alice", &password("alice"));
    let head = format!(
        "POST /user/tokens/create HTTP/1.1\r\nhost: x\r\nauthorization: {basic}\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\nname="
    );
    let answer = raw(&server, &[head.as_bytes()]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(server.member("alice").get("/user/tokens").ok().json(), serde_json::json!([]));
}

#[test]
fn idle_connections_beyond_the_limit_do_not_block_others() {
    let server = Server::builder()
        .without_docker()
        .config("[server]\nmax_connections = 50\nheader_timeout_seconds = 1")
        .start()
        .unwrap();
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", server.port)).unwrap()).collect();
    let begun = Instant::now();
    server.anon().get("/version").ok();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(idle);
}

/// A browser that remembers a Basic password also sends it with requests that another site triggers.
#[test]
fn a_change_from_another_site_is_refused() {
    let server = server();
    let alice = server.member("alice");
    let host = format!("127.0.0.1:{}", server.port);
    let own = format!("http://{host}");
    alice.send("POST", "/user/tokens/create", &[("origin", &own)]).ok();
    alice.send("POST", "/user/tokens/create", &[("sec-fetch-site", "same-origin")]).ok();
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let answer = alice.send("POST", "/user/tokens/create", &[(name, value)]);
        assert_eq!(answer.status, 403, "{name}: {value}: {answer}");
    }
    assert_snapshot!(alice.send("POST", "/user/tokens/create", &[("origin", "http://evil.example")]), @r#"
    403
    {
      "code": "other_site",
      "detail": "this request was made by another web site; open this server's own pages"
    }
    "#);
    // The only change that is also a GET.
    for (name, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")] {
        let answer = alice.send("GET", "/user/ch-passwd?passwd=evil", &[(name, value)]);
        assert_eq!(answer.status, 403, "{name}: {value}: {answer}");
    }
    alice.get("/user/info").ok();
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let server = server();
    server.member("alice").post("/user/tokens/create").ok();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server.home), 0o700);
    for file in std::fs::read_dir(&server.home).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // These two are the test's own.
        if !["config.toml", "daemon.log"].contains(&name.as_str()) {
            assert_eq!(mode(&path), 0o600, "{name}");
        }
    }
}
