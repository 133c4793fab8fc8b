//! The dialect's one error: a status and `{"message", "code", "details", "reason"}`. `code` is the status as text, as in
//! the original; what a program decides by is `reason`, which the original lacks and its description allows.
//!
//! Errors that any dialect can meet get their status from [`ApiError`], whose match over the domain errors is
//! exhaustive; those of this dialect alone get it here, also exhaustively.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{
    account::{AccountError, AuthError},
    agents::{ClusterError, reports::ReportError},
    checkpoint::CheckpointError,
    db::DbError,
    files::FileError,
    http::{
        error::{ApiError, db_status, object_status},
        json::Json,
    },
    objects::ObjectError,
    pod::PodError,
};

/// Every response that is not a success.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum V2Error {
    #[error(transparent)]
    #[strum(transparent)]
    Request(#[from] ApiError),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    NotFound(String),
    #[error("the file has {size} bytes, none of them in the requested Range; bytes count from 0")]
    #[strum(serialize = "range_not_satisfiable")]
    Range { size: u64 },
    #[error(transparent)]
    #[strum(transparent)]
    Cluster(ClusterError),
    #[error(transparent)]
    #[strum(transparent)]
    File(FileError),
    #[error(transparent)]
    #[strum(transparent)]
    Reports(ReportError),
}

impl V2Error {
    pub fn status(&self) -> StatusCode {
        match self {
            // The editions of this dialect know no 422.
            Self::Request(ApiError::Unprocessable(_)) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Request(error) => error.status(),
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Range { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Cluster(error) => match error {
                ClusterError::NoCluster(_) => StatusCode::NOT_FOUND,
                ClusterError::Name | ClusterError::Resource(_) => StatusCode::BAD_REQUEST,
                ClusterError::ThisHost(_) | ClusterError::TooManyClusters | ClusterError::TooMany { .. } => {
                    StatusCode::FORBIDDEN
                }
                ClusterError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                ClusterError::Db(error) => db_status(error),
            },
            Self::Reports(error) => match error {
                ReportError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                ReportError::Control(_) => StatusCode::BAD_REQUEST,
                ReportError::TooMany { .. } => StatusCode::FORBIDDEN,
                ReportError::Checkpoint(_) | ReportError::Db(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::File(error) => match error {
                FileError::NotFound(_) | FileError::NoDirectory(_) => StatusCode::NOT_FOUND,
                FileError::Precondition(_) => StatusCode::PRECONDITION_FAILED,
                FileError::Symlink(_) | FileError::Total { .. } | FileError::Cut { .. } => StatusCode::BAD_REQUEST,
                FileError::BadLink
                | FileError::AdminsOnly
                | FileError::OverLimit { .. }
                | FileError::TooMany { .. } => StatusCode::FORBIDDEN,
                FileError::NotAFile(_) | FileError::NotEmpty(_) | FileError::Busy(_) | FileError::Offset { .. } => {
                    StatusCode::CONFLICT
                }
                FileError::Slow { .. } => StatusCode::REQUEST_TIMEOUT,
                FileError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                FileError::DiskFull { .. } => StatusCode::INSUFFICIENT_STORAGE,
                FileError::Remote(error) => object_status(error),
                FileError::Account(_) | FileError::Db(_) | FileError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// What a program decides by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Request(error) => error.code(),
            Self::BadRequest(_)
            | Self::NotFound(_)
            | Self::Range { .. }
            | Self::Cluster(_)
            | Self::File(_)
            | Self::Reports(_) => self.into(),
        }
    }

    /// The sentence, and details if there are any.
    fn message(&self) -> (String, Value) {
        match self {
            Self::Request(ApiError::Unprocessable(list)) => {
                let sentences = list.iter().map(|bad| {
                    let name = bad["loc"][1].as_str().unwrap_or_default();
                    format!("{name}: {}", bad["msg"].as_str().unwrap_or_default())
                });
                (sentences.collect::<Vec<_>>().join("; "), Value::Array(list.clone()))
            }
            Self::Request(error) => match error.detail() {
                Value::String(sentence) => (sentence, Value::Null),
                other => (error.to_string(), other),
            },
            // The offset at which an upload can be resumed.
            Self::File(
                error @ (FileError::Offset { have: found, .. }
                | FileError::Cut { found, .. }
                | FileError::Slow { found }),
            ) => (error.to_string(), json!({"received": found})),
            other => (other.to_string(), Value::Null),
        }
    }
}

/// Database errors are rendered in one way, wherever they occur.
impl From<ClusterError> for V2Error {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Db(error) => error.into(),
            error => Self::Cluster(error),
        }
    }
}

impl From<FileError> for V2Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Account(error) => error.into(),
            FileError::Db(error) => error.into(),
            FileError::Io(error) => Self::Request(ApiError::internal(&error)),
            FileError::Remote(error @ ObjectError::Io { .. }) => Self::Request(ApiError::internal(&error)),
            error => Self::File(error),
        }
    }
}

impl From<ReportError> for V2Error {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Checkpoint(error) => error.into(),
            ReportError::Db(error) => error.into(),
            error => Self::Reports(error),
        }
    }
}

/// Errors that have a variant in [`ApiError`].
macro_rules! through_request {
    ($($error:ty),*) => {
        $(impl From<$error> for V2Error {
            fn from(error: $error) -> Self {
                Self::Request(error.into())
            }
        })*
    };
}

through_request!(AccountError, AuthError, CheckpointError, DbError, PodError);

impl IntoResponse for V2Error {
    fn into_response(self) -> Response {
        let error = match self {
            Self::Request(error) => Self::Request(error.disclosed()),
            other => other,
        };
        let status = error.status();
        let (message, details) = error.message();
        let body = V2ErrorBody { message, code: status.as_u16().to_string(), details, reason: error.reason() };
        let mut response = (status, Json(body)).into_response();
        if let Self::Request(error) = &error {
            error.add_headers(&mut response);
        }
        response
    }
}

/// The dialect's errors.
#[derive(Serialize, ToSchema)]
pub struct V2ErrorBody {
    /// A sentence.
    message: String,
    /// The HTTP status.
    code: String,
    /// What more there is to say, if any.
    details: Value,
    /// What a program decides by; docs/API.md lists them as codes.
    reason: &'static str,
}
