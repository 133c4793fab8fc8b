//! The command line: client, admin tool and the way to start the daemon. One file per command or small group.
//!
//! - `client`, `credentials`: the HTTP side; `request`, `stat`, `ssh`, `version`: what pody 0.4.1 has
//! - `pods`, `checkpoint`, `actions`, `schedule`, `images`, `exec`, `shell`, `logs`, `gpu`, `usage`, `login`, `tokens`,
//!   `keys`, `events`: everyday commands
//! - `serve`, `user`, `quota`, `drain`, `util`, `log`, `import`, `doctor`: what an admin runs on the host; `probe`,
//!   `namespace_setup`: what the daemon and CRIU start
//! - `help`, `output`, `bars`, `terminal`, `error`, `exit`, `original`, `words`: shared parts
//!
//! Client commands speak only HTTP. Admin commands work on the database, with or without a running daemon.
//!
//! One verb means the same under every noun: `list`, `show`, `add` (something that exists elsewhere: a person, a key),
//! `create` (something new: a pod, a token), `set`, `update`, `reset`, `rm`. `ps`, `images`, `checkpoints`, `actions`
//! and `events` are lists as well. Older spellings remain as hidden aliases.

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
mod help;
mod images;
mod import;
mod keys;
mod log;
mod login;
mod logs;
mod namespace_setup;
mod original;
mod output;
mod pods;
mod probe;
mod quota;
mod request;
mod schedule;
mod serve;
mod shell;
mod ssh;
mod stat;
mod terminal;
mod tokens;
mod usage;
mod user;
mod util;
mod version;
mod words;

use std::{ffi::OsString, path::Path};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use error::CliError;
use help::examples;
use output::{Format, Output};
use pods::Action;
use request::Verb;

