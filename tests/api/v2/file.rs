//! `/v2/files/{path}`, `/v2/files/dir`, `/v2/files/dir/{path}` and the target of signed URLs:
//! `/v2/transfer/{user}/{path}`.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    time::Duration,
};

use serde_json::json;

use super::{message, server};
use crate::common::{
    Answer, Client, Server, eventually,
    s3::{self, S3, WayState},
};

fn with_config(config: &str) -> Server {
    Server::builder().without_docker().config(config).start().expect("no requirements")
}

/// Path and query of the URL that the response to `method` on a file contains.
#[track_caller]
fn link(server: &Server, client: &Client, method: &str, path: &str) -> String {
    let answer = client.send(method, &format!("/v2/files/{path}"), &[]).ok();
    assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    let url = answer.text();
    url.strip_prefix(&server.base()).unwrap_or_else(|| panic!("{url} is not on {}", server.base())).to_owned()
}

#[track_caller]
fn put(server: &Server, client: &Client, path: &str, bytes: &[u8]) -> Answer {
    server.anon().send_body("PUT", &link(server, client, "PUT", path), &[], bytes)
}

#[track_caller]
fn get(server: &Server, client: &Client, path: &str) -> Vec<u8> {
    server.anon().get(&link(server, client, "GET", path)).ok().body
}

#[track_caller]
fn part(server: &Server, link: &str, range: &str, bytes: &[u8]) -> Answer {
    server.anon().send_body("PUT", link, &[("content-range", range)], bytes)
}

fn list(client: &Client, path: &str) -> serde_json::Value {
    client.get(&format!("/v2/files/dir{path}")).ok().json()
}

/// The directory of a user's files on the disk.
fn folder(server: &Server, user: &str) -> PathBuf {
    let account = server.count(&format!("SELECT id FROM users WHERE name = '{user}'"));
    server.home.join(format!("files/{user}.{account}"))
}

fn partials(server: &Server, user: &str) -> usize {
    let name = folder(server, user).file_name().unwrap().to_owned();
    std::fs::read_dir(server.home.join("files/.partial").join(name)).map_or(0, Iterator::count)
}

