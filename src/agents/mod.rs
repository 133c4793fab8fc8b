//! This host as a cluster, and the clusters that external agents report.
//!
//! The host is a cluster of one node under an id that never changes. A user's agents may also report clusters of their
//! own: pods, nodes and jobs of their Kubernetes. Those are stored and listed, and not used in any other way; they
//! count against limits per user, and resources without a recent report are no longer listed.

pub mod reports;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    db::{Db, DbError, NewEvent, Tx},
    model::{
        agent::{self, Cluster, Kind, Resource, ResourceError},
        ids::ClusterId,
        names::UserName,
        time::Millis,
        user::{Caller, UserInfo},
    },
};

/// Limits on the reports of one user's agents.
const MAX_CLUSTERS: u64 = 16;

const MAX_RESOURCES: u64 = 2000;

const MAX_RESOURCE_BYTES: usize = 64 << 10;

const MAX_BYTES: u64 = 16 << 20;

const MAX_NAME: usize = 100;

/// The cluster of agents that name none.
const DEFAULT_NAME: &str = "default";

/// How long after its last report a resource is listed, and kept, milliseconds.
const LISTED: i64 = 5 * 60 * 1000;

const KEPT: i64 = 24 * 60 * 60 * 1000;

/// A report of an agent.
#[derive(Debug)]
pub struct NewSync {
    /// `None` = the user's cluster called `default`.
    pub cluster: Option<ClusterId>,
    pub metadata: Option<Value>,
    /// Absent, or `{"type": "None"}`: a heartbeat.
    pub resource: Option<Map<String, Value>>,
}

/// Why an operation on clusters failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ClusterError {
    #[error("you have no cluster {0}; create one with POST /v2/cluster")]
    #[strum(serialize = "cluster_not_found")]
    NoCluster(ClusterId),
    #[error("{0} is this host, which reports itself; create a cluster of your own with POST /v2/cluster")]
    #[strum(serialize = "cluster_is_this_host")]
    ThisHost(ClusterId),
    #[error("a cluster's name has 1 to {MAX_NAME} characters and no control characters")]
    #[strum(serialize = "invalid_cluster_name")]
    Name,
    #[error("a user may have at most {MAX_CLUSTERS} clusters, and you have {MAX_CLUSTERS}; use one of them")]
    TooManyClusters,
    #[error(transparent)]
    #[strum(serialize = "invalid_resource")]
    Resource(#[from] ResourceError),
    #[error("a resource may have at most {MAX_RESOURCE_BYTES} bytes of JSON, this has {0}; leave out managedFields")]
    #[strum(serialize = "resource_too_large")]
    TooLarge(usize),
    #[error(
        "the clusters of a user may hold {MAX_RESOURCES} resources of {MAX_BYTES} bytes in total; yours hold {resources} of {bytes} bytes; resources without a report for a day are deleted"
    )]
    #[strum(serialize = "too_many_resources")]
    TooMany { resources: u64, bytes: u64 },
    #[error(transparent)]
    #[strum(transparent)]
    Db(#[from] DbError),
}

/// All clusters. Cheap to clone.
#[derive(Clone)]
pub struct Clusters {
    db: Db,
    host: ClusterId,
}

impl Clusters {
    pub fn open(db: Db) -> Result<Self, DbError> {
        let host = db.read_blocking(|tx| tx.host_id())?;
        Ok(Self { db, host })
    }

    /// This host's own id, as cluster and as node.
    pub fn host(&self) -> ClusterId {
        self.host
    }

    /// The name of this host.
    pub fn host_name(&self) -> String {
        nix::unistd::gethostname().map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// A stable UUID for an account; another account of the same name has another one.
    pub fn user_id(&self, user: &UserInfo) -> Uuid {
        derived_id(&[&self.host.to_string(), "user", &user.id.to_string(), user.name.as_str()])
    }

    /// The caller's clusters without this host; for admins everybody's.
    pub async fn list(&self, caller: &Caller) -> Result<Vec<Cluster>, ClusterError> {
        let user = whose(caller);
        self.db.read(move |tx| Ok(tx.list_clusters(user.as_ref())?)).await
    }

    /// The caller's cluster of that name, created if there is none. This host's name is this host.
    pub async fn create(&self, caller: &Caller, name: String) -> Result<ClusterId, ClusterError> {
        if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(ClusterError::Name);
        }
        if name == self.host_name() {
            return Ok(self.host);
        }
        let caller = caller.clone();
        self.db.write(move |tx| ensure(tx, &caller, name)).await
    }