/// Pods on a shared GPU box: daemon, client and admin tool in one program
#[derive(Debug, Parser)]
#[command(name = "pody", version, after_help = exit::help(), disable_help_subcommand = true)]
pub struct Cli {
    /// Print JSON to standard output, and nothing else
    #[arg(long, global = true, display_order = 100)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Each variant is a command. Its group in `pody --help` is in [`help::GROUPS`].
#[derive(Debug, Subcommand)]
enum Command {
    /// Create a pod from an image
    #[command(after_help = examples![
        "pody create main --image pody-base",
        "pody create train --image pody-base --gpus 2",
        "pody create prep --image pody-base --gpus none",
    ])]
    Create(pods::CreateArgs),
    /// List your pods
    #[command(alias = "ls", after_help = examples!["pody ps", "pody ps --all", "pody ps --json"])]
    Ps(pods::PsArgs),
    /// Open a terminal in a pod
    #[command(after_help = examples![
        "pody shell main",
        "pody shell main -- htop",
        "pody shell main --list",
        "pody shell main --attach",
    ])]
    Shell(shell::ShellArgs),
    /// Run a command in a pod and exit with its exit code
    #[command(after_help = examples![
        "pody exec main -- nvidia-smi",
        "pody exec main -- 'cd /workspace && ls | wc -l'",
        "pody exec main --timeout 600 -- pip install torch",
        "pody exec -d main -- 'python3 train.py > log.txt 2>&1'",
    ])]
    Exec(exec::ExecArgs),
    /// Connect to a pod with SSH
    #[command(after_help = examples![
        "pody ssh main",
        "pody ssh main -- -L 8888:localhost:8888",
        "pody ssh main -- cat < data.csv",
    ])]
    Ssh(ssh::SshArgs),
    /// Print the output of a pod's main process
    #[command(after_help = examples!["pody logs main", "pody logs -f main", "pody logs main -n 100 --since 10m"])]
    Logs(logs::LogsArgs),
    /// Show the CPU time, memory and processes of a pod
    #[command(after_help = examples!["pody stats main"])]
    Stats(pods::PodArgs),
    /// Show the settings and the state of a pod
    #[command(after_help = examples!["pody inspect main", "pody inspect main --json"])]
    Inspect(pods::PodArgs),
    /// Show the GPUs and who uses them, live on a terminal
    #[command(after_help = examples!["pody gpu", "pody gpu --once", "pody gpu --json"])]
    Gpu(gpu::GpuArgs),
    /// Start a stopped pod
    #[command(after_help = examples!["pody start main"])]
    Start(pods::PodArgs),
    /// Stop a pod; its files stay, its processes end
    #[command(after_help = examples!["pody stop main", "pody checkpoint main --stop  # keeps the processes, too"])]
    Stop(pods::PodArgs),
    /// Stop a pod and start it again
    #[command(after_help = examples!["pody restart main"])]
    Restart(pods::PodArgs),
    /// Delete a pod and its files; volumes stay
    #[command(after_help = examples!["pody rm main", "pody rm main --yes"])]
    Rm(pods::RmArgs),
    /// List the images that pods can be created from
    #[command(after_help = examples!["pody images"])]
    Images,
    /// Save the files of a pod as an image
    #[command(after_help = examples!["pody commit main --tag torch -m 'with torch 2.8'"])]
    Commit(images::CommitArgs),

    /// Save a running pod with its processes and memory
    #[command(after_help = examples![
        "pody checkpoint main",
        "pody checkpoint main --stop",
        "pody checkpoint main --label before-lunch",
        "pody checkpoint check main",
    ])]
    Checkpoint(checkpoint::CheckpointArgs),
    /// Restore a pod from a checkpoint
    #[command(after_help = examples![
        "pody restore main",
        "pody restore main --from 01a22f71-3bc4-7107-b013-464a3160d161",
        "pody restore main --as twin",
    ])]
    Restore(checkpoint::RestoreArgs),
    /// List your checkpoints
    #[command(after_help = examples!["pody checkpoints", "pody checkpoints main", "pody checkpoints --all"])]
    Checkpoints(checkpoint::CheckpointsArgs),
    /// Save pods again and again, on a schedule
    #[command(subcommand, after_help = examples!["pody schedule set main every 6h keep 4", "pody schedule list"])]
    Schedule(schedule::ScheduleCommand),
    /// List checkpoints and restores, running and past ones
    #[command(after_help = examples![
        "pody actions",
        "pody actions main",
        "pody actions --follow 01a22f71-3bc4-7107-b013-464a3160d161",
    ])]
    Actions(actions::ActionsArgs),

    /// Log in to a server and store a token for it
    #[command(after_help = examples!["pody login --server http://box:8799 --user alice"])]
    Login(login::LoginArgs),
    /// Log out: revoke the stored token and delete it
    #[command(after_help = examples!["pody logout"])]
    Logout,
    /// Show your account and its limits
    #[command(after_help = examples!["pody whoami"])]
    Whoami,
    /// Change your password
    #[command(after_help = examples!["pody passwd", "pody passwd --end-tokens"])]
    Passwd {
        /// Also end all your tokens, those of `pody login` included
        #[arg(long)]
        end_tokens: bool,
    },
    /// Manage your tokens for scripts
    #[command(subcommand, after_help = examples!["pody token create ci --expires 4w", "pody token list"])]
    Token(tokens::TokenCommand),
    /// Manage the SSH keys that your pods accept
    #[command(subcommand, after_help = examples!["pody key add ~/.ssh/id_ed25519.pub", "pody key list"])]
    Key(keys::KeyCommand),
    /// List events: who did what, newest first
    #[command(after_help = examples!["pody events -n 20", "pody events --user alice"])]
    Events(events::EventsArgs),
    /// Show who used how much CPU and GPU time
    #[command(subcommand, after_help = examples!["pody stat usage 1w --by user,gpu"])]
    Stat(stat::StatCommand),

    /// Check whether this host is ready for pods
    #[command(after_help = examples!["sudo pody doctor"])]
    Doctor,
    /// Run the daemon
    #[command(after_help = examples!["pody serve", "pody serve --host 127.0.0.1 --port 8800"])]
    Serve(serve::ServeArgs),
    /// Manage the accounts of this host
    #[command(subcommand, after_help = examples!["pody user add alice", "pody user list", "pody user rm alice"])]
    User(user::UserCommand),
    /// Manage the limits of accounts
    #[command(subcommand, after_help = examples![
        "pody quota update alice --max-pods 3 --memory-limit 64g",
        "pody quota list --fallback",
    ])]
    Quota(quota::QuotaCommand),
    /// Show or shrink the event log of this host
    #[command(subcommand, after_help = examples!["pody log show --limit 50"])]
    Log(log::LogCommand),
    /// Save and stop all pods of this host, for maintenance
    #[command(after_help = examples![
        "pody drain --reason 'driver upgrade'",
        "pody drain --status",
    ])]
    Drain(drain::DrainArgs),
    /// Restore the pods that `pody drain` stopped
    #[command(after_help = examples!["pody undrain"])]
    Undrain(drain::UndrainArgs),
    /// Print paths, edit the config, print systemd units
    #[command(subcommand, after_help = examples!["pody util config", "pody util show-home"])]
    Util(util::UtilCommand),
    /// Import users, quotas and usage from pody 0.4.1
    #[command(after_help = examples!["pody import /root/.pody"])]
    Import(import::ImportArgs),

    /// Send a GET request
    #[command(after_help = examples!["pody get pod/list", "pody get host/gpu-ps id:0,1 --raw"])]
    Get(request::RequestArgs),
    /// Send a POST request
    #[command(after_help = examples![
        "pody post pod/restart ins:main",
        "pody post pod/exec ins:main cmd: < script.sh",
    ])]
    Post(request::RequestArgs),
    /// Send a request with the route's own method (also: podx)
    #[command(after_help = examples!["pody fetch pod/inspect ins:main"])]
    Fetch(request::RequestArgs),
    /// Add an SSH public key to one pod; for all pods: `pody key add`
    #[command(after_help = examples!["pody copy-id main", "pody copy-id main ~/.ssh/id_ed25519.pub"])]
    CopyId(ssh::CopyIdArgs),
    /// Connect to a pod with SSH and print the ssh command line
    #[command(after_help = examples!["pody connect main", "pody connect main -u ubuntu -i ~/.ssh/id_ed25519"])]
    Connect(ssh::ConnectArgs),

    /// Show the help of a command, or the routes of the server
    #[command(after_help = examples!["pody help checkpoint rm", "pody help /", "pody help pod/create"])]
    Help(help::HelpArgs),
    /// Show the versions of client and server
    #[command(after_help = examples!["pody version"])]
    Version,
    /// Print a script that completes pody's commands in a shell
    #[command(after_help = examples![
        "source <(pody completions bash)",
        "pody completions zsh > ~/.zfunc/_pody",
        "pody completions fish > ~/.config/fish/completions/pody.fish",
    ])]
    Completions {
        /// The shell
        shell: Shell,
    },

    /// Check whether a container may open a device; started by the daemon
    #[command(hide = true)]
    ProbeDevice(probe::ProbeArgs),
    /// Put back the network and memory state of a restored pod; started by CRIU
    #[command(hide = true)]
    NamespaceSetup(namespace_setup::NamespaceSetupArgs),
}

