//! `pody login`, `logout`, `whoami`, `passwd`: the user, here and on the server.

use clap::Args;
use reqwest::{StatusCode, Url};
use serde_json::{Map, Value, json};

use super::{
    client::{self, Client, ClientError, Identity},
    credentials::{self, StoredLogin},
    error::CliError,
    exit,
    output::{self, Output},
    pods::show_message,
    terminal,
};
use crate::model::view::account::{AccountView, NewToken};

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The server, like http://box:8799 [default: PODY_API_BASE, else the last login, else this host]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Your account [default: asked]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl LoginArgs {
    /// Exchanges the password for a token and stores it. Revokes the token of a previous login to the same server.
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let previous = credentials::load().ok().flatten();
        let server = match &self.server {
            Some(server) => client::parse_server(server)?,
            None => client::server_in_use(previous.as_ref())?,
        };
        if server.scheme() == "http" && !is_loopback(&server) {
            out.warn(format!("{server} is not encrypted: others on the network can read the password"));
        }
        let user = match self.user {
            Some(user) => user,
            None if terminal::is_interactive() => terminal::ask("User")?,
            None => return Err(CliError::usage("cannot ask for the user without a terminal", "add --user NAME")),
        };
        let password = terminal::ask_password("Password")?;
        let client = Client::new(server, Some(Identity::Password { user: user.clone(), password }))?;
        let answer = match client.post("user/tokens/create", &[("name", &token_name())]).await {
            Err(ClientError::Refused(refusal)) if refusal.status == StatusCode::UNAUTHORIZED => {
                return Err(CliError::LoginRejected(ClientError::Refused(refusal)));
            }
            answer => answer?,
        };
        let token: NewToken = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
        let login =
            StoredLogin { server: client.server().to_owned(), user, token: token.token, token_id: token.info.id };
        credentials::save(&login)?;
        if let Some(previous) = previous.filter(|previous| previous.server == login.server) {
            // It may have expired or been revoked already.
            let _ = revoke(&previous).await;
        }
        let answer = json!({"server": login.server, "user": login.user});
        out.done(&answer, format!("logged in to {} as {}", login.server, login.user))?;
        Ok(exit::OK)
    }
}

/// The name of the token in `pody token list`: where it is stored.
fn token_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "login".to_owned(),
        host => format!("login on {host}"),
    }
}

fn is_loopback(server: &Url) -> bool {
    let host = server.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Deletes the stored login in any case, and revokes its token if the server can be reached.
pub async fn logout(out: &Output) -> Result<u8, CliError> {
    let stored = credentials::load();
    credentials::remove()?;
    let Some(login) = stored? else {
        out.done(&json!({"message": "not logged in"}), "not logged in")?;
        return Ok(exit::OK);
    };
    match revoke(&login).await {
        Ok(()) => {}
        // The token was not valid any more.
        Err(ClientError::Refused(refusal)) if refusal.status == StatusCode::UNAUTHORIZED => {}
        Err(error) => out.warn(format!(
            "the stored token is deleted but still valid at {} ({error}); revoke it with `pody token rm`",
            login.server
        )),
    }
    let sentence = format!("logged out of {}", login.server);
    out.done(&json!({"message": &sentence}), sentence)?;
    Ok(exit::OK)
}

async fn revoke(login: &StoredLogin) -> Result<(), ClientError> {
    let client = Client::new(client::parse_server(&login.server)?, Some(Identity::Token(login.token.clone())))?;
    client.post("user/tokens/revoke", &[("id", &login.token_id.to_string())]).await.map(drop)
}

/// Shows the account that the server sees, and its limits.
pub async fn whoami(out: &Output) -> Result<u8, CliError> {
    let client = Client::from_environment()?;
    let answer = client.get("user/info", &[]).await?;
    out.show(answer, |account: AccountView<Map<String, Value>>| {
        let admin = if account.user.is_admin == 0 { "" } else { ", admin" };
        let limits = account.quota.iter().map(|(name, value)| vec![name.clone(), limit_text(name, value)]);
        format!("{}{admin} at {}\n\n{}", account.user.name, client.server(), out.table(&["LIMIT", "VALUE"], limits))
    })?;
    Ok(exit::OK)
}

/// A limit of a quota, as text.
fn limit_text(name: &str, value: &Value) -> String {
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|n| n < 0.0) => "unlimited".to_owned(),
        Value::Number(bytes) if name.contains("size") || name.contains("memory") => {
            output::size(bytes.as_i64().unwrap_or(-1), 1)
        }
        Value::String(text) if text.is_empty() => "all".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Changes the user's own password.
pub async fn passwd(end_tokens: bool, out: &Output) -> Result<u8, CliError> {
    let client = Client::from_environment()?;
    let password = terminal::ask_new_password("New password")?;
    let end = end_tokens.then_some(("end_tokens", "true"));
    let parameters: Vec<_> = [("passwd", password.as_str())].into_iter().chain(end).collect();
    let answer = client.post("user/ch-passwd", &parameters).await?;
    out.warn(match end_tokens {
        true => "a login on this or another machine has ended too; see `pody login`",
        false => {
            "your tokens stay valid; end them with `pody passwd --end-tokens` if somebody else may know the old password"
        }
    });
    show_message(answer, out)
}
