//! `/image/…` and `/host/images`; commits are tested in `pod::commit`.

use std::collections::BTreeSet;

use insta::assert_snapshot;
use serde_json::json;

use crate::common::{Server, docker};

#[test]
fn the_list_has_the_configured_images_that_exist() {
    let Some(server) = Server::builder()
        .config("[[images]]\nname = \"pody-base\"\nports = [22]\n[[images]]\nname = \"not-on-this-host\"\nports = []")
        .start()
    else {
        return;
    };
    let alice = server.member("alice");
    assert_snapshot!(alice.get("/image/list"), @r#"
    200
    [
      "pody-base:latest"
    ]
    "#);
    assert_eq!(alice.get("/host/images").text(), alice.get("/image/list").text());
    assert_snapshot!(alice.get("/image/inspect?image=not-on-this-host"), @r#"
    400
    {
      "code": "image_not_allowed",
      "detail": "not-on-this-host is not an image that you may use; choose one of: pody-base:latest"
    }
    "#);
}

#[test]
fn an_image_is_inspected_by_get_and_post() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let image = alice.get("/image/inspect?image=pody-base:latest").ok().json();
    let keys: BTreeSet<&str> = image.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["comment", "created", "exposed_ports", "id", "name", "size", "tags"].into());
    let of_docker = |field: &str| docker(&["image", "inspect", "pody-base:latest", "--format", field]);
    assert_eq!(image["id"], of_docker("{{.Id}}"));
    assert_eq!(image["size"].to_string(), of_docker("{{.Size}}"));
    assert_eq!(image["name"], "pody-base:latest");
    assert_eq!(alice.get("/image/inspect?image=pody-base").ok().json(), image);
    assert_eq!(alice.post("/image/inspect?image=pody-base").ok().json(), image);
}

#[test]
fn only_listed_images_are_visible() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    let id = docker(&["image", "inspect", "pody-base:latest", "--format", "{{.Id}}"]);
    let hex = id.trim_start_matches("sha256:");
    // Other notations that the engine accepts for an image.
    for image in [id.as_str(), hex, &hex[..12], "docker.io/library/pody-base", "POD-BASE", "debian:13"] {
        for answer in [
            alice.get_with("/image/inspect", &[("image", image)]),
            alice.post_with("/image/delete", &[("image", image)]),
            alice.post_with("/pod/create", &[("ins", "main"), ("image", image)]),
        ] {
            assert_eq!(answer.status, 400, "{image}: {answer}");
        }
    }
    assert_snapshot!(alice.post("/pod/create?ins=main&image=debian:13"), @r#"
    400
    {
      "code": "image_not_allowed",
      "detail": "debian:13 is not an image that you may use; choose one of: pody-base:latest"
    }
    "#);
    assert_snapshot!(alice.post("/image/delete?image=pody-base"), @r#"
    403
    {
      "code": "not_your_image",
      "detail": "pody-base is not your image; only your own commits can be deleted"
    }
    "#);
    assert_snapshot!(server.admin().post("/image/delete?image=pody-base"), @r#"
    403
    {
      "code": "not_your_image",
      "detail": "pody-base is not your image; only your own commits can be deleted"
    }
    "#);
    assert_eq!(server.containers().len(), 0);
    assert_eq!(alice.get("/pod/list").ok().json(), json!([]));
}

/// A name without a tag allows all tags, a name with a tag only that one.
#[test]
fn a_rule_with_a_tag_allows_only_that_tag() {
    let Some(server) = Server::builder().config("[[images]]\nname = \"pody-base:other\"\nports = [22]").start() else {
        return;
    };
    let alice = server.member("alice");
    assert_eq!(alice.get("/image/list").ok().json(), json!([]));
    assert_snapshot!(alice.post("/pod/create?ins=main&image=pody-base"), @r#"
    400
    {
      "code": "image_not_allowed",
      "detail": "pody-base is not an image that you may use; there are none yet: ask an admin to list one under [[images]] in config.toml and to build or pull it"
    }
    "#);
}
