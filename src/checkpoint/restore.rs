//! Bringing a pod back: see the table in [`super::phase`].
//!
//! [`super::target`] has decided by then what is brought back and where.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fail::fail_point;
use tokio::sync::OwnedMutexGuard;

use super::{
    Action, AtWork, CheckpointError, Checkpoints, Connections, Live, Phase, archive, compress, hollow,
    host_options::HostOptions,
    manifest::{Manifest, MemoryFiles, Sockets},
    off_thread,
    recover::aside,
    runtime,
    settle_in::{self, Filling, Hosts, Plan},
    source::{Load, deadline},
    store, tuning,
};
use crate::{
    engine::{EngineError, RestartRule},
    ids::ContainerId,
    pod::{Pod, PodError},
};

/// A pod that is still there so long after its restore lives: one whose memory is damaged ends at once.
const PROBATION: Duration = Duration::from_millis(250);
/// How often other ports are tried for a new pod.
const PORT_TRIES: usize = 5;
/// The engine's file for `/etc/hosts`, in its folder of a container.
const HOSTS: &str = "hosts";

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tcp {
    /// They go on: the pod has its address of then, or they do not leave it.
    Established,
    /// Their programs find them closed.
    Close,
}

impl Tcp {
    fn as_str(self) -> &'static str {
        match self {
            Self::Established => "tcp-established",
            Self::Close => "tcp-close",
        }
    }

    /// What to try, in this order.
    fn choices(sockets: &Sockets, in_place: bool, wanted: Option<Connections>) -> &'static [(Self, Addresses)] {
        match (sockets.outside, in_place) {
            _ if wanted == Some(Connections::Close) => &[(Self::Close, Addresses::OfThen)],
            (0, _) if wanted == Some(Connections::Keep) => &[(Self::Established, Addresses::OfThen)],
            _ if wanted == Some(Connections::Keep) => &[(Self::Established, Addresses::OfNow)],
            (0, _) => &[(Self::Established, Addresses::OfThen), (Self::Close, Addresses::OfThen)],
            // The pod may have its old address, and is the only one of it. Where it has not, a connection with others must
            // not look as if it went on.
            (_, true) => &[(Self::Established, Addresses::OfNow), (Self::Close, Addresses::OfThen)],
            // Two with one connection would fight over it.
            (_, false) => &[(Self::Close, Addresses::OfThen)],
        }
    }
}

/// Which addresses the pod's network has when its sockets are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    /// Those that the engine gives it.
    OfNow,
    /// Those that its sockets were bound to, too.
    OfThen,
}

/// One restore under way.
pub(super) struct Restoring {
    pub(super) me: Checkpoints,
    pub(super) action: Action,
    pub(super) manifest: Manifest,
    pub(super) folder: PathBuf,
    pub(super) pod: Pod,
    pub(super) live: Arc<Live>,
    pub(super) connections: Option<Connections>,
    /// Where each image is to be read from, by its name.
    pub(super) images: Vec<(PathBuf, PathBuf)>,
    pub(super) attempts: u32,
    pub(super) _at_work: AtWork,
}

impl Restoring {
    pub(super) async fn run(mut self, _guard: OwnedMutexGuard<()>) {
        let me = self.me.clone();
        let _turn = me.0.turns.acquire().await;
        for phase in Phase::OF_RESTORE {
            if let Err(error) = self.step(phase).await {
                return self.fail(phase, error).await;
            }
        }
        tracing::info!(pod = self.pod.container_name, checkpoint = %self.manifest.id, "brought back");
        self.action.bytes = self.manifest.stored_size();
        if let Err(error) = self.me.end_action(self.action.clone(), Ok(()), |_| Ok(())).await {
            tracing::warn!(%error, "the end of a restore is written later");
            self.me.settle_later();
        }
    }

    async fn step(&mut self, phase: Phase) -> Result<(), CheckpointError> {
        self.action.phase = phase;
        self.me.write_action(&self.action).await?;
        fail_point!(&phase.fail_point(super::ActionKind::Restore), |_| Err(CheckpointError::Interrupted(
            phase.doing()
        )));
        match phase {
            Phase::Verify => self.verify().await,
            Phase::Prepare => self.prepare().await,
            Phase::Start => self.start().await,
            Phase::Check => self.check().await,
            _ => self.finish().await,
        }
    }

