//! The query-string API: all of pody 0.4.1, both editions' names, and what this pody adds. One file per resource;
//! what it answers is in the file of the same name of [`crate::model::view`].

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

pub use super::error::{ApiError, db_status, object_status};
use super::json::Json;
use crate::model::view::Message;

/// The answer of a request that says no more than that it was carried out.
fn message(message: impl Into<String>) -> Json<Message> {
    Json(Message { message: message.into() })
}
