//! Commits: an image of a pod's files, tagged with the owner's name.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use fail::fail_point;

use super::{PodError, Pods, admission, label};
use crate::{
    db::{self, DbError, NewEvent, Outcome},
    model::{
        ids::OpId,
        names::{CommitTag, PodRef, UserName},
        user::{Actor, Caller},
    },
};

/// A committed image.
#[derive(Clone, Debug)]
pub struct Committed {
    pub image: String,
    pub pod: String,
}

/// Names the operation that committed an image: a commit whose response was lost is found by it.
const COMMIT_LABEL: &str = "pody.commit";

/// Commits in progress, and whether rows of interrupted ones may be left.
#[derive(Clone)]
pub(super) struct Commits {
    at_work: Arc<Mutex<HashSet<OpId>>>,
    unsettled: Arc<AtomicBool>,
}

impl Default for Commits {
    fn default() -> Self {
        // A kill before this start may have left some.
        Self { at_work: Arc::default(), unsettled: Arc::new(AtomicBool::new(true)) }
    }
}

/// A commit in progress; it ends when dropped.
struct CommitGuard(Commits, OpId);

impl Commits {
    fn begin(&self, op: OpId) -> CommitGuard {
        self.lock().insert(op);
        CommitGuard(self.clone(), op)
    }

    fn is_at_work(&self, op: OpId) -> bool {
        self.lock().contains(&op)
    }

    fn settle_later(&self) {
        self.unsettled.store(true, Ordering::Release);
    }

    fn take_unsettled(&self) -> bool {
        self.unsettled.swap(false, Ordering::AcqRel)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<OpId>> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CommitGuard {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Pods {
    pub async fn commit(
        &self,
        caller: &Caller,
        wanted: &PodRef,
        tag: Option<CommitTag>,
        message: Option<String>,
    ) -> Result<Committed, PodError> {
        let (_guard, pod) = self.lock(caller, wanted).await?;
        let container = pod.container.clone().ok_or_else(|| PodError::NotFound(pod.container_name.clone()))?;
        let repository = self.config.get().commit_name.0.clone();
        let image = match &tag {
            Some(tag) => format!("{repository}:{}-{tag}", pod.user),
            None => format!("{repository}:{}", pod.user),
        };
        let size = self.engine.writable_size(&container).await?;
        let op = OpId::generate();
        let _at_work = self.commits.begin(op);
        let event = self.reserve_commit(Actor::from(caller), &pod, image.clone(), op, size).await?;
        fail_point!("commit-reserved");
        let op = op.to_string();
        let mut labels: Vec<(&str, &str)> = label::ALL.iter().map(|key| (*key, "")).collect();
        labels.push((COMMIT_LABEL, &op));
        let mut done = self
            .engine
            .commit(&container, &image, message.as_deref(), pod.user.as_str(), &labels, pod.spec.init.as_ref())
            .await;
        fail_point!("commit-done");
        // The engine pauses the pod meanwhile: the next read shows it resumed.
        let _ = self.engine.look(&container).await;
        if let Err(error) = &done
            && error.is_ambiguous()
        {
            // The name was free, so an image of that name is this one.
            match self.engine.refresh_images().await {
                Ok(()) if self.is_image(&image) => done = Ok(()),
                Ok(()) => {}
                Err(_) => {
                    self.commits.settle_later();
                    return Err(done.expect_err("it is one").into());
                }
            }
        }
        let (outcome, detail) = match &done {
            Ok(()) => (Outcome::Ok, None),
            Err(error) => (Outcome::Failed, Some(error.to_string())),
        };
        let name = image.clone();
        let closed = self.db.write(move |tx| {
            tx.delete_commit(&name)?;
            tx.close_event(event, outcome, detail.as_deref())
        });
        if let Err::<_, DbError>(error) = closed.await {
            // The commit's outcome stays the same.
            tracing::warn!(image, %error, "cannot close a commit now, will retry");
            self.commits.settle_later();
        }
        done?;
        Ok(Committed { image, pod: pod.container_name.clone() })
    }

    /// Reserves the name, within the quota. Commits in progress count.
    async fn reserve_commit(
        &self,
        actor: Actor,
        pod: &crate::model::pod::Pod,
        image: String,
        op: OpId,
        size: u64,
    ) -> Result<i64, PodError> {
        let quota = self.accounts.quota(&pod.user);
        let existing = self.commits_of(&pod.user);
        let (user, object) = (pod.user.clone(), pod.container_name.clone());
        self.db
            .write(move |tx| {
                let mut held = existing;
                let under_way = tx.list_commits()?.into_iter().filter(|commit| commit.user == user);
                held.extend(under_way.map(|commit| commit.image));
                held.sort();
                held.dedup();
                if held.contains(&image) {
                    return Err(PodError::ImageExists(image));
                }
                admission::admit_commit(&quota, &held, size)?;
                let event = tx.insert_event(&NewEvent::by(&actor).did("pod.commit", object).of(&user).pending())?;
                tx.insert_commit(&db::Commit { image, user, op, event })?;
                Ok(event)
            })
            .await
    }

    /// Closes commits that are no longer in progress, after a kill or when the database could not store their end:
    /// the image exists, or it does not.
    pub(super) async fn settle_commits(&self) -> Result<(), PodError> {
        if !self.commits.take_unsettled() {
            return Ok(());
        }
        let settled = self.settle_left_commits().await;
        if settled.is_err() {
            self.commits.settle_later();
        }
        settled
    }

    async fn settle_left_commits(&self) -> Result<(), PodError> {
        self.engine.refresh_images().await?;
        let (images, commits) = (self.engine.inventory().images(), self.commits.clone());
        self.db
            .write(move |tx| {
                for commit in tx.list_commits()? {
                    if commits.is_at_work(commit.op) {
                        continue;
                    }
                    let there = images.iter().any(|image| image.tags.contains(&commit.image));
                    let outcome = if there { Outcome::Ok } else { Outcome::Interrupted };
                    tx.delete_commit(&commit.image)?;
                    tx.close_event(commit.event, outcome, None)?;
                }
                Ok(())
            })
            .await
    }

    fn is_image(&self, name: &str) -> bool {
        self.engine.inventory().images().iter().any(|image| image.tags.iter().any(|tag| tag == name))
    }

    /// Full names of a user's committed images.
    pub(super) fn commits_of(&self, user: &UserName) -> Vec<String> {
        let repository = self.config.get().commit_name.0.clone();
        let images = self.engine.inventory().images();
        let tags = images.iter().flat_map(|image| image.tags.iter());
        tags.filter(|tag| is_commit_of(&repository, user, tag)).cloned().collect()
    }
}

/// Whether an image's full name is that of a user's commit: `<repository>:<user>` or `<repository>:<user>-<tag>`.
pub(super) fn is_commit_of(repository: &str, user: &UserName, image: &str) -> bool {
    let tag = image.strip_prefix(repository).and_then(|rest| rest.strip_prefix(':'));
    let rest = tag.and_then(|tag| tag.strip_prefix(user.as_str()));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
