//! Checkpoints made while the engine kept its images in another kind of store.

use std::fs;

use serde_json::{Value, json};

use crate::{
    common::docker,
    help::{create, delete, delete_checkpoints, done, exec, folder, save, start},
};

/// A graph driver names an image by its configuration, containerd by its manifest: after a change of the store all
/// have other ids, and the same layers.
#[test]
fn an_image_is_known_by_its_layers_when_it_has_another_id() {
    let Some(server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    exec(&alice, "main", "echo kept > /root/file");
    let id = save(&alice, "ins=main&kind=rootfsonly");
    delete(&alice, "main");

    let path = folder(&server, &id).join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let layers: Value =
        serde_json::from_str(&docker(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", "pody-base"]))
            .unwrap();
    assert_eq!(manifest["layers"], layers);
    manifest["image_id"] = json!(format!("sha256:{}", "e".repeat(64)));

    // Other layers are another image, whatever its name.
    let rewrite = |manifest: &Value| fs::write(&path, manifest.to_string()).unwrap();
    let mut other = manifest.clone();
    other["layers"] = json!([format!("sha256:{}", "f".repeat(64))]);
    rewrite(&other);
    let refused = alice.post(&format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(refused.code(), "image_gone", "{refused}");

    rewrite(&manifest);
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={id}"));
    assert_eq!(exec(&alice, "main", "cat /root/file"), "kept");
    delete(&alice, "main");
    delete_checkpoints(&alice);
}
