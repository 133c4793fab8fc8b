//! Uploads.
//!
//! The bytes go into a partial file, one per path, that only one request writes at a time. A part that begins where the
//! last one ended is appended, which resumes an interrupted upload. When the file is complete it is synced and renamed:
//! a reader sees the old file or the new one, never a part. Every byte is reserved from the owner's limit before it is
//! written; announced bytes are reserved at once.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::{FileError, FilePath, Files, Owner, make_private};
use crate::{
    db::NewEvent,
    host::disk,
    model::{quantities::ByteSize, user::Actor},
};

/// Bytes written between two checks of the disk's free space.
const LOOK_EVERY: u64 = 16 << 20;

/// Tags that the file must have, or must not have, for an upload to begin. The caller defines their notation.
#[derive(Clone, Debug)]
pub struct OnlyIf {
    pub is: Option<String>,
    pub is_not: Option<String>,
    /// Whether a text in that notation matches a tag.
    pub names: fn(&str, &str) -> bool,
}

impl OnlyIf {
    /// `tag` is the file's; `None` if there is no file.
    fn holds(&self, tag: Option<&str>) -> bool {
        let meant = |text: &String| tag.is_some_and(|tag| (self.names)(text, tag));
        self.is.as_ref().is_none_or(meant) && !self.is_not.as_ref().is_some_and(meant)
    }

    fn is_any(&self) -> bool {
        self.is.is_none() && self.is_not.is_none()
    }
}

/// What a request announces.
#[derive(Clone, Debug)]
pub struct Begin {
    /// Offset of its bytes; `None` = it is the whole file.
    pub offset: Option<u64>,
    /// Bytes of the whole file, if known.
    pub total: Option<u64>,
    /// Bytes that this request announces.
    pub length: Option<u64>,
    pub only_if: OnlyIf,
}

/// An upload in progress. If it is dropped before its end, it can be resumed.
pub struct Upload {
    files: Files,
    actor: Actor,
    owner: Owner,
    path: FilePath,
    begin: Begin,
    partial: PathBuf,
    file: tokio::fs::File,
    /// Bytes of the whole file that are here.
    have: u64,
    /// Bytes of this request.
    came: u64,
    /// Reserved from the limit for bytes that are still to come.
    reserved: u64,
    /// Bytes written since the last check of the disk.
    unlooked: u64,
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.files.release(&self.owner, self.reserved, 0);
        // If no bytes came, the partial file is removed. A finished file has been renamed.
        if self.have == 0 && fs::remove_file(&self.partial).is_ok() {
            self.files.release(&self.owner, 0, 1);
        }
        self.files.writing().remove(&self.partial);
    }
}

impl Upload {
    pub(super) fn begin(
        files: &Files,
        actor: Actor,
        owner: Owner,
        path: FilePath,
        begin: Begin,
    ) -> Result<Self, FileError> {
        make_private(&files.0.root)?;
        make_private(&files.partials(&owner))?;
        let partial = files.partial(&owner, &path);
        if !files.writing().insert(partial.clone()) {
            return Err(FileError::Busy(path.to_string()));
        }
        // From here on dropping `held` releases the path.
        let held = WriteClaim { files, partial: &partial };
        files.used_by(&owner)?;
        // From here on no other request writes this file.
        if !begin.only_if.is_any() {
            let tag = match files.directory(&owner).and_then(|directory| directory.open_for_reading(&path)) {
                Err(FileError::NotFound(_)) => None,
                opened => Some(opened?.tag),
            };
            if !begin.only_if.holds(tag.as_deref()) {
                return Err(FileError::Precondition(path.to_string()));
            }
        }
        let (file, have) = open(files, &owner, &path, &partial, &begin)?;
        let mut upload = Self {
            files: files.clone(),
            actor,
            owner,
            path,
            begin,
            partial: partial.clone(),
            file: tokio::fs::File::from_std(file),
            have,
            came: 0,
            reserved: 0,
            unlooked: 0,
        };
        std::mem::forget(held);
        let length = upload.begin.length.unwrap_or(0);
        upload.check_sizes(length)?;
        upload.check_disk(length)?;
        // Reserve all announced bytes at once: of many uploads some succeed instead of none.
        files.reserve(&upload.owner, length, 0)?;
        upload.reserved = length;
        Ok(upload)
    }

