//! Whether the engine can bring pods back at all: a pod that is saved and stopped must be restorable.

use super::{CheckpointError, Checkpoints};
use crate::runtime::registration;

impl Checkpoints {
    pub(super) async fn ensure_engine_supported(&self) -> Result<(), CheckpointError> {
        let facts = self.0.engine.facts().await?;
        let config = self.0.config.get();
        match registration::why_not(&facts, &config.checkpoint.runtime).await {
            Some(why) => Err(CheckpointError::Unavailable(why)),
            None => Ok(()),
        }
    }
}
