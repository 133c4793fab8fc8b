//! Compresses the large files of a checkpoint after the pod resumes, and decompresses them for a restore.
//!
//! The manifest decides which file counts: a packed file is written beside the plain one, then the manifest is
//! replaced, then the plain one removed. A kill in between leaves a file that the manifest does not name.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
};

use super::{
    hashing::{self, Packed},
    manifest::Manifest,
};
use crate::{
    checkpoint::{CheckpointError, store},
    host::{
        disk::{self, DiskError},
        parallel,
    },
    model::checkpoint::Compression,
};

/// Smaller files are not worth it, bytes.
const LARGE: u64 = 1 << 20;

/// zstd's level: a third of its default's time for nearly the same result on memory.
const ZSTD_LEVEL: i32 = 1;

const BUFFER: usize = 1 << 20;

/// Compressed by one thread at a time if a codec has no threads of its own: lz4 frames and gzip members may be
/// concatenated.
const BLOCK: usize = 4 << 20;

/// Compresses what gets at least a tenth smaller, and updates the manifest.
pub fn pack_all(
    manifest: &mut Manifest,
    directory: &Path,
    by: Compression,
    streams: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), CheckpointError> {
    let mut packed_files = Vec::new();
    let large: Vec<PathBuf> =
        manifest.files.iter().filter(|(_, file)| file.size >= LARGE).map(|(path, _)| path.clone()).collect();
    // One after the other: all threads work on each.
    for path in large {
        let packed_path = with_extension(&path, by);
        let (plain, packed) = (directory.join(&path), directory.join(&packed_path));
        pack(&plain, &packed, by, streams, progress).map_err(DiskError::io("packing", &plain))?;
        let Some(entry) = manifest.files.get_mut(&path) else { continue };
        let size = fs::metadata(&packed).map_or(u64::MAX, |file| file.len());
        if size > entry.size / 10 * 9 {
            fs::remove_file(&packed).map_err(DiskError::io("removing", &packed))?;
            continue;
        }
        let blake3 = hashing::hash(&packed, &|_| {}).map_err(DiskError::io("hashing", &packed))?;
        entry.packed = Some(Packed { by, path: packed_path, size, blake3 });
        packed_files.push(plain);
    }
    if packed_files.is_empty() {
        return Ok(());
    }
    manifest.write(directory)?;
    for plain in packed_files {
        fs::remove_file(&plain).map_err(DiskError::io("removing", &plain))?;
    }
    Ok(())
}

/// Removes files that the manifest does not name: what a kill left during compression.
pub fn sweep(manifest: &Manifest, directory: &Path) -> Result<(), CheckpointError> {
    for path in disk::files_below(directory).map_err(DiskError::io("reading", directory))? {
        let is_named = manifest.files.iter().any(|(name, entry)| match &entry.packed {
            Some(packed) => packed.path == path,
            None => *name == path,
        });
        if !is_named && path != Path::new(store::MANIFEST) {
            let full = directory.join(&path);
            fs::remove_file(&full).map_err(DiskError::io("removing", &full))?;
        }
    }
    Ok(())
}

