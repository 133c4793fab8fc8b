//! Docker and its configuration.

use std::path::{Path, PathBuf};

use super::{Finding, version_in};
use crate::{
    config::Config,
    engine::{Engine, EngineFacts},
    objects,
    runtime::registration,
};

/// Debian 12's, which pody is tested with.
const OLDEST_VERSION: (u32, u32) = (20, 10);
const RESTART: &str = "in /etc/docker/daemon.json, then `systemctl restart docker`";

/// The findings, and where Docker keeps images and the files of pods if that is known.
pub async fn examine(home: &Path) -> (Vec<Finding>, Option<PathBuf>) {
    let facts = match Engine::connect().await {
        Ok(engine) => engine.facts().await,
        Err(error) => Err(error),
    };
    match facts {
        Ok(facts) => {
            let mut findings = judge(&facts);
            let config = Config::load(&home.join("config.toml"), objects::check).unwrap_or_default();
            findings.push(restores(&facts, &config.checkpoint.runtime).await);
            (findings, Some(facts.layers_dir.clone()))
        }
        Err(error) => {
            let fix = "install docker.io (or docker-ce) and `systemctl start docker`; DOCKER_HOST names another socket";
            (vec![Finding::fail("docker", error.to_string(), fix)], None)
        }
    }
}

fn judge(facts: &EngineFacts) -> Vec<Finding> {
    let fixed = [version(facts), live_restore(facts), storage(facts), cgroups(facts)];
    fixed.into_iter().chain(warnings(facts)).collect()
}

fn version(facts: &EngineFacts) -> Finding {
    let found = format!("{} (API {})", facts.version, facts.api_version);
    match version_in(&facts.version) {
        Some(version) if version >= OLDEST_VERSION => Finding::ok("docker", found),
        _ => Finding::warn("docker", found, "pody is tested with 20.10 and newer; upgrade Docker"),
    }
}

fn live_restore(facts: &EngineFacts) -> Finding {
    if facts.live_restore {
        return Finding::ok("live-restore", "on: pods survive a restart of Docker");
    }
    let fix = format!("\"live-restore\": true {RESTART}");
    Finding::warn("live-restore", "off: pods die when Docker restarts", fix)
}

/// Whether Docker has the runtime that restores pods.
async fn restores(facts: &EngineFacts, runtime: &str) -> Finding {
    match registration::why_not(facts, runtime).await {
        None => Finding::ok("runtime", format!("{runtime}: saved pods can be restored")),
        Some(why) => {
            let (found, fix) = why.split_once("; ").unwrap_or((&why, ""));
            Finding::fail("runtime", found, fix)
        }
    }
}

fn storage(facts: &EngineFacts) -> Finding {
    if !facts.heeds_storage_size() {
        let found = format!("{}, containerd's image store: it ignores the quota storage_size", facts.storage_driver);
        let fix = "leave storage_size unlimited: pods with one are refused; or use overlay2 over xfs with pquota";
        return Finding::warn("storage driver", found, fix);
    }
    match facts.storage_driver.as_str() {
        "vfs" => {
            let fix = "use overlay2: \"storage-driver\": \"overlay2\" ".to_owned() + RESTART;
            Finding::warn("storage driver", "vfs: every pod is a full copy of its image", fix)
        }
        "devicemapper" | "aufs" => {
            Finding::warn("storage driver", facts.storage_driver.clone(), "Docker removed this driver; use overlay2")
        }
        driver => Finding::ok("storage driver", driver),
    }
}

/// What Docker itself says does not hold on this host, such as limits that the kernel does not support.
fn warnings(facts: &EngineFacts) -> Option<Finding> {
    let said: Vec<&str> = facts.warnings.iter().map(|said| said.trim_start_matches("WARNING: ").trim()).collect();
    let fix = "these are the warnings of `docker info`; without support for a limit, pods are not held to it";
    (!said.is_empty()).then(|| Finding::warn("docker warnings", said.join("; "), fix))
}

fn cgroups(facts: &EngineFacts) -> Finding {
    let found = format!("v{}, driver {}", facts.cgroup_version, facts.cgroup_driver);
    match facts.cgroup_version.as_str() {
        "1" | "2" => Finding::ok("cgroups", found),
        _ => Finding::warn("cgroups", found, "mount cgroups: without them no limit is enforced"),
    }
}
