//! `pody ssh`, `connect` and `copy-id`: SSH to a pod through its port on the host.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use reqwest::Method;
use serde::Deserialize;

use super::{
    client::{self, Client, ClientError},
    error::CliError,
    exit, original,
    output::Output,
};
use crate::model::view::pod::ExecView;

/// The default SSH port of a pod.
const SSH_PORT: u16 = 22;

#[derive(Debug, Args)]
pub struct SshArgs {
    /// The pod
    name: String,
    #[command(flatten)]
    options: SshOptions,
    /// More arguments for ssh
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The pod
    #[arg(value_name = "INS")]
    instance: String,
    #[command(flatten)]
    options: SshOptions,
}

#[derive(Debug, Args)]
struct SshOptions {
    /// The SSH private key
    #[arg(short, long, value_name = "KEY")]
    identity_file: Option<PathBuf>,
    /// The SSH port inside the pod
    #[arg(short, long, default_value_t = SSH_PORT)]
    port: u16,
    /// The user inside the pod
    #[arg(short, long, default_value = "root")]
    user: String,
    /// Do not check or remember the pod's host key
    #[arg(short, long)]
    tmp: bool,
}

#[derive(Debug, Args)]
pub struct CopyIdArgs {
    /// The pod
    #[arg(value_name = "INS")]
    instance: String,
    /// The SSH public key file [default: the first one in ~/.ssh]
    #[arg(value_name = "KEY")]
    key: Option<PathBuf>,
}

impl SshArgs {
    pub async fn run(self) -> Result<u8, CliError> {
        Err(run(ssh_command(&self.name, &self.options, &self.args).await?))
    }
}

impl ConnectArgs {
    pub async fn run(self) -> Result<u8, CliError> {
        let connect = async {
            let command = ssh_command(without_key(&self.instance), &self.options, &[]).await?;
            let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
            println!("ssh {}", shlex::try_join(words.iter().map(AsRef::as_ref))?);
            Err(run(command))
        };
        original::end(connect.await)
    }
}

impl CopyIdArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        original::end(self.copy(out).await)
    }

    async fn copy(self, out: &Output) -> Result<u8, CliError> {
        let key = read_public_key(self.key)?;
        let quoted = shlex::try_quote(&key)?;
        let command = format!(
            "umask 077; mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && \
             {{ grep -qxF {quoted} ~/.ssh/authorized_keys || echo {quoted} >> ~/.ssh/authorized_keys; }}"
        );
        let instance = without_key(&self.instance);
        let client = Client::from_environment()?;
        // In the query string, where a pody 0.4.1 server reads it; the key is public.
        let query = [("ins", instance), ("cmd", command.as_str())];
        let answer = client::read_json(client.send(Method::POST, "pod/exec", &query, &[]).await?).await?;
        let ended: ExecView = serde_json::from_value(answer.clone()).map_err(ClientError::Unintelligible)?;
        match ended.exit_code {
            0 => out.done(&answer, format!("key added to {instance}; `pody connect {instance}` uses it"))?,
            _ => return Err(CliError::KeyNotAdded(ended.log.trim().to_owned())),
        }
        Ok(exit::OK)
    }
}

/// The named public key, else the first one in `~/.ssh`.
pub fn read_public_key(path: Option<PathBuf>) -> Result<String, CliError> {
    let path = match path {
        Some(path) => path,
        None => find_in_ssh_directory(".pub").ok_or(CliError::NoPublicKey)?,
    };
    let text = std::fs::read_to_string(&path).map_err(|source| CliError::ReadFile { path: path.clone(), source })?;
    let key = text.trim();
    let known = ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| key.starts_with(kind));
    if known && !key.contains('\n') { Ok(key.to_owned()) } else { Err(CliError::BadPublicKey(path)) }
}

/// The ssh command that connects to a pod.
async fn ssh_command(instance: &str, options: &SshOptions, args: &[String]) -> Result<Command, CliError> {
    let client = Client::from_environment()?;
    let port = find_host_port(&client, instance, options.port).await?;
    let mut command = Command::new("ssh");
    if options.tmp {
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"]);
    }
    if let Some(key) = options.identity_file.clone().or_else(|| find_in_ssh_directory("")) {
        command.arg("-i").arg(key);
    }
    command.arg(format!("{}@{}", options.user, client.host())).arg("-p").arg(port.to_string()).args(args);
    Ok(command)
}

/// Replaces this process with the command; returns only if that fails.
fn run(mut command: Command) -> CliError {
    let source = command.exec();
    CliError::Run { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The host port that is mapped to a pod's port.
async fn find_host_port(client: &Client, instance: &str, port: u16) -> Result<u16, CliError> {
    // The one field, since this is also asked of a pody 0.4.1 server, which sends fewer than we do.
    #[derive(Deserialize)]
    struct Inspect {
        #[serde(default)]
        port_mapping: Vec<String>,
    }
    let answer = client.get("pod/inspect", &[("ins", instance)]).await?;
    let pod: Inspect = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
    let host_port = pod.port_mapping.iter().find_map(|mapping| {
        let (outer, inner) = mapping.split_once(':')?;
        (inner.parse() == Ok(port)).then(|| outer.parse().ok())?
    });
    host_port.ok_or_else(|| CliError::NoPort { instance: instance.to_owned(), port })
}

fn find_in_ssh_directory(suffix: &str) -> Option<PathBuf> {
    let directory = Path::new(&std::env::var_os("HOME")?).join(".ssh");
    let names = ["id_rsa", "id_ed25519", "id_dsa", "id_ecdsa"];
    names.iter().map(|name| directory.join(format!("{name}{suffix}"))).find(|path| path.is_file())
}

/// `ins:main` as `main`: pody 0.4.1 takes both.
fn without_key(instance: &str) -> &str {
    instance.strip_prefix("ins:").or_else(|| instance.strip_prefix("ins=")).unwrap_or(instance)
}