    /// Stores an agent's report; returns the id of the resource, or of the cluster for a heartbeat.
    pub async fn sync(&self, caller: &Caller, sync: NewSync) -> Result<Uuid, ClusterError> {
        if sync.cluster == Some(self.host) {
            return Err(ClusterError::ThisHost(self.host));
        }
        let reported = sync.resource.map(agent::parse).transpose()?.flatten();
        let metadata = sync.metadata.filter(|value| !value.is_null()).map(|value| value.to_string());
        if let Some(size) = metadata.as_ref().map(String::len).filter(|&size| size > MAX_RESOURCE_BYTES) {
            return Err(ClusterError::TooLarge(size));
        }
        let (caller, wanted) = (caller.clone(), sync.cluster);
        self.db
            .write(move |tx| {
                let id = match wanted {
                    Some(id) => id,
                    None => ensure(tx, &caller, DEFAULT_NAME.to_owned())?,
                };
                let is_callers = |cluster: &Cluster| caller.is_admin || cluster.user == caller.user;
                let cluster = tx.find_cluster(id)?.filter(is_callers).ok_or(ClusterError::NoCluster(id))?;
                tx.touch_cluster(id, metadata.as_deref(), Millis::now())?;
                match reported {
                    None => Ok(id.into()),
                    Some(reported) => keep(tx, cluster, reported),
                }
            })
            .await
    }

    /// Recently reported resources of the caller's agents; for admins everybody's.
    pub async fn list_resources(&self, caller: &Caller, kind: Kind) -> Result<Vec<Resource>, ClusterError> {
        let user = whose(caller);
        self.db.read(move |tx| Ok(tx.list_resources(user.as_ref(), kind, Millis::now() - LISTED)?)).await
    }
}

fn whose(caller: &Caller) -> Option<UserName> {
    (!caller.is_admin).then(|| caller.user.clone())
}

fn ensure(tx: &Tx, caller: &Caller, name: String) -> Result<ClusterId, ClusterError> {
    let known = tx.list_clusters(Some(&caller.user))?;
    if let Some(cluster) = known.iter().find(|cluster| cluster.name == name) {
        return Ok(cluster.id);
    }
    if known.len() as u64 >= MAX_CLUSTERS {
        return Err(ClusterError::TooManyClusters);
    }
    let id = ClusterId::generate();
    let cluster = Cluster { id, user: caller.user.clone(), name, metadata: None, synced_at: None };
    tx.insert_cluster(&cluster, Millis::now())?;
    let event = NewEvent::by(&caller.into()).did("cluster.create", cluster.name).of(&caller.user);
    tx.insert_event(&event.detail(id.to_string()))?;
    Ok(id)
}

fn keep(tx: &Tx, cluster: Cluster, reported: agent::Reported) -> Result<Uuid, ClusterError> {
    let body = reported.body.to_string();
    if body.len() > MAX_RESOURCE_BYTES {
        return Err(ClusterError::TooLarge(body.len()));
    }
    let key = [&cluster.id.to_string(), reported.kind.as_str(), &reported.namespace, &reported.name];
    let resource = Resource {
        id: reported.uid.unwrap_or_else(|| derived_id(&key)),
        cluster: cluster.id,
        cluster_name: cluster.name,
        user: cluster.user,
        kind: reported.kind,
        namespace: reported.namespace,
        name: reported.name,
        body: reported.body,
        synced_at: Millis::now(),
    };
    tx.delete_old_resources(Millis::now() - KEPT)?;
    let there = tx.count_synced(&resource.user, &resource)?;
    if there.resources >= MAX_RESOURCES || there.bytes + body.len() as u64 > MAX_BYTES {
        return Err(ClusterError::TooMany { resources: there.resources, bytes: there.bytes });
    }
    tx.upsert_resource(&resource, &body)?;
    Ok(resource.id)
}

/// A UUID derived from these words only.
fn derived_id(words: &[&str]) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key("pody 2026 ids that are derived from names");
    for word in words {
        hasher.update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_stable_and_apart() {
        assert_eq!(derived_id(&["a", "bc"]), derived_id(&["a", "bc"]));
        assert_ne!(derived_id(&["a", "bc"]), derived_id(&["ab", "c"]));
        assert_eq!(derived_id(&["a"]).get_version_num(), 8);
    }

    #[test]
    fn each_new_home_is_another_host_for_good() {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |home: &tempfile::TempDir| Clusters::open(Db::open(home.path()).unwrap()).unwrap().host();
        let [first, second] = homes.each_ref().map(open);
        assert_ne!(first, second);
        assert_eq!(open(&homes[0]), first);
        assert_eq!(Uuid::from(first).get_version_num(), 4);
    }
}
