//! runc and CRIU: the only place that runs them.
//!
//! A dump calls runc directly, beside Docker, while the container is frozen: Docker's own way copies the images twice
//! and keeps the pod frozen for that. CRIU's options come by `CRIU_CONFIG_FILE`, so no other user of runc is affected.
//!
//! A restore goes through Docker, as the pod must be Docker's child: see [`super::restore`].
//!
//! [`super::cgroup_root`] puts a restored pod into its current cgroup.
//!
//! Every call has a deadline. Its processes are found by a variable in the environment, or by the container's cgroup,
//! and ended by [`super::kill`]; [`freezer`] and [`super::leftovers`] repair what a killed CRIU leaves.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{
    command::MARK,
    diagnosis,
    error::{CriuError, CriuFailure},
    freezer, kill,
    network::lock::NetworkLock,
};
use crate::{
    config::CheckpointConfig,
    host::{
        disk::{self, DiskError},
        process::Stat,
    },
    model::ids::{ActionId, ContainerId},
};

/// Links to files that lost their names, see [`keep_links`].
const LINKS: &str = "links";

/// What their names end with, for this dump alone.
const LINK_SUFFIX: &str = "links.suffix";

/// The time CRIU may take for a process or a thread besides its memory, on a busy host. A hundred processes were seen
/// to take ten seconds.
const PER_PROCESS: Duration = Duration::from_millis(500);

const PER_THREAD: Duration = Duration::from_millis(20);

/// The input of a dump.
pub struct Dump<'a> {
    pub action: ActionId,
    pub container: &'a ContainerId,
    /// The container's first process.
    pub pid: i32,
    /// runc's directory of containers.
    pub root: &'a Path,
    /// The checkpoint's directory, with the directory for images in it.
    pub directory: &'a Path,
    pub bin: &'a Path,
    /// The writable layer, if it is saved too.
    pub upper: Option<&'a Path>,
    pub network: NetworkLock,
    pub config: &'a CheckpointConfig,
    pub deadline: Duration,
}

/// Has CRIU write the processes of a paused container, which stays paused.
pub async fn dump(dump: Dump<'_>) -> Result<(), CriuError> {
    let work = dump.directory.join("work");
    let conf = dump.directory.join("criu.conf");
    let written = || {
        fs::create_dir(&work)?;
        fs::write(&conf, dump_options(dump.config, dump.pid, dump.directory, dump.upper, dump.network)?)
    };
    written().map_err(DiskError::io("writing", &conf))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(dump.root).arg("checkpoint");
    runc.args(["--leave-running", "--tcp-established", "--file-locks", "--empty-ns", "network"]);
    runc.arg("--image-path").arg(dump.directory.join(IMAGES)).arg("--work-path").arg(&work);
    runc.arg(dump.container.as_str());
    runc.env("CRIU_CONFIG_FILE", &conf)
        .env("PATH", format!("{}:{path}", dump.bin.display()))
        .env(MARK, dump.action.to_string())
        // For CRIU's own calls of tar.
        .env("TAR_OPTIONS", RECORDS)
        .current_dir(dump.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let log = work.join("dump.log");
    let run = async {
        let child = runc.spawn().map_err(|error| unavailable(format!("runc: {error}")))?;
        let runc = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        // Programs suffer when CRIU is killed: a kernel that is out of memory should kill something else.
        let _ = fs::write(format!("/proc/{runc}/oom_score_adj"), "-1000");
        let output = tokio::select! {
            output = child.wait_with_output() => output,
            never = freezer::freeze_after_criu(runc, dump.pid) => match never {},
        };
        output.map_err(|error| unavailable(format!("runc: {error}")))
    };
    let ended = tokio::time::timeout(dump.deadline, run).await;
    let done = match ended {
        Err(_) => Err(diagnosis::timed_out(&log, dump.deadline)),
        Ok(Err(error)) => Err(error),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let store = dump.directory.parent().unwrap_or(dump.directory);
            let cause = diagnosis::of_log(&log, &said, store);
            let unknown = || CriuFailure::other(format!("runc: {}", diagnosis::words_of_runc(&said)));
            Err(CriuError::Failed(cause.unwrap_or_else(unknown)))
        }
    };
    if done.is_err() {
        kill::end_dump(dump.action, dump.directory, dump.container).await;
    }
    // Kept for diagnosis; the rest is of no use for a restore.
    let _ = fs::rename(&log, dump.directory.join(DUMP_LOG));
    let _ = disk::remove(&work);
    let _ = fs::remove_file(&conf);
    done
}

/// A script for CRIU. A file that was opened by a name that it lost, and has another, is named `link_remap.N` during
/// the dump; a restore needs that name. The script adds one more link, which goes into the archive as `link_remap.N`.
///
/// The layer is a member's: the new names are unguessable, so that none of them can be there before the pod is frozen,
/// and `ln -PT` neither follows a link nor enters a directory under such a name, but fails.
fn keep_links(directory: &Path, upper: &Path) -> io::Result<PathBuf> {
    let script = directory.join("keep-links");
    let list = directory.join(LINKS);
    fs::write(directory.join(LINK_SUFFIX), hex::encode(rand::random::<[u8; 16]>()))?;
    // Directory names may contain line breaks.
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] && [ -e \"$CRTOOLS_IMAGE_DIR/remap-fpath.img\" ] || exit 0\n\
         find '{upper}' -xdev -name 'link_remap.*' ! -name '*{suffix}' -print0 > '{list}' || exit 1\n\
         xargs -0 -r -n 1 sh -c 'ln -PT \"$1\" \"$1{suffix}\"' keep < '{list}'\n",
        suffix = link_suffix(directory),
        upper = upper.display(),
        list = list.display(),
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    Ok(script)
}

