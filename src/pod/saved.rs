//! Pods that are restored from a checkpoint: created by the usual steps, with the current quota, ports and limits.

use std::path::PathBuf;

use tokio::sync::OwnedMutexGuard;

use super::{
    PodError, Pods,
    create::{NewPod, make_directories},
    images::AllowedImage,
    label,
};
use crate::{
    db::DbError,
    engine::EngineError,
    host::blocking::off_thread,
    model::{
        ids::{ContainerId, PodId},
        names::{ImageRef, InstanceName, UserName},
        pod::{Init, Pod, PodSpec, State},
        quantities::GpuSet,
        user::Actor,
    },
};

impl Pods {
    /// The pod's lock, if it is free.
    pub(crate) fn try_lock(&self, id: PodId) -> Option<OwnedMutexGuard<()>> {
        self.locks.try_lock(id)
    }

    /// The spec of a saved pod under the current rules: directories, network and limits are the current ones, the rest
    /// is
    /// original.
    pub(crate) async fn restored_spec(
        &self,
        owner: &UserName,
        instance: &InstanceName,
        saved: &PodSpec,
        image: ImageRef,
    ) -> Result<(PodSpec, AllowedImage), PodError> {
        let allowed = AllowedImage {
            name: image.to_string(),
            ports: saved.ports.iter().map(|port| port.container).collect(),
            new_privileges: saved.new_privileges,
            // The original program and arguments are taken from the saved pod below.
            io_uring: saved.init.as_ref().is_some_and(|init| init.io_uring),
            entrypoint: Vec::new(),
            command: Vec::new(),
        };
        let wanted = NewPod { owner: owner.clone(), instance: instance.clone(), image, gpus: None };
        let today = self.spec(&wanted, &allowed).await?;
        let gpus = if saved.gpus == Some(GpuSet::none()) { saved.gpus.clone() } else { today.gpus.clone() };
        let init = match &saved.init {
            Some(init) => {
                let (ours, program) = (self.init.clone(), init.program.clone());
                Some(Init { program: off_thread(move || ours.same_here(&program)).await?, ..init.clone() })
            }
            None => None,
        };
        Ok((PodSpec { hostname: saved.hostname.clone(), init, gpus, ..today }, allowed))
    }

    /// The path of our init program on the host.
    pub(crate) fn init_program(&self) -> Result<PathBuf, PodError> {
        self.init.program()
    }

    /// Records the pod as one that is being created, unless `check` refuses what it is granted.
    pub(crate) async fn reserve_restored<E>(
        &self,
        actor: Actor,
        owner: UserName,
        instance: InstanceName,
        image: AllowedImage,
        spec: PodSpec,
        check: impl FnOnce(&PodSpec) -> Result<(), E> + Send + 'static,
    ) -> Result<(OwnedMutexGuard<()>, Pod), E>
    where
        E: From<PodError> + From<DbError> + Send + 'static,
    {
        self.engine.ensure_up().map_err(PodError::from)?;
        let id = PodId::generate();
        let guard = self.locks.lock(id).await;
        let image_name = image.name.parse().map_err(|_| PodError::NotYourImage(image.name.clone()))?;
        let wanted = NewPod { owner, instance, image: image_name, gpus: None };
        let pod = self.reserve((actor, "pod.restore"), id, wanted, image, spec, check).await?;
        Ok((guard, pod))
    }

    /// Creates the pod's container without starting it.
    pub(crate) async fn make_restored(&self, pod: &mut Pod) -> Result<ContainerId, PodError> {
        make_directories(&mut pod.spec).await?;
        let _turn = self.engine_turns.acquire().await;
        self.make_container(pod).await
    }

    /// Removes the container again and gives the pod other ports: another program uses this one.
    pub(crate) async fn exchange_port(
        &self,
        pod: &mut Pod,
        container: &ContainerId,
        port: u16,
    ) -> Result<(), PodError> {
        self.engine.remove(container).await?;
        self.change_ports(pod, port).await
    }

    /// The container that was created for a pod whose row does not name it yet.
    pub(crate) async fn container_made_for(&self, pod: &Pod) -> Result<Option<ContainerId>, EngineError> {
        if pod.container.is_some() {
            return Ok(pod.container.clone());
        }
        let found = self.engine.look_for(&pod.container_name).await?;
        Ok(found.filter(|found| found.has_label(label::OP, &pod.op.to_string())).map(|found| found.id.clone()))
    }

    /// From here on the pod exists.
    pub(crate) async fn finish_restored(&self, pod: Pod, container: ContainerId) -> Result<(), PodError> {
        if pod.state == State::Creating {
            self.finish_create(pod, container).await?;
        }
        Ok(())
    }

    /// Removes all traces of a pod that was not restored.
    pub(crate) async fn undo_restored(&self, pod: Pod, reason: String) {
        if pod.state == State::Creating {
            self.undo(pod, reason).await;
        }
    }
}
