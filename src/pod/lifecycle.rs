//! Start, stop, restart: the engine keeps the state, we record the event.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::{AskedBy, PodError, Pods, keys::Before};
use crate::{
    db::{DbError, NewEvent},
    engine::{EngineError, LogOptions},
    model::{ids::ContainerId, names::PodRef, pod::RestartRule, user::Caller},
};

/// An action on a pod's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    Stop,
    Restart,
}

/// Deadline of an action, including the wait for the pod's lock; the grace period of a stop is added. The event is
/// closed after it, and the response still comes within 10 s.
const ACT: Duration = Duration::from_secs(8);

/// How long the inventory and the output are read after a successful action.
const LOOK: Duration = Duration::from_secs(1);

/// Lines and bytes of output shown after an action.
const SHOWN_LINES: u32 = 100;

const SHOWN_BYTES: usize = 64 << 10;

impl Pods {
    /// Performs the action and returns the end of the container's output.
    pub async fn act(&self, caller: &Caller, wanted: &PodRef, action: Action) -> Result<String, PodError> {
        self.act_for(AskedBy::Caller, caller, wanted, action).await
    }

    /// The same, also for maintenance.
    pub(crate) async fn act_for(
        &self,
        by: AskedBy,
        caller: &Caller,
        wanted: &PodRef,
        action: Action,
    ) -> Result<String, PodError> {
        let grace = match action {
            Action::Start => Duration::ZERO,
            Action::Stop | Action::Restart => Duration::from_secs(self.config.get().pod.stop_grace_seconds.into()),
        };
        if action != Action::Stop {
            self.find(caller, wanted)?;
            self.ensure_not_drained(&by)?;
        }
        let patience = ACT + grace;
        let deadline = Instant::now() + patience;
        let (_guard, pod) = self.lock(caller, wanted).await?;
        self.engine.ensure_up()?;
        let container = pod.container.clone().ok_or_else(|| PodError::NotFound(pod.container_name.clone()))?;
        let name = match action {
            Action::Start => "pod.start",
            Action::Stop => "pod.stop",
            Action::Restart => "pod.restart",
        };
        let (actor, row) = (by.actor(caller), pod.clone());
        let event = self
            .db
            .write(move |tx| {
                if action != Action::Stop {
                    by.ensure_not_drained(tx)?;
                }
                let event = NewEvent::by(&actor).did(name, &row.container_name).of(&row.user).pending();
                Ok::<_, PodError>(tx.insert_event(&event)?)
            })
            .await?;
        let done = timeout_at(deadline, self.act_on(&pod, &container, action)).await;
        let done = done.unwrap_or_else(|_| Err(EngineError::TimedOut(patience).into()));
        self.close_event(event, &done).await;
        done?;
        // So that the next read shows the result.
        let _ = timeout(LOOK, self.engine.look(&container)).await;
        Ok(self.last_output(&container).await)
    }

    async fn act_on(
        &self,
        pod: &crate::model::pod::Pod,
        container: &ContainerId,
        action: Action,
    ) -> Result<(), PodError> {
        let grace = self.config.get().pod.stop_grace_seconds;
        let done = match action {
            Action::Stop => self.engine.stop(container, grace).await,
            Action::Start => {
                self.refresh_keys(pod, container, Before::Start).await;
                let _turn = self.engine_turns.acquire().await;
                let started = self.engine.start(container).await;
                // A checkpoint that stopped it, or a restore that failed, has changed this.
                if started.is_ok() && !pod.adopted {
                    self.engine.set_restart(container, &RestartRule::always()).await?;
                }
                started
            }
            Action::Restart => {
                self.refresh_keys(pod, container, Before::Start).await;
                self.engine.restart(container, grace).await
            }
        };
        done.map_err(|error| match error {
            EngineError::NotFound(_) => PodError::NotFound(pod.container_name.clone()),
            EngineError::NoNetwork(_) => PodError::Network(pod.spec.network.clone()),
            error => error.into(),
        })
    }

    /// The end of the container's output, or nothing where the engine does not return it quickly.
    pub async fn last_output(&self, container: &ContainerId) -> String {
        let options = LogOptions { tail: Some(SHOWN_LINES), since: None, follow: false };
        let output = self.engine.tail(container, options, SHOWN_BYTES, LOOK).await;
        String::from_utf8_lossy(&output.unwrap_or_default()).into_owned()
    }

    /// Closes the events that a kill left open.
    pub async fn interrupt_events(&self) -> Result<(), DbError> {
        let open = self.db.write(|tx| tx.interrupt_events()).await?;
        if open > 0 {
            tracing::info!(open, "closed the events of killed operations as interrupted");
        }
        Ok(())
    }
}