    /// Bytes of the whole file that are here.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Whether `more` bytes may come.
    fn check_sizes(&self, more: u64) -> Result<(), FileError> {
        let limit = self.files.0.config.get().files.file_limit;
        let found = self.have.saturating_add(more);
        if found.max(self.begin.total.unwrap_or(0)) > limit.0 {
            return Err(FileError::TooLarge { limit });
        }
        match self.begin.total {
            Some(said) if found > said => Err(FileError::Total { said, found }),
            _ => Ok(()),
        }
    }

    fn check_disk(&self, more: u64) -> Result<(), FileError> {
        let ByteSize(keep) = self.files.0.config.get().files.keep_free;
        let free = disk::available(&self.files.0.root).unwrap_or(u64::MAX);
        if free < keep.saturating_add(more) { Err(FileError::DiskFull { keep_free: ByteSize(keep) }) } else { Ok(()) }
    }

    pub async fn write(&mut self, bytes: Bytes) -> Result<(), FileError> {
        let more = bytes.len() as u64;
        self.check_sizes(more)?;
        self.unlooked += more;
        if self.unlooked >= LOOK_EVERY {
            self.check_disk(more)?;
            self.unlooked = 0;
        }
        match self.reserved.checked_sub(more) {
            Some(rest) => self.reserved = rest,
            None => self.files.reserve(&self.owner, more, 0)?,
        }
        // Flushed at once: each counted byte has been written, or is known not to have been.
        let written = async {
            self.file.write_all(&bytes).await?;
            self.file.flush().await
        };
        if let Err(error) = written.await {
            return Err(self.undo(more, &error).await);
        }
        self.have += more;
        self.came += more;
        Ok(())
    }

    /// Rolls back a partly written chunk.
    async fn undo(&mut self, more: u64, error: &std::io::Error) -> FileError {
        tracing::warn!(%error, "cannot write an upload");
        if self.file.set_len(self.have).await.is_ok() {
            self.files.release(&self.owner, more, 0);
        }
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                FileError::DiskFull { keep_free: self.files.0.config.get().files.keep_free }
            }
            _ => FileError::Io(error.kind().into()),
        }
    }

    /// Ends the request: a complete file gets its name. Returns whether it did.
    pub async fn finish(self) -> Result<bool, FileError> {
        if let Some(said) = self.begin.length.filter(|said| *said != self.came) {
            return Err(FileError::Cut { said: self.have - self.came + said, found: self.have });
        }
        self.file.sync_all().await?;
        let is_whole = match (self.begin.offset, self.begin.total) {
            (None, _) => true,
            (Some(_), total) => total == Some(self.have),
        };
        if !is_whole {
            return Ok(false);
        }
        let files = self.files.clone();
        let event = NewEvent::by(&self.actor).did("file.write", &self.path).of(&self.owner.user);
        let event = event.detail(format!("{} bytes", self.have));
        files.off_thread(move |files| self.take_in(files)).await?;
        files.0.db.insert_event(event).await?;
        Ok(true)
    }

    fn take_in(self, files: &Files) -> Result<(), FileError> {
        let name = self.partial.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let from = File::open(files.partials(&self.owner))?;
        let replaced = files.directory(&self.owner)?.take_in(&from, name, &self.path)?;
        if let Some(size) = replaced {
            files.release(&self.owner, size, 1);
        }
        Ok(())
    }
}

/// The claim on a path in `writing`, until the upload itself holds it.
struct WriteClaim<'a> {
    files: &'a Files,
    partial: &'a Path,
}

impl Drop for WriteClaim<'_> {
    fn drop(&mut self) {
        self.files.writing().remove(self.partial);
    }
}

/// Opens the partial file where the request resumes, and returns the number of bytes before that.
fn open(
    files: &Files,
    owner: &Owner,
    path: &FilePath,
    partial: &Path,
    begin: &Begin,
) -> Result<(File, u64), FileError> {
    let there = match fs::symlink_metadata(partial) {
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let have = there.unwrap_or(0);
    if let Some(asked) = begin.offset.filter(|asked| *asked != 0 && *asked != have) {
        return Err(FileError::Offset { path: path.to_string(), have, asked });
    }
    if there.is_none() {
        files.reserve(owner, 0, 1)?;
    }
    let file = File::options().append(true).create(true).mode(0o600).open(partial);
    let file = file.inspect_err(|_| {
        if there.is_none() {
            files.release(owner, 0, 1);
        }
    })?;
    match begin.offset {
        Some(asked) if asked != 0 => Ok((file, have)),
        // From the beginning: the bytes of an earlier attempt are dropped.
        _ => {
            file.set_len(0)?;
            files.release(owner, have, 0);
            Ok((file, 0))
        }
    }
}
