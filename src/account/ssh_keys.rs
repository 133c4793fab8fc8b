//! SSH public keys: stored per user, written into `/root/.ssh/authorized_keys` of each of their pods between two marker
//! lines, so that keys added by hand stay.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{AccountError, Accounts, Actor, record};
use crate::{
    db::{now, rfc3339},
    names::UserName,
};

/// Most keys of a user.
const MAX_KEYS: usize = 50;

/// Key types that OpenSSH accepts in an `authorized_keys` file.
const KEY_TYPES: [&str; 8] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ssh-dss",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// One line of an `authorized_keys` file, without options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub key_type: String,
    /// Base64.
    pub body: String,
    pub comment: String,
}

/// Why a text is not a public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("a public key is one line: TYPE BASE64 [COMMENT], as in ~/.ssh/id_ed25519.pub")]
    Shape,
    #[error(
        "this is a private key; send its .pub file instead, and create a new key pair, because this one has been exposed"
    )]
    Private,
    #[error("{0:?} is not a key type that sshd accepts")]
    Type(String),
    #[error("the key's base64 is damaged")]
    Body,
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(s: &str) -> Result<Self, PublicKeyError> {
        let line = s.trim();
        if line.contains("PRIVATE KEY") {
            return Err(PublicKeyError::Private);
        }
        if line.len() > 16_384 || line.chars().any(char::is_control) {
            return Err(PublicKeyError::Shape);
        }
        let mut words = line.splitn(3, ' ');
        let (Some(key_type), Some(body)) = (words.next(), words.next()) else { return Err(PublicKeyError::Shape) };
        if !KEY_TYPES.contains(&key_type) {
            return Err(PublicKeyError::Type(key_type.chars().take(40).collect()));
        }
        let decoded = BASE64_STANDARD.decode(body).map_err(|_| PublicKeyError::Body)?;
        // The body repeats the type, after its length (RFC 4253, 6.6).
        let inner = decoded.get(4..4 + key_type.len()).ok_or(PublicKeyError::Body)?;
        if inner != key_type.as_bytes() {
            return Err(PublicKeyError::Body);
        }
        let comment = words.next().unwrap_or_default().trim().chars().take(200).collect();
        Ok(Self { key_type: key_type.to_owned(), body: body.to_owned(), comment })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.key_type, self.body, self.comment)
    }
}

impl PublicKey {
    /// The form that `ssh-keygen -l` shows.
    pub fn fingerprint(&self) -> String {
        let decoded = BASE64_STANDARD.decode(&self.body).unwrap_or_default();
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(decoded)))
    }
}

/// A row of the table `ssh_keys`.
#[derive(Clone, Debug)]
pub struct SshKey {
    pub id: i64,
    pub key: PublicKey,
    pub created_at: i64,
}

/// A key as its owner sees it.
#[derive(Clone, Debug, Serialize)]
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
            created_at: rfc3339(row.created_at),
        }
    }
}

impl Accounts {
    pub async fn list_ssh_keys(&self, user: &UserName) -> Result<Vec<SshKey>, AccountError> {
        let user = user.clone();
        self.db.read(move |tx| Ok(tx.list_ssh_keys(&user)?)).await
    }

    pub async fn add_ssh_key(&self, actor: Actor, user: UserName, key: PublicKey) -> Result<SshKey, AccountError> {
        self.db
            .write(move |tx| {
                if tx.list_ssh_keys(&user)?.len() >= MAX_KEYS {
                    return Err(AccountError::TooMany(MAX_KEYS));
                }
                let stored = tx.upsert_ssh_key(&user, &key, now())?;
                record::<AccountError>(tx, &actor, "ssh-key.add", &key.fingerprint(), Some(&user), None)?;
                Ok(stored)
            })
            .await
    }

    pub async fn delete_ssh_key(&self, actor: Actor, user: UserName, id: i64) -> Result<(), AccountError> {
        self.db
            .write(move |tx| match tx.delete_ssh_key(&user, id)? {
                true => record(tx, &actor, "ssh-key.delete", &id.to_string(), Some(&user), None),
                false => Err(AccountError::NoKey(id)),
            })
            .await
    }
}

const BEGIN: &str = "# >>> keys kept by pody: change them with `pody key`";
const END: &str = "# <<< keys kept by pody";

/// An `authorized_keys` file with our part replaced by `keys` and everything else as it was.
pub fn merge_authorized_keys(current: &str, keys: &[SshKey]) -> String {
    let mut ours = false;
    let mut lines: Vec<String> = Vec::new();
    for line in current.lines() {
        match line {
            BEGIN => ours = true,
            END => ours = false,
            line if !ours => lines.push(line.to_owned()),
            _ => {}
        }
    }
    if !keys.is_empty() {
        lines.push(BEGIN.to_owned());
        lines.extend(keys.iter().map(|row| row.key.to_string()));
        lines.push(END.to_owned());
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJVbTpAcPB7dqXnNF0WYDoHZ8Sx7sZHSOhyVIn8P4tg alice@box";

    #[test]
    fn keys_parse_and_bad_ones_say_why() {
        assert_eq!(KEY.parse::<PublicKey>().unwrap().comment, "alice@box");
        for (bad, why) in [
            ("", PublicKeyError::Shape),
            ("ssh-ed25519", PublicKeyError::Shape),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", PublicKeyError::Private),
            ("command=\"x\" ssh-ed25519 AAAA", PublicKeyError::Type("command=\"x\"".into())),
            ("ssh-ed25519 AAAA", PublicKeyError::Body),
            ("ssh-ed25519 !!!", PublicKeyError::Body),
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(why), "{bad}");
        }
        assert!(format!("{KEY}\nssh-rsa AAAA").parse::<PublicKey>().is_err());
    }

    #[test]
    fn keys_of_others_stay() {
        let row = SshKey { id: 1, key: KEY.parse().unwrap(), created_at: 0 };
        let by_hand = "ssh-rsa AAAA by-hand\n";
        let with = merge_authorized_keys(by_hand, std::slice::from_ref(&row));
        assert!(with.starts_with(by_hand) && with.contains(KEY));
        assert_eq!(merge_authorized_keys(&with, &[row]), with);
        assert_eq!(merge_authorized_keys(&with, &[]), by_hand);
    }
}
