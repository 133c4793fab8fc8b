//! Users, passwords, tokens, throttle, quotas.
//!
//! A user authenticates with a password (HTTP Basic) or a bearer token; both result in a [`Caller`]. All ways in use
//! [`Accounts`], so they share the throttle, the cache and the audit trail.
//!
//! Accounts live in this node's database, or, with `[remote_user_profile.provider]`, on another node. Quotas, tokens
//! and SSH keys are always this node's.

pub mod import;
mod passwords;
mod remote;
pub mod ssh_keys;
mod throttle;
mod tokens;

use std::{net::IpAddr, time::Duration};

pub use self::remote::RemoteError;
use self::{
    passwords::{Credential, Passwords},
    remote::Remote,
    throttle::Throttle,
};
use crate::{
    config::LiveConfig,
    db::{Db, DbError, NewEvent, Tx},
    model::{
        authority::{Authority, Lapse},
        names::{UserName, start_of},
        quota::{Quota, QuotaChange, StoredQuota},
        time::Millis,
        user::{Actor, Caller, TokenHash, User, UserInfo},
    },
};

/// Longest password in bytes; all of it is hashed.
const MAX_PASSWORD: usize = 1024;

/// Characters of an unknown user name that the throttle remembers.
const MAX_COUNTED_NAME: usize = 40;

/// Why authentication failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum AuthError {
    #[error("invalid username or password")]
    #[strum(serialize = "invalid_credentials")]
    Wrong,
    #[error("this token is invalid or has expired")]
    #[strum(serialize = "invalid_token")]
    BadToken,
    #[error("this account is disabled")]
    #[strum(serialize = "account_disabled")]
    Disabled,
    #[error("too many wrong passwords; try again in {} s", .retry_after.as_secs())]
    Throttled { retry_after: Duration },
    #[error("too many passwords to check at once; try again in a second")]
    #[strum(serialize = "logins_busy")]
    Busy,
    #[error("cannot reach the node that keeps the accounts")]
    #[strum(transparent)]
    Remote(#[source] RemoteError),
}

/// Why a change of an account failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum AccountError {
    #[error("there is no user {0}")]
    #[strum(serialize = "user_not_found")]
    NoUser(UserName),
    #[error("user {0} already exists")]
    #[strum(serialize = "user_exists")]
    Exists(UserName),
    #[error("{0} is the last admin that can sign in; make another user an admin first")]
    LastAdmin(UserName),
    #[error("{user} still has {} pods: {}; purge the user, or delete the pods first", .pods.len(), .pods.join(", "))]
    #[strum(serialize = "user_has_pods")]
    HasPods { user: UserName, pods: Vec<String> },
    #[error("a password has 1 to {MAX_PASSWORD} bytes")]
    #[strum(serialize = "password_length")]
    Password,
    #[error("you have no token {0}")]
    #[strum(serialize = "token_not_found")]
    NoToken(i64),
    #[error("you have no SSH key {0}")]
    #[strum(serialize = "ssh_key_not_found")]
    NoKey(i64),
    #[error("a user has at most {0} of these; remove one first")]
    #[strum(serialize = "too_many_credentials")]
    TooMany(usize),
    #[error("the accounts of this node are kept by another node")]
    #[strum(transparent)]
    Remote(#[source] RemoteError),
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
}

/// A change of a user; `None` leaves a field as it is.
#[derive(Clone, Default)]
pub struct UserChange {
    pub password: Option<String>,
    pub is_admin: Option<bool>,
    pub disabled: Option<bool>,
    /// With a new password: whether the user's tokens end.
    pub tokens: Tokens,
}

/// What becomes of the tokens of an account whose password changes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Tokens {
    /// The owner of the account changes it, and scripts keep working.
    #[default]
    Stay,
    /// Somebody else may know the old one, and may have made tokens with it.
    End,
}

impl UserChange {
    fn ends_tokens(&self) -> bool {
        self.password.is_some() && self.tokens == Tokens::End
    }
}

/// Somebody who has proved who they are.
pub struct SignedIn {
    pub caller: Caller,
    /// Looked at again before a change, and as long as a stream lasts.
    pub authority: Authority,
}

impl SignedIn {
    /// `account` is the row, of a node that keeps its accounts itself.
    fn new(found: UserInfo, account: Option<&User>, token: Option<TokenHash>, address: IpAddr) -> Self {
        let UserInfo { name: user, is_admin, .. } = found;
        let authority = Authority { user: user.clone(), is_admin, account: account.map(Into::into), token };
        Self { caller: Caller { user, is_admin, address }, authority }
    }
}

