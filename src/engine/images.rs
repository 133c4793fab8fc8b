//! Operations on images.

use bollard::query_parameters::RemoveImageOptionsBuilder;

use super::{Engine, EngineError, LONG, SHORT};

impl Engine {
    /// The hashes of the image's layers, unpacked. They are the same in every store, where its id is not: a graph
    /// driver calls it by its configuration, containerd by its manifest. Empty if there is no such image.
    pub async fn image_layers(&self, image: &str) -> Result<Vec<String>, EngineError> {
        let owned = image.to_owned();
        match self.call(SHORT, |docker| async move { docker.inspect_image(&owned).await }).await {
            Ok(image) => Ok(image.root_fs.and_then(|files| files.layers).unwrap_or_default()),
            Err(EngineError::NoImage(_) | EngineError::NotFound(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

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
