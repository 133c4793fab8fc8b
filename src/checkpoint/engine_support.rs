//! Whether the engine can start containers from checkpoints at all: a pod that is saved and stopped must be restorable.

use super::{CheckpointError, Checkpoints};
use crate::engine::EngineFacts;

/// Docker from 25.0.0 does not find a checkpoint that it was given, until 25.0.4 (moby #47456).
const BROKEN: &str = "25.0.";
const FIXED_IN: u32 = 4;

impl Checkpoints {
    pub(super) async fn ensure_engine_supported(&self) -> Result<(), CheckpointError> {
        let facts = self.0.engine.facts().await?;
        match why_not(&facts) {
            Some(why) => Err(CheckpointError::Unavailable(why)),
            None => Ok(()),
        }
    }
}

fn why_not(facts: &EngineFacts) -> Option<String> {
    if !facts.experimental {
        return Some(
            "Docker must run with \"experimental\": true; set it in /etc/docker/daemon.json and restart Docker, see `pody doctor`"
                .to_owned(),
        );
    }
    let patch = facts.version.strip_prefix(BROKEN)?;
    let patch: u32 = patch.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    (patch < FIXED_IN)
        .then(|| format!("Docker {} cannot restore checkpoints (moby #47456); upgrade Docker", facts.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_cannot_restore_are_named() {
        let why = |version: &str, experimental| {
            let version = version.to_owned();
            why_not(&EngineFacts { version, experimental, ..EngineFacts::default() })
        };
        assert!(why("20.10.24", false).unwrap().contains("\"experimental\": true"));
        assert!(why("25.0.3", true).unwrap().contains("upgrade Docker"));
        for good in ["20.10.24+dfsg1", "24.0.9", "25.0.4", "25.0.10", "26.1.0", "29.0.0-rc.1", ""] {
            assert_eq!(why(good, true), None, "{good}");
        }
    }
}
