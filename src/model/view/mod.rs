//! What the query-string API answers: the server serializes these types and the client deserializes the same, so that
//! neither knows a field that the other does not. One file per resource, as in `http/pody/`.
//!
//! A view may show a row as it is, in part, or with what only the running daemon knows; the rows know nothing of their
//! views. A field that an older server does not send has `#[serde(default)]`.

pub mod account;
pub mod action;
pub mod checkpoint;
pub mod gpu;
pub mod help;
pub mod image;
pub mod pod;
pub mod schedule;
pub mod usage;

use serde::{Deserialize, Serialize};

/// That a request was carried out, in a sentence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    pub message: String,
}

/// The same from the routes where pody 0.4.1 calls it `log`; also the output of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub log: String,
}
