//! BLAKE3 of files, and fsync.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
};

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::CheckpointError,
    criu::runc::IMAGES,
    host::{
        disk::{DiskError, files_below, sync_directory},
        parallel,
    },
    model::checkpoint::Compression,
};

/// Bytes per read: large enough for all threads to have a part.
const CHUNK: usize = 4 << 20;

/// Chunks that are read ahead of the hash.
const AHEAD: usize = 2;

/// Hashes and fsyncs every file below the directory, several at a time.
pub fn hash_and_sync(
    directory: &Path,
    streams: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<BTreeMap<PathBuf, FileEntry>, CheckpointError> {
    let found = files_below(directory).map_err(DiskError::io("reading", directory))?;
    let files = Mutex::new(BTreeMap::new());
    let work = |path: &PathBuf| {
        let full = directory.join(path);
        let entry = || {
            let file = File::open(&full)?;
            let blake3 = hash(&full, progress)?;
            file.sync_all()?;
            Ok(FileEntry { size: file.metadata()?.len(), blake3, packed: None })
        };
        let entry = entry().map_err(DiskError::io("hashing", &full))?;
        files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), entry);
        Ok::<(), CheckpointError>(())
    };
    parallel::for_each(streams, &found, work)?;
    let images = directory.join(IMAGES);
    if images.is_dir() {
        sync_directory(&images).map_err(DiskError::io("syncing", &images))?;
    }
    Ok(files.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The BLAKE3 of a file. All cores take part in large ones, and one thread reads ahead.
pub fn hash(path: &Path, progress: &(dyn Fn(u64) + Sync)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut add = |chunk: &[u8]| {
        hasher.update_rayon(chunk);
        progress(chunk.len() as u64);
    };
    if length <= CHUNK as u64 {
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        add(&content);
        return Ok(hasher.finalize().to_hex().to_string());
    }
    std::thread::scope(|scope| {
        let (full, filled) = mpsc::sync_channel::<io::Result<Vec<u8>>>(AHEAD);
        let (empty, emptied) = mpsc::channel::<Vec<u8>>();
        scope.spawn(move || {
            loop {
                let mut buffer = emptied.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
                buffer.resize(CHUNK, 0);
                let read = fill(&mut file, &mut buffer).map(|read| {
                    buffer.truncate(read);
                    buffer
                });
                let is_last = read.as_ref().map_or(true, Vec::is_empty);
                if full.send(read).is_err() || is_last {
                    return;
                }
            }
        });
        for chunk in filled {
            let chunk = chunk?;
            add(&chunk);
            // The reader may have ended.
            let _ = empty.send(chunk);
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A file as CRIU and tar need it; `packed` as it is stored, if that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    pub size: u64,
    pub blake3: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packed {
    pub by: Compression,
    pub path: PathBuf,
    pub size: u64,
    pub blake3: String,
}

impl FileEntry {
    /// The stored file: path, size and hash.
    pub fn stored<'a>(&'a self, path: &'a Path) -> (&'a Path, u64, &'a str) {
        match &self.packed {
            Some(packed) => (&packed.path, packed.size, &packed.blake3),
            None => (path, self.size, &self.blake3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_hashes_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77] {
            let content: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
            let path = directory.path().join(format!("{length}"));
            std::fs::write(&path, &content).unwrap();
            let seen = std::sync::atomic::AtomicU64::new(0);
            let found = hash(&path, &|read| {
                seen.fetch_add(read, std::sync::atomic::Ordering::Relaxed);
            });
            assert_eq!(found.unwrap(), blake3::hash(&content).to_hex().to_string(), "{length}");
            assert_eq!(seen.into_inner(), length as u64);
        }
        let all = hash_and_sync(directory.path(), 3, &|_| {}).unwrap();
        assert_eq!(all.len(), 6);
    }
}