#[test]
fn a_file_is_uploaded_and_downloaded() {
    let server = server();
    let alice = server.member("alice");
    assert_eq!(list(&alice, ""), json!([]));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let done = put(&server, &alice, "runs/one/model%20%C3%BC.bin", &bytes).ok();
    assert_eq!(done.json(), json!({"received": bytes.len(), "complete": true}));
    assert_eq!(get(&server, &alice, "runs/one/model%20%C3%BC.bin"), bytes);
    put(&server, &alice, "empty", b"").ok();
    assert_eq!(get(&server, &alice, "empty"), b"");
    // An upload replaces the whole file.
    put(&server, &alice, "empty", b"x").ok();
    assert_eq!(get(&server, &alice, "empty"), b"x");

    assert_eq!(list(&alice, ""), json!(["empty", "runs/"]));
    assert_eq!(list(&alice, "/runs"), json!(["one/"]));
    assert_eq!(list(&alice, "/runs/one/"), json!(["model ü.bin"]));
    // All notations of the whole directory.
    for whole in ["/", "/.", "/%2F"] {
        assert_eq!(list(&alice, whole), json!(["empty", "runs/"]), "{whole}");
    }
    for none in ["nothing", "empty", "runs/two"] {
        let answer = alice.get(&format!("/v2/files/dir/{none}"));
        assert_eq!((answer.status, message(&answer)), (404, format!("there is no folder {none}")));
    }

    let link = link(&server, &alice, "GET", "runs/one/model%20%C3%BC.bin");
    let whole = server.anon().get(&link);
    let header = |name: &str| whole.header(name).unwrap_or_default().to_owned();
    assert_eq!(header("content-type"), "application/octet-stream");
    assert_eq!(
        (header("content-disposition"), header("x-content-type-options")),
        ("attachment".into(), "nosniff".into())
    );
    let ranged = |range: &str| server.anon().send("GET", &link, &[("range", range)]);
    let answer = ranged("bytes=1000-1999");
    assert_eq!((answer.status, answer.body.as_slice()), (206, &bytes[1000..2000]));
    assert_eq!(answer.header("content-range"), Some("bytes 1000-1999/3000000"));
    assert_eq!(ranged("bytes=-5").body, bytes[2_999_995..]);
    let answer = ranged("bytes=3000000-");
    assert_eq!((answer.status, answer.header("content-range")), (416, Some("bytes */3000000")));
    assert!(message(&answer).contains("the file has 3000000 bytes"), "{answer}");
    assert_eq!(ranged("Bytes=0-4").body, bytes[..5]);
    // Several ranges: the whole file is a valid response.
    assert_eq!((ranged("bytes=0-4,8-9").status, ranged("bytes=0-4,8-9").body.len()), (200, bytes.len()));
    // A download is resumed only while the file is the same.
    let tag = header("etag");
    let resume = |tag: &str| server.anon().send("GET", &link, &[("range", "bytes=5-"), ("if-range", tag)]).status;
    assert_eq!((resume(&tag), resume("\"other\"")), (206, 200));
    let asked = |name: &str, tags: &str| server.anon().send("GET", &link, &[(name, tags)]);
    let known = asked("if-none-match", &format!("\"a\", {tag}"));
    assert_eq!((known.status, known.header("etag"), known.body.len()), (304, Some(tag.as_str()), 0));
    assert_eq!(asked("if-none-match", "\"other\"").status, 200);
    assert_eq!(asked("if-match", &tag).status, 200);
    let answer = asked("if-match", "\"other\"");
    assert_eq!((answer.status, message(&answer).contains("If-Match")), (412, true), "{answer}");

    // On the disk only we have access.
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(server.home.join("files")), 0o700);
    assert_eq!(mode(folder(&server, "alice")), 0o700);
    assert_eq!(mode(folder(&server, "alice").join("runs")), 0o700);
    assert_eq!(mode(folder(&server, "alice").join("empty")), 0o600);
    assert_eq!(mode(server.home.join("files.secret")), 0o600);
    assert_eq!(partials(&server, "alice"), 0);

    let delete = |path: &str| alice.send("DELETE", &format!("/v2/files/{path}"), &[]);
    assert_eq!(delete("runs/one").status, 409);
    put(&server, &alice, "runs/two/x", b"x").ok();
    delete("runs/one/model%20%C3%BC.bin").ok();
    // Directories that become empty are removed too.
    assert_eq!(delete("runs/one").status, 404);
    assert_eq!(list(&alice, "/runs"), json!(["two/"]));
    delete("runs/two/x").ok();
    assert_eq!(list(&alice, ""), json!(["empty"]));
    std::fs::create_dir(folder(&server, "alice").join("bare")).unwrap();
    delete("bare").ok();
    assert_eq!(server.anon().get(&link).status, 404);
    assert_eq!(alice.get("/v2/files/runs/one/model").status, 404);

    let events = alice.get("/v2/events?resource_type=file").ok().json();
    let seen: Vec<String> =
        events.as_array().unwrap().iter().map(|event| event["message"].as_str().unwrap().into()).collect();
    assert_eq!(seen.len(), 7, "{seen:?}");
    assert_eq!(seen[6], "alice file.write runs/one/model ü.bin: 3000000 bytes");
    assert_eq!(seen[0], "alice file.delete bare");
}

