//! `pody quota`: limits of accounts, in the database of this host.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    help::examples,
    output::{self, Format, Output},
    user::{changed, open},
};
use crate::{
    account::AccountError,
    model::{
        names::UserName,
        quota::{CoresChange, CountChange, GpusChange, Limit, Quota, QuotaChange, SizeChange, StoredQuota},
        user::Actor,
    },
};

#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// List the limits that are set per account
    #[command(alias = "ls", after_help = examples!["pody quota list", "pody quota list alice --fallback"])]
    List {
        /// Only these accounts
        names: Vec<UserName>,
        /// Fill in the defaults: the limits in force
        #[arg(long)]
        fallback: bool,
    },
    /// Set limits of an account; `default` (or -1) removes one, `unlimited` lifts it
    #[command(after_help = examples![
        "pody quota update alice --max-pods 3 --gpus 0,1 --memory-limit 64g",
        "pody quota update alice --gpu-count 2 --cpu-limit 16",
        "pody quota update alice --max-pods unlimited --memory-limit default",
    ])]
    Update(Box<UpdateArgs>),
    /// Remove all limits of an account: the defaults of the config apply
    #[command(after_help = examples!["pody quota reset alice"])]
    Reset {
        /// The account
        name: UserName,
    },
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// The account
    name: UserName,
    /// Number of pods
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    max_pods: Option<CountChange>,
    /// Number of GPUs in use at the same time
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    gpu_count: Option<CountChange>,
    /// The GPUs that pods see, by index: all, none, or a list like 0,1
    #[arg(long, value_name = "LIST")]
    gpus: Option<GpusChange>,
    /// Memory of each pod, like 64g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    memory_limit: Option<SizeChange>,
    /// Writable layer of each pod, like 100g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    storage_size: Option<SizeChange>,
    /// /dev/shm of each pod, like 8g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    shm_size: Option<SizeChange>,
    /// Each tmpfs of each pod, like 1g; none for no tmpfs
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    tmpfs_size: Option<SizeChange>,
    /// Number of committed images
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    commit_count: Option<CountChange>,
    /// Largest writable layer that may be committed, like 20g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    commit_size_limit: Option<SizeChange>,
    /// CPU cores of each pod, like 16 or 0.5
    #[arg(long, allow_hyphen_values = true, value_name = "CORES")]
    cpu_limit: Option<CoresChange>,
    /// Number of processes and threads of each pod
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    pids_limit: Option<CountChange>,
    /// Sum of the memory limits of all pods, like 128g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    total_memory: Option<SizeChange>,
    /// Number of checkpoints
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    checkpoint_count: Option<CountChange>,
    /// Size of all checkpoints together, like 200g
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE")]
    checkpoint_size: Option<SizeChange>,
}

impl QuotaCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::List { names, fallback } => list(&names, fallback, out).await,
            Self::Update(args) => args.run(out).await,
            Self::Reset { name } => {
                open()?.accounts.reset_quota(Actor::local(), name.clone()).await?;
                changed(out, format!("quota of {name} reset"))
            }
        }
    }
}

impl UpdateArgs {
    async fn run(self, out: &Output) -> Result<u8, CliError> {
        let name = self.name;
        let change = QuotaChange {
            max_pods: self.max_pods.map(|change| change.0),
            gpu_count: self.gpu_count.map(|change| change.0),
            gpus: self.gpus.map(|change| change.0),
            memory_limit: self.memory_limit.map(|change| change.0),
            storage_size: self.storage_size.map(|change| change.0),
            shm_size: self.shm_size.map(|change| change.0),
            tmpfs_size: self.tmpfs_size.map(|change| change.0),
            commit_count: self.commit_count.map(|change| change.0),
            commit_size_limit: self.commit_size_limit.map(|change| change.0),
            cpu_limit: self.cpu_limit.map(|change| change.0),
            pids_limit: self.pids_limit.map(|change| change.0),
            total_memory: self.total_memory.map(|change| change.0),
            checkpoint_count: self.checkpoint_count.map(|change| change.0),
            checkpoint_size: self.checkpoint_size.map(|change| change.0),
        };
        if change == QuotaChange::default() {
            return Err(CliError::usage("nothing to change", "see `pody quota update --help`"));
        }
        let app = open()?;
        if app.accounts.find_user(&name).await.map_err(AccountError::Remote)?.is_none() {
            return Err(AccountError::NoUser(name).into());
        }
        app.accounts.update_quota(Actor::local(), name.clone(), change).await?;
        changed(out, format!("quota of {name} updated"))
    }
}