/// All users and their credentials. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    db: Db,
    config: LiveConfig,
    passwords: Passwords,
    throttle: Throttle,
    remote: Remote,
}

impl Accounts {
    pub fn new(db: Db, config: LiveConfig) -> Self {
        Self { db, config, passwords: Passwords::new(), throttle: Throttle::default(), remote: Remote::default() }
    }

    /// Checks a name and a password.
    pub async fn authenticate_password(
        &self,
        name: &str,
        password: &str,
        address: IpAddr,
    ) -> Result<SignedIn, AuthError> {
        let credential = Credential::new(name, password);
        let Ok(user) = name.parse::<UserName>() else { return self.refuse(name, &credential, address).await };
        if self.config.get().remote_user_profile.provider.enabled {
            let found = self.check_remote(&user, &credential, address).await?;
            return Ok(SignedIn::new(found, None, None, address));
        }
        let account = self.check_local(&user, &credential, address).await?;
        match account.disabled {
            true => Err(AuthError::Disabled),
            false => Ok(SignedIn::new((&account).into(), Some(&account), None, address)),
        }
    }

    /// Refuses a name that cannot exist, in the time that a possible name takes.
    async fn refuse(&self, name: &str, credential: &Credential, address: IpAddr) -> Result<SignedIn, AuthError> {
        let limits = self.config.get();
        let account = start_of(name, MAX_COUNTED_NAME).to_owned();
        self.throttle.check(&account, address, &limits.throttle)?;
        let _turn = self.passwords.turn().await.ok_or(AuthError::Busy)?;
        self.throttle.check(&account, address, &limits.throttle)?;
        self.passwords.verify_nothing(credential).await;
        self.throttle.count_failure(&account, address, &limits.throttle);
        Err(AuthError::Wrong)
    }

    async fn check_local(&self, name: &UserName, credential: &Credential, address: IpAddr) -> Result<User, AuthError> {
        let snapshot = self.db.snapshot();
        let user = snapshot.accounts.users.get(name);
        if let Some(user) = user
            && self.passwords.is_verified(name, credential, &user.password)
        {
            return Ok(user.clone());
        }
        let limits = self.config.get();
        self.throttle.check(name.as_str(), address, &limits.throttle)?;
        let _turn = self.passwords.turn().await.ok_or(AuthError::Busy)?;
        // Others may have failed, or verified the same password, while this one waited.
        self.throttle.check(name.as_str(), address, &limits.throttle)?;
        let right = match user {
            Some(user) if self.passwords.is_verified(name, credential, &user.password) => true,
            Some(user) => self.passwords.verify(name, credential, &user.password).await,
            None => self.passwords.verify_nothing(credential).await,
        };
        match user {
            Some(user) if right => Ok(user.clone()),
            _ => {
                self.throttle.count_failure(name.as_str(), address, &limits.throttle);
                Err(AuthError::Wrong)
            }
        }
    }

    async fn check_remote(
        &self,
        name: &UserName,
        credential: &Credential,
        address: IpAddr,
    ) -> Result<UserInfo, AuthError> {
        let config = self.config.get();
        if let Some(user) = self.remote.verified(name, credential) {
            return Ok(user);
        }
        self.throttle.check(name.as_str(), address, &config.throttle)?;
        let provider = &config.remote_user_profile.provider;
        match self.remote.check_user(provider, name, credential).await.map_err(AuthError::Remote)? {
            Some(user) => Ok(user),
            None => {
                self.throttle.count_failure(name.as_str(), address, &config.throttle);
                Err(AuthError::Wrong)
            }
        }
    }

    /// Checks a bearer token.
    pub async fn authenticate_token(&self, token: &str, address: IpAddr) -> Result<SignedIn, AuthError> {
        let snapshot = self.db.snapshot();
        let token = snapshot.accounts.tokens.get(&TokenHash::of(token)).ok_or(AuthError::BadToken)?;
        if token.expires_at <= Millis::now() {
            return Err(AuthError::BadToken);
        }
        let (found, account) = match self.config.get().remote_user_profile.provider.enabled {
            true => (self.find_user(&token.user).await.map_err(AuthError::Remote)?, None),
            false => {
                let account = snapshot.accounts.users.get(&token.user);
                (account.map(UserInfo::from), account)
            }
        };
        let found = found.ok_or(AuthError::BadToken)?;
        match found.disabled {
            true => Err(AuthError::Disabled),
            false => Ok(SignedIn::new(found, account, Some(token.hash), address)),
        }
    }

