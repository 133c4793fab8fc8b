//! `/pod/create`: what is requested from the engine, and what is refused before that.

use insta::assert_snapshot;
use serde_json::json;

use super::{create, delete, engine_says, exec, try_create};
use crate::common::{IMAGE, Server, docker, run};

#[test]
fn a_container_gets_the_needed_settings_and_no_more() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let container = engine_says(&server, "alice", "main");
    let host = &container["HostConfig"];
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_snapshot!(host["CapAdd"], @r#"["CHOWN","DAC_OVERRIDE","FOWNER","FSETID","KILL","SETGID","SETUID","SYS_CHROOT","NET_BIND_SERVICE","AUDIT_WRITE"]"#);
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["PidsLimit"], 8192);
    assert_eq!(host["LogConfig"], json!({"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}));
    assert_eq!(host["RestartPolicy"], json!({"Name": "always", "MaximumRetryCount": 0}));
    for own in ["PidMode", "UTSMode", "UsernsMode", "CgroupParent"] {
        assert_eq!(host[own], "", "{own}");
    }
    assert_eq!(host["IpcMode"], "private");
    for none in ["Devices", "DeviceCgroupRules", "Binds", "VolumesFrom", "ExtraHosts", "GroupAdd", "Links", "Dns"] {
        assert!(host[none].is_null() || host[none] == json!([]), "{none}: {}", host[none]);
    }
    assert!(host["DeviceRequests"].is_null() || host["DeviceRequests"] == json!([]), "{}", host["DeviceRequests"]);
    assert_eq!(host["PublishAllPorts"], false);
    let labels = container["Config"]["Labels"].as_object().unwrap();
    for (label, value) in [("pody.user", "alice"), ("pody.instance", "main")] {
        assert_eq!(labels[label], value);
    }
    assert!(["pody.workload", "pody.pod", "pody.op"].iter().all(|label| labels.contains_key(*label)), "{labels:?}");
    let environment = container["Config"]["Env"].to_string();
    assert!(environment.contains("NVIDIA_VISIBLE_DEVICES=void"), "{environment}");

    // The same from inside.
    assert_eq!(exec(&alice, "main", "id -un; hostname"), "root\nmain");
    assert_eq!(exec(&alice, "main", "printenv NVIDIA_VISIBLE_DEVICES"), "void");
    assert_eq!(exec(&alice, "main", "grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t1");
    for forbidden in
        ["mount -t tmpfs none /mnt", "mknod /tmp/disk b 8 0", "date -s 2020-01-01", "hostname other", "cat /proc/kcore"]
    {
        let answer = alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", forbidden)]).ok().json();
        assert_ne!(answer["exit_code"], 0, "{forbidden}: {answer}");
    }
    // Everyday work of a root shell.
    exec(
        &alice,
        "main",
        "useradd -m carol && su carol -c 'touch ~/x' && chown root /home/carol/x && chmod u+s /home/carol/x",
    );
    delete(&alice, "main");
}

#[test]
fn an_image_may_be_allowed_new_privileges() {
    let config = "[[images]]\nname = \"pody-base\"\nports = []\nnew_privileges = true";
    let Some(server) = Server::builder().config(config).start() else { return };
    let alice = server.member("alice");
    assert_eq!(create(&alice, "main")["info"]["port_mapping"], json!([]));
    assert!(engine_says(&server, "alice", "main")["HostConfig"]["SecurityOpt"].is_null());
    assert_eq!(exec(&alice, "main", "grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t0");
    delete(&alice, "main");
}

/// An image's own GPU settings do not apply.
#[test]
fn gpu_settings_of_an_image_are_ignored() {
    let Some(server) = Server::start() else { return };
    let image = format!("{}_gpu", server.commit_name());
    let from = docker(&["create", IMAGE]);
    docker(&[
        "commit",
        "-c",
        "ENV NVIDIA_VISIBLE_DEVICES=all",
        "-c",
        "ENV NVIDIA_DRIVER_CAPABILITIES=all",
        &from,
        &image,
    ]);
    docker(&["rm", &from]);
    let mut server = server;
    server.reconfigure(&format!("[[images]]\nname = \"{image}\"\nports = []"));
    let alice = server.member("alice");
    crate::common::eventually(std::time::Duration::from_secs(5), "the image is seen", || {
        alice.get("/image/list").ok().json() == json!([format!("{image}:latest")])
    });
    let answer = alice.post_with("/pod/create", &[("ins", "main"), ("image", &image)]);
    let seen = exec(&alice, "main", "printenv NVIDIA_VISIBLE_DEVICES");
    delete(&alice, "main");
    docker(&["rmi", &image]);
    assert_eq!((answer.status, seen.as_str()), (200, "void"), "{answer}");
}

#[test]
fn the_users_limits_reach_the_pod() {
    let config = "[default_quota]\nmemory_limit = \"200m\"\ncpu_limit = 0.5\npids_limit = 100\nshm_size = \"32m\"";
    let Some(server) = Server::builder().config(config).start() else { return };
    let alice = server.member("alice");
    let info = create(&alice, "main")["info"].clone();
    assert_eq!((&info["memory_limit"], &info["shm_size"]), (&json!(200 << 20), &json!(32 << 20)));
    let host = engine_says(&server, "alice", "main")["HostConfig"].clone();
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(200 << 20), &json!(200 << 20)));
    assert_eq!((&host["NanoCpus"], &host["PidsLimit"]), (&json!(500_000_000), &json!(100)));
    assert_eq!(exec(&alice, "main", "df -B1 --output=size /dev/shm | tail -1").trim(), (32 << 20).to_string());
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(exec(&alice, "main", limit), (200 << 20).to_string());
    // The pod cannot exceed the memory limit, nor the process limit.
    let greedy = "python3 -c 'x = bytearray(400 << 20)'";
    assert_ne!(alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", greedy)]).ok().json()["exit_code"], 0);
    let many = "for i in $(seq 300); do sleep 30 & done 2>/tmp/errors; grep -c 'Resource temporarily unavailable' /tmp/errors; kill $(jobs -p)";
    let answer = alice.post_with("/pod/exec", &[("ins", "main"), ("cmd", many), ("timeout", "20")]).ok().json();
    assert!(answer["log"].as_str().unwrap().trim() != "0", "{answer}");
    // A pod keeps the limits of its creation; another user has other limits.
    server
        .admin()
        .post("/admin/quota/update?username=bob&memory_limit=unlimited&pids_limit=unlimited&shm_size=default")
        .ok();
    let bob = server.member("bob");
    assert_eq!(create(&bob, "main")["info"]["memory_limit"], -1);
    delete(&bob, "main");
    delete(&alice, "main");
}

#[test]
fn a_create_that_the_engine_refuses_leaves_nothing_behind() {
    let Some(server) = Server::builder().config("network = \"not_a_network\"").start() else { return };
    let alice = server.member("alice");
    assert_snapshot!(try_create(&alice, "main"), @r#"
    500
    {
      "code": "network_not_found",
      "detail": "the network not_a_network of the config does not exist; ask an admin to create it with `docker network create not_a_network`"
    }
    "#);
    assert_eq!(alice.get("/pod/list").ok().json(), json!([]));
    assert_eq!(server.count("SELECT count(*) FROM ports"), 0);
    let event = alice.get("/events?limit=1").ok().json()[0].clone();
    assert_eq!((&event["action"], &event["outcome"]), (&json!("pod.create"), &json!("failed")));
}

#[test]
fn a_create_with_an_impossible_volume_leaves_nothing_behind() {
    let Some(server) = Server::builder().config("volume_mappings = [\"/proc/nothing/$username:/data\"]").start() else {
        return;
    };
    assert_snapshot!(try_create(&server.member("alice"), "main"), @r#"
    500
    {
      "code": "volume_failed",
      "detail": "cannot create the directory /proc/nothing/alice of a volume: No such file or directory (os error 2)"
    }
    "#);
}

#[test]
fn a_storage_limit_works_or_says_what_it_needs() {
    let Some(server) = Server::builder().config("[default_quota]\nstorage_size = \"1g\"").start() else { return };
    let alice = server.member("alice");
    let answer = try_create(&alice, "main");
    if answer.status == 200 {
        delete(&alice, "main");
    } else {
        assert_snapshot!(answer, @r#"
        500
        {
          "code": "storage_size_unsupported",
          "detail": "the quota storage_size needs Docker on overlay2 over xfs with pquota, which this host does not have; ask an admin to set storage_size to \"\""
        }
        "#);
    }
}

#[test]
fn pods_join_the_configured_network() {
    let name = format!("pody-test-{}", hex::encode(rand::random::<[u8; 4]>()));
    let Some(server) = Server::builder().config(&format!("network = \"{name}\"")).start() else { return };
    docker(&["network", "create", &name]);
    let alice = server.member("alice");
    let answer = try_create(&alice, "main");
    let networks = alice.get("/pod/inspect?ins=main").json()["networks"].clone();
    let deleted = alice.post("/pod/delete?ins=main");
    run("docker", &["network", "rm", &name]);
    assert_eq!((answer.status, deleted.status), (200, 200), "{answer}");
    assert_eq!(networks, json!([name]));
}
