//! The order for a restore, from the daemon to the OCI runtime ([`crate::runtime`]) by way of the engine.
//!
//! A restored container must be the engine's own child, so the engine starts it. The engine can only say "create" and
//! "start" to a runtime. What is to be restored waits in a directory of this container, which only root can enter: its
//! `create` takes the plan and begins `runc restore`. A plan is taken once, so no later start of the container finds it.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{error::CriuError, gzip, runc};
use crate::{
    host::disk::{self, DiskError},
    model::ids::{ActionId, ContainerId},
};

/// One directory for each container that is being restored, or dumped by the engine. Gone after a reboot, as the
/// processes are.
const ORDERS: &str = "/run/pody-runc";

const PLAN: &str = "plan.json";

/// CRIU's log in [`Plan::work`].
pub const LOG: &str = "restore.log";

/// CRIU's options for a dump that the engine asks the runtime for.
const DUMP_OPTIONS: &str = "dump.conf";

/// What the runtime needs for one restore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub action: ActionId,
    /// The directory of CRIU's images; see [`make_images`].
    pub images: PathBuf,
    /// For files of CRIU; see [`LOG`].
    pub work: PathBuf,
    /// Whether TCP connections continue: runc's own option, which CRIU prefers to its configuration file's.
    pub is_tcp_established: bool,
    /// The lines of CRIU's configuration file. runc passes the rest itself.
    pub options: String,
    /// Where runc and CRIU are found: those that made the dump.
    pub path: String,
    pub deadline: Duration,
}

impl Plan {
    /// Leaves the plan for the next `create` of the container.
    pub fn place(&self, container: &ContainerId) -> Result<(), DiskError> {
        let text = serde_json::to_vec(self).expect("paths, numbers and texts");
        leave(container, PLAN, &text)
    }

    /// Takes the plan, if there is one: at most one caller gets it.
    pub fn take(container: &ContainerId) -> io::Result<Option<Self>> {
        let directory = directory(container);
        let (placed, taken) = (directory.join(PLAN), directory.join("plan.taken"));
        match fs::rename(&placed, &taken) {
            Ok(()) => Ok(Some(serde_json::from_slice(&fs::read(&taken)?)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Leaves CRIU's options for the next dump of the container by the engine.
pub fn place_dump_options(container: &ContainerId, options: &str) -> Result<(), DiskError> {
    leave(container, DUMP_OPTIONS, options.as_bytes())
}

/// The file of CRIU's options for a dump, where there is one.
pub fn dump_options(container: &ContainerId) -> Option<PathBuf> {
    Some(directory(container).join(DUMP_OPTIONS)).filter(|file| file.is_file())
}

/// Removes what was left for a container, taken or not.
pub fn withdraw(container: &ContainerId) -> Result<(), DiskError> {
    disk::remove(&directory(container))
}

/// The container's directory below [`ORDERS`].
pub fn directory(container: &ContainerId) -> PathBuf {
    Path::new(ORDERS).join(container.as_str())
}

fn leave(container: &ContainerId, name: &str, content: &[u8]) -> Result<(), DiskError> {
    let directory = directory(container);
    let left = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let new = directory.join(format!("{name}.new"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut file, content)?;
        fs::rename(&new, directory.join(name))
    };
    left().map_err(DiskError::io("writing into", &directory))
}

/// Makes a directory of images for one restore. `files` are names in the checkpoint and where to read each from; CRIU
/// gets those in `emptied` without content. The others are links: a change must replace the file, not write into it.
pub fn make_images(
    directory: &Path,
    files: &[(PathBuf, PathBuf)],
    emptied: &std::collections::HashSet<&Path>,
) -> Result<(), CriuError> {
    let made = || {
        fs::create_dir_all(directory)?;
        for (name, source) in files {
            let is_emptied = emptied.contains(name.as_path());
            let Ok(name) = name.strip_prefix(runc::IMAGES) else { continue };
            let to = directory.join(name);
            match is_emptied {
                true => fs::write(to, gzip::empty_archive())?,
                // Unpacked files may be on another disk.
                false => fs::hard_link(source, &to).or_else(|_| fs::copy(source, &to).map(drop))?,
            }
        }
        Ok(())
    };
    Ok(made().map_err(DiskError::io("making", directory))?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn plan() -> Plan {
        Plan {
            action: ActionId::generate(),
            images: "/x/images".into(),
            work: "/x/work".into(),
            is_tcp_established: true,
            options: "tcp-established\n".to_owned(),
            path: "/usr/sbin".to_owned(),
            deadline: Duration::from_secs(7),
        }
    }

    #[test]
    fn a_plan_survives_the_way_through_its_file() {
        let plan = plan();
        let text = serde_json::to_vec(&plan).unwrap();
        assert_eq!(serde_json::from_slice::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn images_are_linked_and_those_that_are_filled_later_are_empty_archives() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, filled) = (folder.path().join("kept"), folder.path().join("filled"));
        fs::write(&kept, "content").unwrap();
        fs::write(&filled, "large").unwrap();
        let files = [
            ("checkpoint/pages-1.img".into(), kept.clone()),
            ("checkpoint/tmpfs-dev-1.tar.gz.img".into(), filled),
            ("rootfs.tar".into(), kept),
        ];
        let made = folder.path().join("images");
        make_images(&made, &files, &HashSet::from([Path::new("checkpoint/tmpfs-dev-1.tar.gz.img")])).unwrap();
        assert_eq!(fs::read_to_string(made.join("pages-1.img")).unwrap(), "content");
        assert_eq!(fs::read(made.join("tmpfs-dev-1.tar.gz.img")).unwrap(), gzip::empty_archive());
        assert_eq!(fs::read_dir(&made).unwrap().count(), 2, "what is not CRIU's is not there");
    }
}
