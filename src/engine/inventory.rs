//! Every container and image of the engine, in memory.
//!
//! Events are hints; the list is the truth. An event only marks its container as dirty, and a relist every [`RELIST`]
//! finds what no event reported. Each inspection of a container takes a number when it *starts*, and an older one never
//! overwrites a newer one. Our own writes inspect the container at once, so later readers see their result.
//!
//! One container whose inspect hangs stays as the list shows it and does not block the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
};
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Container, Engine, EngineError, Health, Image};
use crate::model::ids::ContainerId;

/// Time between two relists: a change that no event reported is seen within it.
const RELIST: Duration = Duration::from_secs(1);

/// Time that a list or an inspect may take before the engine counts as hung.
const LIST_DEADLINE: Duration = Duration::from_secs(3);

/// How long events are collected before the containers are inspected.
const GATHER: Duration = Duration::from_millis(10);

/// Containers that are inspected at a time.
const LOOKS: usize = 8;

/// Images change rarely, and events report it; they are relisted this often anyway.
const IMAGE_RELIST: Duration = Duration::from_secs(30);

struct Entry {
    container: Arc<Container>,
    seen: u64,
}

#[derive(Default)]
struct Containers {
    by_id: HashMap<ContainerId, Entry>,
    /// When containers were found to be gone, as a tick and as a time; kept for as long as an older inspection may be
    /// under way.
    gone: HashMap<ContainerId, (u64, Instant)>,
    /// When the newest complete list was made.
    listed: Option<(u64, Instant)>,
}

impl Containers {
    /// Whether an inspection that began after this tick found the container gone.
    fn is_gone_since(&self, id: &ContainerId, tick: u64) -> bool {
        self.gone.get(id).is_some_and(|(gone, _)| *gone > tick)
    }
}

#[derive(Default)]
struct Shared {
    clock: AtomicU64,
    containers: Mutex<Containers>,
    images: ArcSwap<Vec<Image>>,
    images_listed: AtomicBool,
    dirty: Mutex<Dirty>,
    dirtied: Notify,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Dirty {
    containers: HashSet<ContainerId>,
    images: bool,
}

/// The engine's containers and images. Cheap to clone.
#[derive(Clone, Default)]
pub struct Inventory(Arc<Shared>);

impl Inventory {
    pub fn get(&self, id: &ContainerId) -> Option<Arc<Container>> {
        self.lock().by_id.get(id).map(|entry| entry.container.clone())
    }

    pub fn find_by_name(&self, name: &str) -> Option<Arc<Container>> {
        self.lock().by_id.values().map(|entry| &entry.container).find(|c| c.name == name).cloned()
    }

    pub fn list(&self) -> Vec<Arc<Container>> {
        self.lock().by_id.values().map(|entry| entry.container.clone()).collect()
    }

    /// Host ports that containers use, ours or not.
    pub fn used_ports(&self) -> HashSet<u16> {
        let containers = self.lock();
        let ports = containers.by_id.values().flat_map(|entry| {
            let bound = entry.container.detail.iter().flat_map(|detail| &detail.host_config.port_bindings);
            entry.container.ports.iter().chain(bound).map(|port| port.host)
        });
        ports.collect()
    }

    pub fn images(&self) -> Arc<Vec<Image>> {
        self.0.images.load_full()
    }

    /// Time since the last complete list; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.lock().listed.map(|(_, at)| at.elapsed())
    }

    /// Whether containers and images have been listed at least once.
    pub fn is_ready(&self) -> bool {
        self.age().is_some() && self.0.images_listed.load(Ordering::Acquire)
    }

