//! Pods that lost their GPUs: the driver works on the host, but the pod may not open its device.
//!
//! It happens to running containers. The best known cause: Docker uses the systemd cgroup driver, somebody runs
//! `systemctl daemon-reload`, and systemd rewrites the device rules of each container, without those that NVIDIA's
//! toolkit had added behind its back (NVIDIA/nvidia-container-toolkit, issue 48). Running programs continue; those
//! started later fail with "Failed to initialize NVML: Unknown Error". So each pod with GPUs is checked every `[gpu]
//! probe_seconds`. Its owner is notified when they are lost and when they are back: by an event, by a line in the pod's
//! log directory and on its terminals, and in all views of the pod.

use std::{
    collections::HashMap,
    os::unix::fs::FileTypeExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::Pods;
use crate::{
    db::{DbError, NewEvent},
    host::device::{self, Access},
    model::{
        gpu::Library,
        ids::{ContainerId, PodId},
        pod::{Pod, State},
        quantities::GpuSet,
        user::Actor,
    },
};

const LOST: &str = "pod.gpu-lost";

const BACK: &str = "pod.gpu-back";

/// What is known of the pods that were checked. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct GpuAccess(Arc<Mutex<HashMap<PodId, DeviceSnapshot>>>);

#[derive(Clone)]
struct DeviceSnapshot {
    /// PID of the first process at that time: another PID is another run of the pod.
    pid: i32,
    /// Why it has lost its GPUs; `None` if it has not.
    trouble: Option<String>,
}

impl GpuAccess {
    fn get(&self, pod: PodId) -> Option<DeviceSnapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&pod).cloned()
    }

    fn put(&self, pod: PodId, seen: DeviceSnapshot) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pod, seen);
    }

    fn retain(&self, is_there: impl Fn(PodId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|pod, _| is_there(*pod));
    }
}

impl Pods {
    /// Why the pod has lost its GPUs, if it has.
    pub fn gpu_trouble(&self, pod: &Pod) -> Option<String> {
        let (_, pid) = self.with_gpus(pod)?;
        self.gpu_access.get(pod.id).filter(|seen| seen.pid == pid)?.trouble
    }

    /// Runs for the life of the daemon.
    pub async fn watch_gpu_access(self, stop: CancellationToken) {
        loop {
            let pause = Duration::from_secs_f64(self.config.get().gpu.probe_seconds.max(0.1));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let device = self.config.get().gpu.control_device.clone();
            // Where the host itself has no working GPUs, the pods did not lose theirs.
            if !matches!(self.gpus.snapshot().library, Library::Working { .. }) || !is_device(&device) {
                continue;
            }
            let rows = self.db.snapshot();
            self.gpu_access.retain(|pod| rows.pods.get(pod).is_some());
            for pod in rows.pods.iter() {
                let Some((container, pid)) = self.with_gpus(pod) else { continue };
                let access = device::ask(&container, pid, &device).await;
                if let Err(error) = self.note_access(pod, pid, access, &device).await {
                    tracing::warn!(pod = pod.container_name, %error, "cannot record the state of its GPUs, will retry");
                }
            }
        }
    }

    /// Container and first process of a running pod that was given GPUs.
    fn with_gpus(&self, pod: &Pod) -> Option<(ContainerId, i32)> {
        let container =
            self.container(pod).filter(|container| pod.state == State::Running && container.status.is_running())?;
        let detail = container.detail.as_ref().filter(|detail| detail.pid > 0 && detail.gpus != GpuSet::none())?;
        Some((container.id.clone(), detail.pid))
    }

    async fn note_access(&self, pod: &Pod, pid: i32, access: Access, device: &Path) -> Result<(), DbError> {
        let trouble = match access {
            Access::Untold => return Ok(()),
            Access::Open => None,
            Access::Denied | Access::Missing => Some(trouble(pod, access, device)),
        };
        let was_lost = match self.gpu_access.get(pod.id) {
            Some(seen) => seen.trouble.is_some(),
            // Reported before the daemon was restarted.
            None => self.was_loss_recorded(pod).await?,
        };
        if was_lost != trouble.is_some() {
            let (action, level, message) = match &trouble {
                Some(trouble) => (LOST, "warning", trouble.clone()),
                None => (BACK, "info", "this pod can open its GPUs again".to_owned()),
            };
            tracing::warn!(pod = pod.container_name, message, "the GPU access of a pod changed");
            let event = NewEvent::by(&Actor::daemon()).did(action, &pod.container_name).of(&pod.user);
            self.db.insert_event(event.detail(message.clone())).await?;
            self.gpu_access.put(pod.id, DeviceSnapshot { pid, trouble });
            self.tell(pod.id, level, &message).await;
        } else {
            self.gpu_access.put(pod.id, DeviceSnapshot { pid, trouble });
        }
        Ok(())
    }

    /// Whether the last recorded event about its GPUs is their loss.
    async fn was_loss_recorded(&self, pod: &Pod) -> Result<bool, DbError> {
        let (user, object, since) = (pod.user.clone(), pod.container_name.clone(), pod.created_at);
        let last = self.db.read(move |tx| tx.last_event_of(&user, &object, [LOST, BACK], since)).await?;
        Ok(last.is_some_and(|action| action == LOST))
    }
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_char_device())
}

fn trouble(pod: &Pod, access: Access, device: &Path) -> String {
    let (device, name) = (device.display(), &pod.instance);
    match access {
        Access::Missing => format!(
            "this pod has lost its GPUs: the driver works on the host, but there is no {device} in the pod; either the NVIDIA \
             Container Toolkit did not run when the pod started, or the file was removed in it; run `pody restart {name}`; if \
             that does not help, ask an admin to run `pody doctor`"
        ),
        Access::Open | Access::Denied | Access::Untold => format!(
            "this pod has lost its GPUs: the driver works on the host, but the pod may no longer open {device}, so new \
             programs in it end with \"Failed to initialize NVML: Unknown Error\"; the usual cause is `systemctl daemon-reload` \
             on a host whose Docker uses the systemd cgroup driver; `pody restart {name}` restores them, and an admin prevents \
             it with `nvidia-ctk system create-dev-char-symlinks --create-all` or with Docker's cgroupfs driver"
        ),
    }
}
