//! `pody quota`: limits of accounts, in the database of this host.

use std::iter;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand, error::ErrorKind};
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
        quota::{Limit, LimitValue, QuotaChange, StoredQuota, Unit},
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
    #[command(flatten)]
    change: QuotaChange,
}

/// One option per row of the table of limits.
impl Args for QuotaChange {
    fn augment_args(command: Command) -> Command {
        command.args(Limit::ALL.iter().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for QuotaChange {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut change = Self::default();
        change.update_from_arg_matches(matches)?;
        Ok(change)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for limit in Limit::ALL {
            if let Some(text) = matches.get_one::<String>(limit.name) {
                limit.change(self, text).map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, error))?;
            }
        }
        Ok(())
    }
}

/// `--max-pods <N>`. A value may begin with `-`: `-1` means the default.
fn option(limit: &'static Limit) -> Arg {
    let value_name = match limit.unit {
        Unit::Count => "N",
        Unit::Bytes => "SIZE",
        Unit::Cores => "CORES",
        Unit::Gpus => "LIST",
    };
    // A bad value is refused here, where clap knows the option that it belongs to.
    let checked = move |text: &str| limit.change(&mut QuotaChange::default(), text).map(|()| text.to_owned());
    Arg::new(limit.name)
        .long(limit.name.replace('_', "-"))
        .help(limit.description)
        .value_name(value_name)
        .allow_hyphen_values(true)
        .value_parser(checked)
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
        let Self { name, change } = self;
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
                let shown = if fallback { StoredQuota::from(quota) } else { stored };
                iter::once(name.to_string()).chain(Limit::ALL.iter().map(|limit| cell(limit, &shown))).collect()
            });
            let header: Vec<&str> = iter::once("NAME").chain(Limit::ALL.iter().map(|limit| limit.heading)).collect();
            out.line(out.table(&header, rows))?;
        }
    }
    Ok(exit::OK)
}

/// `-` where nothing is stored.
fn cell(limit: &Limit, quota: &StoredQuota) -> String {
    match limit.get(quota) {
        None => "-".to_owned(),
        Some(LimitValue::Text(text)) => text,
        Some(LimitValue::Integer(..0)) => "unlimited".to_owned(),
        Some(LimitValue::Integer(number)) => match limit.unit {
            Unit::Count | Unit::Gpus => number.to_string(),
            Unit::Bytes => output::size(number, 1),
            Unit::Cores => (number as f64 / 1000.0).to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::{
        db::Db,
        http::router::routes,
        model::quota::{Change, CountLimit, CpuLimit, SizeLimit},
    };

    fn update(words: &[&str]) -> Result<QuotaChange, clap::Error> {
        let command = QuotaChange::augment_args(Command::new("update"));
        QuotaChange::from_arg_matches(&command.try_get_matches_from([&["update"], words].concat())?)
    }

    /// A quota with another value in each limit.
    fn quota() -> StoredQuota {
        let mut quota = StoredQuota::default();
        for (number, limit) in (1..).zip(Limit::ALL) {
            let value = match limit.unit {
                Unit::Count | Unit::Bytes | Unit::Cores => LimitValue::Integer(number),
                Unit::Gpus => LimitValue::Text(number.to_string()),
            };
            limit.set(&mut quota, value).unwrap();
        }
        quota
    }

    #[test]
    fn every_limit_is_stored_and_read() {
        let home = tempfile::tempdir().unwrap();
        let db = Db::open(home.path()).unwrap();
        let name: UserName = "alice".parse().unwrap();
        let stored = db.write_blocking(|tx| {
            tx.upsert_quota(&name, &quota())?;
            tx.find_quota(&name)
        });
        assert_eq!(stored.unwrap(), quota());
        let emptied = db.write_blocking(|tx| {
            tx.upsert_quota(&name, &StoredQuota::default())?;
            tx.find_quota(&name)
        });
        assert_eq!(emptied.unwrap(), StoredQuota::default());
    }

    #[test]
    fn every_limit_is_a_parameter_an_option_a_key_and_documented() {
        let routes = routes();
        let route = routes.iter().find(|route| route.path == "/admin/quota/update").unwrap();
        let parameters: BTreeSet<&str> = route.params.iter().map(|param| param.name).collect();
        let limits: BTreeSet<&str> = Limit::ALL.iter().map(|limit| limit.name).collect();
        assert_eq!(parameters, &limits | &BTreeSet::from(["username"]));

        let shown = serde_json::to_value(quota()).unwrap();
        assert_eq!(shown.as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>(), limits);

        let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let example = read("config.toml.example");
        let keys: toml::Table = toml::from_str(&example).unwrap();
        let keys = keys["default_quota"].as_table().unwrap();
        assert_eq!(keys.keys().map(String::as_str).collect::<BTreeSet<_>>(), limits, "config.toml.example");

        let document = read("docs/API.md");
        for limit in Limit::ALL {
            let flag = format!("--{}", limit.name.replace('_', "-"));
            let mut expected = QuotaChange::default();
            limit.change(&mut expected, "unlimited").unwrap();
            assert_eq!(update(&[&flag, "unlimited"]).unwrap(), expected, "{flag}");
            assert!(document.contains(&format!("| `{}` |", limit.name)), "{} in docs/API.md", limit.name);
        }
    }

    #[test]
    fn options_take_what_the_parameters_take() {
        let change = update(&["--max-pods", "3", "--memory-limit", "1.5g", "--cpu-limit", "0.5", "--gpu-count", "-1"]);
        assert_eq!(
            change.unwrap(),
            QuotaChange {
                max_pods: Some(Change::To(CountLimit(Some(3)))),
                memory_limit: Some(Change::To(SizeLimit(Some(3 << 29)))),
                cpu_limit: Some(Change::To(CpuLimit(Some(500)))),
                gpu_count: Some(Change::Default),
                ..QuotaChange::default()
            }
        );
        assert_eq!(update(&[]).unwrap(), QuotaChange::default());
        assert_eq!(
            update(&["--max-pods", "many"]).unwrap_err().to_string(),
            "error: invalid value 'many' for '--max-pods <N>': \"many\" is not a count; write a whole number, \
             \"default\" or \"unlimited\"\n\nFor more information, try '--help'.\n"
        );
    }

    #[test]
    fn cells_are_in_the_unit_of_the_limit() {
        let mut quota = StoredQuota::default();
        for (limit, text) in Limit::ALL.iter().zip(["5", "unlimited", "0,1", "1.5g", "none"]) {
            let mut change = QuotaChange::default();
            limit.change(&mut change, text).unwrap();
            quota.apply(change);
        }
        quota.cpu_limit = Some(CpuLimit(Some(1500)));
        let cells: Vec<String> = Limit::ALL.iter().map(|limit| cell(limit, &quota)).collect();
        assert_eq!(cells[..6], ["5", "unlimited", "0,1", "1.5G", "0B", "-"]);
        assert_eq!(cells[9], "1.5");
    }
}
