//! The phase in which CRIU writes the processes of a frozen pod.

use std::{
    convert::Infallible,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::checkpoint::{CheckpointJob, RETRY_DELAYS};
use crate::{
    checkpoint::CheckpointError,
    criu::{
        diagnosis,
        error::FailureKind,
        freezer,
        image::Pagemap,
        image_buffer::{ImageBuffer, PIPE},
        kill, namespace_setup,
        network::{lock::NetworkLock, socket_names, sockets},
        patches, restore, runc, stopped_tasks, thread_attributes, version,
    },
    engine::EngineError,
    host::{
        blocking::off_thread,
        disk::{self, DiskError},
        process,
    },
    model::{checkpoint::LeaveRunning, ids::ContainerId},
};

/// Interval at which the bytes written are read.
const LOOK: Duration = Duration::from_millis(100);

/// Shared memory segments, which are not counted beforehand: the images of further ones are written as files.
const SHARED: usize = 16;

/// Each is a file descriptor.
const MOST_PIPES: usize = 256;

impl CheckpointJob {
    /// A transient obstacle is waited for: a busy server always has a connection that is not accepted yet.
    pub(in crate::checkpoint) async fn dump(&mut self) -> Result<(), CheckpointError> {
        for pause in RETRY_DELAYS {
            match self.dump_once().await {
                Err(CheckpointError::Criu(failure)) if failure.kind == FailureKind::Transient => {
                    tracing::info!(pod = self.pod.container_name, %failure, "dump failed, retrying");
                }
                other => return other,
            }
            self.thaw().await?;
            *self.live.frozen_since() = None;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let images = self.directory.join(runc::IMAGES);
            off_thread(move || {
                disk::remove(&images)?;
                fs::create_dir(&images).map_err(DiskError::io("making", &images))
            })
            .await?;
            self.freeze().await?;
        }
        self.dump_once().await
    }

    async fn dump_once(&mut self) -> Result<(), CheckpointError> {
        // Taken now that the pod is frozen.
        let address = self.manifest.sockets.address.take();
        self.manifest.sockets = sockets::of(self.seen.inspect.pid);
        self.manifest.sockets.address = address;
        let images = self.directory.join(runc::IMAGES);
        let begun = Instant::now();
        let buffer = self.buffer.take();
        let caught = buffer.as_ref().map(ImageBuffer::caught).unwrap_or_default();
        let inspect = &self.seen.inspect;
        let (buffer, dumped) = tokio::select! {
            ended = self.dump_processes(&images, buffer) => ended,
            never = self.watch(&images, &caught) => match never {},
        };
        // Also for the next try.
        self.buffer = buffer;
        dumped?;
        self.manifest.tuning = thread_attributes::look(&self.seen.container, inspect.pid);
        self.manifest.hosts = namespace_setup::hosts(inspect.pid);
        self.manifest.network = namespace_setup::network_settings(inspect.pid);
        let (pid, container, stopped) = (inspect.pid, self.seen.container.clone(), self.action.journal.stopped.clone());
        let mut names = self.seen.findings.socket_names.clone();
        // In one piece: the pod is still frozen.
        let (memory_files, written) = off_thread(move || {
            stopped_tasks::note(&stopped, &images).map_err(DiskError::io("writing", &images))?;
            // All were checked before the freeze.
            names.extend(socket_names::current(pid, None, &kill::members(&container)));
            patches::correct(&images, &names).map_err(DiskError::io("correcting", &images))?;
            Ok::<_, DiskError>((namespace_setup::memory_files(&images, pid), disk::size_of(&images)))
        })
        .await?;
        self.manifest.memory_files = memory_files;
        let size = written + caught.load(Ordering::Relaxed);
        self.live.bytes.store(size, Ordering::Relaxed);
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        // A small one measures CRIU's start and not its speed, and one of a pod that is stopped the disk's.
        if size > 64 << 20 && self.action.journal.leave_running == LeaveRunning::Yes {
            self.ctx.0.rate.store(size.saturating_mul(1000) / millis, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn dump_processes(
        &self,
        images: &Path,
        buffer: Option<ImageBuffer>,
    ) -> (Option<ImageBuffer>, Result<(), CheckpointError>) {
        let config = self.ctx.0.config.get();
        let inspect = &self.seen.inspect;
        let Some(root) = runc::root_of(&config.checkpoint, &self.seen.container, inspect.pid, &inspect.runtime) else {
            return (None, self.dump_by_engine().await);
        };
        let dumping = async {
            let bin = runc::ensure_bin(self.ctx.0.store.path())?;
            runc::dump(runc::Dump {
                action: self.action.id,
                container: &self.seen.container,
                pid: inspect.pid,
                root: &root,
                directory: &self.directory,
                bin: &bin,
                upper: inspect.upper.as_deref().filter(|_| self.checkpoint.kind.has_files()),
                network: self.lock_of_dump(),
                config: &config.checkpoint,
                deadline: self.deadline,
            })
            .await
            .map_err(CheckpointError::from)
        };
        let catching = buffer.and_then(|buffer| {
            let catching = buffer.catch(images, self.large_images());
            // Not every file system has pipes; without them the pod is only frozen for longer.
            catching.inspect_err(|error| tracing::info!(%error, "images are written to files at once")).ok()
        });
        let Some(catching) = catching else { return (None, dumping.await) };
        let dumped = dumping.await;
        let (directory, container) = (images.to_owned(), self.seen.container.clone());
        let is_complete = dumped.is_ok();
        let ended = off_thread(move || {
            let mut buffer = catching.end()?;
            if is_complete {
                read_again(&mut buffer, &directory, &container);
            }
            Ok::<_, io::Error>(buffer)
        });
        match ended.await {
            Ok(buffer) => (Some(buffer), dumped),
            Err(error) => (None, dumped.and(Err(DiskError::io("writing to", images)(error).into()))),
        }
    }

    /// CRIU's names for what may be large: it numbers the memory images. There is one for each process, and for each
    /// shared memory segment.
    fn large_images(&self) -> Vec<String> {
        let most = (self.seen.findings.processes.len() + SHARED).min(MOST_PIPES);
        let pages = (1..=most).map(|number| format!("pages-{number}.img"));
        pages.chain(namespace_setup::memory_images(self.seen.inspect.pid)).collect()
    }

    /// CRIU's own lock freezes the pod for a tenth of a second longer. A restore locks the network the way that the
    /// dump did, and that is needed where packets must not arrive before the socket exists: where a connection with
    /// others may continue, and where CRIU will send what a program of the pod had for another and could not send yet.
    fn lock_of_dump(&self) -> NetworkLock {
        let is_old = !version::knows_to_skip_lock(&self.manifest.host.criu);
        match is_old || self.manifest.sockets.outside > 0 || sockets::have_unsent(self.seen.inspect.pid) {
            true => NetworkLock::Criu,
            false => self.network,
        }
    }

    /// Where runc's own directory is not found, the engine dumps, always leaving the pod running, and its images are
    /// moved to the checkpoint. Only our runtime passes CRIU's options on: under another one CRIU has its own defaults,
    /// and refuses open connections and locks.
    async fn dump_by_engine(&self) -> Result<(), CheckpointError> {
        let config = self.ctx.0.config.get();
        let engine = &self.ctx.0.engine;
        let name = format!("pody-{}", self.action.id);
        let container = &self.seen.container;
        tracing::info!(pod = self.pod.container_name, "runc's directory was not found: the engine dumps the processes");
        let made = engine.container_directory(container).await?.join("checkpoints").join(&name);
        let upper = self.seen.inspect.upper.as_deref().filter(|_| self.checkpoint.kind.has_files());
        let log = self.directory.join(runc::DUMP_LOG);
        let options =
            runc::dump_options(&config.checkpoint, self.seen.inspect.pid, &self.directory, upper, self.lock_of_dump())
                .map_err(DiskError::io("writing", &self.directory))?;
        let options = format!("tcp-established\nfile-locks\n{options}log-file {}\n", log.display());
        let (left_for, left) = (container.clone(), options);
        off_thread(move || restore::place_dump_options(&left_for, &left)).await?;
        let dumped = engine.dump(container, &name, self.deadline).await;
        let left_for = container.clone();
        off_thread(move || restore::withdraw(&left_for)).await?;
        if dumped.is_err() {
            kill::end_engine_dump(container).await;
        }
        dumped.map_err(|error| {
            match (diagnosis::of_log(&log, &error.to_string(), self.ctx.0.store.path()), error) {
                (Some(cause), _) => CheckpointError::Criu(cause),
                (None, EngineError::TimedOut(limit)) => diagnosis::timed_out(&log, limit).into(),
                (None, error) => error.into(),
            }
        })?;
        // CRIU may have thawed the pod.
        freezer::freeze(self.seen.inspect.pid);
        let images = self.directory.join(runc::IMAGES);
        let taken = off_thread(move || {
            for file in disk::files_below(&made).map_err(DiskError::io("reading", &made))? {
                let to = images.join(&file);
                fs::rename(made.join(&file), &to)
                    .or_else(|_| fs::copy(made.join(&file), &to).map(drop))
                    .map_err(DiskError::io("taking over", &to))?;
            }
            disk::remove(&made)
        });
        Ok(taken.await?)
    }

    /// Reports how much was written, for ever.
    async fn watch(&self, directory: &Path, caught: &AtomicU64) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            let images = directory.to_owned();
            let written = off_thread(move || disk::size_of(&images)).await;
            self.live.bytes.store(written + caught.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// CRIU moves pages into a pipe as they are, without a copy. After the last of a process it has the process run a few
/// calls, for which it puts instructions over the process's own for a moment: pages that are still in the pipe would
/// show that. By now each process is as it was, so what the pipe may have held at that time is read again.
fn read_again(buffer: &mut ImageBuffer, images: &Path, container: &ContainerId) {
    for pid in kill::members(container) {
        let Some(inside) = process::pid_inside(pid) else { continue };
        // One that has ended, or shares all its memory with another, has none.
        let Ok(image) = fs::read(images.join(format!("pagemap-{inside}.img"))) else { continue };
        if let Err(error) = read_again_of(pid, &image, buffer, images) {
            tracing::warn!(%error, pid, "the last pages of a process were not read again");
        }
    }
}

fn read_again_of(pid: i32, image: &[u8], buffer: &mut ImageBuffer, images: &Path) -> io::Result<()> {
    let map = Pagemap::parse(image).ok_or_else(|| io::Error::other("cannot parse CRIU's pagemap"))?;
    let pages = images.join(format!("pages-{}.img", map.pages));
    if buffer.length_of(&pages).is_some_and(|length| length != map.length()) {
        return Err(io::Error::other("CRIU's pagemap gives another length for its pages"));
    }
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for (offset, range) in map.tail(PIPE as u64) {
        let mut content = vec![0; (range.end - range.start) as usize];
        memory.read_exact_at(&mut content, range.start)?;
        buffer.replace(&pages, offset, &content)?;
    }
    Ok(())
}
