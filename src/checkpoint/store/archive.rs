//! The writable layer of a container as a tar archive, by the program `tar`: it keeps extended attributes (opaque
//! directories of overlayfs are one), whiteouts (0/0 devices), owners, holes and hard links. Sockets are left out; CRIU
//! creates them again.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Stdio};

use tokio::process::Command;

use crate::{
    checkpoint::CheckpointError,
    criu::runc::RECORDS,
    host::{
        blocking::off_thread,
        disk::{self, DiskError},
    },
    model::{action::Action, names::clipped},
};

/// What is kept of files besides their content.
const KEPT: [&str; 4] = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];

/// Packs a directory's content, and removes the suffix `without` from names. Files that change meanwhile are an error:
/// the pod is frozen.
pub async fn pack(directory: &Path, archive: &Path, without: &str) -> Result<(), CheckpointError> {
    let mut tar = Command::new("tar");
    tar.args(["--create", RECORDS, "--sparse", "--warning=no-file-ignored"]).args(KEPT);
    // Names that exist for the dump only; as targets of hard links, too.
    if !without.is_empty() {
        tar.arg(format!("--transform=flags=rh;s/{}$//", without.replace('.', "[.]")));
    }
    tar.arg("--file").arg(archive).arg("--directory").arg(directory).arg(".");
    run(tar, archive).await
}

/// Unpacks an archive into an empty directory.
pub async fn unpack(archive: &Path, directory: &Path) -> Result<(), CheckpointError> {
    let mut tar = Command::new("tar");
    tar.args(["--extract", RECORDS, "--same-owner", "--preserve-permissions", "--delay-directory-restore"]).args(KEPT);
    tar.arg("--file").arg(archive).arg("--directory").arg(directory);
    run(tar, directory).await
}

/// Copies a layer into an empty one, by an archive in `scratch`: tar alone keeps all that a layer consists of.
pub async fn copy(from: &Path, to: &Path, scratch: &Path) -> Result<(), CheckpointError> {
    let archive = scratch.join("layer.tar");
    pack(from, &archive, "").await?;
    unpack(&archive, to).await?;
    off_thread(move || disk::remove(&archive)).await?;
    Ok(())
}

/// `to` is what it writes.
async fn run(mut tar: Command, to: &Path) -> Result<(), CheckpointError> {
    let failed = |message: String| CheckpointError::Program { program: "tar", message };
    let output =
        tar.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // tar reports a short write without the system's error.
    let is_full =
        ["No space left on device", "Disk quota exceeded", "Wrote only"].iter().any(|words| said.contains(words));
    match is_full {
        true => {
            let path = to.to_owned();
            Err(off_thread(move || DiskError::Full { free: disk::left(&path), path }).await.into())
        }
        // A line may contain a whole path.
        false => Err(failed(said.lines().take(3).map(clipped).collect::<Vec<_>>().join("; "))),
    }
}

/// Moves a container's writable layer aside and makes an empty one in its place, with its mode and owner.
pub fn put_aside(upper: &Path, aside: &Path) -> std::io::Result<()> {
    let before = fs::metadata(upper)?;
    fs::rename(upper, aside)?;
    fs::create_dir(upper)?;
    fs::set_permissions(upper, before.permissions())?;
    std::os::unix::fs::chown(upper, Some(before.uid()), Some(before.gid()))
}

/// Moves a layer back that was moved aside.
pub fn put_back(upper: &Path, aside: &Path) -> Result<(), CheckpointError> {
    if aside.exists() {
        crate::host::disk::remove(upper)?;
        fs::rename(aside, upper).map_err(DiskError::io("putting back", upper))?;
    }
    Ok(())
}

/// Where a restore keeps the previous writable layer of its container.
pub(in crate::checkpoint) fn aside(upper: &std::path::Path, action: &Action) -> std::path::PathBuf {
    upper.with_file_name(format!("pody-{}", action.id))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;

    /// Whiteouts, opaque directories, capabilities, owners: what a writable layer consists of. Needs root, as the
    /// daemon has.
    #[tokio::test]
    async fn a_layer_is_restored_as_it_was() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("opaque")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), b"content").unwrap();
        std::os::unix::fs::chown(from.join("file"), Some(1234), Some(4321)).unwrap();
        // Last: a change of the owner clears the set-user-id bit.
        fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("file"), from.join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("symlink")).unwrap();
        mknod(&from.join("gone"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        let attribute = |path: &Path, name: &str, value: Option<&str>| {
            let mut command = std::process::Command::new("python3");
            let code = match value {
                Some(_) => "import os,sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())",
                None => "import os,sys; print(os.getxattr(sys.argv[1], sys.argv[2]).decode(), end='')",
            };
            command.args(["-c", code]).arg(path).arg(name).args(value);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        attribute(&from.join("opaque"), "trusted.overlay.opaque", Some("y"));
        attribute(&from.join("file"), "user.note", Some("kept"));

        let archive = directory.path().join("layer.tar");
        pack(&from, &archive, ".pody-link-x").await.unwrap();
        unpack(&archive, &to).await.unwrap();

        let file = fs::metadata(to.join("file")).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1234, 4321, 0o4751));
        assert_eq!(file.ino(), fs::metadata(to.join("link")).unwrap().ino());
        assert_eq!(fs::read_link(to.join("symlink")).unwrap(), Path::new("/nowhere"));
        let gone = fs::symlink_metadata(to.join("gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(attribute(&to.join("opaque"), "trusted.overlay.opaque", None), "y");
        assert_eq!(attribute(&to.join("file"), "user.note", None), "kept");
    }
}
