//! Events: who did what to what, from where, with what outcome.

use serde::{Deserialize, Serialize};

use super::words::words;

words! {
    /// How an accepted change ended.
    Outcome, "outcome of an event" {
        Pending = "pending",
        Ok = "ok",
        Failed = "failed",
        /// The daemon exited before the work was done.
        Interrupted = "interrupted",
    }
}

/// A row of the table `events`, as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub id: i64,
    /// RFC 3339, UTC.
    pub at: String,
    pub actor: String,
    pub source: String,
    pub action: String,
    pub object: String,
    pub outcome: Outcome,
    pub detail: Option<String>,
}
