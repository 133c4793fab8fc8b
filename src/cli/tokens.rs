//! `pody token list|create|rm`: bearer tokens for scripts.

use clap::Subcommand;

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    help::examples,
    output::{self, Format, Output},
    pods::show_message,
};
use crate::model::view::account::{NewToken, TokenInfo};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// List your tokens
    #[command(alias = "ls", after_help = examples!["pody token list"])]
    List,
    /// Create a token and print it; it is not shown again
    #[command(after_help = examples!["pody token create ci", "pody token create ci --expires 1w"])]
    Create {
        /// A name that says what the token is for
        name: String,
        /// How long the token is valid, like 1w [default: 90 days]
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Revoke a token
    #[command(alias = "revoke", after_help = examples!["pody token rm 3"])]
    Rm {
        /// The token's id, as `pody token list` shows it
        id: String,
    },
}

impl TokenCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        match self {
            Self::List => {
                let answer = client.get("user/tokens", &[]).await?;
                out.show(answer, |tokens: Vec<TokenInfo>| {
                    out.table(&["ID", "NAME", "CREATED", "EXPIRES"], tokens.into_iter().map(row))
                })?;
            }
            Self::Create { name, expires } => {
                let mut form = vec![("name", name.as_str())];
                form.extend(expires.as_deref().map(|expires| ("expires", expires)));
                let answer = client.post("user/tokens/create", &form).await?;
                match out.format() {
                    Format::Json => out.json(&answer)?,
                    Format::People => {
                        let new: NewToken = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
                        out.line(new.token)?;
                        eprintln!("set PODY_TOKEN to this token; it is not shown again");
                    }
                }
            }
            Self::Rm { id } => return show_message(client.post("user/tokens/revoke", &[("id", &id)]).await?, out),
        }
        Ok(exit::OK)
    }
}

fn row(token: TokenInfo) -> Vec<String> {
    vec![token.id.to_string(), token.name, output::ago(&token.created_at), token.expires_at]
}
