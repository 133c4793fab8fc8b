//! This host: config, ports, disks, file modes, and the daemon itself.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use super::Finding;
use crate::{
    cli::client::Client,
    config::Config,
    host::disk,
    model::quantities::{ByteSize, PortRanges},
    objects,
};

/// Below this the next commit or log file may fill the disk.
const LITTLE_SPACE: u64 = 10 << 30;
/// Below this databases and pods break.
const NO_SPACE: u64 = 1 << 30;
/// How long the daemon may take to report its health.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn examine(home: &Path, docker_root: Option<&Path>) -> Vec<Finding> {
    let config_path = home.join("config.toml");
    let mut findings = match Config::load(&config_path, objects::check) {
        Ok(config) if config_path.exists() => {
            vec![Finding::ok("config", config_path.display().to_string()), ports(&config.available_ports)]
        }
        Ok(config) => {
            let found = format!("no {}: defaults are in force", config_path.display());
            vec![Finding::warn("config", found, "`pody util config` creates one"), ports(&config.available_ports)]
        }
        Err(error) => vec![Finding::fail("config", error.to_string(), "fix it with `pody util config`")],
    };
    findings.extend(disk("disk: PODY_HOME", home));
    findings.extend(docker_root.and_then(|root| disk("disk: Docker", root)));
    findings.push(modes(home));
    findings.extend(runs_programs(home));
    findings.push(daemon().await);
    findings
}

/// How many of the ports for pods are free: those of running pods are taken, too.
fn ports(ranges: &PortRanges) -> Finding {
    let all = ranges.count();
    let free = ranges.iter().filter(|&port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()).count();
    let found = format!("{free} of {all} are free");
    let fix = "extend available_ports in config.toml, like \"20000-21000\"";
    match (all, free) {
        (0, _) => Finding::warn("ports", "available_ports is empty: pods get no ports, so no SSH", fix),
        (_, 0) => Finding::fail("ports", found, fix),
        _ if free * 10 < all => Finding::warn("ports", found, fix),
        _ => Finding::ok("ports", found),
    }
}

/// Free space on the file system of a path, or of its nearest existing parent.
fn disk(check: &'static str, path: &Path) -> Option<Finding> {
    let existing = disk::existing(path)?;
    let free = disk::available(existing)?;
    let found = format!("{} free at {}", ByteSize(free), existing.display());
    Some(match free {
        ..NO_SPACE => Finding::fail(check, found, "free disk space: `docker system df` shows what Docker uses"),
        NO_SPACE..LITTLE_SPACE => Finding::warn(check, found, "free disk space soon"),
        _ => Finding::ok(check, found),
    })
}

/// The first process of every pod is a program in PODY_HOME.
fn runs_programs(home: &Path) -> Option<Finding> {
    let is_noexec = disk::is_noexec(disk::existing(home)?)?;
    let fix = "mount it without noexec, or set PODY_HOME to another directory";
    let found =
        format!("{} is mounted noexec: new pods do not start, their first process is a program in it", home.display());
    is_noexec.then(|| Finding::fail("noexec", found, fix))
}

/// The database holds password hashes and the config may hold access tokens, so only their owner may read them.
fn modes(home: &Path) -> Finding {
    let open_to_others = |path: &Path| {
        let mode = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777);
        mode.ok().filter(|mode| mode & 0o077 != 0).map(|mode| (path.to_owned(), mode))
    };
    if !home.exists() {
        let fix = "`pody serve` or `pody user add` creates it";
        return Finding::warn("modes", format!("{} does not exist yet", home.display()), fix);
    }
    // The directory protects its files as well.
    let Some((directory, mode)) = open_to_others(home) else {
        return Finding::ok("modes", "others cannot read PODY_HOME");
    };
    match ["pody.db", "config.toml"].iter().find_map(|file| open_to_others(&home.join(file))) {
        Some((file, mode)) => {
            let found = format!("others can read {} ({mode:o})", file.display());
            Finding::fail("modes", found, format!("chmod 600 {0}; chmod 700 {1}", file.display(), directory.display()))
        }
        None => {
            let found = format!("others can list {} ({mode:o})", directory.display());
            Finding::warn("modes", found, format!("chmod 700 {}", directory.display()))
        }
    }
}

async fn daemon() -> Finding {
    let client = match Client::from_environment() {
        Ok(client) => client,
        Err(error) => return Finding::warn("daemon", error.to_string(), error.hint().unwrap_or_default()),
    };
    let server = client.server().to_owned();
    match tokio::time::timeout(DAEMON_TIMEOUT, client.get("healthz", &[])).await {
        Ok(Ok(health)) if health["status"] == "ok" => Finding::ok("daemon", format!("{server} is healthy")),
        Ok(Ok(health)) => {
            Finding::warn("daemon", format!("{server} reports {health}"), "see its log: `journalctl -u pody`")
        }
        Ok(Err(error)) => Finding::fail("daemon", error.to_string(), "`systemctl start pody`, or `pody serve`"),
        Err(_) => Finding::fail("daemon", format!("{server} does not respond"), "see its log: `journalctl -u pody`"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn a_port_in_use_is_not_free() {
        let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let finding = ports(&port.to_string().parse().unwrap());
        assert_eq!((finding.level, finding.found.as_str()), (Level::Fail, "0 of 1 are free"));
    }

    #[test]
    fn a_database_that_others_can_read_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let database = dir.path().join("pody.db");
        fs::write(&database, "").unwrap();
        for (directory, file, level) in
            [(0o755, 0o644, Level::Fail), (0o755, 0o600, Level::Warn), (0o700, 0o644, Level::Ok)]
        {
            set(dir.path(), directory);
            set(&database, file);
            assert_eq!(modes(dir.path()).level, level, "{directory:o} {file:o}");
        }
    }
}
