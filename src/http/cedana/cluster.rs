//! `/v2/cluster`, `/v2/cluster/sync`, `/v2/k8s/sync`

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{EmptyAsNone, QuotedId, V2Error};
use crate::{
    agents::NewSync,
    http::{
        endpoint::Ctx,
        json::Json,
        params::{Body, NoParams},
    },
    model::{ids::ClusterId, time::Millis},
};

#[derive(Serialize)]
struct ClusterView {
    id: ClusterId,
    name: String,
    status: &'static str,
    last_sync: Option<String>,
    metadata: Value,
}

/// This host first, then what the caller's agents report.
pub async fn list(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, V2Error> {
    let clusters = &ctx.app.clusters;
    let age = ctx.app.engine.inventory().age().map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let host = ClusterView {
        id: clusters.host(),
        name: clusters.host_name(),
        status: "active",
        last_sync: age.map(|age| (Millis::now() - age).to_string()),
        metadata: json!({"source": "pody", "version": crate::VERSION}),
    };
    let reported = clusters.list(ctx.caller()).await?.into_iter().map(|cluster| ClusterView {
        id: cluster.id,
        name: cluster.name,
        status: "active",
        last_sync: cluster.synced_at.map(|at| at.to_string()),
        metadata: json!({"source": "agent", "user": cluster.user, "agent": cluster.metadata}),
    });
    Ok(Json(std::iter::once(host).chain(reported).collect::<Vec<_>>()))
}

#[derive(Deserialize, ToSchema)]
pub struct Create {
    cluster_name: String,
}

pub async fn create(ctx: Ctx, (_, Body(body)): (NoParams, Body<Create>)) -> Result<String, V2Error> {
    Ok(ctx.app.clusters.create(ctx.caller(), body.cluster_name).await?.to_string())
}

/// The body of an agent's report. The older edition sends its organisation too, which is ignored here.
#[derive(Deserialize, ToSchema)]
pub struct Sync {
    #[schema(value_type = Option<String>, format = "uuid")]
    #[serde(default)]
    cluster_id: EmptyAsNone<QuotedId<ClusterId>>,
    metadata: Option<Value>,
    #[schema(value_type = Option<Object>)]
    resource: Option<Map<String, Value>>,
}

impl From<Sync> for NewSync {
    fn from(body: Sync) -> Self {
        Self { cluster: body.cluster_id.0.map(|QuotedId(id)| id), metadata: body.metadata, resource: body.resource }
    }
}

/// The newer edition answers with a message whose text is the id.
pub async fn sync(ctx: Ctx, (_, Body(body)): (NoParams, Body<Sync>)) -> Result<Json<impl Serialize>, V2Error> {
    let id = ctx.app.clusters.sync(ctx.caller(), body.into()).await?;
    Ok(Json(json!({"message": id, "code": "200", "details": null})))
}

/// The older edition answers with the id as text.
pub async fn sync_text(ctx: Ctx, (_, Body(body)): (NoParams, Body<Sync>)) -> Result<String, V2Error> {
    Ok(ctx.app.clusters.sync(ctx.caller(), body.into()).await?.to_string())
}
