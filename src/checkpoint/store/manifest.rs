//! What a checkpoint consists of: `manifest.json`, written last. A checkpoint without one, or with one that cannot be
//! parsed, does not exist; a file that differs from its entry is reported, and CRIU never sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    MANIFEST,
    hashing::{FileEntry, hash},
};
use crate::{
    checkpoint::{CheckpointError, gpu::SavedGpus},
    criu::{namespace_setup::MemoryFiles, network::sockets::Sockets, thread_attributes::ThreadAttributes},
    host::{
        disk::{DiskError, sync_directory},
        parallel,
    },
    model::{
        checkpoint::Kind,
        ids::{CheckpointId, PodId},
        names::{InstanceName, UserName, start_of},
        pod::PodSpec,
        time::{Millis, as_integer},
    },
};

/// The format of the manifest; others are not read.
const FORMAT: u32 = 1;

/// Most manifests hold hundreds of files, and seven for each process.
pub const MAX_SIZE: u64 = 64 << 20;

/// Limits for a manifest whose content a stranger may have chosen.
const MAX_FILES: usize = 200_000;

const MAX_LOSSES: usize = 1_000;

/// Docker allows 127 of an image.
const MAX_LAYERS: usize = 1_000;

const MAX_TEXT: usize = 4_096;

/// Characters of foreign text that a message shows.
const SHOWN: usize = 100;

/// A petabyte: sums of sizes stay far below the type's maximum.
const MAX_BYTES: u64 = 1 << 50;

/// Clocks of two hosts may differ, milliseconds.
const MAX_AHEAD: i64 = 86_400_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub id: CheckpointId,
    pub user: UserName,
    pub pod: PodId,
    pub instance: InstanceName,
    pub container_name: String,
    pub kind: Kind,
    #[serde(with = "as_integer")]
    pub created_at: Millis,
    pub shape: PodSpec,
    /// `sha256:…`
    pub image_id: String,
    /// The image's layers: the same where another kind of store has given it another id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    pub host: Host,
    pub sockets: Sockets,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_files: Vec<MemoryFiles>,
    /// Programs were on GPUs: the memory there is in the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<SavedGpus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuning: Vec<ThreadAttributes>,
    /// The parameters of the pod's network, by their paths below /proc/sys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network: BTreeMap<String, String>,
    /// The pod's `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    /// What it does not contain, as sentences.
    pub losses: Vec<String>,
    /// How long the pod was frozen, milliseconds.
    pub frozen_ms: u64,
    /// By path from the directory.
    pub files: BTreeMap<PathBuf, FileEntry>,
    /// The engine's full description of the container. What the code reads of it has a method.
    pub container: Value,
}

