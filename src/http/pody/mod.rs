//! The query-string API: all of pody 0.4.1, both editions' names, and what this pody adds. One file per resource,
//! handlers and wire types together.

pub mod action;
pub mod admin;
pub mod checkpoint;
pub mod drain;
pub mod event;
pub mod host;
pub mod image;
pub mod meta;
pub mod pod;
pub mod schedule;
mod shell;
pub mod ssh_key;
pub mod stat;
pub mod token;
pub mod user;
pub mod user_api;

use serde::Serialize;

pub use super::error::{ApiError, db_status, object_status};

/// `{"message": …}`
#[derive(Serialize)]
struct Message {
    message: String,
}

impl Message {
    fn new(message: impl Into<String>) -> super::json::Json<Self> {
        super::json::Json(Self { message: message.into() })
    }
}

/// `{"log": …}`
#[derive(Serialize)]
struct Log {
    log: String,
}