#[test]
fn a_link_is_valid_for_one_method_one_file_and_a_limited_time() {
    let server = server();
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    put(&server, &alice, "a/secret", b"alice's").ok();
    put(&server, &alice, "b", b"other").ok();
    put(&server, &bob, "a/secret", b"bob's").ok();
    let read = link(&server, &alice, "GET", "a/secret");
    let write = link(&server, &alice, "PUT", "a/secret");
    let expires: i64 = read.split("expires=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
    let in_future = expires - pody::model::time::Millis::now().seconds();
    assert!((890..=900).contains(&in_future), "{in_future}");
    let bobs = link(&server, &bob, "GET", "a/secret");
    let signature = |link: &str| link.rsplit('=').next().unwrap().to_owned();

    let refused = |method: &str, link: &str| {
        let answer = server.anon().send_body(method, link, &[], b"");
        assert_eq!(answer.status, 403, "{method} {link}: {answer}");
        assert!(message(&answer).contains("is invalid, has expired"), "{answer}");
    };
    // The other method, another path, user, time, signature.
    refused("PUT", &read);
    refused("GET", &write);
    refused("GET", &read.replace("/a/secret", "/b"));
    refused("GET", &read.replace("/alice/", "/bob/"));
    refused("GET", &read.replace("/alice/", "/nobody/"));
    refused("GET", &read.replace(&expires.to_string(), &(expires + 1).to_string()));
    refused("GET", &read.replace(&signature(&read), &signature(&bobs)));
    refused("GET", &read.replace(&signature(&read), &signature(&write)));
    refused("GET", &read.replace(&signature(&read), ""));
    refused("GET", &read[..read.len() - 1]);
    refused("GET", read.split('?').next().unwrap());
    refused("GET", &format!("{}?signature={}", read.split('?').next().unwrap(), signature(&read)));
    // A query parameter cannot override a path parameter.
    refused("GET", &format!("{}&path=a/secret&user=alice", read.replace("/a/secret", "/b")));
    let answer = server.anon().get(&format!("{read}&path=b&user=bob"));
    assert_eq!(answer.ok().text(), "alice's");
    // The caller's own credentials make no difference.
    assert_eq!(bob.get(&read).ok().text(), "alice's");
    assert_eq!(server.anon().get(&read.replace("secret", "%73ecret")).ok().text(), "alice's");
    assert_eq!(get(&server, &alice, "a/secret"), b"alice's");

    // A disabled account's links are refused.
    admin.post("/admin/user/update?username=alice&disabled=true").ok();
    refused("GET", &read);
    refused("PUT", &write);
    admin.post("/admin/user/update?username=alice&disabled=false").ok();
    server.anon().get(&read).ok();
}

#[test]
fn a_link_expires() {
    let server = with_config("[files]\nlink_seconds = 1");
    let alice = server.member("alice");
    put(&server, &alice, "a", b"x").ok();
    let link = link(&server, &alice, "GET", "a");
    eventually(Duration::from_secs(4), "the link ends", || server.anon().get(&link).status == 403);
}

/// A new account with the name of a deleted one gets neither its files nor its links.
#[test]
fn files_belong_to_an_account_and_are_removed_with_it() {
    let mut server = server();
    let admin = server.admin();
    let add = || admin.post("/admin/user/add?username=carol&password=x").ok();
    add();
    let carol = server.client("carol", "x");
    put(&server, &carol, "a", b"first").ok();
    let read = link(&server, &carol, "GET", "a");
    let first = folder(&server, "carol");
    admin.post("/admin/user/delete?username=carol").ok();
    assert_eq!(server.anon().get(&read).status, 403);
    add();
    assert_eq!(list(&carol, ""), json!([]));
    assert_eq!(server.anon().get(&read).status, 403);
    put(&server, &carol, "a", b"second").ok();
    assert!(first.exists());
    server.restart();
    eventually(Duration::from_secs(5), "the files are dropped", || !first.exists());
    assert_eq!(get(&server, &carol, "a"), b"second");
}

#[test]
fn members_have_their_own_files_and_admins_all() {
    let server = server();
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    put(&server, &alice, "a", b"alice's").ok();
    assert_eq!(list(&bob, ""), json!([]));
    assert_eq!(bob.get("/v2/files/a").status, 404);
    for (method, path) in
        [("GET", "a"), ("PUT", "a"), ("DELETE", "a"), ("GET", "dir"), ("GET", "dir/a"), ("GET", "none")]
    {
        let answer = bob.send(method, &format!("/v2/files/{path}?user=alice"), &[]);
        assert_eq!(
            (answer.status, message(&answer)),
            (403, "only admins may name another user".into()),
            "{method} {path}"
        );
    }
    // An empty name counts as no name.
    assert_eq!(list(&alice, "?user="), json!(["a"]));
    assert_eq!(list(&alice, "/?user="), json!(["a"]));
    assert_eq!(server.anon().get(&link(&server, &alice, "GET", "a?user=")).ok().text(), "alice's");
    server.anon().send_body("PUT", &link(&server, &alice, "PUT", "b?user="), &[], b"x").ok();
    alice.send("DELETE", "/v2/files/b?user=", &[]).ok();
    assert_eq!(list(&admin, "?user=alice"), json!(["a"]));
    assert_eq!(server.anon().get(&link(&server, &admin, "GET", "a?user=alice")).ok().text(), "alice's");
    assert_eq!(admin.get("/v2/files/dir?user=nobody").status, 404);
    assert_eq!(list(&admin, ""), json!([]));
}

#[test]
fn no_path_leads_out_of_the_directory() {
    let server = server();
    let alice = server.member("alice");
    put(&server, &alice, "a", b"x").ok();
    let database = std::fs::read(server.home.join("pody.db")).unwrap();
    for path in [
        "..",
        "../pody.db",
        "a/../../pody.db",
        "%2e%2e/pody.db",
        "%2E%2E%2Fpody.db",
        "..%2f..%2fpody.db",
        "./a",
        "a/.",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "//etc/passwd",
        "a//b",
        "a%00b",
        "%00",
        "a%0ab",
        "a%7f",
        "b/",
        "%c0%ae%c0%ae/x",
        "%ff",
        &"x".repeat(256),
        &["a"; 40].join("/"),
        &"x/".repeat(600),
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = alice.send(method, &format!("/v2/files/{path}"), &[]);
            assert_eq!(answer.status, 400, "{method} {path}: {answer}");
            message(&answer);
        }
        let answer = alice.get(&format!("/v2/files/dir/{path}"));
        assert!([400, 404].contains(&answer.status), "{path}: {answer}");
        let answer =
            server.anon().send("PUT", &format!("/v2/transfer/alice/{path}?expires=9999999999&signature=00"), &[]);
        assert!([400, 403].contains(&answer.status), "{path}: {answer}");
    }
    // Harmless lookalikes: a path is decoded once, not twice, and a backslash is not a separator.
    for name in ["%252e%252e", "..%5c..%5cx", "...", "~root", "-rf", "C:", "$HOME", "%252fetc"] {
        put(&server, &alice, name, name.as_bytes()).ok();
        assert_eq!(get(&server, &alice, name), name.as_bytes());
    }
    assert_eq!(list(&alice, "").as_array().unwrap().len(), 9);
    assert_eq!(std::fs::read_dir(server.home.join("files")).unwrap().count(), 2);
    assert_eq!(std::fs::read(server.home.join("pody.db")).unwrap()[..100], database[..100]);
}

