//! `pody token list|create|rm`: bearer tokens for scripts.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    help::examples,
    output::{self, Format, Output},
    pods::show_log,
};

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

#[derive(Deserialize)]
struct Token {
    id: Value,
    name: String,
    created_at: String,
    expires_at: Option<String>,
}

impl TokenCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let client = Client::from_environment()?;
        match self {
            Self::List => {
                let answer = client.get("user/tokens", &[]).await?;
                out.show(answer, |tokens: Vec<Token>| {
                    out.table(&["ID", "NAME", "CREATED", "EXPIRES"], tokens.into_iter().map(Token::row))
                })?;
            }
            Self::Create { name, expires } => {
                let mut form = vec![("name", name.as_str())];
                form.extend(expires.as_deref().map(|expires| ("expires", expires)));
                let answer = client.post("user/tokens/create", &form).await?;
                match out.format() {
                    Format::Json => out.json(&answer)?,
                    Format::People => {
                        #[derive(Deserialize)]
                        struct NewToken {
                            token: String,
                        }
                        let new: NewToken = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
                        out.line(new.token)?;
                        eprintln!("set PODY_TOKEN to this token; it is not shown again");
                    }
                }
            }
            Self::Rm { id } => return show_log(&client.post("user/tokens/revoke", &[("id", &id)]).await?, out),
        }
        Ok(exit::OK)
    }
}

impl Token {
    fn row(self) -> Vec<String> {
        let expires = self.expires_at.unwrap_or_else(|| "never".to_owned());
        vec![super::value_text(&self.id), self.name, output::ago(&self.created_at), expires]
    }
}