async fn list(names: &[UserName], fallback: bool, out: &Output) -> Result<u8, CliError> {
    let app = open()?;
    let mut users = app.accounts.list_users().await.map_err(AccountError::Remote)?;
    users.retain(|user| names.is_empty() || names.contains(&user.name));
    let quotas = users
        .into_iter()
        .map(|user| (app.accounts.stored_quota(&user.name), app.accounts.quota(&user.name), user.name));
    match out.format() {
        Format::Json => {
            let rows: Vec<_> = quotas
                .map(|(stored, quota, name)| match fallback {
                    true => json!({"name": name, "quota": quota}),
                    false => json!({"name": name, "quota": stored}),
                })
                .collect();
            out.json(&rows)?;
        }
        Format::People => {
            let rows = quotas.map(|(stored, quota, name)| {
                let mut row = vec![name.to_string()];
                row.extend(if fallback { cells(&StoredQuota::from(quota)) } else { cells(&stored) });
                row
            });
            let header = [
                "NAME",
                "PODS",
                "GPUS AT ONCE",
                "GPUS",
                "MEMORY",
                "ALL MEMORY",
                "CORES",
                "PIDS",
                "STORAGE",
                "SHM",
                "TMPFS",
                "COMMITS",
                "COMMIT SIZE",
                "CHECKPOINTS",
                "CHECKPOINT SIZE",
            ];
            out.line(out.table(&header, rows))?;
        }
    }
    Ok(exit::OK)
}

/// One table row: `-` where nothing is stored.
fn cells(quota: &StoredQuota) -> Vec<String> {
    let text = |limit: Option<Limit>, shown: fn(i64) -> String| match limit {
        None => "-".to_owned(),
        Some(Limit(None)) => "unlimited".to_owned(),
        Some(limit) => shown(limit.as_i64()),
    };
    let count = |limit| text(limit, |n| n.to_string());
    let size = |limit| text(limit, |n| output::size(n, 1));
    let cores = quota.cpu_limit.map_or("-".to_owned(), |cpu| match cpu.0 {
        None => "unlimited".to_owned(),
        Some(_) => cpu.cores().to_string(),
    });
    vec![
        count(quota.max_pods),
        count(quota.gpu_count),
        quota.gpus.as_ref().map_or("-".to_owned(), ToString::to_string),
        size(quota.memory_limit),
        size(quota.total_memory),
        cores,
        count(quota.pids_limit),
        size(quota.storage_size),
        size(quota.shm_size),
        size(quota.tmpfs_size),
        count(quota.commit_count),
        size(quota.commit_size_limit),
        count(quota.checkpoint_count),
        size(quota.checkpoint_size),
    ]
}

impl From<Quota> for StoredQuota {
    fn from(quota: Quota) -> Self {
        Self {
            max_pods: Some(quota.max_pods),
            gpu_count: Some(quota.gpu_count),
            gpus: Some(quota.gpus),
            memory_limit: Some(quota.memory_limit),
            storage_size: Some(quota.storage_size),
            shm_size: Some(quota.shm_size),
            tmpfs_size: Some(quota.tmpfs_size),
            commit_count: Some(quota.commit_count),
            commit_size_limit: Some(quota.commit_size_limit),
            cpu_limit: Some(quota.cpu_limit),
            pids_limit: Some(quota.pids_limit),
            total_memory: Some(quota.total_memory),
            checkpoint_count: Some(quota.checkpoint_count),
            checkpoint_size: Some(quota.checkpoint_size),
        }
    }
}
