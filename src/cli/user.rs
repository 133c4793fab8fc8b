//! `pody user`: accounts, on the database of this host.

use clap::{ArgAction, Args, Subcommand};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    output::{Format, Output},
    terminal,
};
use crate::{
    account::{AccountError, UserChange},
    app::App,
    config,
    control::{Told, tell_daemon},
    engine::Engine,
    model::{names::UserName, quantities::Span, user::Actor},
};

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add an account
    Add(AddArgs),
    /// Change an account
    Update(UpdateArgs),
    /// List accounts
    List {
        /// Only these
        names: Vec<UserName>,
    },
    /// Delete an account that has no pods
    Delete { name: UserName },
    /// Delete an account and all of its pods
    Purge {
        name: UserName,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Make a bearer token for an account and print it
    Token {
        name: UserName,
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value = "1h")]
        expires: Span,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    name: UserName,
    /// Password; others on this host can see it here, so better leave it out and be asked
    password: Option<String>,
    /// Make it an admin
    #[arg(long)]
    admin: bool,
    /// Read the password from the standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    name: UserName,
    /// New password; others on this host can see it here
    #[arg(long)]
    password: Option<String>,
    /// Read the new password from the standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// Make it an admin
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "no_admin")]
    admin: bool,
    /// Make it an ordinary member
    #[arg(long)]
    no_admin: bool,
    /// Let it sign in again
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Do not let it sign in
    #[arg(long)]
    disable: bool,
}

/// Config and database of this host, without an engine.
pub fn open() -> Result<App, CliError> {
    Ok(App::open(&config::home(), None, Engine::default())?)
}

/// Tells a running daemon of a change, and the user if it could not be told.
pub fn tell() {
    if tell_daemon(&config::home()) == Told::Silent {
        eprintln!("warning: the running daemon does not answer; restart it to make sure that it knows of this change");
    }
}

impl UserCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::Add(args) => args.run(out).await,
            Self::Update(args) => args.run(out).await,
            Self::List { names } => list(&names, out).await,
            Self::Delete { name } => {
                open()?.accounts.delete_user(Actor::local(), name.clone()).await?;
                done(out, &format!("user {name} deleted"))
            }
            Self::Purge { name, yes } => purge(name, yes, out).await,
            Self::Token { name, expires } => {
                let app = open()?;
                if app.accounts.find_user(&name).await.map_err(AccountError::Remote)?.is_none() {
                    return Err(AccountError::NoUser(name).into());
                }
                let token = app
                    .accounts
                    .create_token(Actor::local(), name, "pody user token".to_owned(), Some(expires))
                    .await?;
                tell();
                match out.format() {
                    Format::Json => out.json(&json!(token))?,
                    Format::People => out.line(token.token)?,
                }
                Ok(exit::OK)
            }
        }
    }
}

impl AddArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let password = match self.password {
            Some(password) => warn_of_argument(password),
            None => read_password(self.password_stdin)?,
        };
        open()?.accounts.add_user(Actor::local(), self.name.clone(), &password, self.admin).await?;
        done(out, &format!("user {} added", self.name))
    }
}

impl UpdateArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let password = match (self.password, self.password_stdin) {
            (Some(password), _) => Some(warn_of_argument(password)),
            (None, true) => Some(read_password(true)?),
            (None, false) => None,
        };
        let pick = |yes: bool, no: bool| yes.then_some(true).or(no.then_some(false));
        let change = UserChange {
            password,
            is_admin: pick(self.admin, self.no_admin),
            disabled: pick(self.disable, self.enable),
        };
        if change.password.is_none() && change.is_admin.is_none() && change.disabled.is_none() {
            return Err(CliError::usage("nothing to change", "see `pody user update --help`"));
        }
        open()?.accounts.update_user(Actor::local(), self.name.clone(), change).await?;
        done(out, &format!("user {} updated", self.name))
    }
}

fn read_password(from_stdin: bool) -> Result<String, CliError> {
    match from_stdin {
        true => match terminal::read_line()? {
            password if password.is_empty() => Err(CliError::EmptyPassword),
            password => Ok(password),
        },
        false => terminal::ask_new_password("Password"),
    }
}

fn warn_of_argument(password: String) -> String {
    eprintln!("warning: others on this host can see the password in the list of processes; leave it out and be asked");
    password
}

async fn list(names: &[UserName], out: &Output) -> Result<u8, CliError> {
    let mut users = open()?.accounts.list_users().await.map_err(AccountError::Remote)?;
    users.retain(|user| names.is_empty() || names.contains(&user.name));
    match out.format() {
        Format::Json => out.json(&json!(users))?,
        Format::People => {
            let word = |yes: bool| if yes { "yes" } else { "" }.to_owned();
            let rows = users.iter().map(|user| vec![user.name.to_string(), word(user.is_admin), word(user.disabled)]);
            out.line(out.table(&["NAME", "ADMIN", "DISABLED"], rows))?;
        }
    }
    Ok(exit::OK)
}

async fn purge(name: UserName, yes: bool, out: &Output) -> Result<u8, CliError> {
    if !yes && !terminal::confirm(&format!("delete user {name} and all of their pods?"))? {
        return Err(CliError::NotConfirmed(format!("user {name} and their pods stay")));
    }
    let engine = Engine::connect().await.map_err(crate::pod::PodError::from)?;
    let app = App::open(&config::home(), None, engine)?;
    let pods = app.purge_user(Actor::local(), name.clone()).await?;
    tell();
    match out.format() {
        Format::Json => out.json(&json!({"message": format!("user {name} deleted"), "pods": pods}))?,
        Format::People => {
            for pod in pods {
                out.line(format!("pod {pod} deleted"))?;
            }
            out.line(format!("user {name} deleted"))?;
        }
    }
    Ok(exit::OK)
}

/// Says what was done, after telling the daemon.
pub fn done(out: &Output, message: &str) -> Result<u8, CliError> {
    tell();
    match out.format() {
        Format::Json => out.json(&json!({ "message": message }))?,
        Format::People => out.line(message)?,
    }
    Ok(exit::OK)
}
