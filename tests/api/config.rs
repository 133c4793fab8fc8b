//! The config file: reloaded while the daemon runs, and refused with file, line and key.

use std::{fs, time::Duration};

use serde_json::json;

use crate::common::{Server, eventually};

fn server() -> Server {
    Server::builder().without_docker().start().expect("no requirements")
}

#[test]
fn a_config_change_is_applied_without_a_restart() {
    let server = server();
    let alice = server.member("alice");
    let path = server.home.join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    let max_pods = || alice.get("/user/info").ok().json()["quota"]["max_pods"].clone();
    assert_eq!(max_pods(), -1);
    fs::write(&path, text.replace("[default_quota]", "[default_quota]\nmax_pods = 4")).unwrap();
    eventually(Duration::from_secs(4), "it is read", || max_pods() == 4);
    // A broken config changes nothing and is reported in the log; once fixed, it is applied.
    fs::write(&path, text.replace("[default_quota]", "[default_quota]\nmax_pod = 9")).unwrap();
    eventually(Duration::from_secs(4), "it is logged", || server.log().contains("max_pod"));
    assert_eq!(max_pods(), 4);
    fs::write(&path, text.replace("[default_quota]", "[default_quota]\nmax_pods = 9")).unwrap();
    eventually(Duration::from_secs(4), "it is read", || max_pods() == 9);
}

#[test]
fn an_invalid_config_prevents_the_start_and_the_error_names_the_key() {
    let mut server = server();
    server.terminate();
    let path = server.home.join("config.toml").display().to_string();
    for (text, word) in [
        ("max_pods = 3", "max_pods"),
        ("[default_quota]\nmax_pod = 3", "max_pod"),
        ("[server]\nmax_connections = 0", "max_connections"),
        ("[remote_user_profile.provider]\nenabled = true", "access_token"),
        ("tls_cert = \"/x\"", "tls_key"),
        ("available_ports = \"70000\"", "70000"),
        ("volume_mappings = [\"relative:/x\"]", "relative"),
        ("volume_mappings = [\"/a/../b:/x\"]", ".."),
    ] {
        let error = server.fails_to_start(text);
        assert!(error.contains(word) && error.contains(&path), "{text}: {error}");
    }
}

/// The default config of pody 0.4.1.
#[test]
fn a_config_of_pody_0_4_1_loads() {
    use crate::common::{Need, original};
    if !Need::PythonClient.is_there() {
        return;
    }
    let old = tempfile::tempdir().unwrap();
    let print = "import pody, pathlib; print((pathlib.Path(pody.__file__).parent / 'config.default.toml').read_text())";
    let text = original::run(old.path(), "python", &["-c", print]);
    let mut server = server();
    server.terminate();
    fs::write(server.home.join("config.toml"), text).unwrap();
    server.start_again();
    let quota = server.member("alice").get("/user/info").ok().json()["quota"].clone();
    assert_eq!((&quota["max_pods"], &quota["memory_limit"]), (&json!(5), &json!(64_u64 << 30)));
    assert_eq!((&quota["tmpfs_size"], &quota["commit_count"]), (&json!(1 << 30), &json!(1)));
}
