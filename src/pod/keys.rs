//! SSH keys of the owner in the pod's `/root/.ssh/authorized_keys`.

use std::time::Duration;

use super::{PodError, Pods};
use crate::{
    account::ssh_keys::merge_authorized_keys,
    engine::EngineError,
    model::{
        ids::ContainerId,
        names::UserName,
        pod::{Pod, State},
        time::Millis,
        user::SshKey,
    },
};

const FILE: &str = "/root/.ssh/authorized_keys";

/// We do not rewrite a larger file.
const MAX_FILE: usize = 1 << 20;

/// After this long a pod starts without keys.
const PATIENCE: Duration = Duration::from_secs(2);

/// When keys are written into a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Start,
    Now,
}

impl Pods {
    /// Writes the owner's keys into the file, between our marker lines. Works on stopped containers too.
    pub(super) async fn put_keys(&self, container: &ContainerId, keys: &[SshKey]) -> Result<(), PodError> {
        let put = async {
            let current = self.engine.read_file(container, FILE, MAX_FILE).await?.unwrap_or_default();
            let current = String::from_utf8_lossy(&current);
            let merged = merge_authorized_keys(&current, keys);
            if merged == current {
                return Ok(());
            }
            self.engine.unpack(container, "/root", archive(&merged)).await
        };
        Ok(tokio::time::timeout(PATIENCE, put).await.map_err(|_| EngineError::TimedOut(PATIENCE))??)
    }

    pub(super) async fn refresh_keys(&self, pod: &Pod, container: &ContainerId, when: Before) {
        let keys = self.keys_of(&pod.user).await;
        if let Err(error) = self.put_keys(container, &keys).await {
            let when = if when == Before::Start { "before its start" } else { "now" };
            tracing::warn!(pod = pod.container_name, %error, when, "cannot write SSH keys into the pod");
        }
    }

    /// Writes a change of the user's keys into all of their pods.
    pub async fn refresh_keys_of(&self, user: &UserName) {
        for pod in self.db.snapshot().pods.of_user(user).to_vec() {
            if let (State::Running, Some(container)) = (pod.state, &pod.container) {
                self.refresh_keys(&pod, container, Before::Now).await;
            }
        }
    }
}

/// `.ssh/authorized_keys` as a tar archive, owned by root, with the modes that sshd requires.
fn archive(content: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind, mode, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(Millis::now().seconds()).unwrap_or(0));
        header
    };
    let file = header(tar::EntryType::Regular, 0o600, content.len());
    let written = archive
        .append_data(&mut header(tar::EntryType::Directory, 0o700, 0), ".ssh/", std::io::empty())
        .and_then(|()| archive.append_data(&mut { file }, ".ssh/authorized_keys", content.as_bytes()))
        .and_then(|()| archive.into_inner());
    written.expect("writing to memory does not fail")
}
