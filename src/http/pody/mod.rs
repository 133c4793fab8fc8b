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

use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{
        OneOfBuilder,
        schema::{ArrayBuilder, ObjectBuilder, Schema, Type},
    },
};

pub use super::error::{ApiError, db_status, object_status};
use super::json::Json;
use crate::model::view::Message;

/// The answer of a request that says no more than that it was carried out.
fn message(message: impl Into<String>) -> Json<Message> {
    Json(Message { message: message.into() })
}

/// The answer to a change of an account, with what became of its tokens.
fn with_tokens_ended(done: &str, tokens: usize) -> String {
    if tokens == 0 { done.to_owned() } else { format!("{done}; {tokens} tokens ended") }
}

/// The dialect's errors. pody 0.4.1 has `detail` alone, and its client ignores other members.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence with the rule, the numbers and the next step; of a 422, a list as FastAPI makes it.
    #[schema(schema_with = detail_schema)]
    detail: Value,
    /// What a program decides by; docs/API.md lists the codes.
    code: &'static str,
}

fn detail_schema() -> Schema {
    let problem = ObjectBuilder::new().schema_type(Type::Object).build();
    let problems = ArrayBuilder::new().items(problem).build();
    OneOfBuilder::new().item(ObjectBuilder::new().schema_type(Type::String).build()).item(problems).build().into()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = self.disclosed();
        let body = ErrorBody { detail: error.detail(), code: error.code() };
        let mut response = (error.status(), Json(body)).into_response();
        error.add_headers(&mut response);
        response
    }
}
