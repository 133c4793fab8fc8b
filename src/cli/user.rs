//! `pody user`: accounts, in the database of this host.

use clap::{ArgAction, Args, Subcommand};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    help::examples,
    output::{Format, Output},
    terminal,
};
use crate::{
    account::{AccountError, Tokens, UserChange},
    app::App,
    config,
    control::{NotifyOutcome, notify_daemon},
    engine::Engine,
    model::{names::UserName, quantities::Span, user::Actor},
};

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List accounts
    #[command(alias = "ls", after_help = examples!["pody user list", "pody user list alice bob"])]
    List {
        /// Only these accounts
        names: Vec<UserName>,
    },
    /// Add an account
    #[command(after_help = examples![
        "pody user add alice",
        "pody user add bob --admin",
        "pody user add carol --password-stdin < password.txt",
    ])]
    Add(AddArgs),
    /// Change the password, the role or the state of an account
    #[command(after_help = examples![
        "pody user update alice --admin",
        "pody user update alice --password-stdin < password.txt",
        "pody user update alice --disable",
    ])]
    Update(UpdateArgs),
    /// Delete an account that has no pods
    #[command(alias = "delete", after_help = examples!["pody user rm alice"])]
    Rm {
        /// The account
        name: UserName,
    },
    /// Delete an account and all of its pods
    #[command(after_help = examples!["pody user purge alice", "pody user purge alice --yes"])]
    Purge {
        /// The account
        name: UserName,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// Create a bearer token for an account and print it
    #[command(after_help = examples!["pody user token alice", "pody user token alice --expires 1w"])]
    Token {
        /// The account
        name: UserName,
        /// How long the token is valid: 1y, 1w, 1d, 1h, 1m, 1s or seconds
        #[arg(long, value_name = "TIME", default_value = "1h")]
        expires: Span,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// The new account
    name: UserName,
    /// The password; other users of this host can see it here: omit it to be asked
    password: Option<String>,
    /// Make the account an admin
    #[arg(long)]
    admin: bool,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// The account
    name: UserName,
    /// The new password; other users of this host can see it here
    #[arg(long)]
    password: Option<String>,
    /// Read the new password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// Make the account an admin
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "no_admin")]
    admin: bool,
    /// Make the account an ordinary member
    #[arg(long)]
    no_admin: bool,
    /// Allow the account to log in again
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Do not allow the account to log in
    #[arg(long)]
    disable: bool,
}

/// Config and database of this host, without an engine.
pub fn open() -> Result<App, CliError> {
    Ok(App::open(&config::home(), None, Engine::default())?)
}

/// Notifies a running daemon of a change. Warns if it does not respond.
pub fn notify_running_daemon(out: &Output) {
    if notify_daemon(&config::home()) == NotifyOutcome::Silent {
        out.warn("the running daemon does not respond; restart it so that it picks up this change");
    }
}

impl UserCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::List { names } => list(&names, out).await,
            Self::Add(args) => args.run(out).await,
            Self::Update(args) => args.run(out).await,
            Self::Rm { name } => {
                open()?.accounts.delete_user(Actor::local(), name.clone()).await?;
                changed(out, format!("user {name} deleted"))
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
                notify_running_daemon(out);
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
            Some(password) => warn_about_argument(password, out),
            None => read_password(self.password_stdin)?,
        };
        open()?.accounts.add_user(Actor::local(), self.name.clone(), &password, self.admin).await?;
        changed(out, format!("user {} added", self.name))
    }
}

impl UpdateArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let password = match (self.password, self.password_stdin) {
            (Some(password), _) => Some(warn_about_argument(password, out)),
            (None, true) => Some(read_password(true)?),
            (None, false) => None,
        };
        let pick = |yes: bool, no: bool| yes.then_some(true).or(no.then_some(false));
        let change = UserChange {
            password,
            is_admin: pick(self.admin, self.no_admin),
            disabled: pick(self.disable, self.enable),
            tokens: Tokens::End,
        };
        if change.password.is_none() && change.is_admin.is_none() && change.disabled.is_none() {
            return Err(CliError::usage("nothing to change", "see `pody user update --help`"));
        }
        let ended = open()?.accounts.update_user(Actor::local(), self.name.clone(), change).await?;
        let tokens = if ended > 0 { format!("; {ended} tokens ended") } else { String::new() };
        changed(out, format!("user {} updated{tokens}", self.name))
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

fn warn_about_argument(password: String, out: &Output) -> String {
    out.warn("other users of this host can see the password in the process list; omit it to be asked");
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
        return Err(CliError::NotConfirmed(format!("user {name} was not deleted")));
    }
    let engine = Engine::connect().await.map_err(crate::pod::PodError::from)?;
    let app = App::open(&config::home(), None, engine)?;
    let pods = app.purge_user(Actor::local(), name.clone()).await?;
    notify_running_daemon(out);
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

/// Notifies the daemon of a change and says what was done.
pub fn changed(out: &Output, message: String) -> Result<u8, CliError> {
    notify_running_daemon(out);
    out.done(&json!({ "message": message }), &message)?;
    Ok(exit::OK)
}
