//! A pod, node or job of an external Kubernetes, as its agent reported it.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    ids::{ActionId, CheckpointId, ClusterId},
    names::UserName,
    time::Millis,
    words::words,
};

words! {
    /// The kind of a resource.
    Kind, "kind of resource" {
        Pod = "pod",
        Node = "node",
        Job = "job",
    }
}

/// A row of the table `resources`, with its cluster's name and owner.
#[derive(Clone, Debug)]
pub struct Resource {
    pub id: Uuid,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub user: UserName,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub body: Value,
    pub synced_at: Millis,
}

/// A reported resource, before its owner is known.
pub struct Reported {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub uid: Option<Uuid>,
    pub body: Value,
}

/// Longest name of a resource or namespace; Kubernetes allows 253.
const MAX_NAME: usize = 253;

/// Parses `{"type": "Pod", "metadata": {"name": …}, …}`; `None` for the type `None`.
pub fn parse(mut fields: Map<String, Value>) -> Result<Option<Reported>, ResourceError> {
    let kind = match fields.remove("type").as_ref().and_then(Value::as_str) {
        Some("None") => return Ok(None),
        Some("Pod") => Kind::Pod,
        Some("Node") => Kind::Node,
        Some("Job") => Kind::Job,
        _ => return Err(ResourceError("its type must be None, Pod, Node or Job")),
    };
    let body = Value::Object(fields);
    let text = |key: &str| body["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text("name"), text("namespace"));
    let is_good = |name: &str| name.len() <= MAX_NAME && !name.chars().any(char::is_control);
    if name.is_empty() || !is_good(&name) || !is_good(&namespace) {
        return Err(ResourceError("metadata.name and metadata.namespace must be valid Kubernetes names"));
    }
    let uid = text("uid").parse().ok();
    Ok(Some(Reported { kind, namespace, name, uid, body }))
}

/// A count, limited to the range of Kubernetes' own type: an agent may send any number.
fn count(value: &Value) -> Option<i32> {
    value.as_f64().map(|count| (count as i32).max(0))
}

impl Resource {
    /// The state as the resource itself names it.
    pub fn status(&self) -> String {
        let status = &self.body["status"];
        if !self.body["metadata"]["deletionTimestamp"].is_null() {
            return "Terminating".to_owned();
        }
        match self.kind {
            Kind::Pod => status["phase"].as_str().unwrap_or("Unknown").to_owned(),
            Kind::Node if self.holds("Ready") => "Ready".to_owned(),
            Kind::Node => "NotReady".to_owned(),
            Kind::Job if self.holds("Complete") => "Complete".to_owned(),
            Kind::Job if self.holds("Failed") => "Failed".to_owned(),
            Kind::Job => "Running".to_owned(),
        }
    }

    /// Whether a condition of the status is true.
    fn holds(&self, condition: &str) -> bool {
        let conditions = self.body["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|found| found["type"] == condition && found["status"] == "True")
    }

    /// RFC 3339, when it was created there.
    pub fn created_at(&self) -> Option<&str> {
        self.body["metadata"]["creationTimestamp"].as_str()
    }

    /// RFC 3339, when it was started there.
    pub fn started_at(&self) -> Option<&str> {
        self.body["status"]["startTime"].as_str()
    }

    /// Ready containers, and all containers.
    pub fn ready(&self) -> (usize, usize) {
        let all = self.containers();
        (all.iter().filter(|container| container["ready"] == true).count(), all.len())
    }

    pub fn restarts(&self) -> i32 {
        let counts = self.containers().iter().filter_map(|container| count(&container["restartCount"]));
        counts.fold(0, i32::saturating_add)
    }

    /// Pods that must succeed for the job to be complete.
    pub fn completions(&self) -> Option<i32> {
        count(&self.body["spec"]["completions"])
    }

    fn containers(&self) -> &[Value] {
        self.body["status"]["containerStatuses"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The node that the pod is on.
    pub fn node(&self) -> &str {
        self.body["spec"]["nodeName"].as_str().unwrap_or_default()
    }

    /// The value of the first of these labels that the resource has.
    pub fn label(&self, names: &[&str]) -> &str {
        let labels = &self.body["metadata"]["labels"];
        names.iter().find_map(|name| labels[*name].as_str()).unwrap_or_default()
    }

    /// Those of these pods that the job owns.
    pub fn owned<'a>(&self, pods: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        let (cluster, namespace, name) = (self.cluster, self.namespace.clone(), self.name.clone());
        pods.iter().filter(move |pod| {
            let owners = pod.body["metadata"]["ownerReferences"].as_array();
            let is_owner = |owner: &Value| owner["kind"] == "Job" && owner["name"] == name.as_str();
            pod.cluster == cluster && pod.namespace == namespace && owners.into_iter().flatten().any(is_owner)
        })
    }
}

words! {
    /// The progress of an agent's own checkpoint.
    ReportedStatus, "state of a checkpoint" {
        Initializing = "initializing",
        UpdatedInfo = "updated_info",
        Ready = "ready",
        Deprecated = "deprecated",
    }
}

/// A row of the table `told_checkpoints`.
#[derive(Clone, Debug)]
pub struct ReportedCheckpoint {
    pub id: CheckpointId,
    pub user: UserName,
    /// The agent's own; else it has details of one of ours.
    pub own: bool,
    pub status: ReportedStatus,
    pub gpu: Option<String>,
    pub platform: Option<String>,
    pub info: Option<Value>,
    pub restore_path: Option<String>,
    pub deprecated_at: Option<Millis>,
}

/// A row of the table `told_actions`.
#[derive(Clone, Debug)]
pub struct ReportedAction {
    pub id: ActionId,
    pub user: UserName,
    /// Why a restore was requested.
    pub reason: Option<String>,
    /// The body of `/v2/actions/upload`.
    pub upload: Option<Value>,
    /// The body of `/v2/restores/info`.
    pub info: Option<Value>,
}

/// A row of the table `clusters`.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub id: ClusterId,
    pub user: UserName,
    pub name: String,
    pub metadata: Option<Value>,
    pub synced_at: Option<Millis>,
}

/// Why a resource that an agent sent is not usable.
#[derive(Debug, thiserror::Error)]
#[error("the resource is not usable: {0}")]
pub struct ResourceError(&'static str);
