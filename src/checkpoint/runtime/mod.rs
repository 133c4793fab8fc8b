//! runc and CRIU: the only place that runs them, and the only one that ends what they leave.
//!
//! A dump goes to runc directly, beside Docker, while the container stands still: Docker's own way copies the images twice
//! and holds the pod for that. CRIU's options come by `CRIU_CONFIG_FILE`, so no other user of runc is concerned.
//!
//! A restore goes through Docker, whose child the pod must be; CRIU's options come from [`super::host_options`] there.
//!
//! A restored pod's cgroup is the one of now ([`group`]).
//!
//! Every call has a deadline. What it started is known by a variable in the environment, or by the container's cgroup, and is
//! ended by [`ending`]; [`freezer`] and [`yards`] put right what a CRIU leaves that is killed.

mod ending;
pub mod freezer;
pub mod group;
pub mod yards;

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::process::Command;

pub use self::ending::{
    end_action, end_dump, end_engine_dump, end_restore, is_restoring, is_zombie, members, parents, wait_ended,
};
use super::{CheckpointError, archive, causes, host_options::HostOptions, network::lock::NetworkLock, store};
use crate::{
    config::CheckpointConfig,
    host::process::Stat,
    model::ids::{ActionId, ContainerId},
};

/// Tells the processes of an action from all others, also after the daemon was killed. CRIU wipes its environment out: it is
/// known by its working folder, which is the checkpoint's, and by its log there.
const MARK: &str = "PODY_ACTION";

/// Links of files that lost their names, see [`keep_links`].
const LINKS: &str = "links";

/// CRIU since 6.16 needs this one: older ones dump no process with an INET socket there.
const NEW_KERNEL: (u32, u32) = (6, 16);

const NEEDED_THERE: (u32, u32) = (4, 2);

/// Older ones end where runc's requests and scripts of ours come together (`BUG at criu/action-scripts.c`, CRIU's pull request 2217).
const OLDEST: (u32, u32) = (3, 19);

/// From here on CRIU surely takes `network-lock skip`; an option that it does not know ends a dump.
const SKIPS_LOCK: (u32, u32) = (4, 0);

/// The kernel has only those without a filter suspend the filters of others, which all pods have (kernel/ptrace.c).
pub const FILTERED: &str = "the daemon runs under a seccomp filter, and the kernel lets nobody save programs from there; start it without: in a systemd unit take out SystemCallFilter=, LockPersonality=, RestrictRealtime= and the other settings that systemd.exec(5) says imply one, or run install.sh again";

/// A CRIU that was found good is not asked again for so long.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// What a dump is made of.
pub struct Dump<'a> {
    pub action: ActionId,
    pub container: &'a ContainerId,
    /// The container's first process.
    pub pid: i32,
    /// runc's folder of containers.
    pub root: &'a Path,
    /// The checkpoint's folder, with the folder for images in it.
    pub folder: &'a Path,
    pub bin: &'a Path,
    /// The writable layer, if it is saved too.
    pub upper: Option<&'a Path>,
    pub network: NetworkLock,
    /// Given back when CRIU has begun.
    pub options: Option<HostOptions>,
    pub config: &'a CheckpointConfig,
    pub deadline: Duration,
}

