//! Names in requests: an invalid one is refused with the rule, and reaches neither engine nor file system.

use crate::common::Server;

/// Each with whether it is a valid name.
const NAMES: [(&str, bool); 26] = [
    ("main", true),
    ("A1_b", true),
    ("deadbeef", true),
    ("twenty_characters_ok", true),
    ("", false),
    (" ", false),
    ("../x", false),
    ("..", false),
    ("/etc", false),
    ("a/b", false),
    ("-x", false),
    ("a-b-c-d", false),
    ("a:b", false),
    ("a b", false),
    ("a\nb", false),
    ("a\0b", false),
    ("_a", false),
    ("a_", false),
    ("1a", false),
    ("0123456789ab", false),
    ("ünï", false),
    ("аlice", false),
    ("a\u{202e}b", false),
    ("%61", false),
    ("$(reboot)", false),
    ("twenty_one_characters", false),
];

#[test]
fn invalid_names_of_pods_are_refused() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    let long = "x".repeat(300);
    for (name, is_name) in NAMES.into_iter().chain([(long.as_str(), false)]) {
        for route in ["/pod/inspect", "/pod/info", "/pod/stats", "/pod/logs"] {
            let answer = alice.get_with(route, &[("ins", name)]);
            assert_eq!(answer.status, if is_name { 404 } else { 400 }, "{route} {name:?}: {answer}");
            assert!(answer.body.len() < 400, "{route} {name:?}: {answer}");
        }
        for route in ["/pod/delete", "/pod/start", "/pod/stop", "/pod/restart", "/pod/commit"] {
            let answer = alice.post_with(route, &[("ins", name)]);
            assert_eq!(answer.status, if is_name { 404 } else { 400 }, "{route} {name:?}: {answer}");
        }
        let answer = alice.post_with("/pod/exec", &[("ins", name), ("cmd", "true")]);
        assert_eq!(answer.status, if is_name { 404 } else { 400 }, "exec {name:?}: {answer}");
        if !is_name {
            let answer = alice.post_with("/pod/create", &[("ins", name), ("image", "pody-base")]);
            assert_eq!(answer.status, 400, "create {name:?}: {answer}");
            assert!(answer.detail().starts_with("ins: "), "{answer}");
        }
    }
    assert_eq!(server.count("SELECT count(*) FROM pods"), 0);
}

#[test]
fn invalid_names_of_users_are_refused() {
    let server = Server::builder().without_docker().start().unwrap();
    let admin = server.admin();
    let long = "x".repeat(300);
    let more = [(long.as_str(), false), ("a-b", false), ("share", false)];
    for (name, is_name) in NAMES.into_iter().chain(more) {
        let answer = admin.post_with("/admin/user/add", &[("username", name), ("password", "word")]);
        assert_eq!(answer.status, if is_name { 200 } else { 400 }, "{name:?}: {answer}");
        let answer = admin.get_with("/admin/quota/list", &[("username", name)]);
        assert_eq!(answer.status, if is_name { 200 } else { 400 }, "{name:?}: {answer}");
    }
    assert_eq!(server.count("SELECT count(*) FROM users"), 3 + 4);
}

#[test]
fn invalid_names_of_images_and_tags_are_refused() {
    let server = Server::builder().without_docker().start().unwrap();
    let alice = server.member("alice");
    let long = "x".repeat(300);
    let images = ["", "-x", "../x", "a b", "a\0b", "ünï", ".", "a?b", "a&b", "a#b", "a\\b", "a;b", long.as_str()];
    for image in images {
        for answer in [
            alice.get_with("/image/inspect", &[("image", image)]),
            alice.post_with("/image/delete", &[("image", image)]),
            alice.post_with("/pod/create", &[("ins", "main"), ("image", image)]),
        ] {
            assert_eq!(answer.status, 400, "{image:?}: {answer}");
            assert!(answer.detail().starts_with("image: "), "{answer}");
        }
    }
    // Names of images that exist or not, but that no member may use.
    for image in
        ["a/../../b", "a@b", "a:b:c", "localhost:5000/x", "sha256:0000", "scratch", "f455c9ebccfa", "pody-base:other"]
    {
        let answer = alice.get_with("/image/inspect", &[("image", image)]);
        assert_eq!(answer.status, 400, "{image:?}: {answer}");
    }
    for tag in ["a-b", "a:b", "../x", "a/b", "", "ünï", long.as_str()] {
        let answer = alice.post_with("/pod/commit", &[("ins", "main"), ("tag", tag)]);
        assert_eq!(answer.status, 400, "{tag:?}: {answer}");
        assert!(answer.detail().starts_with("tag: "), "{answer}");
    }
}

/// `user-ins` and `prefix-user-ins` name one's own pods; others' pods, and other prefixes, are not found.
#[test]
fn long_names_of_pods_work_for_the_owner_and_admins() {
    let Some(server) = Server::start() else { return };
    let (alice, bob, admin) = (server.member("alice"), server.member("bob"), server.admin());
    alice.post("/pod/create?ins=main&image=pody-base").ok();
    let full = server.container("alice", "main");
    let inspect = |who: &crate::common::Client, name: &str| who.get(&format!("/pod/inspect?ins={name}")).status;
    for name in ["main", "alice-main", full.as_str()] {
        assert_eq!(inspect(&alice, name), 200, "{name}");
    }
    assert_eq!((inspect(&admin, "main"), inspect(&admin, "alice-main"), inspect(&admin, &full)), (404, 200, 200));
    for name in ["main", "alice-main", full.as_str(), "other-alice-main"] {
        assert_eq!(inspect(&bob, name), 404, "{name}");
    }
    assert_eq!(inspect(&alice, "other-alice-main"), 404);
    // An id or a prefix of one does not work, not even for one's own.
    let id = alice.get("/pod/inspect?ins=main").json()["container_id"].as_str().unwrap().to_owned();
    for id in [id.as_str(), &id[..6], &format!("x{}", &id[..6])] {
        assert!([400, 404].contains(&inspect(&alice, id)), "{id}");
        assert!([400, 404].contains(&inspect(&admin, id)), "{id}");
    }
    // An admin creates and deletes for others by name; members cannot.
    for name in ["alice-other", &server.container("alice", "other")] {
        assert_eq!(bob.post(&format!("/pod/create?ins={name}&image=pody-base")).status, 400, "{name}");
    }
    admin.post("/pod/create?ins=alice-other&image=pody-base").ok();
    assert_eq!(alice.get("/pod/list").ok().json(), serde_json::json!(["main", "other"]));
    assert_eq!(admin.post("/pod/create?ins=nobody-other&image=pody-base").status, 404);
    admin.post("/pod/delete?ins=alice-other").ok();
    alice.post(&format!("/pod/delete?ins={full}")).ok();
}
