//! The data that hot reads need, held in memory and replaced as a whole after each commit.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use rusqlite::Connection;

use super::{DbError, drain, pods, schedules, tokens, users};
use crate::model::{
    drain::Drain,
    ids::{ContainerId, PodId},
    names::UserName,
    pod::Pod,
    quota::StoredQuota,
    schedule::Schedule,
    user::{Token, TokenHash, User},
};

const ACCOUNTS: u8 = 1;

const PODS: u8 = 2;

const UPKEEP: u8 = 4;

/// Which parts of the snapshot the open transaction has touched.
#[derive(Default)]
pub struct Dirty(AtomicU8);

impl Dirty {
    pub fn mark(&self, table: &str) {
        let part = match table {
            "users" | "tokens" | "quotas" => ACCOUNTS,
            "pods" | "ports" => PODS,
            "schedules" | "drain" => UPKEEP,
            _ => 0,
        };
        self.0.fetch_or(part, Ordering::Relaxed);
    }

    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub fn take(&self) -> Option<u8> {
        Some(self.0.swap(0, Ordering::Relaxed)).filter(|&parts| parts != 0)
    }
}

/// Everything a hot read needs from the database.
#[derive(Default)]
pub struct Snapshot {
    pub accounts: Arc<Accounts>,
    pub pods: Arc<PodRows>,
    pub upkeep: Arc<Upkeep>,
}

/// Schedules by pod, and maintenance of the host.
#[derive(Default)]
pub struct Upkeep {
    pub schedules: HashMap<PodId, Schedule>,
    pub drain: Option<Drain>,
}

/// Users, quotas and tokens.
#[derive(Default)]
pub struct Accounts {
    pub users: BTreeMap<UserName, User>,
    pub quotas: HashMap<UserName, StoredQuota>,
    pub tokens: HashMap<TokenHash, Token>,
}

/// Pods that are not deleted and not failed.
#[derive(Default)]
pub struct PodRows {
    by_container_name: BTreeMap<String, Arc<Pod>>,
    by_id: HashMap<PodId, Arc<Pod>>,
    by_user: HashMap<UserName, Vec<Arc<Pod>>>,
    by_container: HashMap<ContainerId, Arc<Pod>>,
}

impl PodRows {
    fn new(pods: Vec<Pod>) -> Self {
        let mut rows = Self::default();
        for pod in pods {
            let pod = Arc::new(pod);
            rows.by_user.entry(pod.user.clone()).or_default().push(pod.clone());
            rows.by_id.insert(pod.id, pod.clone());
            if let Some(container) = &pod.container {
                rows.by_container.insert(container.clone(), pod.clone());
            }
            rows.by_container_name.insert(pod.container_name.clone(), pod);
        }
        rows
    }

    /// All of them, by container name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_container_name.values()
    }

    pub fn find(&self, container_name: &str) -> Option<&Arc<Pod>> {
        self.by_container_name.get(container_name)
    }

    pub fn get(&self, id: PodId) -> Option<&Arc<Pod>> {
        self.by_id.get(&id)
    }

    pub fn in_container(&self, id: &ContainerId) -> Option<&Arc<Pod>> {
        self.by_container.get(id)
    }

    /// One user's, oldest first.
    pub fn of_user(&self, user: &UserName) -> &[Arc<Pod>] {
        self.by_user.get(user).map_or(&[], Vec::as_slice)
    }
}

impl Snapshot {
    pub fn load(connection: &Connection) -> Result<Self, DbError> {
        Self::default().reload(connection, ACCOUNTS | PODS | UPKEEP)
    }

    /// This snapshot with the given parts read again.
    pub fn reload(&self, connection: &Connection, parts: u8) -> Result<Self, DbError> {
        let accounts = match parts & ACCOUNTS {
            0 => self.accounts.clone(),
            _ => Arc::new(Accounts {
                users: users::list(connection)?.into_iter().map(|user| (user.name.clone(), user)).collect(),
                quotas: users::list_quotas(connection)?.into_iter().collect(),
                tokens: tokens::list(connection)?.into_iter().map(|token| (token.hash, token)).collect(),
            }),
        };
        let pods = match parts & PODS {
            0 => self.pods.clone(),
            _ => Arc::new(PodRows::new(pods::list_live(connection)?)),
        };
        let upkeep = match parts & UPKEEP {
            0 => self.upkeep.clone(),
            _ => Arc::new(Upkeep {
                schedules: schedules::list(connection)?.into_iter().map(|row| (row.pod, row)).collect(),
                drain: drain::find(connection)?,
            }),
        };
        Ok(Self { accounts, pods, upkeep })
    }
}
