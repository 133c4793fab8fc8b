//! `pody key list|add|rm`: SSH public keys that are put into every pod of the user.

use std::{io::Read, path::PathBuf};

use clap::Subcommand;

use super::{
    client::Client,
    error::CliError,
    exit,
    help::examples,
    output::{self, Output},
    pods::show_message,
    ssh,
};
use crate::model::view::account::SshKeyInfo;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List your keys
    #[command(alias = "ls", after_help = examples!["pody key list"])]
    List,
    /// Add a key; all your pods accept it
    #[command(after_help = examples![
        "pody key add",
        "pody key add ~/.ssh/id_ed25519.pub",
        "pody key add - < id_ed25519.pub",
    ])]
    Add {
        /// The public key file, or - for standard input [default: the first one in ~/.ssh]
        file: Option<PathBuf>,
    },
    /// Remove a key
    #[command(after_help = examples!["pody key rm 1"])]
    Rm {
        /// The key's id, as `pody key list` shows it
        id: String,
    },
}

impl KeyCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        match self {
            Self::List => {
                let answer = client.get("user/ssh-keys", &[]).await?;
                out.show(answer, |keys: Vec<SshKeyInfo>| {
                    out.table(&["ID", "TYPE", "FINGERPRINT", "COMMENT", "ADDED"], keys.into_iter().map(row))
                })?;
            }
            Self::Add { file } => {
                let answer = client.post("user/ssh-keys/add", &[("key", &read_key(file)?)]).await?;
                out.show(answer, |key: SshKeyInfo| format!("{} {} added", key.id, key.fingerprint))?;
            }
            Self::Rm { id } => return show_message(client.post("user/ssh-keys/delete", &[("id", &id)]).await?, out),
        }
        Ok(exit::OK)
    }
}

fn row(key: SshKeyInfo) -> Vec<String> {
    vec![key.id.to_string(), key.key_type, key.fingerprint, key.comment, output::ago(&key.created_at)]
}

fn read_key(file: Option<PathBuf>) -> Result<String, CliError> {
    if file.as_ref().is_none_or(|file| file.as_os_str() != "-") {
        return ssh::read_public_key(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(CliError::Stdin)?;
    Ok(text.trim().to_owned())
}
