//! What a caller may do is looked at again after the body, for every route: an admin's act in between counts.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use pody::http::{
    endpoint::{Access, Route},
    params::BodyUse,
    router::routes,
};

use crate::common::{Client, Server, password};

/// A request whose body is still to come.
struct Begun {
    route: Route,
    stream: TcpStream,
    body: &'static str,
}

impl Begun {
    /// Sends the head. The server asks for the body after it has identified the caller.
    fn new(server: &Server, route: Route, authorization: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (kind, body) = match route.body {
            BodyUse::Json(_) => ("application/json", "{}"),
            BodyUse::Form | BodyUse::Bytes => ("application/x-www-form-urlencoded", "x="),
        };
        let path = route.path.replace(['{', '}'], "");
        let head = format!(
            "{} {path} HTTP/1.1\r\nhost: box\r\nauthorization: {authorization}\r\nexpect: 100-continue\r\n\
             connection: close\r\ncontent-type: {kind}\r\ncontent-length: 2\r\n\r\n",
            route.method
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{} {path}: {error}", route.method));
            asked.push(byte[0]);
        }
        let asked = String::from_utf8_lossy(&asked);
        assert!(asked.starts_with("HTTP/1.1 100"), "{} {path}: {asked}", route.method);
        Self { route, stream, body }
    }

    /// Sends the body and returns the answer.
    fn finish(mut self) -> (Route, u16, String) {
        self.stream.write_all(self.body.as_bytes()).unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).unwrap();
        let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
        (self.route, status, answer)
    }
}

#[test]
fn an_admins_act_counts_for_requests_whose_body_is_still_to_come() {
    let server = Server::builder().without_docker().start().expect("no requirements");
    let boss = server.admin();
    let events = || server.count("SELECT count(*) FROM events");
    for (act, by_token, status) in [
        ("disabled", false, 403),
        ("disabled", true, 403),
        ("demoted", false, 403),
        ("demoted", true, 403),
        ("purged", false, 401),
        ("purged", true, 401),
        ("its password reset", false, 401),
        ("its password reset", true, 401),
        ("its token revoked", true, 401),
    ] {
        server.add_user("sam", &["--admin"]);
        let sam = server.client("sam", &password("sam"));
        let made = sam.post("/user/tokens/create").ok().json();
        let authorization = match by_token {
            true => Client::bearer(made["token"].as_str().unwrap()),
            false => Client::basic("sam", &password("sam")),
        };
        // Open routes have no caller; nodes and signed URLs no account.
        let ours = routes().into_iter().filter(|route| matches!(route.access, Access::Member | Access::Admin));
        let begun: Vec<Begun> = ours
            .filter(|route| !matches!(route.body, BodyUse::Bytes))
            .map(|route| Begun::new(&server, route, &authorization))
            .collect();
        match act {
            "disabled" => boss.post("/admin/user/update?username=sam&disabled=true"),
            "demoted" => boss.post("/admin/user/update?username=sam&admin=false"),
            "purged" => boss.post("/admin/user/purge?username=sam"),
            "its password reset" => boss.post("/admin/user/update?username=sam&password=another"),
            _ => sam.post(&format!("/user/tokens/revoke?id={}", made["id"])),
        }
        .ok();
        let before = events();
        for begun in begun {
            let (route, got, answer) = begun.finish();
            assert_eq!(got, status, "{} {} while the account was {act}: {answer}", route.method, route.path);
        }
        assert_eq!(events(), before, "something was done while the account was {act}");
        if act != "purged" {
            boss.post("/admin/user/purge?username=sam").ok();
        }
    }
}

#[test]
fn a_reset_by_an_admin_ends_tokens_and_an_own_change_does_so_when_asked() {
    let server = Server::builder().without_docker().start().expect("no requirements");
    let alice = server.member("alice");
    let token = |client: &Client| {
        let made = client.post("/user/tokens/create").ok().json();
        server.anon().with_authorization(&Client::bearer(made["token"].as_str().unwrap()))
    };
    let first = token(&alice);
    assert_eq!(alice.post("/user/ch-passwd?passwd=second").ok().json()["message"], "Password updated");
    first.get("/user/info").ok();
    let alice = server.client("alice", "second");
    let answer = alice.post("/user/ch-passwd?passwd=third&end_tokens=true").ok();
    assert_eq!(answer.json()["message"], "Password updated; 1 tokens ended");
    assert_eq!(first.get("/user/info").status, 401);

    let second = token(&server.client("alice", "third"));
    let answer = server.admin().post("/admin/user/update?username=alice&password=fourth").ok();
    assert_eq!(answer.json()["message"], "User alice updated; 1 tokens ended");
    assert_eq!(second.get("/user/info").status, 401);
}
