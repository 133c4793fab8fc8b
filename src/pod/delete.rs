//! Deleting a pod, and rolling back one that could not be created: both are the state `deleting`; only a rollback has a
//! reason.

use std::time::Duration;

use fail::fail_point;

use super::{PodError, Pods, label};
use crate::{
    db::{DbError, NewEvent, Outcome},
    engine::EngineError,
    model::{
        ids::OpId,
        names::{PodRef, UserName},
        pod::{Pod, State},
        user::{Actor, Caller},
    },
};

/// Deadline of a delete, including the wait for the pod's lock. Reconciliation finishes what has begun by then.
const DELETE: Duration = Duration::from_secs(9);

/// How long a failed create waits for its rollback; reconciliation finishes it without a deadline.
const UNDO: Duration = Duration::from_secs(2);

impl Pods {
    /// Deletes a pod with all its files; its volumes stay. Returns the container's name.
    pub async fn delete(&self, caller: &Caller, wanted: &PodRef) -> Result<String, PodError> {
        let deleted = async {
            let (_guard, pod) = self.lock(caller, wanted).await?;
            self.delete_locked(Actor::from(caller), Pod::clone(&pod)).await?;
            Ok(pod.container_name.clone())
        };
        tokio::time::timeout(DELETE, deleted).await.map_err(|_| EngineError::TimedOut(DELETE))?
    }

    /// Deletes all pods of a user. Returns the containers' names.
    pub async fn delete_all(&self, actor: Actor, user: &UserName) -> Result<Vec<String>, PodError> {
        let mut deleted = Vec::new();
        for pod in self.db.snapshot().pods.of_user(user).to_vec() {
            let _guard = self.locks.lock(pod.id).await;
            let Some(pod) = self.db.snapshot().pods.get(pod.id).cloned() else { continue };
            if pod.state == State::Running {
                self.delete_locked(actor.clone(), Pod::clone(&pod)).await?;
                deleted.push(pod.container_name.clone());
            }
        }
        Ok(deleted)
    }

    async fn delete_locked(&self, actor: Actor, mut pod: Pod) -> Result<(), PodError> {
        self.engine.ensure_up()?;
        pod.state = State::Deleting;
        pod.op = OpId::generate();
        let mut row = pod;
        let pod = self
            .write_urgent(move |tx| {
                row.event = tx.insert_event(
                    &NewEvent::by(&actor).did("pod.delete", &row.container_name).of(&row.user).pending(),
                )?;
                tx.update_pod(&row)?;
                Ok(row.clone())
            })
            .await?;
        fail_point!("delete-written");
        self.remove_container(&pod).await?;
        fail_point!("delete-removed");
        self.finish_delete(pod).await?;
        Ok(())
    }

    /// Removes all traces of a pod that was not created. Reconciliation does later what cannot be done now.
    pub(super) async fn undo(&self, mut pod: Pod, reason: String) {
        tracing::warn!(pod = pod.container_name, reason, "pod not created, rolling back");
        pod.state = State::Deleting;
        pod.reason = Some(reason);
        let row = pod.clone();
        let undone = async {
            self.write_urgent(move |tx| tx.update_pod(&row)).await?;
            fail_point!("undo-written", |_| Ok(()));
            self.remove_container(&pod).await?;
            self.finish_delete(pod.clone()).await?;
            Ok::<_, PodError>(())
        };
        match tokio::time::timeout(UNDO, undone).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(pod = pod.container_name, %error, "rollback failed, will retry"),
            Err(_) => tracing::warn!(pod = pod.container_name, "rollback takes too long, will retry"),
        }
    }

    /// Removes the container of a row, known by its id or by its name and the label of its pod.
    pub(super) async fn remove_container(&self, pod: &Pod) -> Result<(), EngineError> {
        if let Some(id) = &pod.container {
            return self.engine.remove(id).await;
        }
        match self.engine.look_for(&pod.container_name).await? {
            Some(found) if found.has_label(label::POD, &pod.id.to_string()) => self.engine.remove(&found.id).await,
            _ => Ok(()),
        }
    }

    /// The last step of a deletion: frees the name and the ports.
    pub(super) async fn finish_delete(&self, mut pod: Pod) -> Result<(), DbError> {
        let outcome = if pod.reason.is_some() { Outcome::Failed } else { Outcome::Ok };
        pod.state = if pod.reason.is_some() { State::Failed } else { State::Deleted };
        self.write_urgent(move |tx| {
            tx.update_pod(&pod)?;
            tx.delete_ports(pod.id)?;
            tx.end_workload(pod.workload)?;
            tx.close_event(pod.event, outcome, pod.reason.as_deref())
        })
        .await
    }

    /// A write that frees space: with the disk full it may use the ballast.
    pub(super) async fn write_urgent<T: Send + 'static>(
        &self,
        work: impl FnMut(&crate::db::Tx) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let work = std::sync::Arc::new(std::sync::Mutex::new(work));
        let attempt = || {
            let work = work.clone();
            self.db.write(move |tx| (work.lock().unwrap_or_else(std::sync::PoisonError::into_inner))(tx))
        };
        match attempt().await {
            Err(DbError::Full) if self.db.drop_ballast() => attempt().await,
            other => other,
        }
    }
}
