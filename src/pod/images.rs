//! Images that a member may use: those of the config that exist, and their own commits.

use std::collections::BTreeSet;

use super::{PodError, Pods, commit::is_commit_of};
use crate::{
    config::ImageConfig,
    db::NewEvent,
    engine::Image,
    model::{
        names::{ImageRef, UserName},
        user::Caller,
        view::image::ImageView,
    },
};

/// An image and the rules for its pods.
#[derive(Clone, Debug)]
pub struct AllowedImage {
    /// The engine's name for it.
    pub name: String,
    pub ports: Vec<u16>,
    pub new_privileges: bool,
    pub io_uring: bool,
    /// The program that its pods run.
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
}

impl Pods {
    /// Names of the images that a user may use, their own commits without the repository.
    pub fn list_images(&self, user: &UserName) -> Vec<String> {
        let config = self.config.get();
        let mut names = BTreeSet::new();
        for tag in self.engine.inventory().images().iter().flat_map(|image| &image.tags) {
            if is_commit_of(&config.commit_name.0, user, tag) {
                names.insert(tag[config.commit_name.0.len() + 1..].to_owned());
            } else if config.image(tag).is_some() {
                names.insert(tag.clone());
            }
        }
        let mut names: Vec<String> = names.into_iter().collect();
        // Sorted as in pody 0.4.1: commits first.
        names.sort_by_key(|name| name.contains(':'));
        names
    }

    /// The image that a user means: `name:tag`, `name` for its `latest`, or the name of one of their commits.
    pub(super) fn allowed_image(&self, user: &UserName, wanted: &ImageRef) -> Result<AllowedImage, PodError> {
        let config = self.config.get();
        let images = self.engine.inventory().images();
        let repository = &config.commit_name.0;
        for name in candidates(repository, wanted) {
            let Some(image) = images.iter().find(|image| image.tags.contains(&name)) else { continue };
            let allowed = AllowedImage {
                ports: config.commit_image_ports.0.clone(),
                new_privileges: false,
                io_uring: false,
                entrypoint: image.entrypoint.clone(),
                command: image.command.clone(),
                name,
            };
            let name = &allowed.name;
            if is_commit_of(repository, user, name) {
                return Ok(allowed);
            }
            // Others' commits are hidden, whatever the config says about their repository.
            if !name.starts_with(&format!("{repository}:"))
                && let Some(rule) = config.image(name)
            {
                let ImageConfig { ports, new_privileges, io_uring, .. } = rule.clone();
                return Ok(AllowedImage { ports, new_privileges, io_uring, ..allowed });
            }
        }
        Err(PodError::Image { image: wanted.clone(), allowed: self.list_images(user) })
    }

    pub fn inspect_image(&self, user: &UserName, wanted: &ImageRef) -> Result<ImageView, PodError> {
        let allowed = self.allowed_image(user, wanted)?;
        let images = self.engine.inventory().images();
        let found = images.iter().find(|image| image.tags.contains(&allowed.name));
        let image: &Image =
            found.ok_or_else(|| PodError::Image { image: wanted.clone(), allowed: self.list_images(user) })?;
        Ok(ImageView {
            name: allowed.name,
            id: image.id.clone(),
            tags: image.tags.clone(),
            comment: image.comment.clone(),
            size: image.size,
            exposed_ports: image.exposed_ports.iter().map(|port| (port.clone(), serde_json::json!({}))).collect(),
            created: image.created.clone(),
        })
    }

    /// Deletes one of the caller's own commits.
    pub async fn delete_image(&self, caller: &Caller, wanted: &ImageRef) -> Result<String, PodError> {
        self.engine.wait_ready(super::FIRST_LIST).await;
        self.engine.ensure_up()?;
        let repository = self.config.get().commit_name.0.clone();
        let name = self.allowed_image(&caller.user, wanted)?.name;
        if !is_commit_of(&repository, &caller.user, &name) {
            return Err(PodError::NotYourImage(wanted.to_string()));
        }
        let rows = self.db.snapshot();
        let pods: Vec<String> =
            rows.pods.iter().filter(|pod| pod.spec.image == name).map(|pod| pod.container_name.clone()).collect();
        if !pods.is_empty() {
            return Err(PodError::ImageInUse { image: name, pods });
        }
        let event = NewEvent::by(&caller.into()).did("image.delete", &name).of(&caller.user).pending();
        let event = self.db.insert_event(event).await?;
        let done = self.engine.remove_image(&name).await;
        self.close_event(event, &done).await;
        done?;
        Ok(name)
    }
}

/// Full names that a user may mean, most likely first.
fn candidates(repository: &str, wanted: &ImageRef) -> Vec<String> {
    let wanted = wanted.as_str();
    match wanted.contains(':') {
        true => vec![wanted.to_owned()],
        false => vec![format!("{repository}:{wanted}"), format!("{wanted}:latest")],
    }
}
