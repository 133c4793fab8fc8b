//! `/v2/cluster`, `/v2/cluster/sync`, `/v2/k8s/sync`

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{Filled, Loose, V2Error};
use crate::{
    agents::NewSync,
    http::{
        endpoint::Cx,
        json::Json,
        params::{Body, NoParams},
    },
    model::{
        ids::ClusterId,
        time::{now, rfc3339},
    },
};

#[derive(Serialize)]
struct ClusterView {
    id: ClusterId,
    name: String,
    status: &'static str,
    last_sync: Option<String>,
    metadata: Value,
}

/// This host first, then what the caller's agents tell of.
pub async fn list(cx: Cx, _: NoParams) -> Result<Json<impl Serialize>, V2Error> {
    let clusters = &cx.app.clusters;
    let age = cx.app.engine.inventory().age().map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let host = ClusterView {
        id: clusters.host(),
        name: clusters.host_name(),
        status: "active",
        last_sync: age.map(|age| rfc3339(now() - age)),
        metadata: json!({"source": "pody", "version": crate::VERSION}),
    };
    let told = clusters.list(cx.caller()).await?.into_iter().map(|cluster| ClusterView {
        id: cluster.id,
        name: cluster.name,
        status: "active",
        last_sync: cluster.synced_at.map(rfc3339),
        metadata: json!({"source": "agent", "user": cluster.user, "agent": cluster.metadata}),
    });
    Ok(Json(std::iter::once(host).chain(told).collect::<Vec<_>>()))
}

#[derive(Deserialize, ToSchema)]
pub struct Create {
    cluster_name: String,
}

pub async fn create(cx: Cx, (_, Body(body)): (NoParams, Body<Create>)) -> Result<String, V2Error> {
    Ok(cx.app.clusters.create(cx.caller(), body.cluster_name).await?.to_string())
}

/// What an agent tells. The older edition sends its organisation too, which is nothing here.
#[derive(Deserialize, ToSchema)]
pub struct Sync {
    #[schema(value_type = Option<String>, format = "uuid")]
    #[serde(default)]
    cluster_id: Filled<Loose<ClusterId>>,
    metadata: Option<Value>,
    #[schema(value_type = Option<Object>)]
    resource: Option<Map<String, Value>>,
}

impl From<Sync> for NewSync {
    fn from(body: Sync) -> Self {
        Self { cluster: body.cluster_id.0.map(|Loose(id)| id), metadata: body.metadata, resource: body.resource }
    }
}

/// The newer edition answers with a message whose text is the id.
pub async fn sync(cx: Cx, (_, Body(body)): (NoParams, Body<Sync>)) -> Result<Json<impl Serialize>, V2Error> {
    let id = cx.app.clusters.sync(cx.caller(), body.into()).await?;
    Ok(Json(json!({"message": id, "code": "200", "details": null})))
}

/// The older edition answers with the id as text.
pub async fn sync_text(cx: Cx, (_, Body(body)): (NoParams, Body<Sync>)) -> Result<String, V2Error> {
    Ok(cx.app.clusters.sync(cx.caller(), body.into()).await?.to_string())
}
