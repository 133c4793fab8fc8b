//! `pody util`: paths, config and the systemd unit of this host.

use std::{path::PathBuf, process::Command};

use clap::Subcommand;

use super::{error::CliError, exit, output::Output};
use crate::{
    app::OpenError,
    config::{self, Config, DEFAULT_PORT},
    objects,
};

#[derive(Debug, Subcommand)]
pub enum UtilCommand {
    /// Print the folder that holds config and data
    ShowHome,
    /// Edit the config, and check it afterwards
    Config {
        /// Editor; without it $EDITOR, else vi
        #[arg(short, long)]
        editor: Option<String>,
    },
    /// Print a systemd unit for the daemon
    SystemdUnit {
        #[arg(long, default_value_t = DEFAULT_PORT)]
        port: u16,
        /// The unit that saves pods when the host goes down, where before_shutdown is set
        #[arg(long)]
        drain: bool,
    },
}

impl UtilCommand {
    pub fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::ShowHome => out.line(config::home().display().to_string())?,
            Self::Config { editor } => edit(editor)?,
            Self::SystemdUnit { drain: true, .. } => out.line(drain_unit()?)?,
            Self::SystemdUnit { port, .. } => out.line(unit(port)?)?,
        }
        Ok(exit::OK)
    }
}

/// Opens an editor on the config, which is made from the example where there is none.
fn edit(editor: Option<String>) -> Result<(), CliError> {
    let path = config::home().join("config.toml");
    if !path.exists() {
        let write = |source| CliError::WriteFile { path: path.clone(), source };
        std::fs::create_dir_all(config::home()).map_err(write)?;
        std::fs::write(&path, include_str!("../../config.toml.example")).map_err(write)?;
    }
    let editor = editor.or_else(|| std::env::var("EDITOR").ok()).unwrap_or_else(|| "vi".to_owned());
    // As a shell line: editors come with arguments.
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&path).status();
    status.map_err(|source| CliError::Run { program: editor, source })?;
    Config::load(&path, objects::check).map_err(OpenError::from)?;
    Ok(())
}

fn program() -> Result<PathBuf, CliError> {
    std::env::current_exe().map_err(|source| CliError::Run { program: "pody".to_owned(), source })
}

/// A unit that is stopped does what is after those that it was started after: so daemon and Docker still run then. It is
/// stopped for other reasons, too, which systemd's own state tells apart.
fn drain_unit() -> Result<String, CliError> {
    Ok(format!(
        "[Unit]
Description=Saves pods before the host goes down
After=network-online.target docker.service pody.service
Wants=pody.service

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PODY_HOME={home}
# Nothing to be started. Nothing is done unless before_shutdown is set in config.toml.
ExecStop=/bin/sh -c '[ \"$$(systemctl is-system-running)\" != stopping ] || exec {program} drain --shutdown'
TimeoutStopSec=30min

[Install]
WantedBy=multi-user.target",
        home = config::home().display(),
        program = program()?.display(),
    ))
}

fn unit(port: u16) -> Result<String, CliError> {
    Ok(format!(
        "[Unit]
Description=Pody, pods on a shared GPU machine
After=network-online.target docker.service
Wants=network-online.target docker.service

[Service]
Type=simple
ExecStart={program} serve --port {port}
Environment=PODY_HOME={home}
Restart=on-failure
RestartSec=2
# Pods belong to Docker, and whatever else the daemon started outlives it too.
KillMode=process
# When the kernel takes a helper (CRIU, tar) for memory, the daemon tells of it and
# puts the pod right; it need not end.
OOMPolicy=continue
LimitNOFILE=65536
# No file system or device restrictions: the daemon makes members' folders where
# the configuration says, and NVIDIA's library opens devices. And nothing that
# implies a filter of system calls: CRIU cannot save programs under one.
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target",
        home = config::home().display(),
        program = program()?.display(),
    ))
}
