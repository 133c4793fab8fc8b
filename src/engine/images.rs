//! What is done to images.

use bollard::query_parameters::RemoveImageOptionsBuilder;

use super::{Engine, EngineError, LONG};

impl Engine {
    /// Removes a name of an image, and the image with its last name. One that is not there is removed.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        let owned = name.to_owned();
        let removed =
            self.call(LONG, |docker| async move { docker.remove_image(&owned, Some(options), None).await }).await;
        match removed {
            Ok(_) | Err(EngineError::NotFound(_)) => self.refresh_images().await,
            Err(error) => Err(error),
        }
    }
}
