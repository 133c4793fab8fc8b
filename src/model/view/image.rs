//! Images that pods are created from.

use serde::{Deserialize, Serialize};

/// An image that a member may use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageView {
    pub name: String,
    pub id: String,
    pub tags: Vec<String>,
    pub comment: String,
    /// Bytes.
    pub size: i64,
    pub exposed_ports: serde_json::Map<String, serde_json::Value>,
    /// RFC 3339.
    pub created: String,
}