/// The host that it was made on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub kernel: String,
    pub machine: String,
    pub criu: String,
    pub runtime: String,
    /// The version of cgroups.
    pub cgroup: u8,
    /// The path of the pod's own, on version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl Manifest {
    pub fn format() -> u32 {
        FORMAT
    }

    /// The id of the container that was saved; empty where the engine did not say it.
    pub fn container_id(&self) -> &str {
        self.container["Id"].as_str().unwrap_or_default()
    }

    /// Bytes that the checkpoint takes.
    pub fn stored_size(&self) -> u64 {
        self.files.iter().map(|(path, entry)| entry.stored(path).1).sum()
    }

    /// Bytes of the images when they are unpacked.
    pub fn full_size(&self) -> u64 {
        self.files.values().map(|entry| entry.size).sum()
    }

    /// The stored files: path, size and hash.
    pub fn stored(&self) -> impl Iterator<Item = (&Path, u64, &str)> {
        self.files.iter().map(|(path, entry)| entry.stored(path))
    }

    /// Reads the manifest of a directory and checks that it is this checkpoint's.
    pub fn read(directory: &Path, id: CheckpointId) -> Result<Self, CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged { id, file: MANIFEST.to_owned(), why };
        let file = File::open(directory.join(MANIFEST)).map_err(|error| damaged(error.to_string()))?;
        let mut text = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
        Self::parse(&text, id).map_err(damaged)
    }

    /// Parses it, or says what is wrong with it.
    pub fn parse(text: &[u8], id: CheckpointId) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("its format is {}, this pody knows {FORMAT}", manifest.format));
        }
        if manifest.id != id {
            return Err(format!("it belongs to checkpoint {}", manifest.id));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Nothing in it leads out of the directory, and nothing is larger than possible.
    fn check(&self) -> Result<(), String> {
        if self.files.len() > MAX_FILES || self.losses.len() > MAX_LOSSES {
            return Err(format!("it names more than {MAX_FILES} files or {MAX_LOSSES} losses"));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("it names more than {MAX_LAYERS} layers"));
        }
        let mut seen = BTreeSet::new();
        let mut bytes = 0u64;
        for (path, entry) in &self.files {
            let (stored, size, blake3) = entry.stored(path);
            for path in [path.as_path(), stored] {
                let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
                // The parts are joined again: if the result differs, it is no plain path.
                let is_same = path.iter().collect::<PathBuf>().as_os_str() == path.as_os_str();
                if !is_plain || !is_same || path.as_os_str().is_empty() || path == Path::new(MANIFEST) {
                    return Err(format!("it names {}", shown(&path.display().to_string())));
                }
            }
            if !seen.insert(stored) {
                return Err(format!("it names {} twice", shown(&stored.display().to_string())));
            }
            for hash in [blake3, &entry.blake3] {
                if hash.len() != 64 || !hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(format!("it gives {} no hash", shown(&stored.display().to_string())));
                }
            }
            bytes = bytes.saturating_add(size.max(entry.size));
        }
        if bytes > MAX_BYTES
            || self.frozen_ms > MAX_BYTES
            || !(Millis(0)..Millis::now() + MAX_AHEAD).contains(&self.created_at)
        {
            return Err("its numbers are out of range".to_owned());
        }
        let is_id = self
            .image_id
            .strip_prefix("sha256:")
            .is_some_and(|id| id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()));
        if !is_id {
            return Err(format!("its image is {}", shown(&self.image_id)));
        }
        self.gpus.as_ref().map_or(Ok(()), SavedGpus::check)?;
        let host = &self.host;
        let texts = [&self.container_name, &host.kernel, &host.machine, &host.criu, &host.runtime, &self.shape.image];
        let texts = texts.into_iter().chain([&self.shape.hostname]).chain(&self.losses).chain(&self.sockets.address);
        let texts = texts.chain(&host.group).chain(&self.layers);
        match texts.into_iter().find(|text| text.len() > MAX_TEXT || text.chars().any(char::is_control)) {
            Some(text) => Err(format!("it says {}", shown(text))),
            None => Ok(()),
        }
    }

    pub fn text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    /// Writes it so that it is there whole or not at all, also after a power cut. One that could not be read back is
    /// not written: the pod may be stopped because of it.
    pub fn write(&self, directory: &Path) -> Result<(), CheckpointError> {
        let path = directory.join(MANIFEST);
        let text = self.text().map_err(io::Error::from).map_err(DiskError::io("writing", &path))?;
        if text.len() as u64 > MAX_SIZE {
            let why = format!("it has {} bytes, more than the limit of {MAX_SIZE}", text.len());
            return Err(CheckpointError::Unreadable(why));
        }
        Self::parse(&text, self.id).map_err(CheckpointError::Unreadable)?;
        let written = || {
            let new = directory.join(format!("{MANIFEST}.new"));
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_directory(directory)
        };
        Ok(written().map_err(DiskError::io("writing", &path))?)
    }

    /// Verifies every file that it names, several at a time: present, with its size and hash. The first bad one is
    /// reported.
    pub fn verify(
        &self,
        directory: &Path,
        streams: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), CheckpointError> {
        let damaged = |(path, why): (&Path, String)| CheckpointError::Damaged {
            id: self.id,
            file: path.strip_prefix(crate::criu::runc::IMAGES).unwrap_or(path).display().to_string(),
            why,
        };
        let files: Vec<(&Path, u64, &str)> = self.stored().collect();
        // Sizes of all files first: that costs nothing and finds most damage.
        for (path, size, _) in &files {
            check_size(directory, path, *size).map_err(|why| damaged((path, why)))?;
        }
        let look = |(path, _, blake3): &(&Path, u64, &str)| {
            check_hash(directory, path, blake3, progress).map_err(|why| damaged((path, why)))
        };
        parallel::for_each(streams, &files, look)
    }

    /// The files in the directory that differ from their entries: path, size and hash.
    pub fn damaged_files(&self, directory: &Path, streams: usize) -> Vec<(PathBuf, u64, String)> {
        let files: Vec<(&Path, u64, &str)> = self.stored().collect();
        let found = std::sync::Mutex::new(Vec::new());
        let look = |(path, size, blake3): &(&Path, u64, &str)| {
            let good = check_size(directory, path, *size).and_then(|()| check_hash(directory, path, blake3, &|_| {}));
            if good.is_err() {
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                found.push((path.to_path_buf(), *size, (*blake3).to_owned()));
            }
            Ok::<(), ()>(())
        };
        let _ = parallel::for_each(streams, &files, look);
        found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn check_size(directory: &Path, path: &Path, size: u64) -> Result<(), String> {
    match fs::symlink_metadata(directory.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is missing".to_owned()),
        Err(error) => Err(error.to_string()),
        Ok(found) if !found.is_file() => Err("it is not a regular file".to_owned()),
        Ok(found) if found.len() != size => Err(format!("expected {size} bytes, found {}", found.len())),
        Ok(_) => Ok(()),
    }
}

fn check_hash(directory: &Path, path: &Path, blake3: &str, progress: &(dyn Fn(u64) + Sync)) -> Result<(), String> {
    let found = hash(&directory.join(path), progress).map_err(|error| error.to_string())?;
    if found == blake3 { Ok(()) } else { Err("its content changed".to_owned()) }
}

/// Foreign text on one short line.
fn shown(text: &str) -> String {
    format!("{:?}", start_of(text, SHOWN))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest() -> Value {
        json!({
            "format": 1, "id": CheckpointId::generate(), "user": "alice", "pod": PodId::generate(), "instance": "main",
            "container_name": "alice-main", "kind": "rootfs", "created_at": Millis::now().0, "shape": shape(),
            "image_id": format!("sha256:{}", "a".repeat(64)),
            "host": {"kernel": "6", "machine": "x86_64", "criu": "4.2", "runtime": "runc", "cgroup": 1},
            "sockets": {"local": 0, "outside": 0, "address": null}, "losses": [], "frozen_ms": 1,
            "files": {"checkpoint/pages-1.img": {"size": 3, "blake3": "0".repeat(64)}}, "container": {},
        })
    }

    fn shape() -> Value {
        json!({"image": "pody-base:latest", "hostname": "main", "binds": [], "tmpfs": [], "ports": [], "network": "",
               "gpus": null, "memory": null, "cpu": null, "pids": null, "shm": null, "storage": null, "new_privileges": false})
    }

    fn parse(value: &Value) -> Result<Manifest, String> {
        let id = value["id"].as_str().unwrap().parse().unwrap();
        Manifest::parse(value.to_string().as_bytes(), id)
    }

    #[test]
    fn a_hostile_manifest_is_refused() {
        assert!(parse(&manifest()).is_ok(), "{:?}", parse(&manifest()));
        let file = |size: u64| json!({"size": size, "blake3": "0".repeat(64)});
        let packed = |path: &str| {
            json!({"size": 3, "blake3": "0".repeat(64),
                   "packed": {"by": "zstd", "path": path, "size": 1, "blake3": "0".repeat(64)}})
        };
        for path in ["../x", "/etc/passwd", "a/../../x", "./a", "a//b", "a/", "", "manifest.json"] {
            let mut bad = manifest();
            bad["files"] = json!({path: file(3)});
            assert!(parse(&bad).unwrap_err().starts_with("it names"), "{path:?}");
            bad["files"] = json!({"a": packed(path)});
            assert!(parse(&bad).unwrap_err().starts_with("it names"), "{path:?}");
        }
        let with = |key: &str, value: Value| {
            let mut bad = manifest();
            bad[key] = value;
            parse(&bad).unwrap_err()
        };
        assert_eq!(with("files", json!({"a": packed("b"), "b": file(3)})), "it names \"b\" twice");
        assert_eq!(with("files", json!({"a": file(u64::MAX), "b": file(u64::MAX)})), "its numbers are out of range");
        assert_eq!(with("files", json!({"a": {"size": 1, "blake3": "x"}})), "it gives \"a\" no hash");
        assert_eq!(with("created_at", json!(i64::MAX)), "its numbers are out of range");
        assert_eq!(with("image_id", json!("evil;rm")), "its image is \"evil;rm\"");
        assert_eq!(with("losses", json!(["a\u{1b}[2J"])), "it says \"a\\u{1b}[2J\"");
        assert!(with("user", json!("../bob")).contains("name"), "{}", with("user", json!("../bob")));
        assert!(with("losses", json!(vec!["x"; MAX_LOSSES + 1])).contains("more than"));
        assert!(with("layers", json!(vec!["x"; MAX_LAYERS + 1])).contains("1000 layers"));
        assert!(with("format", json!(2)).contains("format is 2"));
    }
}
