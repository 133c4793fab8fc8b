//! Reconciles rows and containers: after a kill, after an outage of the engine, after someone used `docker` by hand.
//!
//! | row | container | action |
//! | --- | --- | --- |
//! | `creating`, not in progress | exists | started if necessary, then `running` |
//! | `creating`, not in progress | missing | rolled back: `failed` |
//! | `creating`, by a restore | either | left to `checkpoint`, which knows whether the pod lives |
//! | `deleting` | either | removed, then `deleted` or `failed` |
//! | `running` | missing | `deleted`, with an event: it was removed outside pody |
//! | `deleted` or `failed` | exists, with the row's label and name | removed: the engine created it after our deadline |
//! | none | named like a pod of a known user | adopted |
//! | none | any other | not ours: left alone |
//!
//! A container counts as gone only after an inspect by its id returned 404.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{PodError, Pods, keys::Before, label};
use crate::{
    db::{NewEvent, Outcome},
    engine::{Container, Health},
    model::{
        ids::PodId,
        names::{UserName, parse_container_name},
        pod::{ContainerStatus, Pod, State},
        user::Actor,
    },
};

/// At least this often, and on every change of the inventory.
const INTERVAL: Duration = Duration::from_secs(1);

/// At most this often.
const PAUSE: Duration = Duration::from_millis(100);

impl Pods {
    /// Runs for the life of the daemon.
    pub async fn reconcile_loop(self, stop: CancellationToken) {
        let mut changes = self.engine.inventory().changes();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tokio::time::timeout(INTERVAL, changes.changed()) => {}
            }
            self.close_left_events().await;
            if self.engine.health() != Health::Up || self.engine.inventory().age().is_none() {
                continue;
            }
            if let Err(error) = self.settle_commits().await {
                tracing::warn!(%error, "cannot recover commits, will retry");
            }
            if let Err(error) = self.reconcile_step().await {
                tracing::warn!(%error, "reconciliation failed, will retry");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reconciles all that it can now. A failure of one pod does not hold up the others.
    pub async fn reconcile_step(&self) -> Result<(), PodError> {
        for pod in self.db.snapshot().pods.iter() {
            if pod.state == State::Running && self.container(pod).is_some() {
                continue;
            }
            let Some(_guard) = self.locks.try_lock(pod.id) else { continue };
            // Read again under the lock.
            let Some(pod) = self.db.snapshot().pods.get(pod.id).cloned() else { continue };
            if let Err(error) = self.settle(&pod).await {
                tracing::warn!(pod = pod.container_name, %error, "cannot reconcile the pod, will retry");
            }
        }
        self.settle_strangers().await
    }

    async fn settle(&self, pod: &Arc<Pod>) -> Result<(), PodError> {
        match pod.state {
            // A pod that is being restored must not be started from the beginning: see `checkpoint`.
            State::Creating if self.comes_back(pod).await? => Ok(()),
            State::Creating => self.settle_creating(Pod::clone(pod)).await,
            State::Deleting => {
                self.remove_container(pod).await?;
                Ok(self.finish_delete(Pod::clone(pod)).await?)
            }
            State::Running => self.settle_running(pod).await,
            State::Deleted | State::Failed => Ok(()),
        }
    }

    async fn comes_back(&self, pod: &Pod) -> Result<bool, PodError> {
        let id = pod.id;
        Ok(self.db.read(move |tx| tx.has_running_action(id)).await?)
    }

    async fn settle_creating(&self, pod: Pod) -> Result<(), PodError> {
        let found = self.engine.look_for(&pod.container_name).await?;
        let Some(container) = found.filter(|container| container.has_label(label::OP, &pod.op.to_string())) else {
            self.undo(pod, "pody stopped while it was creating the pod".to_owned()).await;
            return Ok(());
        };
        if container.status == ContainerStatus::Created {
            self.refresh_keys(&pod, &container.id, Before::Start).await;
            if let Err(error) = self.engine.start(&container.id).await {
                if error.is_ambiguous() {
                    return Err(error.into());
                }
                self.undo(pod, error.to_string()).await;
                return Ok(());
            }
        }
        tracing::info!(pod = pod.container_name, "finished an interrupted create");
        let _ = self.engine.look(&container.id).await;
        self.finish_create(pod, container.id.clone()).await?;
        Ok(())
    }

    async fn settle_running(&self, pod: &Pod) -> Result<(), PodError> {
        let Some(id) = &pod.container else { return Ok(()) };
        if self.engine.inventory().get(id).is_some() || self.engine.look(id).await?.is_some() {
            return Ok(());
        }
        tracing::warn!(pod = pod.container_name, "the container was removed outside pody");
        let mut row = pod.clone();
        row.state = State::Deleted;
        row.reason = Some("its container was removed outside pody".to_owned());
        self.write_urgent(move |tx| {
            let event = tx.insert_event(
                &NewEvent::by(&Actor::daemon()).did("pod.lost", &row.container_name).of(&row.user).pending(),
            )?;
            tx.update_pod(&row)?;
            tx.delete_ports(row.id)?;
            tx.end_workload(row.workload)?;
            tx.close_event(event, Outcome::Ok, row.reason.as_deref())
        })
        .await?;
        Ok(())
    }

    /// Containers that no live row names.
    async fn settle_strangers(&self) -> Result<(), PodError> {
        let rows = self.db.snapshot();
        let ours: HashSet<_> = rows.pods.iter().filter_map(|pod| pod.container.clone()).collect();
        let prefix = self.config.get().name_prefix.clone();
        // Listed once, and only when needed: the accounts may be on another node.
        let mut users: Option<HashSet<UserName>> = None;
        for container in self.engine.inventory().list() {
            if ours.contains(&container.id)
                || rows.pods.find(&container.name).is_some()
                || container.status == ContainerStatus::Removing
            {
                continue;
            }
            let Some((user, instance)) = parse_container_name(prefix.as_ref(), &container.name) else { continue };
            if self.is_leftover(&container).await? {
                tracing::info!(container = container.name, "removing the leftover container of a pod that is gone");
                self.engine.remove(&container.id).await?;
                continue;
            }
            if users.is_none() {
                let list = self.accounts.list_users().await.unwrap_or_default();
                users = Some(list.into_iter().map(|user| user.name).collect());
            }
            if users.as_ref().is_some_and(|users| users.contains(&user)) {
                // The list may be a moment old, and only an inspect has the details.
                if let Some(container) = self.engine.look(&container.id).await? {
                    self.adopt(user, instance, &container).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether the container was created for one of our rows that has ended meanwhile. Labels alone do not prove
    /// that: an image or a person may set them, so name and operation must match the row too.
    async fn is_leftover(&self, container: &Container) -> Result<bool, PodError> {
        let Some(Ok(id)) = container.labels.get(label::POD).map(|id| id.parse::<PodId>()) else { return Ok(false) };
        let row = self.db.read(move |tx| tx.find_pod(id)).await?;
        Ok(row.is_some_and(|row| {
            matches!(row.state, State::Deleted | State::Failed)
                && row.container_name == container.name
                && match &row.container {
                    Some(id) => id == &container.id,
                    // The row does not know of a container: then the operation decides.
                    None => container.has_label(label::OP, &row.op.to_string()),
                }
        }))
    }
}
