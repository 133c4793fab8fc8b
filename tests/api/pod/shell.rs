//! `/pod/shell`: a terminal over a WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue};

use super::{create, delete};
use crate::common::{Client, Server, docker, eventually, password};

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time") })
}

/// Opens a terminal, or returns the status of the refusal.
async fn open(server: &Server, query: &str, headers: &[(&'static str, &str)]) -> Result<Socket, u16> {
    let mut request = format!("ws://127.0.0.1:{}/pod/shell?{query}", server.port).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Reads to the end: the output, and the last message.
async fn read(socket: &mut Socket) -> (String, Value) {
    let mut shown = Vec::new();
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Binary(bytes) => shown.extend_from_slice(&bytes),
            Message::Text(text) => {
                return (String::from_utf8_lossy(&shown).into_owned(), serde_json::from_str(&text).unwrap());
            }
            _ => {}
        }
    }
    panic!("no last word after {}", String::from_utf8_lossy(&shown));
}

/// The reason of the close, whatever was shown before.
async fn reason_of_close(socket: &mut Socket) -> String {
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(Some(frame)) = message {
            return frame.reason.to_string();
        }
    }
    panic!("no close with a reason");
}

#[test]
fn a_terminal_ends_with_the_right_that_opened_it() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let made = alice.post("/user/tokens/create").ok().json();
    let bearer = Client::bearer(made["token"].as_str().unwrap());
    let basic = Client::basic("alice", &password("alice"));
    let admin = server.admin();
    block_on(async {
        let mut by_token = open(&server, "ins=main", &[("authorization", bearer.as_str())]).await.unwrap();
        let mut by_password = open(&server, "ins=main", &[("authorization", basic.as_str())]).await.unwrap();
        alice.post(&format!("/user/tokens/revoke?id={}", made["id"])).ok();
        assert!(reason_of_close(&mut by_token).await.contains("token was revoked"));
        by_password.send(Message::binary("echo still=$((40+2))\n")).await.unwrap();
        let mut shown = String::new();
        while !shown.contains("still=42") {
            let piece = by_password.next().await.unwrap().unwrap();
            shown.push_str(&String::from_utf8_lossy(&piece.into_data()));
        }
        admin.post("/admin/user/update?username=alice&disabled=true").ok();
        assert!(reason_of_close(&mut by_password).await.contains("disabled"));
    });
    admin.post("/admin/user/update?username=alice&disabled=false").ok();
    delete(&alice, "main");
}

#[test]
fn a_shell_takes_input_and_reports_its_exit_code() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let basic = Client::basic("alice", &password("alice"));
    let authorization = ("authorization", basic.as_str());
    block_on(async {
        let mut socket = open(&server, "ins=main&rows=30&cols=100", &[authorization]).await.unwrap();
        let resize = json!({"resize": {"rows": 40, "cols": 120}}).to_string();
        socket.send(Message::binary("stty size; echo sum=$((40+2))\n")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        socket.send(Message::text(resize)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        // A message that is not a command of the protocol does no harm.
        socket.send(Message::text("not json")).await.unwrap();
        socket.send(Message::binary("stty size; exit 3\n")).await.unwrap();
        let (shown, last) = read(&mut socket).await;
        assert!(shown.contains("30 100") && shown.contains("sum=42") && shown.contains("40 120"), "{shown}");
        assert_eq!(last, json!({"exit_code": 3}));

        let mut socket = open(&server, "ins=main&cmd=echo+one;exit+5", &[authorization]).await.unwrap();
        let (shown, last) = read(&mut socket).await;
        assert_eq!((shown.as_str(), last), ("one\r\n", json!({"exit_code": 5})));
    });
    delete(&alice, "main");
}

#[test]
fn a_shell_ends_when_its_user_disconnects() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let basic = Client::basic("alice", &password("alice"));
    let processes = || docker(&["top", &server.container("alice", "main"), "-eo", "pid,args"]);
    block_on(async {
        let mut socket = open(&server, "ins=main", &[("authorization", &basic)]).await.unwrap();
        socket.send(Message::binary("sleep 98701 & sleep 98702\n")).await.unwrap();
        for _ in 0..100 {
            if processes().contains("sleep 98702") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{}", processes());
    });
    eventually(Duration::from_secs(5), "its processes are gone", || !processes().contains("sleep 9870"));
    delete(&alice, "main");
}

#[test]
fn a_shell_is_only_for_its_owner_and_not_for_other_sites() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let alices = Client::basic("alice", &password("alice"));
    let bobs = Client::basic("bob", &password("bob"));
    block_on(async {
        let status = async |query: &str, headers: &[(&'static str, &str)]| open(&server, query, headers).await.err();
        assert_eq!(status("ins=main", &[]).await, Some(401));
        assert_eq!(status("ins=alice-main", &[("authorization", &bobs)]).await, Some(404));
        assert_eq!(status("ins=alice-nope", &[("authorization", &bobs)]).await, Some(404));
        assert_eq!(status("ins=nope", &[("authorization", &alices)]).await, Some(404));
        assert_eq!(status("", &[("authorization", &alices)]).await, Some(422));
        let evil = [("authorization", alices.as_str()), ("origin", "http://evil.example")];
        assert_eq!(status("ins=main", &evil).await, Some(403));
    });
    let answer = alice.get("/pod/shell?ins=main");
    assert_eq!(answer.status, 400, "{answer}");
    alice.post("/pod/stop?ins=main").ok();
    block_on(async { assert_eq!(open(&server, "ins=main", &[("authorization", &alices)]).await.err(), Some(409)) });
    delete(&alice, "main");
}
