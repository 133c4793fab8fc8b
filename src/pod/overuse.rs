//! Executes the decisions of `gpu::enforcement`.

use std::{collections::HashMap, time::Duration};

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::{Pods, processes};
use crate::{
    db::{DbError, NewEvent},
    engine::ExecRequest,
    gpu::{
        Gpus,
        enforcement::{Enforcement, Enforcer, Rule},
    },
    host::process::{self, Stat},
    model::{
        ids::{ContainerId, PodId, ProcessId},
        names::UserName,
        pod::Pod,
        user::Actor,
    },
};

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// How long notifying a pod may take.
const TELL: Duration = Duration::from_secs(5);

/// Writes a line into the pod's log directory and to every terminal in it. The text is an argument, so it is never run
/// as code.
const TELL_SCRIPT: &str = r#"
mkdir -p /log/pody && printf '%s\n' "$1" >> "/log/pody/$2"
for terminal in /dev/pts/[0-9]* /proc/1/fd/1; do
    [ -w "$terminal" ] && printf '\r\n[pody] %s\r\n' "$1" > "$terminal" 2>/dev/null
done
true
"#;

impl Pods {
    /// Runs for the life of the daemon.
    pub async fn enforce_loop(self, gpus: Gpus, stop: CancellationToken) {
        let mut enforcement = Enforcer::default();
        let mut snapshots = gpus.changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = snapshots.changed() => {}
            }
            let config = self.config.get();
            let rule = Rule { grace: (config.gpu.overuse_grace_seconds * 1000.0) as i64, then: config.gpu.on_overuse };
            let acts = enforcement.decide(&gpus.snapshot(), |user| self.accounts.quota(user).gpu_count, rule);
            for act in acts {
                let pods = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = pods.carry_out(act).await {
                        tracing::warn!(%error, "cannot act on GPU overuse, will retry");
                    }
                });
            }
        }
    }

    async fn carry_out(&self, act: Enforcement) -> Result<(), DbError> {
        match act {
            Enforcement::Warn { user, pods, message } => {
                tracing::warn!(%user, message, "GPU overuse");
                self.db.insert_event(event("gpu.overuse", &user, &message)).await?;
                for pod in pods {
                    self.tell(pod, "warning", &message).await;
                }
            }
            Enforcement::EndProcess { user, pod, container, process, message } => {
                tracing::warn!(%user, message, "GPU overuse");
                self.db.insert_event(event("gpu.end-process", &user, &message)).await?;
                end_tree(process, &container);
                self.tell(pod, "critical", &message).await;
            }
            Enforcement::StopPod { user, pod, message } => {
                tracing::warn!(%user, message, "GPU overuse");
                self.db.insert_event(event("gpu.stop-pod", &user, &message)).await?;
                self.tell(pod, "critical", &message).await;
                self.stop_for_overuse(pod).await;
            }
        }
        Ok(())
    }

    async fn stop_for_overuse(&self, id: PodId) {
        let _guard = self.locks.lock(id).await;
        let Some(container) = self.db.snapshot().pods.get(id).and_then(|pod| pod.container.clone()) else { return };
        if let Err(error) = self.engine.stop(&container, self.config.get().pod.stop_grace_seconds).await {
            tracing::warn!(%error, "cannot stop a pod that uses too many GPUs");
        }
        let _ = self.engine.look(&container).await;
    }

    /// Leaves a message in a pod: in `/log/pody/<time>.<level>.log`, as pody 0.4.1 does, and on its terminals.
    pub(super) async fn tell(&self, pod: PodId, level: &str, message: &str) {
        let rows = self.db.snapshot();
        let Some(pod) = rows.pods.get(pod) else { return };
        if let Err(error) = self.try_tell(pod, level, message).await {
            tracing::warn!(pod = pod.container_name, error, "cannot notify the pod");
        }
    }

    async fn try_tell(&self, pod: &Pod, level: &str, message: &str) -> Result<(), String> {
        let container = self.running(pod).await.map_err(|error| error.to_string())?;
        let file = format!("{}.{level}.log", jiff::Zoned::now().strftime("%Y-%m-%d_%H-%M-%S"));
        let command = ["/bin/sh", "-c", TELL_SCRIPT, "sh", message, &file].map(str::to_owned).to_vec();
        let request = ExecRequest { command, timeout: TELL, output_limit: 4096 };
        let inside = container.clone();
        let told =
            self.engine.exec(&container, request, |pid| async move { processes::end_session(pid, &inside) }).await;
        told.map(|_| ()).map_err(|error| error.to_string())
    }
}

fn event(action: &'static str, user: &UserName, message: &str) -> NewEvent {
    NewEvent::by(&Actor::daemon()).did(action, user).of(user).detail(message.to_owned())
}

/// Ends a process and its descendants, within its container.
fn end_tree(root: ProcessId, container: &ContainerId) {
    let tree = tree_of(root, container);
    processes::signal(&tree, Signal::SIGTERM);
    tokio::spawn(async move {
        tokio::time::sleep(GRACE).await;
        let left: Vec<ProcessId> = tree.into_iter().filter(processes::is_alive).collect();
        processes::signal(&left, Signal::SIGKILL);
    });
}

/// The process and its descendants; empty if the PID has been reused.
fn tree_of(root: ProcessId, container: &ContainerId) -> Vec<ProcessId> {
    let all: HashMap<i32, Stat> = process::list().into_iter().filter_map(|pid| Some((pid, Stat::read(pid)?))).collect();
    if all.get(&root.pid).is_none_or(|stat| stat.id != root)
        || process::container_of(root.pid).as_ref() != Some(container)
    {
        return Vec::new();
    }
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let parent = tree[at].pid;
        tree.extend(all.values().filter(|stat| stat.parent == parent).map(|stat| stat.id));
        at += 1;
    }
    tree
}