/// Conditional writes: create only, or replace only the version that the client has read.
#[test]
fn a_conditional_write_is_refused_if_the_file_differs() {
    let server = server();
    let alice = server.member("alice");
    let up = link(&server, &alice, "PUT", "a");
    let write = |name: &str, tags: &str, bytes: &[u8]| server.anon().send_body("PUT", &up, &[(name, tags)], bytes);
    let refused = write("if-match", "*", b"one");
    assert_eq!(
        (refused.status, message(&refused).contains("a does not meet the request's If-Match")),
        (412, true),
        "{refused}"
    );
    assert_eq!(list(&alice, ""), json!([]));
    write("if-none-match", "*", b"one").ok();
    assert_eq!(write("if-none-match", "*", b"two").status, 412);
    assert_eq!(get(&server, &alice, "a"), b"one");
    let tag = server.anon().get(&link(&server, &alice, "GET", "a")).header("etag").unwrap().to_owned();
    assert_eq!(write("if-match", "\"other\"", b"two").status, 412);
    write("if-match", &tag, b"two").ok();
    // The file has changed now.
    assert_eq!(write("if-match", &tag, b"three").status, 412);
    assert_eq!(get(&server, &alice, "a"), b"two");
    assert_eq!(partials(&server, "alice"), 0);
}

