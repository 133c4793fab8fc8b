//! Operations on images.

use bollard::query_parameters::RemoveImageOptionsBuilder;

use super::{Engine, EngineError, LONG};

impl Engine {
    /// Removes one name of an image, and the image itself with its last name. Succeeds if there is no such image.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        let owned = name.to_owned();
        let removed =
            self.call(LONG, |docker| async move { docker.remove_image(&owned, Some(options), None).await }).await;
        match removed {
            Ok(_) | Err(EngineError::NoImage(_) | EngineError::NotFound(_)) => self.refresh_images().await,
            Err(error) => Err(error),
        }
    }
}