    async fn verify(&mut self) -> Result<(), CheckpointError> {
        match self.verify_here().await {
            Err(error @ CheckpointError::Damaged { .. }) if self.me.copied(self.manifest.id).await? => {
                tracing::info!(pod = self.pod.container_name, %error, "fetched from its copy");
                self.action.phase = Phase::Fetch;
                self.me.write_action(&self.action).await?;
                fail_point!("restore-fetch", |_| Err(CheckpointError::Interrupted(Phase::Fetch.doing())));
                self.me.fetch(&self.manifest, &self.live).await?;
                self.action.phase = Phase::Verify;
                self.me.write_action(&self.action).await?;
                self.live.bytes.store(0, Ordering::Relaxed);
                self.verify_here().await
            }
            verified => verified,
        }
    }

    async fn verify_here(&self) -> Result<(), CheckpointError> {
        let (manifest, folder, live) = (self.manifest.clone(), self.folder.clone(), self.live.clone());
        let streams = self.me.0.config.get().checkpoint.streams();
        off_thread(move || {
            manifest.verify(&folder, streams, &|read| {
                live.bytes.fetch_add(read, Ordering::Relaxed);
            })
        })
        .await
    }

    async fn prepare(&mut self) -> Result<(), CheckpointError> {
        let scratch = self.me.0.store.scratch(self.action.id);
        fs::create_dir_all(&scratch).map_err(CheckpointError::io("making", &scratch))?;
        let (manifest, folder) = (self.manifest.clone(), self.folder.clone());
        let streams = self.me.0.config.get().checkpoint.streams();
        self.images = off_thread(move || compress::unpack_all(&manifest, &folder, &scratch, streams, &|_| {})).await?;
        self.fill().await
    }

    /// The container, stopped, with the files of the checkpoint.
    async fn fill(&mut self) -> Result<(), CheckpointError> {
        let engine = self.me.0.engine.clone();
        if self.action.journal.makes_pod {
            let container = self.me.0.pods.make_restored(&mut self.pod).await?;
            self.action.journal.container = Some(container);
            self.action.journal.restart = Some(RestartRule::always());
        }
        let container = self.container()?;
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        let anatomy = engine.anatomy(&container).await?.ok_or_else(gone)?;
        if self.manifest.kind.has_files() {
            let upper = anatomy.upper.clone().ok_or_else(|| {
                CheckpointError::Unavailable("Docker's storage driver here is not overlay2".to_owned())
            })?;
            if !self.action.journal.makes_pod {
                self.action.journal.upper = Some(upper.clone());
            }
            self.me.write_action(&self.action).await?;
            if let Some(upper) = &self.action.journal.upper {
                archive::put_aside(upper, &aside(upper, &self.action))
                    .map_err(CheckpointError::io("putting aside", upper))?;
            }
            let archive = self.image(Path::new(store::ROOTFS))?;
            archive::unpack(&archive, &upper).await?;
        }
        self.me.write_action(&self.action).await?;
        // A pod that does not live must not be started from its beginning by the engine.
        Ok(engine.set_restart(&container, &RestartRule::never()).await?)
    }

    fn container(&self) -> Result<ContainerId, CheckpointError> {
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        Ok(self.action.journal.container.clone().ok_or_else(gone)?)
    }

    /// Where a file of the checkpoint is to be read from.
    fn image(&self, name: &Path) -> Result<PathBuf, CheckpointError> {
        let found = self.images.iter().find(|(path, _)| path == name).map(|(_, source)| source.clone());
        found.ok_or_else(|| CheckpointError::Damaged {
            id: self.manifest.id,
            file: name.display().to_string(),
            why: "the manifest does not name it".to_owned(),
        })
    }

    async fn start(&mut self) -> Result<(), CheckpointError> {
        for _ in 0..PORT_TRIES {
            let started = self.start_once().await;
            match started {
                Err(CheckpointError::Engine(EngineError::PortTaken(port))) if self.action.journal.makes_pod => {
                    let container = self.container()?;
                    self.me.0.pods.exchange_port(&mut self.pod, &container, port).await?;
                    self.action.journal.container = None;
                    self.me.write_action(&self.action).await?;
                    self.fill().await?;
                }
                other => return other,
            }
        }
        Err(PodError::NoPort { needed: self.pod.spec.ports.len(), free: 0, all: 0 }.into())
    }

