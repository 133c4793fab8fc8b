//! Ends what was started: a dump or a restore that hangs or failed, and what a killed daemon left running.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    command::{MARK, ask},
    freezer, leftovers,
    network::{lock, sockets},
};
use crate::{
    host::{
        blocking::off_thread,
        disk,
        process::{self, Stat},
    },
    model::ids::{ActionId, ContainerId},
};

/// A CRIU that has written nothing for this long, not even to its log, hangs.
const STALLED: Duration = Duration::from_secs(5);

/// How long killed processes may take to exit.
const GONE: Duration = Duration::from_secs(5);

/// Returns when what a killed daemon started for a dump has ended by itself, or no longer writes anything.
pub async fn wait_ended(action: ActionId, directory: &Path) {
    let (mut size, mut since) = (0, Instant::now());
    while since.elapsed() < STALLED {
        let directory = directory.to_owned();
        let look = move || {
            let lives = of_action(action, &directory).into_iter().any(|pid| !is_zombie(pid));
            lives.then(|| disk::size_of(&directory))
        };
        let Some(now) = off_thread(look).await else { return };
        if now != size {
            (size, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends all that an action of this daemon, or of a killed one, has started.
pub async fn end_action(action: ActionId, directory: &Path) {
    let directory = directory.to_owned();
    end_all(move || of_action(action, &directory)).await;
}

fn of_action(action: ActionId, directory: &Path) -> Vec<i32> {
    let mark = format!("{MARK}={action}");
    let is_its = |pid: i32| {
        if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory)) {
            return true;
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes()) || is_criu_of(pid, directory)
    };
    process::list().into_iter().filter(|&pid| is_its(pid)).collect()
}

/// A CRIU that looks into the pod has its working directory there for the moment, but keeps its log open. So does a
/// program of the pod while CRIU's code runs in it.
fn is_criu_of(pid: i32, directory: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.windows(4).any(|part| part == b"criu")
        && u32::try_from(pid) != Ok(std::process::id())
        && process::has_open_below(pid, directory)
        && process::container_of(pid).is_none()
}

/// Ends a dump of a container that the engine paused. CRIU thaws the pod for its work and closes its network; a killed
/// CRIU leaves it like that, and programs would run and get errors when they send. So the pod is frozen first, and
/// resumes once the network is repaired.
pub async fn end_dump(action: ActionId, directory: &Path, container: &ContainerId) {
    let (id, of) = (container.clone(), directory.to_owned());
    let look = move || (members(&id).first().copied(), of_action(action, &of));
    let (Some(any), stopped) = off_thread(look).await else { return end_action(action, directory).await };
    signal(&stopped, Signal::SIGSTOP);
    freezer::freeze(any);
    // In any case: programs that it holds would otherwise stay stopped for ever.
    signal(&stopped, Signal::SIGKILL);
    end_action(action, directory).await;
    let id = container.clone();
    off_thread(move || sockets::end_repair(&members(&id))).await;
    lock::unlock(any).await;
}

/// Ends a restore that failed or hangs: runc and CRIU for this container, and all processes that they restored.
pub async fn end_restore(container: &ContainerId) {
    // The engine removes its directory as soon as they end.
    leftovers::unmount(container);
    let id = container.clone();
    end_all(move || at_work("restore", &id).into_iter().chain(members(&id)).collect()).await;
    leftovers::unmount(container);
    // A killed runc leaves its record of the container, and the next start fails because that exists already.
    let exec_roots = fs::read_dir("/run/docker").into_iter().flatten().filter_map(Result::ok);
    let runtimes = exec_roots.filter(|entry| entry.file_name().to_string_lossy().starts_with("runtime-"));
    let roots = runtimes.map(|entry| entry.path().join("moby")).chain([PathBuf::from("/run/containerd/runc/moby")]);
    for root in roots.filter(|root| root.join(container.as_str()).is_dir()) {
        // runc mounts the pod's root there for CRIU.
        let mounted = root.join(container.as_str()).join("criu-root").display().to_string();
        let _ = ask("umount", &["--lazy", &mounted]).await;
        let root = root.display().to_string();
        if let Err(why) = ask("runc", &["--root", &root, "delete", "--force", container.as_str()]).await {
            tracing::warn!(%container, why, "could not remove runc's record of a restore that was ended");
        }
    }
}

/// Ends a dump that the engine began and that hangs.
pub async fn end_engine_dump(container: &ContainerId) {
    let id = container.clone();
    end_all(move || at_work("checkpoint", &id)).await;
}

/// The runc processes that run this command for this container, with their children.
fn at_work(command: &str, container: &ContainerId) -> Vec<i32> {
    let all: Vec<Stat> = process::list().into_iter().filter_map(Stat::read).collect();
    let is_runc = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"runc"))
            && words.contains(&command.as_bytes())
            && words.contains(&container.as_str().as_bytes())
    };
    let mut found: HashSet<i32> = all.iter().map(|stat| stat.id.pid).filter(|&pid| is_runc(pid)).collect();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|stat| found.contains(&stat.parent) && !found.contains(&stat.id.pid))
            .map(|stat| stat.id.pid)
            .collect();
        if more.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(more);
    }
}

/// Whether a restore of this container is in progress.
pub async fn is_restoring(container: &ContainerId) -> bool {
    let id = container.clone();
    off_thread(move || !at_work("restore", &id).is_empty()).await
}

/// Processes in a container's cgroup.
pub fn members(container: &ContainerId) -> Vec<i32> {
    process::list().into_iter().filter(|&pid| process::container_of(pid).as_ref() == Some(container)).collect()
}

async fn end_all(find: impl Fn() -> Vec<i32> + Clone + Send + 'static) {
    let begun = Instant::now();
    loop {
        let find = find.clone();
        let alive: Vec<i32> = off_thread(move || find().into_iter().filter(|&pid| !is_zombie(pid)).collect()).await;
        if alive.is_empty() || begun.elapsed() > GONE {
            return;
        }
        signal(&alive, Signal::SIGKILL);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(pids: &[i32], signal: Signal) {
    for &pid in pids {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

pub fn is_zombie(pid: i32) -> bool {
    process::state(pid).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Parents of processes, by PID.
pub fn parents(pids: &[i32]) -> HashMap<i32, i32> {
    pids.iter().filter_map(|&pid| Some((pid, Stat::read(pid)?.parent))).collect()
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;

    #[tokio::test]
    async fn what_an_action_started_is_found_by_its_mark() {
        let (action, directory, elsewhere) =
            (ActionId::generate(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut marked = Command::new("sleep").arg("1000").env(MARK, action.to_string()).spawn().unwrap();
        let mut inside = Command::new("sleep").arg("1000").current_dir(directory.path()).spawn().unwrap();
        end_action(ActionId::generate(), elsewhere.path()).await;
        assert!(marked.try_wait().unwrap().is_none() && inside.try_wait().unwrap().is_none());
        end_action(action, directory.path()).await;
        assert!(!marked.wait().await.unwrap().success() && !inside.wait().await.unwrap().success());
    }
}
