//! `pody quota`: limits of accounts, on the database of this host.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    error::CliError,
    exit,
    output::{self, Format, Output},
    user::{done, open},
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
    /// Set limits; "default" (or -1) forgets one, "unlimited" lifts it
    Update(Box<UpdateArgs>),
    /// Forget all limits of a user: the defaults of the config hold
    Reset { name: UserName },
    /// Show the limits that users have of their own
    List {
        /// Only these
        names: Vec<UserName>,
        /// Fill in the defaults: what really holds
        #[arg(long)]
        fallback: bool,
    },
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    name: UserName,
    /// Pods at a time
    #[arg(long, allow_hyphen_values = true)]
    max_pods: Option<CountChange>,
    /// GPUs computing at a time
    #[arg(long, allow_hyphen_values = true)]
    gpu_count: Option<CountChange>,
    /// GPUs that pods see: all, none or 0,1
    #[arg(long)]
    gpus: Option<GpusChange>,
    /// Memory of one pod, like 64g
    #[arg(long, allow_hyphen_values = true)]
    memory_limit: Option<SizeChange>,
    /// Writable layer of one pod
    #[arg(long, allow_hyphen_values = true)]
    storage_size: Option<SizeChange>,
    /// /dev/shm of one pod
    #[arg(long, allow_hyphen_values = true)]
    shm_size: Option<SizeChange>,
    /// Each tmpfs of one pod; none for no tmpfs
    #[arg(long, allow_hyphen_values = true)]
    tmpfs_size: Option<SizeChange>,
    /// Committed images at a time
    #[arg(long, allow_hyphen_values = true)]
    commit_count: Option<CountChange>,
    /// Writable layer that may be committed
    #[arg(long, allow_hyphen_values = true)]
    commit_size_limit: Option<SizeChange>,
    /// CPU cores of one pod
    #[arg(long, allow_hyphen_values = true)]
    cpu_limit: Option<CoresChange>,
    /// Processes and threads of one pod
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<CountChange>,
    /// Memory limits of all pods together
    #[arg(long, allow_hyphen_values = true)]
    total_memory: Option<SizeChange>,
    /// Checkpoints at a time
    #[arg(long, allow_hyphen_values = true)]
    checkpoint_count: Option<CountChange>,
    /// All checkpoints together
    #[arg(long, allow_hyphen_values = true)]
    checkpoint_size: Option<SizeChange>,
}

impl QuotaCommand {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self {
            Self::Update(args) => args.run(out).await,
            Self::Reset { name } => {
                open()?.accounts.reset_quota(Actor::local(), name.clone()).await?;
                done(out, &format!("quota of {name} reset"))
            }
            Self::List { names, fallback } => list(&names, fallback, out).await,
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
        done(out, &format!("quota of {name} updated"))
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

/// One row for people: `-` where nothing is stored.
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