    /// Whether a caller may still act, as far as the last commit tells.
    pub fn check_authority(&self, authority: &Authority) -> Result<(), Lapse> {
        let snapshot = self.db.snapshot();
        let token = authority.token.and_then(|hash| snapshot.accounts.tokens.get(&hash));
        authority.check(snapshot.accounts.users.get(&authority.user), token, Millis::now())
    }

    /// Waits until a caller may not act any more.
    pub fn lapse(&self, authority: Authority) -> impl Future<Output = Lapse> + Send + use<> {
        let accounts = self.clone();
        async move {
            let mut renewals = accounts.db.renewals();
            loop {
                renewals.mark_unchanged();
                if let Err(lapse) = accounts.check_authority(&authority) {
                    return lapse;
                }
                let token = authority.token.and_then(|hash| accounts.db.snapshot().accounts.tokens.get(&hash).cloned());
                let left =
                    token.map(|token| Duration::from_millis(token.expires_at.since(Millis::now()).max(0) as u64));
                tokio::select! {
                    _ = renewals.changed() => {}
                    () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
                }
            }
        }
    }

    /// The user of a credential that another node received from its client. That protocol names no user, so without a
    /// name each account is tried.
    pub async fn check_credential(
        &self,
        credential: &str,
        name: Option<&UserName>,
        address: IpAddr,
    ) -> Result<Option<UserInfo>, AuthError> {
        let credential = Credential::from_hex(credential);
        let snapshot = self.db.snapshot();
        let candidates: Vec<&User> = match name {
            Some(name) => snapshot.accounts.users.get(name).into_iter().collect(),
            None => snapshot.accounts.users.values().collect(),
        };
        let enabled = || candidates.iter().filter(|user| !user.disabled);
        if let Some(user) = enabled().find(|user| self.passwords.is_verified(&user.name, &credential, &user.password)) {
            return Ok(Some((*user).into()));
        }
        let limits = self.config.get();
        let account = name.map_or("", UserName::as_str);
        self.throttle.check(account, address, &limits.throttle)?;
        for user in enabled() {
            let _turn = self.passwords.turn().await.ok_or(AuthError::Busy)?;
            if self.passwords.verify(&user.name, &credential, &user.password).await {
                return Ok(Some((*user).into()));
            }
        }
        self.throttle.count_failure(account, address, &limits.throttle);
        Ok(None)
    }

    /// The effective limits of a user.
    pub fn quota(&self, user: &UserName) -> Quota {
        self.stored_quota(user).or_default(&self.config.get().default_quota)
    }

    /// The stored limits of a user.
    pub fn stored_quota(&self, user: &UserName) -> StoredQuota {
        self.db.snapshot().accounts.quotas.get(user).cloned().unwrap_or_default()
    }

    pub async fn list_users(&self) -> Result<Vec<UserInfo>, RemoteError> {
        let config = self.config.get();
        if config.remote_user_profile.provider.enabled {
            return self.remote.list_users(&config.remote_user_profile.provider).await;
        }
        let mut users: Vec<UserInfo> = self.db.snapshot().accounts.users.values().map(UserInfo::from).collect();
        users.sort_by_key(|user| user.id);
        Ok(users)
    }

    pub async fn find_user(&self, name: &UserName) -> Result<Option<UserInfo>, RemoteError> {
        if self.config.get().remote_user_profile.provider.enabled {
            return Ok(self.list_users().await?.into_iter().find(|user| &user.name == name));
        }
        Ok(self.db.snapshot().accounts.users.get(name).map(UserInfo::from))
    }

    pub async fn add_user(
        &self,
        actor: Actor,
        name: UserName,
        password: &str,
        is_admin: bool,
    ) -> Result<(), AccountError> {
        check_password(password)?;
        let config = self.config.get();
        if config.remote_user_profile.provider.enabled {
            let provider = &config.remote_user_profile.provider;
            return self.remote.add_user(provider, &name, password, is_admin).await.map_err(AccountError::Remote);
        }
        let hash = self.passwords.hash(Credential::new(name.as_str(), password)).await;
        self.db.write(move |tx| insert_user(tx, &actor, &name, &hash, is_admin)).await
    }