/// No route creates links, but people and programs on the host do.
#[test]
fn symbolic_links_and_special_files_are_not_opened() {
    let server = server();
    let alice = server.member("alice");
    put(&server, &alice, "real/a", b"x").ok();
    let folder = folder(&server, "alice");
    std::fs::write(server.home.join("outside"), b"secret").unwrap();
    symlink(server.home.join("outside"), folder.join("file")).unwrap();
    symlink("../..", folder.join("up")).unwrap();
    symlink("real", folder.join("within")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    for path in ["file", "up/outside", "up/pody.db", "within/a"] {
        assert_eq!(alice.get(&format!("/v2/files/{path}")).status, 400, "{path}");
    }
    for path in ["up", "within", "up/files"] {
        assert_eq!(alice.get(&format!("/v2/files/dir/{path}")).status, 400, "{path}");
        let answer = put(&server, &alice, &format!("{path}/new"), b"x");
        assert_eq!(answer.status, 400, "{path}: {answer}");
        assert_eq!(alice.send("DELETE", &format!("/v2/files/{path}/a"), &[]).status, 400, "{path}");
    }
    // A file replaces neither a link nor its target.
    assert_eq!(put(&server, &alice, "file", b"overwritten").status, 409);
    assert_eq!(alice.get("/v2/files/fifo").status, 409);
    assert_eq!(put(&server, &alice, "fifo", b"x").status, 409);
    assert_eq!(put(&server, &alice, "real", b"x").status, 409);
    assert_eq!(put(&server, &alice, "real/a/b", b"x").status, 409);
    assert_eq!(std::fs::read(server.home.join("outside")).unwrap(), b"secret");
    assert!(!server.home.join("new").exists());
    assert_eq!(list(&alice, ""), json!(["real/"]));
    // A delete removes the link, not its target.
    alice.send("DELETE", "/v2/files/file", &[]).ok();
    assert_eq!(std::fs::read(server.home.join("outside")).unwrap(), b"secret");
}

#[test]
fn an_upload_is_resumed() {
    let mut server = server();
    let alice = server.member("alice");
    let link = link(&server, &alice, "PUT", "a");
    let bytes: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
    let first = part(&server, &link, "bytes 0-399/1000", &bytes[..400]);
    assert_eq!((first.status, first.header("range")), (202, Some("bytes=0-399")));
    assert_eq!(first.json(), json!({"received": 400, "complete": false}));
    assert_eq!(alice.get("/v2/files/a").status, 404);
    // Not the next offset.
    let wrong = part(&server, &link, "bytes 500-999/1000", &bytes[500..]);
    assert_eq!((wrong.status, wrong.json()["details"]["received"].clone()), (409, json!(400)), "{wrong}");
    server.kill();
    server.start_again();
    let asked = part(&server, &link, "bytes */1000", b"");
    assert_eq!((asked.status, asked.json()), (202, json!({"received": 400, "complete": false})));
    assert_eq!(part(&server, &link, "bytes 400-699/*", &bytes[400..700]).status, 202);
    let last = part(&server, &link, "bytes 700-999/1000", &bytes[700..]);
    assert_eq!((last.status, last.json()), (200, json!({"received": 1000, "complete": true})));
    assert_eq!(get(&server, &alice, "a"), bytes);
    assert_eq!(partials(&server, "alice"), 0);
    // From the beginning again.
    part(&server, &link, "bytes 0-9/1000", &bytes[..10]);
    assert_eq!(part(&server, &link, "bytes 0-2/3", b"new").status, 200);
    assert_eq!(get(&server, &alice, "a"), b"new");
    for bad in ["bytes 5-4/9", "0-2/3", "bytes 0-2/2", "bytes 0-9/10"] {
        assert_eq!(part(&server, &link, bad, b"new").status, 400, "{bad}");
    }
}

#[test]
fn a_client_that_disconnects_or_stalls_can_resume() {
    let server = with_config("[server]\nbody_timeout_seconds = 1");
    let alice = server.member("alice");
    let link = link(&server, &alice, "PUT", "a");
    let begin = || {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let head = format!("PUT {link} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[b'x'; 40]).unwrap();
        stream
    };
    let received = || part(&server, &link, "bytes */100", b"").json()["received"].clone();
    let stream = begin();
    eventually(Duration::from_secs(5), "the bytes come", || received() == 40);
    // No other request may write meanwhile.
    let second = part(&server, &link, "bytes 40-99/100", &[b'y'; 60]);
    assert_eq!(second.status, 409, "{second}");
    assert!(message(&second).contains("another request"));
    drop(stream);
    eventually(Duration::from_secs(5), "the place is free", || {
        part(&server, &link, "bytes 40-99/100", &[b'y'; 60]).status == 200
    });
    assert_eq!(get(&server, &alice, "a"), [[b'x'; 40].as_slice(), &[b'y'; 60]].concat());

    let mut stream = begin();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("\"received\":40"), "{answer}");
    assert_eq!(received(), 40);
    // The old file is complete all the time.
    assert_eq!(get(&server, &alice, "a").len(), 100);
}

#[test]
fn files_are_limited() {
    let mut server = with_config("[files]\nuser_limit = \"1000\"\nfile_limit = \"600\"\nmax_files = 3");
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    let answer = put(&server, &alice, "a", &[0; 601]);
    assert_eq!((answer.status, message(&answer).contains("600")), (413, true), "{answer}");
    put(&server, &alice, "a", &[0; 600]).ok();
    let answer = put(&server, &alice, "b", &[0; 401]);
    assert_eq!((answer.status, message(&answer).contains("1000")), (403, true), "{answer}");
    assert_eq!(partials(&server, "alice"), 0);
    put(&server, &alice, "b", &[0; 400]).ok();
    assert_eq!(put(&server, &alice, "c", &[0; 1]).status, 403);
    // A partial file counts too, also after a restart.
    alice.send("DELETE", "/v2/files/b", &[]).ok();
    let link = link(&server, &alice, "PUT", "b");
    assert_eq!(part(&server, &link, "bytes 0-299/400", &[0; 300]).status, 202);
    server.restart();
    assert_eq!(put(&server, &alice, "c", &[0; 101]).status, 403);
    put(&server, &alice, "c", &[0; 100]).ok();
    assert_eq!(part(&server, &link, "bytes 300-399/400", &[0; 100]).status, 403);
    alice.send("DELETE", "/v2/files/c", &[]).ok();
    assert_eq!(part(&server, &link, "bytes 300-399/400", &[0; 100]).status, 200);
    // The number of files.
    alice.send("DELETE", "/v2/files/a", &[]).ok();
    put(&server, &alice, "1", b"").ok();
    put(&server, &alice, "2", b"").ok();
    let answer = put(&server, &alice, "3", b"");
    assert_eq!((answer.status, message(&answer).contains("3 files")), (403, true), "{answer}");
    // Limits are per user.
    put(&server, &bob, "a", &[0; 600]).ok();

    server.reconfigure("[files]\nkeep_free = \"100000t\"");
    let answer = put(&server, &bob, "b", b"x");
    assert_eq!((answer.status, message(&answer).contains("kept free")), (507, true), "{answer}");
}

/// A directory that is removed as empty during an upload into it is created again.
#[test]
fn concurrent_writes_and_deletes() {
    let server = server();
    let alice = server.member("alice");
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (server, alice) = (&server, alice.clone());
            scope.spawn(move || {
                for _ in 0..40 {
                    put(server, &alice, &format!("x/y/{name}"), b"z").ok();
                    alice.send("DELETE", &format!("/v2/files/x/y/{name}"), &[]).ok();
                }
            });
        }
    });
    assert_eq!(list(&alice, ""), json!([]));
}

