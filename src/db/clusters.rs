//! The tables `host`, `clusters` and `resources`.

use rusqlite::{Connection, Row, params};

use super::{DbError, Tx, collect, parsed};
use crate::model::{
    agent::{Cluster, Kind, Resource},
    ids::ClusterId,
    names::UserName,
    time::Millis,
};

/// Bytes and rows that a user's agents have reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Synced {
    pub clusters: u64,
    pub resources: u64,
    pub bytes: u64,
}

fn read(row: &Row) -> Result<Cluster, DbError> {
    Ok(Cluster {
        id: parsed(row.get(0)?)?,
        user: parsed(row.get(1)?)?,
        name: row.get(2)?,
        metadata: row.get::<_, Option<String>>(3)?.map(json).transpose()?,
        synced_at: row.get(4)?,
    })
}

fn read_resource(row: &Row) -> Result<Resource, DbError> {
    Ok(Resource {
        cluster: parsed(row.get(0)?)?,
        cluster_name: row.get(1)?,
        user: parsed(row.get(2)?)?,
        kind: parsed(row.get(3)?)?,
        namespace: row.get(4)?,
        name: row.get(5)?,
        id: parsed(row.get(6)?)?,
        body: json(row.get(7)?)?,
        synced_at: row.get(8)?,
    })
}

fn json<T: serde::de::DeserializeOwned>(text: String) -> Result<T, DbError> {
    serde_json::from_str(&text).map_err(|error| DbError::Row(format!("JSON from an agent: {error}")))
}

/// One user's, or everybody's.
fn list(connection: &Connection, user: Option<&UserName>) -> Result<Vec<Cluster>, DbError> {
    let query = "SELECT id, user, name, metadata, synced_at FROM clusters WHERE ?1 IS NULL OR user = ?1 ORDER BY created_at, id";
    collect(connection, query, [user.map(UserName::as_str)], read)
}

impl Tx<'_> {
    /// The UUID of this host, which never changes.
    pub fn host_id(&self) -> Result<ClusterId, DbError> {
        parsed(self.0.query_row("SELECT id FROM host", [], |row| row.get(0))?)
    }

    pub fn list_clusters(&self, user: Option<&UserName>) -> Result<Vec<Cluster>, DbError> {
        list(&self.0, user)
    }

    pub fn find_cluster(&self, id: ClusterId) -> Result<Option<Cluster>, DbError> {
        let query = "SELECT id, user, name, metadata, synced_at FROM clusters WHERE id = ?1";
        Ok(collect(&self.0, query, [id.to_string()], read)?.pop())
    }

    pub fn insert_cluster(&self, cluster: &Cluster, at: Millis) -> Result<(), DbError> {
        self.0.execute(
            "INSERT INTO clusters (id, user, name, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![cluster.id.to_string(), cluster.user.as_str(), cluster.name, at],
        )?;
        Ok(())
    }

    /// Records that an agent reported; `metadata` is kept if it sends none.
    pub fn touch_cluster(&self, id: ClusterId, metadata: Option<&str>, at: Millis) -> Result<(), DbError> {
        let query = "UPDATE clusters SET synced_at = ?3, metadata = coalesce(?2, metadata) WHERE id = ?1";
        self.0.execute(query, params![id.to_string(), metadata, at])?;
        Ok(())
    }

    /// What a user has stored, without the resource of this key, which is about to be replaced.
    pub fn count_synced(&self, user: &UserName, besides: &Resource) -> Result<Synced, DbError> {
        let clusters = "SELECT count(*) FROM clusters WHERE user = ?1";
        let clusters: i64 = self.0.query_row(clusters, [user.as_str()], |row| row.get(0))?;
        let query = "SELECT count(*), coalesce(sum(length(CAST(body AS BLOB))), 0) FROM resources
                     JOIN clusters ON clusters.id = resources.cluster
                     WHERE user = ?1 AND NOT (cluster = ?2 AND kind = ?3 AND namespace = ?4 AND resources.name = ?5)";
        let key =
            params![user.as_str(), besides.cluster.to_string(), besides.kind.as_str(), besides.namespace, besides.name];
        let (resources, bytes): (i64, i64) = self.0.query_row(query, key, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let unsigned = |n: i64| n.unsigned_abs();
        Ok(Synced { clusters: unsigned(clusters), resources: unsigned(resources), bytes: unsigned(bytes) })
    }

    pub fn upsert_resource(&self, resource: &Resource, body: &str) -> Result<(), DbError> {
        self.0.execute(
            "INSERT OR REPLACE INTO resources (cluster, kind, namespace, name, id, body, synced_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                resource.cluster.to_string(),
                resource.kind.as_str(),
                resource.namespace,
                resource.name,
                resource.id.to_string(),
                body,
                resource.synced_at,
            ],
        )?;
        Ok(())
    }

    /// Deletes resources that have not been reported since `before`.
    pub fn delete_old_resources(&self, before: Millis) -> Result<usize, DbError> {
        Ok(self.0.execute("DELETE FROM resources WHERE synced_at < ?1", [before])?)
    }

    /// Resources of one kind that were reported since then, one user's or everybody's.
    pub fn list_resources(&self, user: Option<&UserName>, kind: Kind, since: Millis) -> Result<Vec<Resource>, DbError> {
        let query = "SELECT cluster, clusters.name, user, kind, namespace, resources.name, resources.id, body, resources.synced_at
                     FROM resources JOIN clusters ON clusters.id = resources.cluster
                     WHERE (?1 IS NULL OR user = ?1) AND kind = ?2 AND resources.synced_at >= ?3
                     ORDER BY user, clusters.name, namespace, resources.name";
        collect(&self.0, query, params![user.map(UserName::as_str), kind.as_str(), since], read_resource)
    }
}