impl Cli {
    /// Parses the command line. Under one of the old program names it is that command of `pody`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Self {
        let mut args = args.into_iter();
        let name = args.next().unwrap_or_default();
        let command = Path::new(&name).file_name().and_then(|name| command_of_old_name(name.to_str()?));
        let words = std::iter::once(OsString::from("pody")).chain(command.map(OsString::from)).chain(args);
        let matches = command_line().get_matches_from(words);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
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

/// The parser, whose `--help` lists the commands in groups.
fn command_line() -> clap::Command {
    let command = Cli::command();
    let template = help::template(&command);
    command.help_template(template)
}

/// The command that a program of pody 0.4.1 is today.
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
            Self::Schedule(command) => command.run(out).await,
            Self::Actions(args) => args.run(out).await,
            Self::Login(args) => args.run(out).await,
            Self::Logout => login::logout(out).await,
            Self::Whoami => login::whoami(out).await,
            Self::Passwd { end_tokens } => login::passwd(end_tokens, out).await,
            Self::Token(command) => command.run(out).await,
            Self::Key(command) => command.run(out).await,
            Self::Events(args) => args.run(out).await,
            Self::Get(args) => args.run(Verb::Get, out).await,
            Self::Post(args) => args.run(Verb::Post, out).await,
            Self::Fetch(args) => args.run(Verb::Auto, out).await,
            Self::CopyId(args) => args.run(out).await,
            Self::Connect(args) => args.run().await,
            Self::Stat(command) => command.run(out).await,
            Self::Help(args) => args.run(out).await,
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
            Self::NamespaceSetup(args) => Ok(args.run()),
            Self::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut command_line(), "pody", &mut script);
                out.bytes(&script).map(|()| exit::OK)
            }
        }
    }
}