/// Concurrent uploads never exceed the limit.
#[test]
fn concurrent_uploads_share_the_limit() {
    let server = with_config("[files]\nuser_limit = \"1m\"");
    let alice = server.member("alice");
    let links: Vec<String> = (0..12).map(|n| link(&server, &alice, "PUT", &format!("f{n}"))).collect();
    let done: usize = std::thread::scope(|scope| {
        let send = |link: &String| server.anon().send_body("PUT", link, &[], &[7; 200 << 10]).status;
        let threads: Vec<_> = links.iter().map(|link| scope.spawn(move || send(link))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|status| *status == 200).count()
    });
    let bytes = |folder: PathBuf| -> u64 {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let folder = folder(&server, "alice");
    let partial = server.home.join("files/.partial").join(folder.file_name().unwrap());
    assert_eq!(done, 5);
    assert_eq!((bytes(folder), bytes(partial)), (5 * (200 << 10), 0));
}

#[test]
fn the_base_of_the_urls_is_configurable() {
    let server = with_config("[files]\npublic_url = \"https://box.example/pody/\"");
    let url = server.member("alice").send("PUT", "/v2/files/a", &[]).ok().text();
    assert!(url.starts_with("https://box.example/pody/v2/transfer/alice/a?expires="), "{url}");
    drop(server);
    let mut server = super::server();
    server.terminate();
    for (config, words) in [("link_seconds = 0", "link_seconds"), ("public_url = \"ftp://x\"", "public_url")] {
        assert!(server.fails_to_start(&format!("[files]\n{config}")).contains(words), "{config}");
    }
}

/// With a store that signs URLs, the bytes go directly between it and the client.
#[test]
fn files_in_a_remote_store_have_urls_that_it_signs() {
    let Some(s3) = S3::start() else { return };
    let mut server = with_config(&format!("{}[files]\nstore = \"remote\"\nlink_seconds = 60\n", s3.config("")));
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    let url =
        |client: &Client, method: &str, path: &str| client.send(method, &format!("/v2/files/{path}"), &[]).ok().text();
    for (path, bytes) in [("a.txt", &b"one"[..]), ("deep/a%20b%23%C3%BC.txt", &[7; 100_000])] {
        let put = url(&alice, "PUT", path);
        assert!(put.starts_with(&s3.base()) && put.contains("X-Amz-Expires=60"), "{put}");
        assert!(!put.contains(&s3.secret()));
        assert_eq!(s3::ask("PUT", &put, bytes).0, 200);
        assert_eq!(s3::ask("GET", &url(&alice, "GET", path), b""), (200, bytes.to_vec()), "{path}");
        // The file belongs to its owner.
        assert_eq!(bob.get(&format!("/v2/files/{path}")).status, 404);
        assert_eq!(s3::ask("GET", &url(&admin, "GET", &format!("{path}?user=alice")), b"").0, 200);
    }
    assert_eq!(list(&alice, ""), json!(["a.txt", "deep/"]));
    assert_eq!(list(&alice, "/deep/"), json!(["a b#ü.txt"]));
    assert_eq!(list(&bob, ""), json!([]));
    assert_eq!(alice.get("/v2/files/dir/nowhere").status, 404);
    assert_eq!(alice.get("/v2/files/none.txt").status, 404);
    for bad in ["../x", "a/../../x", "%2e%2e/x"] {
        assert_ne!(alice.send("PUT", &format!("/v2/files/{bad}"), &[]).status, 200, "{bad}");
    }
    // No part of it is on this host.
    assert!(!folder(&server, "alice").exists());

    // Limits are checked when a URL is requested.
    server.reconfigure("[files]\nmax_files = 2\n");
    let answer = alice.send("PUT", "/v2/files/third", &[]);
    assert_eq!(answer.status, 403, "{answer}");
    url(&alice, "PUT", "a.txt");
    server.reconfigure("[files]\nmax_files = 10\nuser_limit = \"1k\"\n");
    assert_eq!(alice.send("PUT", "/v2/files/third", &[]).status, 403);

    assert_eq!(alice.send("DELETE", "/v2/files/a.txt", &[]).ok().text(), "a.txt");
    assert_eq!(alice.send("DELETE", "/v2/files/a.txt", &[]).status, 404);
    assert_eq!(list(&alice, ""), json!(["deep/"]));
    s3.set(WayState::Cut);
    let answer = alice.get("/v2/files/dir");
    assert_eq!(answer.status, 502, "{answer}");
    assert!(message(&answer).contains("the remote store failed"), "{answer}");
    assert!(!server.log().contains(&s3.secret()));
}