    /// A number that grows with each inspection. What was written before a list that started after `tick()` is in that
    /// list.
    pub fn tick(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// When the newest complete list began, in [`Self::tick`]s.
    pub fn listed_at(&self) -> u64 {
        self.lock().listed.map_or(0, |(tick, _)| tick)
    }

    /// Notifies of each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Containers> {
        self.0.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Applies an inspection that began at `tick`; `None` = the container was not there.
    fn apply(&self, tick: u64, id: &ContainerId, look: Option<Container>) {
        let mut containers = self.lock();
        if containers.by_id.get(id).is_some_and(|entry| entry.seen > tick) || containers.is_gone_since(id, tick) {
            return;
        }
        match look {
            Some(container) => {
                containers.by_id.insert(id.clone(), Entry { container: Arc::new(container), seen: tick });
            }
            None => {
                containers.by_id.remove(id);
                containers.gone.insert(id.clone(), (tick, Instant::now()));
            }
        }
        drop(containers);
        self.announce();
    }

    /// Applies a list that began at `tick`, and returns the containers that need an inspect of their own.
    fn apply_list(&self, tick: u64, list: Vec<Container>) -> Vec<ContainerId> {
        let mut containers = self.lock();
        let present: HashSet<&ContainerId> = list.iter().map(|c| &c.id).collect();
        let before = containers.by_id.len();
        containers.by_id.retain(|id, entry| entry.seen > tick || present.contains(id));
        let mut changed = containers.by_id.len() != before || containers.listed.is_none();
        containers.gone.retain(|_, (gone, at)| *gone > tick || at.elapsed() < 2 * LIST_DEADLINE);
        let mut look = Vec::new();
        for summary in list {
            if containers.is_gone_since(&summary.id, tick) {
                continue;
            }
            match containers.by_id.get_mut(&summary.id) {
                Some(entry) if entry.seen > tick => {}
                Some(entry) if entry.container.detail.is_some() && entry.container.agrees_with(&summary) => {
                    entry.seen = tick
                }
                known => {
                    look.push(summary.id.clone());
                    // Until it is inspected, the list's data count, together with what was known of the rest.
                    let detail = known.as_ref().and_then(|entry| entry.container.detail.clone());
                    let container = Arc::new(Container { detail, ..summary });
                    containers.by_id.insert(container.id.clone(), Entry { container, seen: tick });
                    changed = true;
                }
            }
        }
        containers.listed = Some((tick, Instant::now()));
        drop(containers);
        if changed {
            self.announce();
        }
        look
    }

    fn mark(&self, id: Option<ContainerId>) {
        let mut dirty = self.0.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            Some(id) => {
                dirty.containers.insert(id);
            }
            None => dirty.images = true,
        }
        self.0.dirtied.notify_one();
    }

    fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut *self.0.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// Inspects one container now. The result is in the inventory when this returns.
    pub async fn look(&self, id: &ContainerId) -> Result<Option<Arc<Container>>, EngineError> {
        let tick = self.inventory.tick();
        let looked = self
            .call(LIST_DEADLINE, |docker| {
                let id = id.clone();
                async move { docker.inspect_container(id.as_str(), None::<InspectContainerOptions>).await }
            })
            .await;
        match looked {
            Ok(inspect) => self.inventory.apply(tick, id, Container::from_inspect(inspect)),
            Err(EngineError::NotFound(_)) => self.inventory.apply(tick, id, None),
            Err(error) => return Err(error),
        }
        Ok(self.inventory.get(id))
    }

