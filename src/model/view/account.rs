//! Accounts, their quotas, tokens and SSH keys.

use serde::{Deserialize, Serialize};

use crate::model::{
    names::UserName,
    quota::{Quota, StoredQuota},
    user::SshKey,
};

/// The caller and their limits. The client shows the limits of any server, so it reads them as a map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountView<Limits = Quota> {
    pub user: AccountUser,
    pub quota: Limits,
}

/// The caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AccountUser {
    pub name: UserName,
    /// 0 or 1, as in pody 0.4.1.
    pub is_admin: u8,
}

/// A token as its owner sees it in a list. Times are RFC 3339.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    pub id: i64,
    pub name: String,
    pub created_at: String,
    pub expires_at: String,
}

/// A token as its owner sees it once. Not `Debug`, so that it is never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewToken {
    #[serde(flatten)]
    pub info: TokenInfo,
    pub token: String,
}

/// An SSH public key as its owner sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SshKeyInfo {
    pub id: i64,
    pub key_type: String,
    pub fingerprint: String,
    pub comment: String,
    /// RFC 3339.
    pub created_at: String,
}

impl From<&SshKey> for SshKeyInfo {
    fn from(row: &SshKey) -> Self {
        Self {
            id: row.id,
            key_type: row.key.key_type.clone(),
            fingerprint: row.key.fingerprint(),
            comment: row.key.comment.clone(),
            created_at: row.created_at.to_string(),
        }
    }
}

/// A new account.
#[derive(Clone, Serialize, Deserialize)]
pub struct AddedUser {
    pub message: String,
    /// Shown once, where the caller named none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// A deleted account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PurgedUser {
    pub message: String,
    /// Container names of the pods that were deleted with it.
    pub pods: Vec<String>,
}

/// The limits of one user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuotaView {
    pub name: UserName,
    /// The effective limits.
    pub quota: Quota,
    /// The user's own; `null` = the default.
    pub stored: StoredQuota,
}
