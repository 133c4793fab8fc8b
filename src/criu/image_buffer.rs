//! Memory that receives images while a pod is frozen.
//!
//! A page that is written to a file first needs memory for the page cache. A host whose memory is in use has to evict
//! other caches for it, and a virtual machine has to ask its host for it, page by page: that was nine tenths of a
//! freeze. So that memory is allocated, and touched, while the pod still runs. CRIU then finds pipes (fifo(7)) under
//! the names of the large images, writes them from front to back as it would files, by splice(2) without a copy, and
//! one thread copies their content into the buffer. It is written to files when the pod runs again. What does not fit
//! is written to its file at once.
//!
//! A pod that is stopped after its checkpoint gains nothing by it: it stays frozen until its files are on the disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use memmap2::{Advice, MmapMut};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};

use crate::host::{memory, parallel};

/// Returned to the kernel one by one as their content is written.
const CHUNK: usize = 32 << 20;

/// A pipe's size, and the bytes per read: the most that an unprivileged process may ask for (pipe(7)).
pub const PIPE: usize = 1 << 20;

const PAGE: usize = 4 << 10;

/// At most one part in this many of the available memory is taken.
const PART: u64 = 2;

/// Images may exceed their estimate by one part in this many.
const MARGIN: u64 = 16;

/// Memory for images, with what was captured.
pub struct ImageBuffer {
    chunks: Vec<Chunk>,
    /// The chunk that is being filled.
    at: usize,
    images: Vec<Image>,
    /// Bytes captured so far, for progress.
    caught: Arc<AtomicU64>,
}

struct Chunk {
    memory: MmapMut,
    used: usize,
    pieces: Vec<Piece>,
}

/// A part of an image, in the order in which the parts lie in the chunk.
struct Piece {
    image: usize,
    offset: u64,
    length: usize,
}

struct Image {
    path: PathBuf,
    file: File,
    length: u64,
}

/// A buffer that is being filled.
pub struct Capture {
    thread: JoinHandle<io::Result<ImageBuffer>>,
    /// Closed when nothing more will come.
    end: PipeWriter,
}

/// A pipe in the place of an image. Its file is made when the first data arrives.
struct Pipe {
    path: PathBuf,
    file: File,
    image: Option<usize>,
}

impl ImageBuffer {
    /// Allocates and touches memory for images of this many bytes, or as much of it as is allowed.
    pub fn take(bytes: u64, streams: usize) -> Self {
        let most = memory::available().unwrap_or(0) / PART;
        let wanted = (bytes + bytes / MARGIN).min(most).div_ceil(CHUNK as u64);
        let chunks = Mutex::new(Vec::new());
        let taken = parallel::for_each(streams, &(0..wanted).collect::<Vec<_>>(), |_| {
            let chunk = Chunk::take()?;
            chunks.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
            Ok::<_, io::Error>(())
        });
        if let Err(error) = taken {
            tracing::info!(%error, "got less memory for images than wanted");
        }
        let chunks = chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { chunks, at: 0, images: Vec::new(), caught: Arc::default() }
    }

    pub fn caught(&self) -> Arc<AtomicU64> {
        self.caught.clone()
    }

    /// Puts pipes in the place of images with these names, and captures what is written to them. What was captured
    /// before is discarded. After an error no pipe is left.
    pub fn catch(mut self, directory: &Path, names: Vec<String>) -> io::Result<Capture> {
        for chunk in &mut self.chunks {
            chunk.used = 0;
            chunk.pieces.clear();
        }
        self.at = 0;
        self.images.clear();
        self.caught.store(0, Ordering::Relaxed);
        let pipes: io::Result<Vec<Pipe>> = names.iter().map(|name| Pipe::make(directory.join(name))).collect();
        let pipes = pipes.inspect_err(|_| names.iter().for_each(|name| drop(fs::remove_file(directory.join(name)))))?;
        let (ended, end) = io::pipe()?;
        let thread = thread::Builder::new().name("catch".to_owned()).spawn(move || self.empty(pipes, &ended))?;
        Ok(Capture { thread, end })
    }

