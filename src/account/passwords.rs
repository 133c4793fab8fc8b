//! Passwords: argon2id over the credential of pody 0.4.1, and a short-lived cache of verified ones.
//!
//! The credential is the hex of `sha256("<user>:<password>")`. That is what pody 0.4.1 stores and what its `user_api`
//! protocol sends, so its users are imported without a password reset and mixed clusters keep working.
//!
//! A hash takes 19 MiB and some ten milliseconds on purpose, so only one runs at a time, and a verified credential is
//! remembered for [`REMEMBERED`], as a keyed hash, bound to the stored hash it was verified against: a password change
//! invalidates it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{host::blocking::off_thread, model::names::UserName};

/// How long a verified credential is accepted without hashing it again.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// How long a password waits for its turn to be hashed.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// Verified users remembered; others are hashed each time.
const MAX_REMEMBERED: usize = 4096;

/// Hex of `sha256("<user>:<password>")`. Secret: it has no `Debug`.
#[derive(Clone)]
pub struct Credential(String);

impl Credential {
    pub fn new(user: &str, password: &str) -> Self {
        Self(hex::encode(Sha256::digest(format!("{user}:{password}"))))
    }

    /// In the form of the `user_api` protocol and of an old users.db.
    pub fn from_hex(hex: &str) -> Self {
        Self(hex.to_ascii_lowercase())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A keyed hash of a credential, for the cache of verified ones.
pub type Mac = [u8; 32];

/// Keys [`Mac`]s; generated at each start.
#[derive(Clone, Copy)]
pub struct MacKey([u8; 32]);

impl MacKey {
    pub fn generate() -> Self {
        Self(rand::random())
    }

    pub fn mac(&self, credential: &Credential) -> Mac {
        *blake3::keyed_hash(&self.0, credential.0.as_bytes()).as_bytes()
    }
}

/// Compares in constant time.
pub fn same(a: &Mac, b: &Mac) -> bool {
    a.ct_eq(b).into()
}

struct Verified {
    mac: Mac,
    /// The stored hash it was verified against.
    password: String,
    until: Instant,
}

/// Hashes and verifies. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    key: MacKey,
    turns: Arc<Semaphore>,
    verified: Arc<Mutex<HashMap<UserName, Verified>>>,
    /// A hash of an empty text, to spend the time of a check on users that do not exist.
    nobody: Arc<str>,
}

impl Passwords {
    pub fn new() -> Self {
        Self {
            key: MacKey::generate(),
            turns: Arc::new(Semaphore::new(1)),
            verified: Arc::default(),
            nobody: hash(&Credential(hex::encode(rand::random::<[u8; 32]>()))).into(),
        }
    }

    /// A turn to hash; `None` when too many wait.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        tokio::time::timeout(TURN_WAIT, self.turns.clone().acquire_owned()).await.ok()?.ok()
    }

    /// The PHC form to store.
    pub async fn hash(&self, credential: Credential) -> String {
        let _turn = self.turns.clone().acquire_owned().await;
        off_thread(move || hash(&credential)).await
    }

    /// Whether this credential was verified against this stored hash a moment ago.
    pub fn is_verified(&self, user: &UserName, credential: &Credential, password: &str) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(user).is_some_and(|entry| {
            entry.until > Instant::now() && entry.password == password && same(&entry.mac, &self.key.mac(credential))
        })
    }

    /// Hashes and compares. The caller holds a turn.
    pub async fn verify(&self, user: &UserName, credential: &Credential, password: &str) -> bool {
        let right = verify(credential.clone(), password.to_owned()).await;
        if right {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if verified.len() >= MAX_REMEMBERED {
                verified.retain(|_, entry| entry.until > now);
            }
            if verified.len() < MAX_REMEMBERED {
                let entry =
                    Verified { mac: self.key.mac(credential), password: password.to_owned(), until: now + REMEMBERED };
                verified.insert(user.clone(), entry);
            }
        }
        right
    }

    /// Spends the time of a check, for users that do not exist. The caller holds a turn.
    pub async fn verify_nothing(&self, credential: &Credential) -> bool {
        verify(credential.clone(), self.nobody.to_string()).await;
        false
    }
}

fn hash(credential: &Credential) -> String {
    // Only a broken random source or parameters out of range make it fail; the parameters are the crate's own.
    Argon2::default().hash_password(credential.0.as_bytes()).expect("argon2id with default parameters").to_string()
}

async fn verify(credential: Credential, password: String) -> bool {
    off_thread(move || Argon2::default().verify_password(credential.0.as_bytes(), password.as_str()).is_ok()).await
}
