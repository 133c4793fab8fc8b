//! What a checkpoint consists of: `manifest.json`, written last. A checkpoint without one, or with one that does not read,
//! does not exist; a file that is not as it says is named, and CRIU never sees it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    CheckpointError, Compression, Kind,
    store::{MANIFEST, files_below, sync_folder},
};
use crate::{
    ids::{CheckpointId, PodId},
    names::{InstanceName, UserName},
    pod::PodSpec,
};

/// The form of the manifest; one of another form is not read.
const FORMAT: u32 = 1;
/// A manifest holds hundreds of files at most.
const MAX_SIZE: u64 = 16 << 20;
/// Read at a time while hashing: large enough for all threads to have a part.
const CHUNK: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub id: CheckpointId,
    pub user: UserName,
    pub pod: PodId,
    pub instance: InstanceName,
    pub container_name: String,
    pub kind: Kind,
    /// Milliseconds since 1970.
    pub created_at: i64,
    pub shape: PodSpec,
    /// `sha256:…`
    pub image_id: String,
    pub host: Host,
    pub sockets: Sockets,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_files: Vec<MemoryFiles>,
    /// What is not in it, as sentences.
    pub losses: Vec<String>,
    /// How long the pod stood still, milliseconds.
    pub frozen_ms: u64,
    /// By path from the folder.
    pub files: BTreeMap<PathBuf, FileEntry>,
    /// All that the engine said of the container.
    pub container: Value,
}

/// Where it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub kernel: String,
    pub machine: String,
    pub criu: String,
    pub runtime: String,
    pub cgroup: u8,
}

/// TCP connections that were open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sockets {
    /// Between programs of the pod.
    pub local: u32,
    /// With others.
    pub outside: u32,
    /// The pod's address then.
    pub address: Option<String>,
    /// The pod's own addresses that sockets are bound to, but for the loopback's.
    #[serde(default)]
    pub bound: Vec<Ipv4Addr>,
}

/// The content of a memory file system, in an image that is put back by us and not by CRIU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryFiles {
    /// Its path from the folder.
    pub image: PathBuf,
    /// Where it was mounted in the pod, and the kernel's number of that mount then.
    pub target: PathBuf,
    pub mount: u32,
}

/// A file as CRIU and tar need it; `packed` as it lies in the folder, where that differs.
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
    /// The file that lies in the folder: path, size and hash.
    fn stored<'a>(&'a self, path: &'a Path) -> (&'a Path, u64, &'a str) {
        match &self.packed {
            Some(packed) => (&packed.path, packed.size, &packed.blake3),
            None => (path, self.size, &self.blake3),
        }
    }
}

impl Manifest {
    pub fn format() -> u32 {
        FORMAT
    }

    /// Bytes that the checkpoint takes.
    pub fn stored_size(&self) -> u64 {
        self.files.iter().map(|(path, entry)| entry.stored(path).1).sum()
    }

    /// Bytes of the images when they are unpacked.
    pub fn full_size(&self) -> u64 {
        self.files.values().map(|entry| entry.size).sum()
    }

    /// Reads the manifest of a folder and checks that it is this checkpoint's.
    pub fn read(folder: &Path, id: CheckpointId) -> Result<Self, CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged { id, file: MANIFEST.to_owned(), why };
        let path = folder.join(MANIFEST);
        let file = File::open(&path).map_err(|error| damaged(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_SIZE).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!("its format is {}, this pody knows {FORMAT}", manifest.format)));
        }
        if manifest.id != id {
            return Err(damaged(format!("it is that of checkpoint {}", manifest.id)));
        }
        let paths = manifest.files.iter().map(|(path, entry)| entry.stored(path).0);
        for path in paths.chain(manifest.files.keys().map(PathBuf::as_path)) {
            if path.components().any(|part| !matches!(part, Component::Normal(_))) {
                return Err(damaged(format!("it names {}", path.display())));
            }
        }
        Ok(manifest)
    }

    /// Writes it so that it is there whole or not at all, also after a power cut.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(MANIFEST);
        let written = || {
            let text = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
            let new = folder.join(format!("{MANIFEST}.new"));
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_folder(folder)
        };
        written().map_err(CheckpointError::io("writing", &path))
    }

    /// Looks at every file that it names: there, of its size, and with its hash. The first that is not so is named.
    pub fn verify(&self, folder: &Path, progress: &dyn Fn(u64)) -> Result<(), CheckpointError> {
        let damaged = |path: &Path, why: String| CheckpointError::Damaged {
            id: self.id,
            file: path.strip_prefix(super::store::IMAGES).unwrap_or(path).display().to_string(),
            why,
        };
        // Sizes of all files first: that costs nothing and tells most damages.
        for (path, entry) in &self.files {
            let (path, size, _) = entry.stored(path);
            match fs::symlink_metadata(folder.join(path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged(path, "it is missing".to_owned()));
                }
                Err(error) => return Err(damaged(path, error.to_string())),
                Ok(found) if !found.is_file() => return Err(damaged(path, "it is no file".to_owned())),
                Ok(found) if found.len() != size => {
                    return Err(damaged(path, format!("expected {size} bytes, found {}", found.len())));
                }
                Ok(_) => {}
            }
        }
        for (path, entry) in &self.files {
            let (path, _, blake3) = entry.stored(path);
            let found = hash(&folder.join(path), progress).map_err(|error| damaged(path, error.to_string()))?;
            if found != blake3 {
                return Err(damaged(path, "its content changed".to_owned()));
            }
        }
        Ok(())
    }
}

/// Hashes every file below the folder and writes it through to the disk.
pub fn hash_and_sync(folder: &Path, progress: &dyn Fn(u64)) -> Result<BTreeMap<PathBuf, FileEntry>, CheckpointError> {
    let mut files = BTreeMap::new();
    let found = files_below(folder).map_err(CheckpointError::io("reading", folder))?;
    for path in found {
        let full = folder.join(&path);
        let entry = || {
            let file = File::open(&full)?;
            let blake3 = hash(&full, progress)?;
            file.sync_all()?;
            Ok(FileEntry { size: file.metadata()?.len(), blake3, packed: None })
        };
        files.insert(path, entry().map_err(CheckpointError::io("hashing", &full))?);
    }
    let images = folder.join(super::store::IMAGES);
    if images.is_dir() {
        sync_folder(&images).map_err(CheckpointError::io("syncing", &images))?;
    }
    Ok(files)
}

/// The BLAKE3 of a file. All cores take part in large ones.
pub fn hash(path: &Path, progress: &dyn Fn(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK).max(1))];
    loop {
        let read = fill(&mut file, &mut chunk)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update_rayon(&chunk[..read]);
        progress(read as u64);
    }
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