    /// Drains the pipes until the other end of `ended` is closed and they are empty.
    fn empty(mut self, mut pipes: Vec<Pipe>, ended: &PipeReader) -> io::Result<Self> {
        let mut is_over = false;
        let mut failed = None;
        let mut rest = vec![0; PIPE];
        loop {
            let (over, ready) = wait(ended, &pipes, is_over)?;
            is_over |= over;
            if is_over && ready.is_empty() {
                break;
            }
            // From the last one, as `swap_remove` moves others.
            for at in ready.into_iter().rev() {
                // A pipe that is closed early would kill CRIU: read on, and report the failure at the end.
                let more = match failed {
                    None => self.read(&mut pipes[at], &mut rest),
                    Some(_) => Ok(pipes[at].file.read(&mut rest).is_ok_and(|length| length > 0)),
                };
                match more {
                    Ok(true) => {}
                    Ok(false) => drop(pipes.swap_remove(at)),
                    Err(error) => failed = Some(error),
                }
            }
        }
        for pipe in pipes {
            match pipe.image {
                None => fs::remove_file(&pipe.path)?,
                Some(_) => failed = failed.or(Some(io::Error::other(format!("{} has no end", pipe.path.display())))),
            }
        }
        match failed {
            Some(error) => Err(error),
            // The content of the buffer is written into them later.
            None => self.images.iter().try_for_each(|image| image.file.set_len(image.length)).map(|()| self),
        }
    }

