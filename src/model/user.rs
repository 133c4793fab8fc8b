//! Users, who calls, and what proves it: tokens, SSH keys.

use std::{fmt, net::IpAddr, str::FromStr};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    names::{UserName, clipped_word, start_of},
    time::Millis,
};

/// Longest comment of a key that is kept, characters.
const MOST_COMMENT: usize = 200;

/// A row of the table `users`.
#[derive(Clone, Debug)]
pub struct User {
    pub id: i64,
    pub name: UserName,
    /// argon2id in PHC form.
    pub password: String,
    pub is_admin: bool,
    pub disabled: bool,
    pub created_at: Millis,
}

/// A user as others see them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    #[serde(skip)]
    pub id: i64,
    pub name: UserName,
    pub is_admin: bool,
    pub disabled: bool,
}

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        Self { id: user.id, name: user.name.clone(), is_admin: user.is_admin, disabled: user.disabled }
    }
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    pub user: UserName,
    pub is_admin: bool,
    pub address: IpAddr,
}

/// Who is recorded as the author of a change.
#[derive(Clone, Debug)]
pub struct Actor {
    pub name: String,
    pub source: String,
}

impl Actor {
    /// An admin command run on this host.
    pub fn local() -> Self {
        Self { name: "root".to_owned(), source: "local".to_owned() }
    }

    /// The daemon itself.
    pub fn daemon() -> Self {
        Self { name: "pody".to_owned(), source: "local".to_owned() }
    }

    /// Another node that uses this node's accounts.
    pub fn node(address: IpAddr) -> Self {
        Self { name: "remote-node".to_owned(), source: address.to_string() }
    }
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Self {
        Self { name: caller.user.to_string(), source: caller.address.to_string() }
    }
}

/// SHA-256 of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// A row of the table `tokens`.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: i64,
    pub user: UserName,
    pub name: String,
    pub hash: TokenHash,
    pub created_at: Millis,
    pub expires_at: Millis,
}

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
    PodSpec,
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
            return Err(PublicKeyError::PodSpec);
        }
        let mut words = line.splitn(3, ' ');
        let (Some(key_type), Some(body)) = (words.next(), words.next()) else { return Err(PublicKeyError::PodSpec) };
        if !KEY_TYPES.contains(&key_type) {
            return Err(PublicKeyError::Type(clipped_word(key_type)));
        }
        let decoded = BASE64_STANDARD.decode(body).map_err(|_| PublicKeyError::Body)?;
        // The body repeats the type, after its length (RFC 4253, 6.6).
        let inner = decoded.get(4..4 + key_type.len()).ok_or(PublicKeyError::Body)?;
        if inner != key_type.as_bytes() {
            return Err(PublicKeyError::Body);
        }
        let comment = start_of(words.next().unwrap_or_default().trim(), MOST_COMMENT).to_owned();
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
    pub created_at: Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJVbTpAcPB7dqXnNF0WYDoHZ8Sx7sZHSOhyVIn8P4tg alice@box";

    #[test]
    fn keys_parse_and_bad_ones_say_why() {
        assert_eq!(KEY.parse::<PublicKey>().unwrap().comment, "alice@box");
        for (bad, why) in [
            ("", PublicKeyError::PodSpec),
            ("ssh-ed25519", PublicKeyError::PodSpec),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", PublicKeyError::Private),
            ("command=\"x\" ssh-ed25519 AAAA", PublicKeyError::Type("command=\"x\"".into())),
            ("ssh-ed25519 AAAA", PublicKeyError::Body),
            ("ssh-ed25519 !!!", PublicKeyError::Body),
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(why), "{bad}");
        }
        assert!(format!("{KEY}\nssh-rsa AAAA").parse::<PublicKey>().is_err());
    }
}