    async fn start_once(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if !self.manifest.kind.has_processes() {
            return Ok(self.me.0.engine.start(&container).await?);
        }
        let choices = Tcp::choices(&self.manifest.sockets, !self.action.journal.makes_pod, self.connections);
        let mut last = None;
        for (at, (tcp, addresses)) in choices.iter().enumerate() {
            let mut started = self.start_from_images(&container, *tcp, *addresses).await;
            // Without a word of CRIU's it was the engine, which at times takes the same again.
            if let Err(CheckpointError::Engine(EngineError::Failed { message, .. })) = &started {
                tracing::warn!(pod = self.pod.container_name, message, "tried again");
                started = self.start_from_images(&container, *tcp, *addresses).await;
            }
            // CRIU can do it by itself, only slower.
            if let Err(CheckpointError::Criu(cause)) = &started
                && cause.contains(settle_in::NOT_FILLED)
                && !self.manifest.memory_files.is_empty()
            {
                tracing::warn!(pod = self.pod.container_name, cause, "tried again, with the content unpacked by CRIU");
                self.manifest.memory_files.clear();
                started = self.start_from_images(&container, *tcp, *addresses).await;
            }
            match started {
                Ok(()) => {
                    if *tcp == Tcp::Close && self.manifest.sockets.outside + self.manifest.sockets.local > 0 {
                        let count = self.manifest.sockets.outside + self.manifest.sockets.local;
                        let why = match self.connections {
                            Some(Connections::Close) => "it was asked for",
                            _ => "the pod's address is another",
                        };
                        self.action.losses.push(format!("{count} open TCP connections were closed: {why}"));
                    }
                    return Ok(());
                }
                Err(CheckpointError::Criu(cause)) if cause.contains("address") && at + 1 < choices.len() => {
                    tracing::info!(pod = self.pod.container_name, cause, "tried again with its connections closed");
                    last = Some(CheckpointError::Criu(cause));
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(CheckpointError::NothingNamed))
    }

    async fn start_from_images(
        &mut self,
        container: &ContainerId,
        tcp: Tcp,
        addresses: Addresses,
    ) -> Result<(), CheckpointError> {
        self.attempts += 1;
        let config = self.me.0.config.get();
        let engine = &self.me.0.engine;
        let name = format!("pody-{}-{}", self.action.id, self.attempts);
        let container_folder = engine.container_folder(container).await?;
        let folder = container_folder.join("checkpoints").join(&name);
        let emptied = self.manifest.memory_files.iter().map(|files| files.image.as_path()).collect();
        hollow::make(&folder, &self.images, &emptied, self.action.id)?;
        let scratch = self.me.0.store.scratch(self.action.id);
        let script = self
            .plan(addresses, &container_folder)?
            .option(&scratch, &hollow::nonce(self.action.id))
            .map_err(CheckpointError::io("writing", &scratch))?;
        let log = scratch.join(format!("restore-{}.log", self.attempts));
        let limit = config.checkpoint.deleted_file_limit.0;
        let options = format!(
            "{}\nfile-locks\nlink-remap\nghost-limit {limit}\nlog-file {}\n{script}",
            tcp.as_str(),
            log.display()
        );
        let options = HostOptions::place(&options).await?;
        let limit = deadline(&config.checkpoint, self.load());
        let start = engine.start_from(container, &name, limit);
        tokio::pin!(start);
        let early = tokio::select! {
            done = &mut start => Some(done),
            () = runtime::wait_begun(&log) => None,
        };
        // CRIU has read them: the next may have the file.
        drop(options);
        let started = match early {
            Some(done) => done,
            None => tokio::select! {
                done = &mut start => done,
                () = runtime::wait_runaway(&log) => Err(EngineError::TimedOut(limit)),
            },
        };
        let error = match started {
            Ok(()) if settle_in::is_done(&scratch) => return Ok(()),
            Ok(()) => {
                runtime::end_restore(container).await;
                self.me.settled_anatomy(container).await?;
                return Err(CheckpointError::Criu("CRIU did not get its options from pody; try again".to_owned()));
            }
            Err(error) => error,
        };
        if let EngineError::PortTaken(_) = error {
            return Err(error.into());
        }
        runtime::end_restore(container).await;
        // A lost answer may have been a good one.
        let anatomy = self.me.settled_anatomy(container).await?;
        if error.is_ambiguous()
            && settle_in::is_done(&scratch)
            && anatomy.is_some_and(|anatomy| anatomy.status == "running")
        {
            return Ok(());
        }
        if let Some(complaint) = settle_in::complaint(&scratch) {
            return Err(CheckpointError::Criu(complaint));
        }
        Err(match (runtime::explain(&log), error) {
            (Some(cause), _) => CheckpointError::Criu(cause),
            (None, EngineError::TimedOut(limit)) => CheckpointError::TimedOut { what: "CRIU", limit },
            (None, error) => error.into(),
        })
    }

    /// What CRIU has to do: it wrote a file `mm-N.img` for each process, and `core-N.img` for each thread.
    fn load(&self) -> Load {
        let images = |start: &str| {
            let names = self.manifest.files.keys().filter_map(|path| path.file_name()?.to_str());
            names.filter(|name| name.starts_with(start) && name.ends_with(".img")).count() as u64
        };
        Load { bytes: self.manifest.full_size(), processes: images("mm-"), threads: images("core-") }
    }

    /// What is done in the pod's new network and mounts, beside what CRIU does.
    fn plan(&self, addresses: Addresses, container_folder: &Path) -> Result<Plan, CheckpointError> {
        let addresses = match addresses {
            Addresses::OfNow => Vec::new(),
            Addresses::OfThen => self.manifest.sockets.bound.clone(),
        };
        let filling = |files: &MemoryFiles| {
            let archive = self.image(&files.image)?;
            let archive = fs::canonicalize(&archive).map_err(CheckpointError::io("finding", &archive))?;
            Ok::<_, CheckpointError>(Filling { archive, target: files.target.clone(), mount: files.mount })
        };
        let memory_files = self.manifest.memory_files.iter().map(filling).collect::<Result<_, _>>()?;
        let hosts = self.manifest.hosts.clone();
        let hosts = hosts.map(|content| Hosts { file: container_folder.join(HOSTS), content });
        Ok(Plan { addresses, memory_files, network: self.manifest.network.clone(), hosts })
    }

    async fn check(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if !self.manifest.kind.has_processes() {
            return Ok(());
        }
        tokio::time::sleep(PROBATION).await;
        let gone = || PodError::NotFound(self.pod.container_name.clone());
        let anatomy = self.me.0.engine.anatomy(&container).await?.ok_or_else(gone)?;
        if anatomy.status != "running" {
            return Err(CheckpointError::EndedAtOnce(anatomy.exit_code));
        }
        tuning::put_back(&container, &self.manifest.tuning);
        let now = anatomy.address.unwrap_or_default();
        if let (Some(then), Some(_)) = (&self.manifest.sockets.address, &self.manifest.hosts)
            && *then != now
            && !now.is_empty()
        {
            let file = self.me.0.engine.container_folder(&container).await?.join(HOSTS);
            if let Err(error) = settle_in::renew_hosts(&file, then, &now) {
                tracing::warn!(pod = self.pod.container_name, %error, "its /etc/hosts names its address of then");
            }
        }
        let of_then: Vec<String> = self.manifest.sockets.bound.iter().map(ToString::to_string).collect();
        if of_then.iter().any(|address| *address != now) {
            self.action.losses.push(format!(
                "the pod's address is {now} now; what is bound to the one of then ({}) is reached inside the pod only",
                of_then.join(", ")
            ));
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CheckpointError> {
        let container = self.container()?;
        if self.action.journal.makes_pod {
            self.me.0.pods.finish_restored(self.pod.clone(), container.clone()).await?;
        }
        self.me.put_restart_rule(&self.action).await?;
        self.me.clean(&self.action).await?;
        let _ = self.me.0.engine.look(&container).await;
        Ok(())
    }

    /// Puts everything as it was before.
    async fn fail(mut self, phase: Phase, error: CheckpointError) {
        tracing::warn!(pod = self.pod.container_name, %phase, %error, "not brought back");
        self.action.error = Some(error.to_string());
        let settled = async {
            self.me.write_action(&self.action).await?;
            self.me.settle_restore(&self.action).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(pod = self.pod.container_name, %error, "settled later");
            self.me.settle_later();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_take_the_connections_of_another() {
        let sockets = |local, outside| Sockets { local, outside, ..Sockets::default() };
        let closed = (Tcp::Close, Addresses::OfThen);
        assert_eq!(Tcp::choices(&sockets(3, 0), false, None)[0], (Tcp::Established, Addresses::OfThen));
        assert_eq!(Tcp::choices(&sockets(3, 1), false, None), [closed]);
        assert_eq!(Tcp::choices(&sockets(0, 1), true, None), [(Tcp::Established, Addresses::OfNow), closed]);
        assert_eq!(Tcp::choices(&sockets(3, 0), false, Some(Connections::Close)), [closed]);
        let kept = Tcp::choices(&sockets(3, 1), true, Some(Connections::Keep));
        assert_eq!(kept, [(Tcp::Established, Addresses::OfNow)]);
    }
}
