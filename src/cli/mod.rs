//! The command line: client, admin tool and the way to the daemon. One file per command or small group.
//!
//! - `client`, `credentials`: the HTTP side; `request`, `stat`, `ssh`, `version`: what pody 0.4.1 has
//! - `pods`, `checkpoint`, `actions`, `schedule`, `images`, `exec`, `shell`, `logs`, `gpu`, `usage`, `login`, `tokens`, `keys`, `events`: what a
//!   person types
//! - `serve`, `user`, `quota`, `drain`, `util`, `log`, `import`: what an admin does on the host; `probe`, `settle_in`: what the
//!   daemon and CRIU start
//! - `output`, `bars`, `terminal`, `error`, `exit`, `original`, `shell_words`: what they share
//!
//! Client commands only speak HTTP. Admin commands work on the database, with or without a running daemon.

mod actions;
mod bars;
mod checkpoint;
mod client;
mod credentials;
mod doctor;
mod drain;
mod error;
mod events;
mod exec;
mod exit;
mod gpu;
mod images;
mod import;
mod keys;
mod log;
mod login;
mod logs;
mod original;
mod output;
mod pods;
mod probe;
mod quota;
mod request;
mod schedule;
mod serve;
mod settle_in;
mod shell;
mod shell_words;
mod ssh;
mod stat;
mod terminal;
mod tokens;
mod usage;
mod user;
mod util;
mod version;

use std::{ffi::OsString, path::Path};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::{
    error::CliError,
    output::{Format, Output},
    pods::Action,
    request::Verb,
};

/// Pods on a shared GPU box: daemon, client and admin tool in one.
#[derive(Debug, Parser)]
#[command(name = "pody", version, after_help = exit::help(), disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON on the standard output and nothing else there
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Your pods
    Ps(pods::PsArgs),
    /// Make a pod
    Create(pods::CreateArgs),
    /// Start a stopped pod
    Start(pods::PodArgs),
    /// Stop a pod
    Stop(pods::PodArgs),
    /// Stop and start a pod
    Restart(pods::PodArgs),
    /// Everything about a pod
    Inspect(pods::PodArgs),
    /// Run a command in a pod; ends with its exit code
    Exec(exec::ExecArgs),
    /// A terminal in a pod
    Shell(shell::ShellArgs),
    /// What a pod's main process wrote
    Logs(logs::LogsArgs),
    /// CPU, memory and processes of a pod
    Stats(pods::PodArgs),
    /// SSH to a pod
    Ssh(ssh::SshArgs),
    /// The GPUs and who is on them, live on a terminal
    Gpu(gpu::GpuArgs),
    /// Delete a pod
    Rm(pods::RmArgs),
    /// Images that pods can be made from
    Images,
    /// Keep a pod as an image
    Commit(images::CommitArgs),

    /// Save a running pod, with its processes; see also `pody checkpoint check` and `rm`
    Checkpoint(checkpoint::CheckpointArgs),
    /// Bring a pod back from a checkpoint
    Restore(checkpoint::RestoreArgs),
    /// Your checkpoints
    Checkpoints(checkpoint::CheckpointsArgs),
    /// Checkpoints and restores under way, and past ones
    Actions(actions::ActionsArgs),

    /// Log in at a server and store a token for it
    Login(login::LoginArgs),
    /// End the stored login
    Logout,
    /// Who you are, and your limits
    Whoami,
    /// Change your password
    Passwd,
    /// Tokens for scripts
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// SSH keys that your pods get
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Who did what to what
    Events(events::EventsArgs),

    /// Send a GET request, e.g. `pody get host/gpu-ps id:0,1`
    Get(request::RequestArgs),
    /// Send a POST request, e.g. `pody post pod/restart ins:main`
    Post(request::RequestArgs),
    /// Send a request with the method that the server names (also: podx)
    Fetch(request::RequestArgs),
    /// Add an SSH public key to a pod
    CopyId(ssh::CopyIdArgs),
    /// SSH to a pod, as pody 0.4.1 does it
    Connect(ssh::ConnectArgs),
    /// Who used how much
    #[command(subcommand)]
    Stat(stat::StatCommand),
    /// The server's routes
    Help {
        /// One route, or with a '/' at its end all below it
        path: Option<String>,
    },
    /// Versions of client and server
    Version,

    /// Is this machine fit? Says what to mend
    Doctor,
    /// Run the daemon
    Serve(serve::ServeArgs),
    /// Accounts of this host
    #[command(subcommand)]
    User(user::UserCommand),
    /// Limits of accounts of this host
    #[command(subcommand)]
    Quota(quota::QuotaCommand),
    /// Save and stop all pods of this host, for maintenance
    Drain(drain::DrainArgs),
    /// Bring back what `pody drain` has stopped
    Undrain(drain::UndrainArgs),
    /// Paths, config and the systemd unit of this host
    #[command(subcommand)]
    Util(util::UtilCommand),
    /// The events of this host
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Bring users, quotas and usage of a pody 0.4.1 installation over
    Import(import::ImportArgs),

    /// Whether a container may open a device; started by the daemon
    #[command(hide = true)]
    ProbeDevice(probe::ProbeArgs),

    /// Put back what a restored pod had in its network and memory; started by CRIU
    #[command(hide = true)]
    SettleIn(settle_in::SettleInArgs),

    /// Print completions for a shell
    Completions { shell: Shell },
}