    /// Returns how many tokens it has ended.
    pub async fn update_user(&self, actor: Actor, name: UserName, change: UserChange) -> Result<usize, AccountError> {
        if let Some(password) = &change.password {
            check_password(password)?;
        }
        let config = self.config.get();
        if config.remote_user_profile.provider.enabled {
            let provider = &config.remote_user_profile.provider;
            self.remote.update_user(provider, &name, &change).await.map_err(AccountError::Remote)?;
            // Tokens are this node's.
            return match change.ends_tokens() {
                true => self.db.write(move |tx| Ok(tx.delete_tokens(&name)?)).await,
                false => Ok(0),
            };
        }
        let ends_tokens = change.ends_tokens();
        let hash = match &change.password {
            Some(password) => Some(self.passwords.hash(Credential::new(name.as_str(), password)).await),
            None => None,
        };
        self.db
            .write(move |tx| {
                let mut user = tx.find_user(&name)?.ok_or_else(|| AccountError::NoUser(name.clone()))?;
                let changed = [
                    hash.is_some().then_some("password"),
                    change.is_admin.map(|to| if to { "admin" } else { "not admin" }),
                    change.disabled.map(|to| if to { "disabled" } else { "enabled" }),
                ];
                user.password = hash.unwrap_or(user.password);
                user.is_admin = change.is_admin.unwrap_or(user.is_admin);
                user.disabled = change.disabled.unwrap_or(user.disabled);
                let admins_before = tx.count_admins()?;
                tx.update_user(&user)?;
                if admins_before > 0 && tx.count_admins()? == 0 {
                    return Err(AccountError::LastAdmin(name));
                }
                let tokens = if ends_tokens { tx.delete_tokens(&name)? } else { 0 };
                let tokens_ended = (tokens > 0).then(|| format!("{tokens} tokens ended"));
                let words = changed.into_iter().flatten().map(str::to_owned).chain(tokens_ended);
                let detail = words.collect::<Vec<_>>().join(", ");
                tx.insert_event(&NewEvent::by(&actor).did("user.update", &name).of(&name).detail(detail))?;
                Ok(tokens)
            })
            .await
    }

    /// Deletes an account that has no pods.
    pub async fn delete_user(&self, actor: Actor, name: UserName) -> Result<(), AccountError> {
        let config = self.config.get();
        if config.remote_user_profile.provider.enabled {
            let provider = &config.remote_user_profile.provider;
            return self.remote.delete_user(provider, &name).await.map_err(AccountError::Remote);
        }
        self.db
            .write(move |tx| {
                let user = tx.find_user(&name)?.ok_or_else(|| AccountError::NoUser(name.clone()))?;
                let pods: Vec<String> = tx
                    .list_live_pods()?
                    .into_iter()
                    .filter(|pod| pod.user == name)
                    .map(|pod| pod.container_name)
                    .collect();
                if !pods.is_empty() {
                    return Err(AccountError::HasPods { user: name, pods });
                }
                tx.delete_user(&name)?;
                if user.is_admin && !user.disabled && tx.count_admins()? == 0 {
                    return Err(AccountError::LastAdmin(name));
                }
                tx.insert_event(&NewEvent::by(&actor).did("user.delete", &name).of(&name))?;
                Ok(())
            })
            .await
    }

    pub async fn update_quota(&self, actor: Actor, user: UserName, change: QuotaChange) -> Result<(), AccountError> {
        self.db
            .write(move |tx| {
                let mut quota = tx.find_quota(&user)?;
                quota.apply(change);
                tx.upsert_quota(&user, &quota)?;
                tx.insert_event(&NewEvent::by(&actor).did("quota.update", &user).of(&user))?;
                Ok(())
            })
            .await
    }

    pub async fn reset_quota(&self, actor: Actor, user: UserName) -> Result<(), AccountError> {
        self.db
            .write(move |tx| {
                tx.delete_quota(&user)?;
                tx.insert_event(&NewEvent::by(&actor).did("quota.reset", &user).of(&user))?;
                Ok(())
            })
            .await
    }
}

fn check_password(password: &str) -> Result<(), AccountError> {
    if password.is_empty() || password.len() > MAX_PASSWORD { Err(AccountError::Password) } else { Ok(()) }
}

fn insert_user(tx: &Tx, actor: &Actor, name: &UserName, hash: &str, is_admin: bool) -> Result<(), AccountError> {
    if !tx.insert_user(name, hash, is_admin)? {
        return Err(AccountError::Exists(name.clone()));
    }
    let event = NewEvent::by(actor).did("user.add", name).of(name).detail(is_admin.then(|| "admin".to_owned()));
    tx.insert_event(&event)?;
    Ok(())
}
