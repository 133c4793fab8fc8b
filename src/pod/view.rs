//! Views of pods. Nothing here calls the engine: rows and inventory are in memory.

use std::{sync::Arc, time::Duration};

use super::{PodError, Pods, create::shown_gpus};
use crate::{
    engine::Detail,
    host::cgroup::{Cgroup, Sample},
    model::{
        names::{PodRef, UserName},
        pod::{ContainerStatus, Pod, PodStatus, State},
        user::Caller,
        view::{
            pod::{PodStats, PodView},
            schedule::ScheduleView,
        },
    },
};

/// Time between the two samples that show how many cores a pod uses.
const CPU_WINDOW: Duration = Duration::from_millis(100);

impl Pods {
    /// Pods of one user that were created, oldest first.
    pub fn list(&self, user: &UserName) -> Vec<Arc<Pod>> {
        let rows = self.db.snapshot();
        rows.pods.of_user(user).iter().filter(|pod| pod.state != State::Creating).cloned().collect()
    }

    /// Everybody's pods, by name.
    pub fn list_all(&self) -> Vec<Arc<Pod>> {
        self.db.snapshot().pods.iter().filter(|pod| pod.state != State::Creating).cloned().collect()
    }

    /// Waits for the engine's first container list after a start, so that the first read is not blind.
    pub async fn wait_ready(&self) {
        self.engine.wait_ready(super::FIRST_LIST).await;
    }

    pub fn view(&self, pod: &Pod) -> PodView {
        let container = self.container(pod);
        let detail = container.as_ref().and_then(|container| container.detail.as_ref());
        let signed = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1);
        let ports = match &container {
            Some(container) if !container.ports.is_empty() => &container.ports,
            Some(_) if self.status(pod) == PodStatus::Container(ContainerStatus::Exited) => &Vec::new(),
            _ => &pod.spec.ports,
        };
        PodView {
            instance: pod.instance.clone(),
            container_id: pod.container.as_ref().map(|id| id.short().to_owned()),
            name: pod.container_name.clone(),
            status: self.status(pod),
            image: pod.spec.image.clone(),
            networks: container.as_ref().map(|container| container.networks.clone()).unwrap_or_default(),
            port_mapping: ports.iter().map(|port| format!("{}:{}", port.host, port.container)).collect(),
            gpu_ids: match detail {
                Some(detail) => detail.gpus.ids(),
                None => shown_gpus(pod.spec.gpus.as_ref()),
            },
            memory_limit: signed(detail.map_or(pod.spec.memory, |detail| detail.memory)),
            shm_size: signed(detail.map_or(pod.spec.shm, |detail| detail.shm)),
            user: pod.user.clone(),
            created_at: pod.created_at.to_string(),
            gpu_trouble: self.gpu_trouble(pod),
            schedule: self.db.snapshot().upkeep.schedules.get(&pod.id).map(ScheduleView::from),
        }
    }

    /// Details of the pod's container from its inspect.
    pub fn detail(&self, pod: &Pod) -> Option<Detail> {
        self.container(pod)?.detail.clone()
    }

    fn status(&self, pod: &Pod) -> PodStatus {
        match pod.state {
            State::Creating => PodStatus::Creating,
            State::Deleting => PodStatus::Deleting,
            State::Running | State::Deleted | State::Failed => {
                let container = self.container(pod);
                container.map_or(PodStatus::Unknown, |container| PodStatus::Container(container.status.clone()))
            }
        }
    }

    /// A sample of the pod's cgroup; `None` when the pod does not run.
    pub fn sample(&self, pod: &Pod) -> Option<Sample> {
        let pid = self.container(pod)?.detail.as_ref()?.pid;
        Cgroup::of_process(pid)?.read()
    }

    /// Samples the pod's cgroup twice, [`CPU_WINDOW`] apart.
    pub async fn stats(&self, caller: &Caller, wanted: &PodRef) -> Result<PodStats, PodError> {
        let pod = self.find(caller, wanted)?;
        self.running(&pod).await?;
        let not_running = || PodError::NotRunning {
            pod: pod.container_name.clone(),
            status: ContainerStatus::Exited.to_string(),
            next: "start it with `pody start`",
        };
        let first = self.sample(&pod).ok_or_else(not_running)?;
        tokio::time::sleep(CPU_WINDOW).await;
        let last = self.sample(&pod).ok_or_else(not_running)?;
        let view = self.view(&pod);
        Ok(PodStats {
            instance: pod.instance.clone(),
            cpu_seconds: last.cpu_seconds,
            cpu_cores: (last.cpu_seconds - first.cpu_seconds).max(0.0) / CPU_WINDOW.as_secs_f64(),
            memory_used: last.memory_bytes,
            memory_limit: view.memory_limit,
            pids: last.pids,
            disk_read: last.disk.map(|disk| disk.read),
            disk_written: last.disk.map(|disk| disk.written),
            pids_limit: pod.spec.pids.and_then(|n| i64::try_from(n).ok()).unwrap_or(-1),
        })
    }
}
