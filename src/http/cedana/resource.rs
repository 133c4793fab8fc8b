//! `/v2/pods`, `/v2/nodes`, `/v2/jobs`: ours, followed by what outside agents report. `source` says which is which.

use serde::Serialize;
use uuid::Uuid;

use super::{EmptyAsNone, QuotedId, V2Error};
use crate::{
    app::App,
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{
        agent::{Kind, Resource},
        pod::{ContainerStatus, Pod, PodStatus},
        time::Millis,
        user::Caller,
    },
    params,
};

const OURS: &str = "pody";

const TOLD: &str = "agent";

#[derive(Serialize)]
struct PodView {
    id: String,
    name: String,
    /// The owner.
    namespace: String,
    status: String,
    age: String,
    ready: String,
    node: String,
    restarts: i64,
    monitored_by_policies: [String; 0],
    start_time: Option<String>,
    cluster_id: String,
    source: &'static str,
}

#[derive(Serialize)]
struct NodeView {
    id: String,
    name: String,
    status: String,
    cluster_name: String,
    compute_type: String,
    instance_type: String,
    region: String,
    cluster_id: String,
    source: &'static str,
}

/// The shape of the newer edition, with the two fields of the older.
#[derive(Serialize)]
struct JobView {
    jid: String,
    r#type: &'static str,
    id: String,
    name: String,
    namespace: String,
    status: String,
    age: String,
    completions: Option<i64>,
    duration: Option<String>,
    monitored_by_policies: [String; 0],
    policy_count: i64,
    pod_ids: Vec<String>,
    priority: Option<i64>,
    start_time: Option<String>,
    cluster_id: String,
    source: &'static str,
}

#[derive(Serialize)]
struct Count {
    total_count: usize,
}

// The editions do not say whose id it is: a cluster's, or the resource's own.
params! { List { ; id: EmptyAsNone<QuotedId<Uuid>> } }

impl List {
    fn wants(&self, own: &str, cluster: &str) -> bool {
        self.id.and_then(|id| id.0).is_none_or(|QuotedId(id)| [own, cluster].contains(&id.to_string().as_str()))
    }
}

/// The caller's pods; everybody's for admins.
fn pods_of(app: &App, caller: &Caller) -> Vec<std::sync::Arc<Pod>> {
    if caller.is_admin { app.pods.list_all() } else { app.pods.list(&caller.user) }
}