/// Has CRIU write the processes of a paused container. It stays paused.
pub async fn dump(dump: Dump<'_>) -> Result<(), CheckpointError> {
    let work = dump.folder.join("work");
    let conf = dump.folder.join("criu.conf");
    let written = || {
        fs::create_dir(&work)?;
        fs::write(&conf, dump_options(dump.config, dump.pid, dump.folder, dump.upper, dump.network)?)
    };
    written().map_err(CheckpointError::io("writing", &conf))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(dump.root).arg("checkpoint");
    runc.args(["--leave-running", "--tcp-established", "--file-locks", "--empty-ns", "network"]);
    runc.arg("--image-path").arg(dump.folder.join(store::IMAGES)).arg("--work-path").arg(&work);
    runc.arg(dump.container.as_str());
    runc.env("CRIU_CONFIG_FILE", &conf)
        .env("PATH", format!("{}:{path}", dump.bin.display()))
        .env(MARK, dump.action.to_string())
        // For CRIU's own calls of tar.
        .env("TAR_OPTIONS", archive::RECORDS)
        .current_dir(dump.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let log = work.join("dump.log");
    let run = async {
        let child = runc.spawn().map_err(|error| unavailable(format!("runc: {error}")))?;
        let runc = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        // Programs suffer when CRIU ends early: a kernel that is out of memory is to take somebody else.
        let _ = fs::write(format!("/proc/{runc}/oom_score_adj"), "-1000");
        let output = child.wait_with_output();
        tokio::pin!(output);
        let early = tokio::select! {
            output = &mut output => Some(output),
            () = wait_begun(&log) => None,
        };
        drop(dump.options);
        let output = match early {
            Some(output) => output,
            None => tokio::select! {
                output = &mut output => output,
                never = freezer::freeze_after_criu(runc, dump.pid) => match never {},
            },
        };
        output.map_err(|error| unavailable(format!("runc: {error}")))
    };
    let ended = tokio::time::timeout(dump.deadline, run).await;
    let done = match ended {
        Err(_) => Err(causes::timed_out(&log, dump.deadline)),
        Ok(Err(error)) => Err(error),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let store = dump.folder.parent().unwrap_or(dump.folder);
            let cause = causes::of_log(&log, &said, store);
            Err(CheckpointError::Criu(cause.unwrap_or_else(|| format!("runc: {}", causes::words_of_runc(&said)))))
        }
    };
    if done.is_err() {
        end_dump(dump.action, dump.folder, dump.container).await;
    }
    // Kept for whoever wants to know how it went; the rest is of no use for a restore.
    let _ = fs::rename(&log, dump.folder.join(store::DUMP_LOG));
    let _ = store::remove(&work);
    let _ = fs::remove_file(&conf);
    done
}

/// A script for CRIU. A file that was opened by a name that it lost, and has another, gets a name `link_remap.N` for the time
/// of the dump; a restore needs it. The script gives it one more name, which goes into the archive as `link_remap.N`.
fn keep_links(folder: &Path, upper: &Path) -> io::Result<PathBuf> {
    let script = folder.join("keep-links");
    let list = folder.join(LINKS);
    // Names of folders may hold line breaks.
    let text = format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] && [ -e \"$CRTOOLS_IMAGE_DIR/remap-fpath.img\" ] || exit 0\n\
         find '{upper}' -xdev -name 'link_remap.*' ! -name '*{suffix}' -print0 > '{list}' || exit 1\n\
         xargs -0 -r -n 1 sh -c 'ln \"$1\" \"$1{suffix}\"' keep < '{list}'\n",
        suffix = link_suffix(folder),
        upper = upper.display(),
        list = list.display(),
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    Ok(script)
}

/// The end of names that are given for the time of the dump into this folder: no file of the pod has a name like it.
pub fn link_suffix(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    format!(".pody-link-{}", name.trim_start_matches(".tmp-"))
}

/// Takes the names back that [`keep_links`] gave.
pub fn drop_links(folder: &Path) {
    let names = fs::read(folder.join(LINKS)).unwrap_or_default();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let given = [name, link_suffix(folder).as_bytes()].concat();
        let _ = fs::remove_file(OsStr::from_bytes(&given));
    }
    let _ = fs::remove_file(folder.join(LINKS));
    let _ = fs::remove_file(folder.join("keep-links"));
}

/// Options for a dump into the folder; the rest runc hands on by itself. `upper` is the writable layer, if it is saved too.
pub fn dump_options(
    config: &CheckpointConfig,
    pid: i32,
    folder: &Path,
    upper: Option<&Path>,
    network: NetworkLock,
) -> io::Result<String> {
    // Folders that are not there end the dump.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let watched = config.watch_paths.iter().filter(|path| path != &Path::new("/") && inside(path).is_dir());
    let watched: String = watched.map(|path| format!("irmap-scan-path {}\n", path.display())).collect();
    let script = match upper {
        Some(upper) => format!("action-script {}\n", keep_links(folder, upper)?.display()),
        None => String::new(),
    };
    let network = match network {
        NetworkLock::Ports => "network-lock skip\n",
        NetworkLock::Criu => "",
    };
    Ok(format!("ghost-limit {}\nlink-remap\nforce-irmap\n{watched}{network}{script}", config.deleted_file_limit.0))
}

/// Where runc keeps this container: beside the socket of the containerd whose shim runs it.
pub fn root_of(config: &CheckpointConfig, container: &ContainerId, pid: i32, runtime: &str) -> Option<PathBuf> {
    let beside_shim = || {
        let shim = fs::read(format!("/proc/{}/cmdline", Stat::read(pid)?.parent)).ok()?;
        let words: Vec<_> = shim.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        let at = words.iter().position(|word| word == "-address")?;
        Path::new(words.get(at + 1)?.as_ref()).parent()?.parent().map(Path::to_owned)
    };
    let usual = [Some(PathBuf::from("/run/docker")), beside_shim()].into_iter().flatten();
    let below = usual.map(|exec_root| exec_root.join(format!("runtime-{runtime}")).join("moby"));
    let all = config.runc_root.iter().cloned().chain(below).chain([PathBuf::from("/run/containerd/runc/moby")]);
    all.into_iter().find(|root| root.join(container.as_str()).join("state.json").is_file())
}