/// Where to read each file from: compressed ones are unpacked into `scratch`, several at a time, and their size and
/// hash verified.
pub fn unpack_all(
    manifest: &Manifest,
    directory: &Path,
    scratch: &Path,
    streams: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<(PathBuf, PathBuf)>, CheckpointError> {
    let (packed, plain): (Vec<_>, Vec<_>) = manifest.files.iter().partition(|(_, entry)| entry.packed.is_some());
    let files: Vec<(PathBuf, PathBuf)> =
        plain.into_iter().map(|(path, _)| (path.clone(), directory.join(path))).collect();
    let files = Mutex::new(files);
    parallel::for_each(streams, &packed, |(path, entry)| {
        let Some(packed) = &entry.packed else { return Ok(()) };
        let (from, to) = (directory.join(&packed.path), scratch.join(path));
        let damaged =
            |why: String| CheckpointError::Damaged { id: manifest.id, file: packed.path.display().to_string(), why };
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(DiskError::io("making the directory of", &to))?;
        unpack(&from, &to, packed.by, entry.size, progress).map_err(|error| damaged(error.to_string()))?;
        let size = fs::metadata(&to).map_or(0, |file| file.len());
        let blake3 = hashing::hash(&to, &|_| {}).map_err(DiskError::io("hashing", &to))?;
        if (size, blake3.as_str()) != (entry.size, entry.blake3.as_str()) {
            return Err(damaged("its unpacked content has changed".to_owned()));
        }
        files.lock().unwrap_or_else(PoisonError::into_inner).push(((*path).clone(), to));
        Ok(())
    })?;
    Ok(files.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn with_extension(path: &Path, by: Compression) -> PathBuf {
    let extension = match by {
        Compression::None => "plain",
        Compression::Zstd => "zst",
        Compression::Lz4 => "lz4",
        Compression::Gzip => "gz",
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

fn pack(from: &Path, to: &Path, by: Compression, streams: usize, progress: &(dyn Fn(u64) + Sync)) -> io::Result<()> {
    let mut input = File::open(from)?;
    let mut output = BufWriter::with_capacity(BUFFER, File::create(to)?);
    match by {
        Compression::None => copy(&mut input, &mut output, progress)?,
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL)?;
            // One more thread reads and writes.
            encoder.multithread(u32::try_from(streams).unwrap_or(1))?;
            copy(&mut input, &mut encoder, progress)?;
            output = encoder.finish()?;
        }
        Compression::Lz4 => pack_blocks(&mut input, &mut output, streams, progress, |block| {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(block)?;
            encoder.finish().map_err(io::Error::other)
        })?,
        Compression::Gzip => pack_blocks(&mut input, &mut output, streams, progress, |block| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(block)?;
            encoder.finish()
        })?,
    }
    output.flush()?;
    output.get_ref().sync_all()
}

/// Compresses blocks on threads of their own and writes them in order. At most twice as many blocks are in memory as
/// there are threads.
fn pack_blocks(
    input: &mut File,
    output: &mut impl Write,
    streams: usize,
    progress: &(dyn Fn(u64) + Sync),
    pack: impl Fn(&[u8]) -> io::Result<Vec<u8>> + Sync,
) -> io::Result<()> {
    type Done = mpsc::Receiver<io::Result<Vec<u8>>>;
    let streams = streams.max(1);
    std::thread::scope(|scope| {
        let (work, worked) = mpsc::sync_channel::<(Vec<u8>, mpsc::SyncSender<io::Result<Vec<u8>>>)>(streams);
        let worked = std::sync::Arc::new(Mutex::new(worked));
        for _ in 0..streams {
            let (worked, pack) = (worked.clone(), &pack);
            scope.spawn(move || {
                loop {
                    let next = worked.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((block, done)) = next else { return };
                    let _ = done.send(pack(&block));
                }
            });
        }
        // The workers end when nothing can be sent to them any more.
        drop(worked);
        let mut under_way = std::collections::VecDeque::<Done>::new();
        let mut write = |done: Done| -> io::Result<()> {
            let packed = done.recv().map_err(|_| io::Error::other("a thread ended"))??;
            output.write_all(&packed)
        };
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            input.take(BLOCK as u64).read_to_end(&mut block)?;
            // An empty file is one empty block.
            let is_last = block.len() < BLOCK;
            progress(block.len() as u64);
            let (done, result) = mpsc::sync_channel(1);
            work.send((block, done)).map_err(|_| io::Error::other("the threads ended"))?;
            under_way.push_back(result);
            while under_way.len() >= 2 * streams || is_last && !under_way.is_empty() {
                under_way.pop_front().map_or(Ok(()), &mut write)?;
            }
            if is_last {
                return Ok(());
            }
        }
    })
}

/// Writes at most `size` bytes and one, whatever is in the file.
fn unpack(from: &Path, to: &Path, by: Compression, size: u64, progress: &(dyn Fn(u64) + Sync)) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, File::open(from)?);
    let mut output = BufWriter::with_capacity(BUFFER, File::create(to)?);
    let most = size.saturating_add(1);
    match by {
        Compression::None => copy(&mut input.take(most), &mut output, progress)?,
        Compression::Zstd => copy(&mut zstd::Decoder::with_buffer(input)?.take(most), &mut output, progress)?,
        Compression::Lz4 => {
            let mut left = most;
            while !input.fill_buf()?.is_empty() && left > 0 {
                let mut frame = lz4_flex::frame::FrameDecoder::new(&mut input).take(left);
                copy(&mut frame, &mut output, progress)?;
                left = frame.limit();
            }
        }
        Compression::Gzip => copy(&mut flate2::bufread::MultiGzDecoder::new(input).take(most), &mut output, progress)?,
    }
    output.flush()
}

fn copy(input: &mut impl Read, output: &mut impl Write, progress: &(dyn Fn(u64) + Sync)) -> io::Result<()> {
    let mut chunk = vec![0; BUFFER];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                output.write_all(&chunk[..read])?;
                progress(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_gives_back_what_it_took() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("pages-1.img");
        for length in [0, 1, BLOCK, 3_000_000 * 4, 5 * BLOCK] {
            let numbers = (0..u32::try_from(length / 4 + 1).unwrap()).flat_map(|n| (n / 1000).to_le_bytes());
            let content: Vec<u8> = numbers.take(length).collect();
            fs::write(&plain, &content).unwrap();
            for (by, streams) in Compression::ALL.iter().flat_map(|by| [(*by, 1), (*by, 3)]) {
                let (packed, again) = (directory.path().join("packed"), directory.path().join("again"));
                pack(&plain, &packed, by, streams, &|_| {}).unwrap();
                unpack(&packed, &again, by, content.len() as u64, &|_| {}).unwrap();
                assert!(fs::read(&again).unwrap() == content, "{by} {streams} {length}");
                let ratio = content.len() as u64 / fs::metadata(&packed).unwrap().len().max(1);
                assert!(by == Compression::None || length < 1000 || ratio >= 10, "{by}: {ratio}");
                // A decompression bomb does not fill the disk.
                unpack(&packed, &again, by, 10, &|_| {}).unwrap();
                assert!(fs::metadata(&again).unwrap().len() <= 11, "{by} {streams} {length}");
            }
        }
    }

    #[test]
    fn archives_of_earlier_versions_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let (packed, again) = (directory.path().join("packed"), directory.path().join("again"));
        let content: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 1000).to_le_bytes()).collect();
        let mut one = lz4_flex::frame::FrameEncoder::new(Vec::new());
        one.write_all(&content).unwrap();
        fs::write(&packed, one.finish().unwrap()).unwrap();
        unpack(&packed, &again, Compression::Lz4, content.len() as u64, &|_| {}).unwrap();
        assert!(fs::read(&again).unwrap() == content);
    }
}