    /// Reads what a pipe has, into the buffer or its file; returns whether there may be more.
    fn read(&mut self, pipe: &mut Pipe, rest: &mut [u8]) -> io::Result<bool> {
        let at = match pipe.image {
            Some(at) => at,
            None => {
                self.images.push(pipe.become_file()?);
                *pipe.image.insert(self.images.len() - 1)
            }
        };
        let image = &mut self.images[at];
        if self.chunks.get(self.at).is_some_and(|chunk| chunk.used == CHUNK) {
            self.at += 1;
        }
        let length = match self.chunks.get_mut(self.at) {
            Some(chunk) => {
                let end = CHUNK.min(chunk.used + PIPE);
                let length = pipe.file.read(&mut chunk.memory[chunk.used..end])?;
                chunk.add(Piece { image: at, offset: image.length, length });
                length
            }
            None => {
                let length = pipe.file.read(rest)?;
                image.file.write_all_at(&rest[..length], image.length)?;
                length
            }
        };
        image.length += length as u64;
        self.caught.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length > 0)
    }

    /// The length of a captured image.
    pub fn length_of(&self, image: &Path) -> Option<u64> {
        self.images.iter().find(|caught| caught.path == image).map(|caught| caught.length)
    }

    /// Puts other content into a captured image.
    pub fn replace(&mut self, image: &Path, offset: u64, content: &[u8]) -> io::Result<()> {
        let Some(at) = self.images.iter().position(|caught| caught.path == image) else { return Ok(()) };
        if self.at >= self.chunks.len() {
            // A part of it may be in its file; the buffer's content is written over that later.
            self.images[at].file.write_all_at(content, offset)?;
        }
        let end = offset + content.len() as u64;
        for chunk in &mut self.chunks {
            let mut from = 0;
            for piece in &chunk.pieces {
                let common = piece.offset.max(offset)..end.min(piece.offset + piece.length as u64);
                if piece.image == at && !common.is_empty() {
                    let new = &content[(common.start - offset) as usize..(common.end - offset) as usize];
                    let into = from + (common.start - piece.offset) as usize;
                    chunk.memory[into..into + new.len()].copy_from_slice(new);
                }
                from += piece.length;
            }
        }
        Ok(())
    }

    /// Writes what was captured to its files, and frees the memory.
    pub fn write_out(self) -> io::Result<()> {
        for chunk in self.chunks {
            let mut from = 0;
            for piece in &chunk.pieces {
                let content = &chunk.memory[from..from + piece.length];
                self.images[piece.image].file.write_all_at(content, piece.offset)?;
                from += piece.length;
            }
            self.caught.fetch_sub(chunk.used as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Capture {
    /// Returns the buffer with all that was written, complete once CRIU has ended.
    pub fn end(self) -> io::Result<ImageBuffer> {
        drop(self.end);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Chunk {
    fn take() -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(CHUNK)?;
        // Kernels that lack one of these do without. This is the memory of a pod: no copy of it goes to a child or a
        // core file.
        for advice in [Advice::HugePage, Advice::DontFork, Advice::DontDump] {
            let _ = memory.advise(advice);
        }
        memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        Ok(Self { memory, used: 0, pieces: Vec::new() })
    }

    fn add(&mut self, piece: Piece) {
        self.used += piece.length;
        match self.pieces.last_mut() {
            Some(last) if last.image == piece.image => last.length += piece.length,
            _ => self.pieces.push(piece),
        }
    }
}

impl Pipe {
    fn make(path: PathBuf) -> io::Result<Self> {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Without waiting for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        // A smaller one only costs more reads.
        let _ = fcntl(&file, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        Ok(Self { path, file, image: None })
    }

    /// The writer keeps the pipe; its name becomes a file's.
    fn become_file(&self) -> io::Result<Image> {
        fs::remove_file(&self.path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        Ok(Image { path: self.path.clone(), file, length: 0 })
    }
}

/// Waits for something to read: whether the other end of `ended` is closed, and which pipes have data or are at their
/// end. A pipe that nobody has opened yet is neither.
fn wait(ended: &PipeReader, pipes: &[Pipe], is_over: bool) -> io::Result<(bool, Vec<usize>)> {
    let of = |file| PollFd::new(file, PollFlags::POLLIN);
    let mut all: Vec<PollFd> = pipes.iter().map(|pipe| of(pipe.file.as_fd())).collect();
    all.push(of(ended.as_fd()));
    let timeout = if is_over { PollTimeout::ZERO } else { PollTimeout::NONE };
    while let Err(error) = poll(&mut all, timeout) {
        if error != Errno::EINTR {
            return Err(error.into());
        }
    }
    let over = all.pop().is_some_and(|end| end.any().unwrap_or(false));
    Ok((over, (0..pipes.len()).filter(|&at| all[at].any().unwrap_or(false)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Images = [(&'static str, Vec<u8>); 3];

    /// All at once, opened as CRIU does it.
    fn write_and_catch(buffer: ImageBuffer, directory: &Path, images: &Images) -> ImageBuffer {
        let names = ["pages-1.img", "pages-2.img", "pages-3.img", "pages-4.img"];
        let catching = buffer.catch(directory, names.map(str::to_owned).into()).unwrap();
        thread::scope(|scope| {
            for (name, content) in images {
                let mut pipe = File::create(directory.join(name)).unwrap();
                scope.spawn(move || io::copy(&mut content.as_slice(), &mut pipe).unwrap());
            }
        });
        catching.end().unwrap()
    }

    #[test]
    fn what_is_written_to_pipes_is_in_files_afterwards() {
        let content = |seed: usize, length: usize| (0..length / 8).flat_map(|n| (n * 7 + seed).to_le_bytes()).collect();
        let images: Images = [
            ("pages-1.img", content(1, CHUNK + 123_456)),
            ("pages-2.img", content(2, 3 * PIPE)),
            ("pages-3.img", vec![]),
        ];
        for chunks in 0..3 {
            let chunks = (0..chunks).map(|_| Chunk::take().unwrap()).collect();
            let buffer = ImageBuffer { chunks, at: 0, images: Vec::new(), caught: Arc::default() };
            // Nothing is left of a failed try.
            let buffer = write_and_catch(buffer, tempfile::tempdir().unwrap().path(), &images);
            let directory = tempfile::tempdir().unwrap();
            let mut buffer = write_and_catch(buffer, directory.path(), &images);
            let written: u64 = images.iter().map(|(_, content)| content.len() as u64).sum();
            assert_eq!(buffer.caught().load(Ordering::Relaxed), written);
            // Across the end of a chunk, and a name that was not captured.
            let new = vec![9; 20_000];
            buffer.replace(&directory.path().join("pages-1.img"), CHUNK as u64 - 10_000, &new).unwrap();
            buffer.replace(&directory.path().join("pages-5.img"), 0, &new).unwrap();
            buffer.write_out().unwrap();
            for (name, content) in &images {
                let mut content = content.clone();
                if *name == "pages-1.img" {
                    content[CHUNK - 10_000..][..20_000].copy_from_slice(&new);
                }
                assert!(fs::read(directory.path().join(name)).unwrap() == content, "{name}");
            }
            assert!(!directory.path().join("pages-4.img").exists(), "nobody wrote it");
        }
    }

    #[test]
    fn where_not_all_pipes_can_be_made_there_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["pages-1.img", "nowhere/pages-2.img"];
        assert!(ImageBuffer::take(0, 1).catch(directory.path(), names.map(str::to_owned).into()).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_the_writer_continues() {
        let directory = tempfile::tempdir().unwrap();
        let buffer = ImageBuffer { chunks: Vec::new(), at: 0, images: Vec::new(), caught: Arc::default() };
        let catching = buffer.catch(directory.path(), vec!["pages-1.img".to_owned()]).unwrap();
        let mut pipe = File::create(directory.path().join("pages-1.img")).unwrap();
        // No file can be made in its place.
        fs::remove_file(directory.path().join("pages-1.img")).unwrap();
        assert!(io::copy(&mut vec![1; 3 * PIPE].as_slice(), &mut pipe).is_ok());
        drop(pipe);
        assert!(catching.end().is_err());
    }
}