/// The suffix of names that exist during the dump into this directory; empty where there are none.
pub fn link_suffix(directory: &Path) -> String {
    let secret = fs::read_to_string(directory.join(LINK_SUFFIX)).unwrap_or_default();
    if secret.is_empty() { String::new() } else { format!(".pody-link-{secret}") }
}

/// Removes the names that [`keep_links`] added.
pub fn drop_links(directory: &Path) {
    let names = fs::read(directory.join(LINKS)).unwrap_or_default();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let given = [name, link_suffix(directory).as_bytes()].concat();
        let _ = fs::remove_file(OsStr::from_bytes(&given));
    }
    for file in [LINKS, LINK_SUFFIX, "keep-links"] {
        let _ = fs::remove_file(directory.join(file));
    }
}

/// Options for a dump into the directory; runc passes the rest itself. `upper` is the writable layer, if it is saved
/// too.
pub fn dump_options(
    config: &CheckpointConfig,
    pid: i32,
    directory: &Path,
    upper: Option<&Path>,
    network: NetworkLock,
) -> io::Result<String> {
    // Directories that do not exist would end the dump.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let watched = config.watch_paths.iter().filter(|path| path != &Path::new("/") && inside(path).is_dir());
    let watched: String = watched.map(|path| format!("irmap-scan-path {}\n", path.display())).collect();
    let script = match upper {
        Some(upper) => format!("action-script {}\n", keep_links(directory, upper)?.display()),
        None => String::new(),
    };
    let network = match network {
        NetworkLock::Ports => "network-lock skip\n",
        NetworkLock::Criu => "",
    };
    Ok(format!("ghost-limit {}\nlink-remap\nforce-irmap\n{watched}{network}{script}", config.deleted_file_limit.0))
}

/// Where runc keeps this container: beside the socket of the containerd whose shim runs it, by the namespace of that
/// containerd.
pub fn root_of(config: &CheckpointConfig, container: &ContainerId, pid: i32, runtime: &str) -> Option<PathBuf> {
    let shim = Stat::read(pid).and_then(|stat| fs::read(format!("/proc/{}/cmdline", stat.parent)).ok());
    let words: Vec<String> = shim
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let option = |name: &str| words.get(words.iter().position(|word| word == name)? + 1).cloned();
    let beside_shim = option("-address").and_then(|address| Some(Path::new(&address).parent()?.parent()?.to_owned()));
    let namespace = option("-namespace").unwrap_or_else(|| "moby".to_owned());
    let usual = [Some(PathBuf::from("/run/docker")), beside_shim].into_iter().flatten();
    // Docker names it after its default runtime's own name, `runc`, whatever the container's runtime is called.
    let names = ["runtime-runc".to_owned(), format!("runtime-{runtime}")];
    let below = usual.flat_map(|exec_root| names.clone().map(|name| exec_root.join(name).join(&namespace)));
    let containerds = Path::new("/run/containerd/runc").join(&namespace);
    let all = config.runc_root.iter().cloned().chain(below).chain([containerds]);
    all.into_iter().find(|root| root.join(container.as_str()).join("state.json").is_file())
}

/// The directory with our `gzip`, put first on CRIU's PATH. The program is this one, as long as it runs.
pub fn ensure_bin(store: &Path) -> Result<PathBuf, CriuError> {
    let bin = store.join(".bin");
    let link = bin.join("gzip");
    let target = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        return Ok(bin);
    }
    let new = bin.join(format!("gzip.{}", std::process::id()));
    let made = fs::create_dir_all(&bin)
        .and_then(|()| match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(&target, &new),
        })
        .and_then(|()| fs::rename(&new, &link));
    made.map_err(DiskError::io("making", &link))?;
    Ok(bin)
}

fn unavailable(why: String) -> CriuError {
    CriuError::Unavailable(why)
}

/// Returns when the file is as large as the log of a CRIU in a loop. Otherwise never.
pub async fn wait_runaway(log: &Path) {
    while fs::metadata(log).map_or(0, |file| file.len()) < diagnosis::LOG_LIMIT {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub const IMAGES: &str = "checkpoint";

pub const DUMP_LOG: &str = "dump.log";

/// Records of 32 KiB: tar's default of 10 KiB takes twice the time, and larger ones pad small archives.
pub const RECORDS: &str = "--blocking-factor=64";

/// What CRIU has to process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub bytes: u64,
    pub processes: u64,
    pub threads: u64,
}

/// How long it may take for that.
pub fn deadline(config: &crate::config::CheckpointConfig, load: Load) -> Duration {
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let bytes = Duration::from_secs(config.timeout_seconds + load.bytes / config.slowest_rate.0.max(1));
    bytes + PER_PROCESS.saturating_mul(count(load.processes)) + PER_THREAD.saturating_mul(count(load.threads))
}