/// The folder with our `gzip`, put before all others on CRIU's PATH. The program is this one, as long as it runs.
pub fn ensure_bin(store: &Path) -> Result<PathBuf, CheckpointError> {
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
    made.map_err(CheckpointError::io("making", &link))?;
    Ok(bin)
}

/// CRIU's version, if it can save pods on this kernel.
pub async fn criu_version() -> Result<String, CheckpointError> {
    static GOOD: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    let lock = || GOOD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((at, version)) = &*lock()
        && at.elapsed() < GOOD_FOR
    {
        return Ok(version.clone());
    }
    let text = ask("criu", &["--version"]).await.map_err(|why| {
        unavailable(format!("CRIU does not run on this host ({why}); install CRIU 4.2 or newer, see `pody doctor`"))
    })?;
    let version = text.lines().next().unwrap_or_default().trim_start_matches("Version:").trim().to_owned();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let why_not = too_old(&version, kernel.trim()).or_else(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        is_filtered(&status).then(|| FILTERED.to_owned())
    });
    if let Some(why) = why_not {
        return Err(unavailable(why));
    }
    ask("criu", &["check"])
        .await
        .map_err(|why| unavailable(format!("`criu check` fails on this host: {why}; see `pody doctor`")))?;
    *lock() = Some((Instant::now(), version.clone()));
    Ok(version)
}

/// Why this CRIU cannot save pods on this kernel, if that is so.
pub fn too_old(version: &str, kernel: &str) -> Option<String> {
    let found = numbers(version)?;
    if found < OLDEST {
        return Some(format!("CRIU {version} is too old; install CRIU 4.2 or newer"));
    }
    (numbers(kernel)? >= NEW_KERNEL && found < NEEDED_THERE)
        .then(|| format!("CRIU {version} cannot save network sockets on kernel {kernel}; install CRIU 4.2 or newer"))
}

/// Whether a process, of which this is the status, is under seccomp (proc_pid_status(5)).
pub fn is_filtered(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_some_and(|mode| mode.trim() != "0")
}

/// Whether this CRIU can be told to leave the network alone.
pub fn knows_to_skip_lock(version: &str) -> bool {
    numbers(version).is_some_and(|found| found >= SKIPS_LOCK)
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    Some((parts.next()?.parse().ok()?, parts.next().and_then(|part| part.parse().ok()).unwrap_or(0)))
}

async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(Duration::from_secs(20), run).await {
        Err(_) => Err("it does not answer".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it fails").trim().to_owned())
        }
    }
}

fn unavailable(why: String) -> CheckpointError {
    CheckpointError::Unavailable(why)
}

/// Returns when the file has become as large as a log in a loop. For ever otherwise.
pub async fn wait_runaway(log: &Path) {
    while fs::metadata(log).map_or(0, |file| file.len()) < causes::LOG_LIMIT {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns when CRIU has begun its log: by then it has read its options.
pub async fn wait_begun(log: &Path) {
    while fs::metadata(log).map_or(0, |file| file.len()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_kernels_need_a_new_criu() {
        assert!(too_old("4.1.1", "6.16.0").unwrap().contains("network sockets on kernel 6.16.0"));
        assert!(too_old("3.17.1", "6.1.0-18-amd64").is_some());
        for (criu, kernel) in [("4.2", "6.18.44"), ("4.2.1", "6.18.44-fc"), ("3.19", "6.1.0-18-amd64")] {
            assert_eq!(too_old(criu, kernel), None, "{criu} on {kernel}");
        }
    }

    #[tokio::test]
    async fn what_an_action_started_is_found_by_its_mark() {
        let (action, folder, elsewhere) =
            (ActionId::generate(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut marked = Command::new("sleep").arg("1000").env(MARK, action.to_string()).spawn().unwrap();
        let mut inside = Command::new("sleep").arg("1000").current_dir(folder.path()).spawn().unwrap();
        end_action(ActionId::generate(), elsewhere.path()).await;
        assert!(marked.try_wait().unwrap().is_none() && inside.try_wait().unwrap().is_none());
        end_action(action, folder.path()).await;
        assert!(!marked.wait().await.unwrap().success() && !inside.wait().await.unwrap().success());
    }
}
