//! Accounts kept by another pody node: the client of its `/user_api` routes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    UserChange,
    passwords::{Credential, Mac, MacKey, REMEMBERED, same},
};
use crate::{
    config::RemoteProvider,
    model::{
        names::{UserName, start_of},
        user::UserInfo,
    },
};

/// How long the other node may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long a list of the other node's users is cached.
const LIST_AGE: Duration = Duration::from_secs(10);

/// Characters of an answer that a message shows.
const SHOWN: usize = 200;

/// Why a request to the other node failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum RemoteError {
    #[error("the node at {endpoint} does not answer")]
    #[strum(serialize = "accounts_node_unreachable")]
    Unreachable { endpoint: String, source: reqwest::Error },
    #[error("the node at {endpoint} rejects our access token; compare [remote_user_profile] on both nodes")]
    #[strum(serialize = "accounts_node_token")]
    Token { endpoint: String },
    #[error("the node at {endpoint} serves its users read-only; change them there")]
    #[strum(serialize = "accounts_node_read_only")]
    ReadOnly { endpoint: String },
    #[error("the node at {endpoint} does not serve its users; enable [remote_user_profile.service] there")]
    #[strum(serialize = "accounts_node_disabled")]
    Disabled { endpoint: String },
    #[error("the node at {endpoint} answered {status}: {detail}")]
    #[strum(serialize = "accounts_node_refused")]
    Refused { endpoint: String, status: u16, detail: String },
}

/// A user in the protocol's form; userid 0 is "no such user".
#[derive(Deserialize)]
struct WireUser {
    userid: i64,
    name: String,
    is_admin: BoolOrNumber,
}

/// pody 0.4.1 stores booleans in SQLite and sends either form.
#[derive(Deserialize)]
#[serde(untagged)]
enum BoolOrNumber {
    Bool(bool),
    Number(i64),
}

impl WireUser {
    fn into_info(self) -> Option<UserInfo> {
        let is_admin = match self.is_admin {
            BoolOrNumber::Bool(value) => value,
            BoolOrNumber::Number(value) => value != 0,
        };
        (self.userid != 0).then_some(())?;
        Some(UserInfo { id: self.userid, name: self.name.parse().ok()?, is_admin, disabled: false })
    }
}

struct Verified {
    mac: Mac,
    user: UserInfo,
    until: Instant,
}

/// When the users were listed, and the list.
type Listed = (Instant, Vec<UserInfo>);

/// The other node. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    http: reqwest::Client,
    key: MacKey,
    verified: Arc<Mutex<HashMap<UserName, Verified>>>,
    list: Arc<tokio::sync::Mutex<Option<Listed>>>,
}

impl Default for Remote {
    fn default() -> Self {
        crate::tls::install_provider();
        let http = reqwest::Client::builder().timeout(DEADLINE).build().expect("a client without special settings");
        Self { http, key: MacKey::generate(), verified: Arc::default(), list: Arc::default() }
    }
}

impl Remote {
    /// The user, if this credential was verified a moment ago.
    pub fn verified(&self, name: &UserName, credential: &Credential) -> Option<UserInfo> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = verified.get(name)?;
        (entry.until > Instant::now() && same(&entry.mac, &self.key.mac(credential))).then(|| entry.user.clone())
    }

    /// Asks whose the credential is. The name is sent for nodes that can use it; pody 0.4.1 ignores it.
    pub async fn check_user(
        &self,
        provider: &RemoteProvider,
        name: &UserName,
        credential: &Credential,
    ) -> Result<Option<UserInfo>, RemoteError> {
        let query = [("credential", credential.as_str()), ("username", name.as_str())];
        let answer: WireUser = self.call(provider, reqwest::Method::GET, "check_user", &query).await?;
        let user = answer.into_info().filter(|user| &user.name == name);
        if let Some(user) = &user {
            let entry =
                Verified { mac: self.key.mac(credential), user: user.clone(), until: Instant::now() + REMEMBERED };
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), entry);
        }
        Ok(user)
    }

    pub async fn list_users(&self, provider: &RemoteProvider) -> Result<Vec<UserInfo>, RemoteError> {
        let mut cached = self.list.lock().await;
        if let Some((at, users)) = &*cached
            && at.elapsed() < LIST_AGE
        {
            return Ok(users.clone());
        }
        let answer: Vec<WireUser> = self.call(provider, reqwest::Method::GET, "list_users", &[]).await?;
        let users: Vec<UserInfo> = answer.into_iter().filter_map(WireUser::into_info).collect();
        *cached = Some((Instant::now(), users.clone()));
        Ok(users)
    }

    pub async fn add_user(
        &self,
        provider: &RemoteProvider,
        name: &UserName,
        password: &str,
        is_admin: bool,
    ) -> Result<(), RemoteError> {
        let is_admin = is_admin.to_string();
        let query = [("username", name.as_str()), ("password", password), ("is_admin", is_admin.as_str())];
        self.change(provider, "add_user", &query).await
    }

    pub async fn update_user(
        &self,
        provider: &RemoteProvider,
        name: &UserName,
        change: &UserChange,
    ) -> Result<(), RemoteError> {
        let is_admin = change.is_admin.map(|value| value.to_string());
        let mut query = vec![("username", name.as_str())];
        query.extend(change.password.as_deref().map(|password| ("password", password)));
        query.extend(is_admin.as_deref().map(|value| ("is_admin", value)));
        self.change(provider, "update_user", &query).await
    }

    pub async fn delete_user(&self, provider: &RemoteProvider, name: &UserName) -> Result<(), RemoteError> {
        self.change(provider, "delete_user", &[("username", name.as_str())]).await
    }

    /// A change makes the cache stale.
    async fn change(&self, provider: &RemoteProvider, route: &str, query: &[(&str, &str)]) -> Result<(), RemoteError> {
        self.call::<serde_json::Value>(provider, reqwest::Method::POST, route, query).await?;
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.list.lock().await = None;
        Ok(())
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        provider: &RemoteProvider,
        method: reqwest::Method,
        route: &str,
        query: &[(&str, &str)],
    ) -> Result<T, RemoteError> {
        let endpoint = provider.endpoint.trim_end_matches('/').to_owned();
        // The protocol puts its parameters into the URL, so an error must not contain the URL.
        let unreachable = |source: reqwest::Error| RemoteError::Unreachable {
            endpoint: endpoint.clone(),
            source: source.without_url(),
        };
        let request = self.http.request(method, format!("{endpoint}/user_api/{route}")).query(query);
        let response = request.bearer_auth(&provider.access_token).send().await.map_err(unreachable)?;
        match response.status().as_u16() {
            200 => response.json().await.map_err(unreachable),
            401 | 403 => Err(RemoteError::Token { endpoint }),
            423 => Err(RemoteError::ReadOnly { endpoint }),
            501 => Err(RemoteError::Disabled { endpoint }),
            status => {
                let text = response.text().await.unwrap_or_default();
                // Its errors are JSON with a sentence; any other response is shown as it is.
                let sentence = serde_json::from_str(&text)
                    .ok()
                    .and_then(|answer: serde_json::Value| answer["detail"].as_str().map(str::to_owned));
                let detail = start_of(&sentence.unwrap_or(text), SHOWN).to_owned();
                Err(RemoteError::Refused { endpoint, status, detail })
            }
        }
    }
}