    /// Looks for a container by its name.
    pub async fn look_for(&self, name: &str) -> Result<Option<Arc<Container>>, EngineError> {
        let tick = self.inventory.tick();
        let looked = self
            .call(LIST_DEADLINE, |docker| {
                let name = name.to_owned();
                async move { docker.inspect_container(&name, None::<InspectContainerOptions>).await }
            })
            .await;
        let found = match looked {
            // The engine also matches a name as a prefix of an id; only an exact name counts.
            Ok(inspect) => Container::from_inspect(inspect).filter(|container| container.name == name),
            Err(EngineError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(found.map(|container| {
            let id = container.id.clone();
            self.inventory.apply(tick, &id, Some(container.clone()));
            Arc::new(container)
        }))
    }

    /// Waits for the first lists, at most `limit`; does not wait for an engine that is down.
    pub async fn wait_ready(&self, limit: Duration) {
        if self.inventory.is_ready() {
            return;
        }
        let (mut changed, mut health) = (self.inventory.changes(), self.health.subscribe());
        let ready = async { while !self.inventory.is_ready() && changed.changed().await.is_ok() {} };
        tokio::select! {
            () = ready => {}
            _ = health.wait_for(|health| matches!(health, Health::Down(_))) => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    /// Keeps the inventory and the health current until `stop` is cancelled. Runs for the life of the daemon.
    pub async fn watch(self, stop: CancellationToken) {
        let mut events: Option<tokio::task::JoinHandle<()>> = None;
        let mut images_listed: Option<Instant> = None;
        let looks = Arc::new(tokio::sync::Semaphore::new(LOOKS));
        loop {
            match self.relist(&looks).await {
                Ok(()) => {
                    self.set_health(Health::Up);
                    if events.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                        events = Some(tokio::spawn(self.clone().drain_events()));
                        // The next lists show what happened while no stream was open.
                        images_listed = None;
                    }
                }
                Err(error) => self.set_health(Health::Down(error.to_string())),
            }
            if images_listed.is_none_or(|at| at.elapsed() > IMAGE_RELIST) {
                self.inventory.mark(None);
            }
            let next = tokio::time::sleep(RELIST);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = stop.cancelled() => {
                        if let Some(task) = events {
                            task.abort();
                        }
                        return;
                    }
                    () = &mut next => break,
                    () = self.inventory.0.dirtied.notified() => tokio::time::sleep(GATHER).await,
                }
                let dirty = self.inventory.take_dirty();
                for id in dirty.containers {
                    self.look_later(&looks, id);
                }
                if dirty.images && self.health() == Health::Up {
                    match self.refresh_images().await {
                        Ok(()) => images_listed = Some(Instant::now()),
                        Err(error) => tracing::warn!(%error, "could not list the images"),
                    }
                }
            }
        }
    }

    fn set_health(&self, health: Health) {
        self.health.send_if_modified(|current| {
            if *current == health {
                return false;
            }
            match &health {
                Health::Down(why) if !matches!(current, Health::Down(_)) => tracing::error!(why, "Docker is down"),
                Health::Up if matches!(current, Health::Down(_)) => tracing::info!("Docker is back"),
                _ => {}
            }
            *current = health;
            true
        });
    }

    /// Inspects a container in the background, at most [`LOOKS`] at a time.
    fn look_later(&self, looks: &Arc<tokio::sync::Semaphore>, id: ContainerId) {
        let (engine, looks) = (self.clone(), looks.clone());
        tokio::spawn(async move {
            let Ok(_turn) = looks.acquire().await else { return };
            if let Err(error) = engine.look(&id).await {
                tracing::debug!(container = id.short(), %error, "could not inspect a container");
            }
        });
    }

    async fn relist(&self, looks: &Arc<tokio::sync::Semaphore>) -> Result<(), EngineError> {
        let docker = self.ensure_connected().await?;
        let tick = self.inventory.tick();
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let listed = tokio::time::timeout(LIST_DEADLINE, docker.list_containers(Some(options))).await;
        let list = listed.map_err(|_| EngineError::Unavailable("it does not list its containers".to_owned()))??;
        let list: Vec<Container> = list.into_iter().filter_map(Container::from_summary).collect();
        let look = self.inventory.apply_list(tick, list);
        if self.health() != Health::Up {
            self.set_health(Health::Up);
        }
        for id in look {
            self.look_later(looks, id);
        }
        Ok(())
    }

    /// Reads the engine's events as fast as they come and only marks what is dirty: a reader that stalls slows the
    /// engine.
    async fn drain_events(self) {
        let Some(docker) = self.docker.load_full() else { return };
        let filters: HashMap<&str, Vec<&str>> = HashMap::from([
            ("type", vec!["container", "image"]),
            (
                "event",
                vec![
                    "create", "start", "die", "stop", "kill", "pause", "unpause", "destroy", "rename", "update",
                    "restart", "oom", "tag", "untag", "delete", "import", "load", "pull", "commit",
                ],
            ),
        ]);
        // Between two streams another engine may have taken its place.
        self.facts.store(None);
        let mut events = docker.events(Some(EventsOptionsBuilder::new().filters(&filters).build()));
        while let Some(Ok(event)) = events.next().await {
            let is_image = event.typ == Some(bollard::models::EventMessageTypeEnum::IMAGE);
            let id = event.actor.and_then(|actor| actor.id).and_then(|id| id.parse().ok());
            match (is_image, id) {
                (true, _) => self.inventory.mark(None),
                (false, Some(id)) => self.inventory.mark(Some(id)),
                (false, None) => {}
            }
            if event.action.as_deref() == Some("commit") {
                self.inventory.mark(None);
            }
        }
        self.facts.store(None);
        tracing::debug!("the engine's event stream ended");
    }

    /// Lists the images now.
    pub async fn refresh_images(&self) -> Result<(), EngineError> {
        let options = ListImagesOptionsBuilder::new().build();
        let list = self.call(LIST_DEADLINE, |docker| async move { docker.list_images(Some(options)).await }).await?;
        // An image never changes under its id, so only new ones are inspected.
        let known: BTreeMap<String, Image> =
            self.inventory.images().iter().map(|i| (i.id.clone(), i.clone())).collect();
        let mut images = Vec::new();
        for summary in list {
            let mut tags: Vec<String> = summary.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect();
            tags.sort();
            let image = match known.get(&summary.id) {
                Some(image) => Image { tags, ..image.clone() },
                None => {
                    let id = summary.id.clone();
                    let looked =
                        self.call(LIST_DEADLINE, |docker| async move { docker.inspect_image(&id).await }).await;
                    let Ok(inspect) = looked else { continue };
                    let config = inspect.config.unwrap_or_default();
                    Image {
                        id: summary.id,
                        tags,
                        comment: inspect.comment.unwrap_or_default(),
                        size: inspect.size.unwrap_or(summary.size),
                        exposed_ports: config.exposed_ports.unwrap_or_default().into_iter().collect(),
                        created: inspect.created.unwrap_or_default(),
                        entrypoint: config.entrypoint.unwrap_or_default(),
                        command: config.cmd.unwrap_or_default(),
                    }
                }
            };
            images.push(image);
        }
        self.inventory.0.images.store(Arc::new(images));
        self.inventory.0.images_listed.store(true, Ordering::Release);
        self.inventory.announce();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pod::ContainerStatus;

    fn container(id: &ContainerId) -> Container {
        Container {
            id: id.clone(),
            name: "a".to_owned(),
            status: ContainerStatus::Running,
            image: String::new(),
            labels: HashMap::new(),
            networks: Vec::new(),
            ports: Vec::new(),
            detail: None,
        }
    }

    #[test]
    fn a_slow_inspect_does_not_bring_back_a_container_that_a_later_one_found_gone() {
        let inventory = Inventory::default();
        let id: ContainerId = "a".repeat(64).parse().unwrap();
        inventory.apply(inventory.tick(), &id, Some(container(&id)));
        let (slow, slow_list) = (inventory.tick(), inventory.tick());
        inventory.apply(inventory.tick(), &id, None);
        inventory.apply(slow, &id, Some(container(&id)));
        inventory.apply_list(slow_list, vec![container(&id)]);
        assert!(inventory.find_by_name("a").is_none());
        // Nor after a list without it.
        inventory.apply_list(inventory.tick(), Vec::new());
        inventory.apply(slow, &id, Some(container(&id)));
        assert!(inventory.get(&id).is_none());
        // A list that began later shows it again.
        inventory.apply_list(inventory.tick(), vec![container(&id)]);
        assert!(inventory.get(&id).is_some());
    }
}
