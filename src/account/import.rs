//! Imports users, quotas and usage of a pody 0.4.1 installation, in one pass and one transaction.
//!
//! The old credential is the input of the new hash, so old passwords work at once. Existing users and quotas stay as
//! they are: importing twice changes nothing.

use std::path::Path;

use serde::Serialize;

use super::{AccountError, Accounts, passwords::Credential};
use crate::{
    db::{NewEvent, OldInstallation},
    model::{names::UserName, user::Actor},
};

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    pub users: Vec<UserName>,
    pub quotas: Vec<UserName>,
    /// Rows of usage.
    pub usage: usize,
    /// Skipped entries, each with its reason.
    pub skipped: Vec<String>,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("there is no users.db in {0}; give the PODY_HOME of the old installation, usually ~/.pody")]
    NotThere(std::path::PathBuf),
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Db(#[from] crate::db::DbError),
}

impl Accounts {
    pub async fn import(&self, actor: Actor, directory: &Path) -> Result<ImportReport, ImportError> {
        let old = OldInstallation::new(directory);
        if !old.exists() {
            return Err(ImportError::NotThere(directory.to_owned()));
        }
        let mut report = ImportReport::default();
        let known = self.db.snapshot();
        let mut users = Vec::new();
        for user in old.list_users()? {
            let name: UserName = match user.name.parse() {
                Ok(name) => name,
                Err(error) => {
                    report.skipped.push(format!("user {:?}: {error}", user.name));
                    continue;
                }
            };
            if user.credential.len() != 64 || !user.credential.bytes().all(|b| b.is_ascii_hexdigit()) {
                report.skipped.push(format!(
                    "user {name}: the stored credential is damaged; set a password with `pody user add`"
                ));
            } else if known.accounts.users.contains_key(&name) {
                report.skipped.push(format!("user {name}: exists already"));
            } else {
                let hash = self.passwords.hash(Credential::from_hex(&user.credential)).await;
                users.push((name, hash, user.is_admin));
            }
        }
        let mut quotas = Vec::new();
        for (name, quota) in old.list_quotas()? {
            match name.parse::<UserName>() {
                Ok(name) if known.accounts.quotas.contains_key(&name) => {
                    report.skipped.push(format!("quota of {name}: exists already"));
                }
                Ok(name) => quotas.push((name, quota)),
                Err(error) => report.skipped.push(format!("quota of {name:?}: {error}")),
            }
        }
        let usage = old.list_usage()?;
        self.db
            .write(move |tx| {
                for (name, hash, is_admin) in &users {
                    tx.insert_user(name, hash, *is_admin)?;
                    report.users.push(name.clone());
                }
                for (name, quota) in &quotas {
                    tx.upsert_quota(name, quota)?;
                    report.quotas.push(name.clone());
                }
                for row in &usage {
                    report.usage += usize::from(tx.insert_legacy_usage(row)?);
                }
                let detail = format!("{} users, {} quotas, {} rows of usage", users.len(), quotas.len(), report.usage);
                tx.insert_event(&NewEvent::by(&actor).did("import", "pody 0.4.1").detail(detail))?;
                Ok(report)
            })
            .await
    }
}
