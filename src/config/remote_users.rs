//! `[remote_user_profile]`

use serde::Deserialize;

/// A node's users may come from another node (provider), and a node may serve its users to others (service).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteUserProfile {
    pub provider: RemoteProvider,
    pub service: RemoteService,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteProvider {
    pub enabled: bool,
    pub endpoint: String,
    pub access_token: String,
}

#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteService {
    pub enabled: bool,
    pub readonly: bool,
    pub access_token: String,
}

impl Default for RemoteService {
    fn default() -> Self {
        Self { enabled: false, readonly: true, access_token: String::new() }
    }
}

// Written by hand, so that no token reaches a log through `{:?}`.
impl std::fmt::Debug for RemoteProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteProvider")
            .field("enabled", &self.enabled)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RemoteService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteService")
            .field("enabled", &self.enabled)
            .field("readonly", &self.readonly)
            .finish_non_exhaustive()
    }
}