pub async fn list_pods(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, V2Error> {
    let mut pods = all_pods(&ctx.app, ctx.caller()).await?;
    pods.retain(|pod| params.wants(&pod.id, &pod.cluster_id));
    Ok(Json(pods))
}

pub async fn count_pods(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, V2Error> {
    Ok(Json(Count { total_count: all_pods(&ctx.app, ctx.caller()).await?.len() }))
}

async fn all_pods(app: &App, caller: &Caller) -> Result<Vec<PodView>, V2Error> {
    app.pods.wait_ready().await;
    let ours = pods_of(app, caller).into_iter().map(|pod| our_pod(app, &pod)).collect::<Vec<_>>();
    let reported = app.clusters.list_resources(caller, Kind::Pod).await?;
    Ok(ours.into_iter().chain(reported.iter().map(reported_pod)).collect())
}

/// Kubernetes' word for the engine's state.
fn phase(status: &PodStatus) -> &'static str {
    match status {
        PodStatus::Creating => "Pending",
        PodStatus::Deleting => "Terminating",
        PodStatus::Unknown => "Unknown",
        PodStatus::Container(status) => match status {
            ContainerStatus::Running => "Running",
            ContainerStatus::Paused => "Paused",
            ContainerStatus::Created | ContainerStatus::Restarting => "Pending",
            ContainerStatus::Exited | ContainerStatus::Dead => "Stopped",
            ContainerStatus::Removing => "Terminating",
            ContainerStatus::Unknown(_) => "Unknown",
        },
    }
}

fn our_pod(app: &App, pod: &Pod) -> PodView {
    let view = app.pods.view(pod);
    let detail = app.pods.detail(pod);
    PodView {
        id: pod.id.to_string(),
        name: pod.instance.to_string(),
        namespace: pod.user.to_string(),
        status: phase(&view.status).to_owned(),
        age: age(pod.created_at),
        ready: format!("{}/1", u8::from(view.status.is_running())),
        node: app.clusters.host_name(),
        restarts: detail.as_ref().map_or(0, |detail| detail.restarts),
        monitored_by_policies: [],
        start_time: detail.and_then(|detail| detail.started_at),
        cluster_id: app.clusters.host().to_string(),
        source: OURS,
    }
}

fn reported_pod(pod: &Resource) -> PodView {
    let (ready, all) = pod.ready();
    PodView {
        id: pod.id.to_string(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        status: pod.status(),
        age: pod.created_at().map(age_since).unwrap_or_default(),
        ready: format!("{ready}/{all}"),
        node: pod.node().to_owned(),
        restarts: pod.restarts().into(),
        monitored_by_policies: [],
        start_time: pod.started_at().map(str::to_owned),
        cluster_id: pod.cluster.to_string(),
        source: TOLD,
    }
}

pub async fn list_nodes(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, V2Error> {
    let clusters = &ctx.app.clusters;
    let (host, name) = (clusters.host().to_string(), clusters.host_name());
    let gpus = ctx.app.gpus.snapshot();
    let ours = NodeView {
        id: host.clone(),
        status: "Ready".to_owned(),
        cluster_name: name.clone(),
        name,
        compute_type: if gpus.devices.is_empty() { "cpu" } else { "gpu" }.to_owned(),
        instance_type: gpus.devices.first().map_or_else(|| std::env::consts::ARCH.to_owned(), |gpu| gpu.name.clone()),
        region: "local".to_owned(),
        cluster_id: host,
        source: OURS,
    };
    let reported = clusters.list_resources(ctx.caller(), Kind::Node).await?;
    let nodes = std::iter::once(ours).chain(reported.iter().map(reported_node));
    Ok(Json(nodes.filter(|node| params.wants(&node.id, &node.cluster_id)).collect::<Vec<_>>()))
}

fn reported_node(node: &Resource) -> NodeView {
    let product = node.label(&["nvidia.com/gpu.product"]);
    NodeView {
        id: node.id.to_string(),
        name: node.name.clone(),
        status: node.status(),
        cluster_name: node.cluster_name.clone(),
        compute_type: if product.is_empty() { "cpu" } else { "gpu" }.to_owned(),
        instance_type: node.label(&["node.kubernetes.io/instance-type", "nvidia.com/gpu.product"]).to_owned(),
        region: node.label(&["topology.kubernetes.io/region"]).to_owned(),
        cluster_id: node.cluster.to_string(),
        source: TOLD,
    }
}

pub async fn list_jobs(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, V2Error> {
    Ok(Json(all_jobs(&ctx.app, ctx.caller()).await?))
}

pub async fn count_jobs(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, V2Error> {
    Ok(Json(Count { total_count: all_jobs(&ctx.app, ctx.caller()).await?.len() }))
}

/// A job of ours is a running pod: its name survives when the pod is created again or restored.
async fn all_jobs(app: &App, caller: &Caller) -> Result<Vec<JobView>, V2Error> {
    app.pods.wait_ready().await;
    let running = pods_of(app, caller).into_iter().filter(|pod| app.pods.view(pod).status.is_running());
    let ours = running.map(|pod| {
        let view = our_pod(app, &pod);
        JobView {
            jid: pod.container_name.clone(),
            r#type: "docker",
            id: pod.workload.to_string(),
            name: view.name,
            namespace: view.namespace,
            status: view.status,
            age: view.age,
            completions: None,
            duration: view.start_time.as_deref().map(age_since),
            monitored_by_policies: [],
            policy_count: 0,
            pod_ids: vec![view.id],
            priority: None,
            start_time: view.start_time,
            cluster_id: view.cluster_id,
            source: OURS,
        }
    });
    let ours = ours.collect::<Vec<_>>();
    let pods = app.clusters.list_resources(caller, Kind::Pod).await?;
    let reported = app.clusters.list_resources(caller, Kind::Job).await?;
    Ok(ours.into_iter().chain(reported.iter().map(|job| reported_job(job, &pods))).collect())
}

fn reported_job(job: &Resource, pods: &[Resource]) -> JobView {
    JobView {
        jid: job.name.clone(),
        r#type: "kubernetes",
        id: job.id.to_string(),
        name: job.name.clone(),
        namespace: job.namespace.clone(),
        status: job.status(),
        age: job.created_at().map(age_since).unwrap_or_default(),
        completions: job.completions().map(i64::from),
        duration: job.started_at().map(age_since),
        monitored_by_policies: [],
        policy_count: 0,
        pod_ids: job.owned(pods).map(|pod| pod.id.to_string()).collect(),
        priority: None,
        start_time: job.started_at().map(str::to_owned),
        cluster_id: job.cluster.to_string(),
        source: TOLD,
    }
}

/// Time since then, as kubectl shows it: `42s`, `7m`, `3h`, `12d`.
fn age(since: Millis) -> String {
    match Millis::now().since(since).max(0) / 1000 {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

fn age_since(rfc3339: &str) -> String {
    rfc3339.parse().map_or_else(|_| String::new(), age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectls_do() {
        let ago = |seconds: i64| age(Millis::now() - seconds * 1000);
        assert_eq!([ago(5), ago(150), ago(7_300), ago(400_000)], ["5s", "2m", "2h", "4d"]);
        assert_eq!(age_since(&(Millis::now() - 600_000).to_string()), "10m");
        assert_eq!(age_since("yesterday"), "");
    }
}
