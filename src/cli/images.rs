//! `pody images` and `commit`: what pods are created from.

use clap::Args;

use super::{client::Client, error::CliError, exit, output::Output};
use crate::model::view::pod::CommitView;

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// The pod
    name: String,
    /// A tag, to tell your images apart: the image is named YOU-TAG
    #[arg(long)]
    tag: Option<String>,
    /// A description of the image
    #[arg(long, short)]
    message: Option<String>,
}

/// Lists the images that a pod can be created from.
pub async fn list(out: &Output) -> Result<u8, CliError> {
    let answer = Client::from_environment()?.get("image/list", &[]).await?;
    out.show(answer, |images: Vec<String>| images.join("\n"))?;
    Ok(exit::OK)
}

impl CommitArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let mut form = vec![("ins", self.name.as_str())];
        form.extend(self.tag.as_deref().map(|tag| ("tag", tag)));
        form.extend(self.message.as_deref().map(|message| ("msg", message)));
        let answer = Client::from_environment()?.post("pod/commit", &form).await?;
        out.show(answer, |done: CommitView| done.log)?;
        Ok(exit::OK)
    }
}
