//! CRIU's options where they can only come from `/etc/criu/runc.conf`, the one such file of the host: in a restore
//! through Docker. The file is ours only until CRIU has read it, under a lock; then its previous content is put back.
//! runc also passes it to CRIU in a dump, before the dump's own options, so a dump takes the lock until its CRIU has
//! read the file without our changes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::Duration,
};

use super::error::CriuError;
use crate::host::disk::DiskError;

/// The host's one file of options for CRIU under runc.
const CONF: &str = "/etc/criu/runc.conf";

/// The content before ours.
const CONF_BEFORE: &str = "/etc/criu/runc.conf.pody-before";

const CONF_MARK: &str = "# pody: here for one restore; what was here before is in runc.conf.pody-before\n";

/// Held by one daemon of this host at a time.
const CONF_LOCK: &str = "/run/pody-criu.lock";

/// The host's file of options while it is ours. Dropping it restores the previous content.
pub struct HostOptions {
    _lock: File,
}

impl HostOptions {
    /// Waits for the lock and writes the file.
    pub async fn place(options: &str) -> Result<Self, CriuError> {
        let lock = lock_options().await?;
        let options = options.to_owned();
        let placed = move || {
            put_options_back()?;
            fs::create_dir_all(Path::new(CONF).parent().unwrap_or(Path::new("/etc/criu")))?;
            let before = match fs::read_to_string(CONF) {
                Ok(before) => before,
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                Err(error) => return Err(error),
            };
            if Path::new(CONF).exists() {
                fs::rename(CONF, CONF_BEFORE)?;
            }
            let new = format!("{CONF}.pody-new");
            let mut file = File::create(&new)?;
            file.write_all(format!("{CONF_MARK}{before}\n{options}").as_bytes())?;
            fs::rename(&new, CONF)
        };
        placed().map_err(DiskError::io("writing", CONF))?;
        Ok(Self { _lock: lock })
    }

    /// Waits for the lock, and keeps the file as the host's admin left it.
    pub async fn keep_free() -> Result<Self, CriuError> {
        let lock = lock_options().await?;
        put_options_back().map_err(DiskError::io("putting back", CONF))?;
        Ok(Self { _lock: lock })
    }

    /// Restores the file after a daemon was killed.
    pub async fn recover() -> Result<(), CriuError> {
        Self::keep_free().await.map(drop)
    }
}

impl Drop for HostOptions {
    fn drop(&mut self) {
        if let Err(error) = put_options_back() {
            tracing::error!(%error, file = CONF, "could not restore the previous options of CRIU");
        }
    }
}

async fn lock_options() -> Result<File, CriuError> {
    let file = File::options().create(true).truncate(false).write(true).open(CONF_LOCK);
    let file = file.map_err(DiskError::io("opening", CONF_LOCK))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(fs::TryLockError::Error(error)) => return Err(DiskError::io("locking", CONF_LOCK)(error).into()),
        }
    }
}

fn put_options_back() -> io::Result<()> {
    if Path::new(CONF_BEFORE).exists() {
        return fs::rename(CONF_BEFORE, CONF);
    }
    if fs::read_to_string(CONF).is_ok_and(|text| text.starts_with(CONF_MARK)) {
        fs::remove_file(CONF)?;
    }
    Ok(())
}