impl Cli {
    /// Reads the command line. Under one of the old names the program is that command of `pody`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Self {
        let mut args = args.into_iter();
        let name = args.next().unwrap_or_default();
        let command = Path::new(&name).file_name().and_then(|name| command_of_old_name(name.to_str()?));
        let words = std::iter::once(OsString::from("pody")).chain(command.map(OsString::from)).chain(args);
        Self::parse_from(words)
    }

    /// Runs the command and returns the exit code.
    pub async fn run(self) -> u8 {
        let out = Output::new(if self.json { Format::Json } else { Format::People });
        match self.command.run(&out).await {
            Ok(code) => code,
            Err(error) => {
                out.error(&error);
                error.exit_code()
            }
        }
    }
}

/// What the programs of pody 0.4.1 are called here.
fn command_of_old_name(name: &str) -> Option<&'static str> {
    match name {
        "podx" => Some("fetch"),
        "pody-serve" => Some("serve"),
        "pody-user" => Some("user"),
        "pody-quota" => Some("quota"),
        "pody-util" => Some("util"),
        "pody-log" => Some("log"),
        _ => None,
    }
}

impl Command {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::Ps(args) => args.run(out).await,
            Self::Create(args) => args.run(out).await,
            Self::Start(args) => args.act(Action::Start, out).await,
            Self::Stop(args) => args.act(Action::Stop, out).await,
            Self::Restart(args) => args.act(Action::Restart, out).await,
            Self::Inspect(args) => args.inspect(out).await,
            Self::Exec(args) => args.run(out).await,
            Self::Shell(args) => args.run(out).await,
            Self::Logs(args) => args.run(out).await,
            Self::Stats(args) => args.stats(out).await,
            Self::Ssh(args) => args.run().await,
            Self::Gpu(args) => args.run(out).await,
            Self::Rm(args) => args.run(out).await,
            Self::Images => images::list(out).await,
            Self::Commit(args) => args.run(out).await,
            Self::Checkpoint(args) => args.run(out).await,
            Self::Restore(args) => args.run(out).await,
            Self::Checkpoints(args) => args.run(out).await,
            Self::Actions(args) => args.run(out).await,
            Self::Login(args) => args.run(out).await,
            Self::Logout => login::logout(out).await,
            Self::Whoami => login::whoami(out).await,
            Self::Passwd => login::passwd(out).await,
            Self::Token(command) => command.run(out).await,
            Self::Key(command) => command.run(out).await,
            Self::Events(args) => args.run(out).await,
            Self::Get(args) => args.run(Verb::Get, out).await,
            Self::Post(args) => args.run(Verb::Post, out).await,
            Self::Fetch(args) => args.run(Verb::Auto, out).await,
            Self::CopyId(args) => args.run(out).await,
            Self::Connect(args) => args.run().await,
            Self::Stat(command) => command.run(out).await,
            Self::Help { path } => request::help(path.as_deref(), out).await,
            Self::Version => version::run(out).await,
            Self::Doctor => doctor::run(out).await,
            Self::Serve(args) => args.run().await,
            Self::User(command) => command.run(out).await,
            Self::Quota(command) => command.run(out).await,
            Self::Drain(args) => args.run(out).await,
            Self::Undrain(args) => args.run(out).await,
            Self::Util(command) => command.run(out),
            Self::Log(command) => command.run(out).await,
            Self::Import(args) => args.run(out).await,
            Self::ProbeDevice(args) => Ok(args.run()),
            Self::SettleIn(args) => Ok(args.run()),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "pody", &mut script);
                out.bytes(&script).map(|()| exit::OK)
            }
        }
    }
}

/// An id, which is a number or a text.
fn value_text(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
