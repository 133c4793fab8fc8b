//! What any dialect can meet: a status, a code for programs, a sentence for people. Each dialect renders it in its form.
//!
//! Each domain error is mapped by an exhaustive match: a new one does not compile until it has its status here. Its code
//! is the name of the innermost domain error; docs/API.md lists them all. What went wrong inside goes to the log under a
//! request id, and the client gets the id.

use std::error::Error;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use crate::{
    account::{AccountError, AuthError, RemoteError},
    app::PurgeError,
    checkpoint::CheckpointError,
    db::DbError,
    engine::EngineError,
    host::disk::DiskError,
    model::{authority::Lapse, ids::OpId},
    objects::ObjectError,
    pod::PodError,
};

/// Seconds after which trouble of ours may have passed.
const RETRY: u64 = 2;

/// Seconds until it is worth while to ask whether maintenance is over.
const RETRY_MAINTENANCE: u64 = 60;

/// The code of everything whose cause only the log has.
const INTERNAL: &str = "internal";

/// Every answer that is not a success.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("some parameters are missing or of another type")]
    #[strum(serialize = "invalid_parameters")]
    Unprocessable(Vec<Value>),
    #[error("Not authenticated")]
    NotAuthenticated,
    #[error(transparent)]
    #[strum(transparent)]
    Auth(#[from] AuthError),
    #[error("only admins may do this")]
    AdminsOnly,
    #[error("this request was made by another web site; open this server's own pages")]
    OtherSite,
    #[error("the {part} of a request has at most {max} bytes")]
    #[strum(serialize = "request_too_large")]
    TooLong { part: &'static str, max: usize },
    #[error("the request's body came too slowly")]
    SlowBody,
    #[error("Not Found")]
    NoRoute,
    #[error("Method Not Allowed")]
    MethodNotAllowed,
    #[error(transparent)]
    #[strum(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    #[strum(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    #[strum(transparent)]
    Checkpoint(CheckpointError),
    #[error(transparent)]
    #[strum(transparent)]
    Service(#[from] ServiceRefusal),
    #[error("something went wrong inside pody; an admin finds it in the log under {0}")]
    Internal(OpId),
}

/// Why the remote user profile service does not serve another node. The sentences are those of pody 0.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ServiceRefusal {
    #[error("Remote user profile service is not enabled")]
    #[strum(serialize = "user_service_disabled")]
    Disabled,
    #[error("Missing or invalid Authorization header")]
    NoAccessToken,
    #[error("Invalid access token")]
    #[strum(serialize = "invalid_access_token")]
    BadAccessToken,
    #[error("User profile service is in read-only mode")]
    #[strum(serialize = "user_service_read_only")]
    ReadOnly,
}

impl ApiError {
    /// Logs what happened and hides it from the client.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        let id = OpId::generate();
        let mut causes = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            causes = format!("{causes}: {cause}");
            source = cause.source();
        }
        tracing::error!(%id, error = causes, "internal error");
        Self::Internal(id)
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotAuthenticated => StatusCode::UNAUTHORIZED,
            Self::Auth(error) => match error {
                AuthError::Wrong | AuthError::BadToken => StatusCode::UNAUTHORIZED,
                AuthError::Disabled => StatusCode::FORBIDDEN,
                AuthError::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
                AuthError::Busy | AuthError::Remote(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::AdminsOnly | Self::OtherSite => StatusCode::FORBIDDEN,
            Self::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Pod(error) => pod_status(error),
            Self::Account(error) => match error {
                AccountError::NoUser(_) | AccountError::NoToken(_) | AccountError::NoKey(_) => StatusCode::NOT_FOUND,
                AccountError::Exists(_)
                | AccountError::LastAdmin(_)
                | AccountError::HasPods { .. }
                | AccountError::TooMany(_) => StatusCode::CONFLICT,
                AccountError::Password => StatusCode::BAD_REQUEST,
                AccountError::Remote(error) => remote_status(error),
                AccountError::Db(error) => db_status(error),
            },
            Self::Checkpoint(error) => checkpoint_status(error),
            Self::Service(refusal) => match refusal {
                ServiceRefusal::Disabled => StatusCode::NOT_IMPLEMENTED,
                ServiceRefusal::NoAccessToken => StatusCode::UNAUTHORIZED,
                ServiceRefusal::BadAccessToken => StatusCode::FORBIDDEN,
                ServiceRefusal::ReadOnly => StatusCode::LOCKED,
            },
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What a program decides by: the name of the innermost domain error.
    pub fn code(&self) -> &'static str {
        if self.hidden().is_some() { INTERNAL } else { self.into() }
    }

    /// The sentence, or the list of what is wrong with each parameter.
    pub fn detail(&self) -> Value {
        match self {
            Self::Unprocessable(list) => Value::Array(list.clone()),
            Self::Auth(AuthError::Remote(error)) => {
                json!(format!("cannot reach the node that keeps the accounts: {error}"))
            }
            Self::Account(AccountError::Remote(error)) => json!(error.to_string()),
            // What the connection to Docker says of itself is for admins.
            Self::Pod(PodError::Engine(EngineError::Unavailable(_))) => {
                json!(
                    "Docker does not answer; try again in a few seconds, and ask an admin to run `pody doctor` if it lasts"
                )
            }
            Self::Pod(PodError::Engine(EngineError::AnswerLost(_))) => {
                json!("Docker's response was lost; check whether it was done, and try again if not")
            }
            other => json!(other.to_string()),
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Auth(AuthError::Throttled { retry_after }) => Some(retry_after.as_secs().max(1)),
            Self::Pod(PodError::Draining(_)) => Some(RETRY_MAINTENANCE),
            other if other.status() == StatusCode::SERVICE_UNAVAILABLE => Some(RETRY),
            _ => None,
        }
    }
}

/// What the other node says of the request holds here, too; the rest is between the two nodes.
fn remote_status(error: &RemoteError) -> StatusCode {
    match error {
        RemoteError::Refused { status: status @ (400 | 404 | 409 | 422), .. } => {
            StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY)
        }
        RemoteError::Unreachable { .. }
        | RemoteError::Token { .. }
        | RemoteError::ReadOnly { .. }
        | RemoteError::Disabled { .. }
        | RemoteError::Refused { .. } => StatusCode::BAD_GATEWAY,
    }
}

fn pod_status(error: &PodError) -> StatusCode {
    match error {
        PodError::NotFound(_) | PodError::NoSession { .. } => StatusCode::NOT_FOUND,
        PodError::Exists(_)
        | PodError::Foreign(_)
        | PodError::Busy { .. }
        | PodError::NoPort { .. }
        | PodError::NotRunning { .. }
        | PodError::NoPids { .. }
        | PodError::NoShell { .. }
        | PodError::NoInit { .. }
        | PodError::ImageInUse { .. }
        | PodError::ImageExists(_) => StatusCode::CONFLICT,
        PodError::Refused(_) | PodError::NotYourImage(_) => StatusCode::FORBIDDEN,
        PodError::Image { .. } | PodError::Command { .. } | PodError::Timeout { .. } => StatusCode::BAD_REQUEST,
        PodError::StorageUnsupported
        | PodError::NoGpuDriver
        | PodError::Network(_)
        | PodError::Volume { .. }
        | PodError::Init { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        PodError::Draining(_) => StatusCode::SERVICE_UNAVAILABLE,
        PodError::Engine(error) => engine_status(error),
        PodError::Db(error) => db_status(error),
    }
}

fn engine_status(error: &EngineError) -> StatusCode {
    match error {
        EngineError::Unavailable(_) | EngineError::TimedOut(_) | EngineError::AnswerLost(_) | EngineError::DiskFull => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        EngineError::PortTaken(_) => StatusCode::CONFLICT,
        EngineError::NoImage(answer)
        | EngineError::NoNetwork(answer)
        | EngineError::NoPids(answer)
        | EngineError::CannotExecute { answer, .. }
        | EngineError::AlreadyPaused(answer)
        | EngineError::NotPaused(answer)
        | EngineError::Paused(answer)
        | EngineError::NotRunning(answer)
        | EngineError::RemovalInProgress(answer)
        | EngineError::StorageOptUnsupported(answer)
        | EngineError::NoGpuDriver(answer)
        | EngineError::NotFrozen(answer)
        | EngineError::NotFound(answer)
        | EngineError::Conflict(answer)
        | EngineError::Failed(answer) => match answer.status {
            404 | 409 => StatusCode::CONFLICT,
            400 => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

fn checkpoint_status(error: &CheckpointError) -> StatusCode {
    match error {
        CheckpointError::NotFound(_) | CheckpointError::NoAction(_) | CheckpointError::NoneOf(_) => {
            StatusCode::NOT_FOUND
        }
        CheckpointError::NoSchedule(_) => StatusCode::NOT_FOUND,
        CheckpointError::NothingNamed | CheckpointError::TooOften { .. } | CheckpointError::Reason { .. } => {
            StatusCode::BAD_REQUEST
        }
        CheckpointError::Unavailable(_) => StatusCode::NOT_IMPLEMENTED,
        CheckpointError::NotPossible { .. }
        | CheckpointError::InProgress { .. }
        | CheckpointError::NotRunning { .. }
        | CheckpointError::StillRuns { .. }
        | CheckpointError::NotReady { .. }
        | CheckpointError::InUse(_)
        | CheckpointError::HeldByDrain(_)
        | CheckpointError::Damaged { .. }
        | CheckpointError::ImageGone(_)
        | CheckpointError::MountsChanged { .. }
        | CheckpointError::Known(_)
        | CheckpointError::AddressGone { .. }
        | CheckpointError::Memory { .. }
        | CheckpointError::GpusDiffer(_)
        | CheckpointError::OtherHost { .. } => StatusCode::CONFLICT,
        CheckpointError::Remote(error) => object_status(error),
        CheckpointError::Space { .. } => StatusCode::INSUFFICIENT_STORAGE,
        CheckpointError::Count { .. } | CheckpointError::Size { .. } => StatusCode::FORBIDDEN,
        CheckpointError::Criu(_)
        | CheckpointError::Cuda(_)
        | CheckpointError::TimedOut { .. }
        | CheckpointError::EndedAtOnce(_)
        | CheckpointError::EndedMeanwhile(_)
        | CheckpointError::LetGo(_)
        | CheckpointError::Unreadable(_)
        | CheckpointError::Program { .. }
        | CheckpointError::Interrupted(_) => StatusCode::INTERNAL_SERVER_ERROR,
        CheckpointError::Disk(error) => disk_status(error),
        CheckpointError::Pod(error) => pod_status(error),
        CheckpointError::Engine(error) => engine_status(error),
        CheckpointError::Db(error) => db_status(error),
    }
}

pub fn object_status(error: &ObjectError) -> StatusCode {
    match error {
        ObjectError::NotFound(_) => StatusCode::NOT_FOUND,
        ObjectError::None | ObjectError::NoSigner => StatusCode::BAD_REQUEST,
        ObjectError::Changed { .. } => StatusCode::CONFLICT,
        ObjectError::Failed(_) => StatusCode::BAD_GATEWAY,
        ObjectError::Cancelled | ObjectError::Config(_) => StatusCode::SERVICE_UNAVAILABLE,
        ObjectError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub fn db_status(error: &DbError) -> StatusCode {
    match error {
        DbError::Busy | DbError::Full | DbError::Gone => StatusCode::SERVICE_UNAVAILABLE,
        DbError::Lapsed(Lapse::AccountGone | Lapse::PasswordChanged | Lapse::TokenEnded) => StatusCode::UNAUTHORIZED,
        DbError::Lapsed(Lapse::Disabled | Lapse::Demoted) => StatusCode::FORBIDDEN,
        DbError::Damaged(_)
        | DbError::Other(_)
        | DbError::Row(_)
        | DbError::Newer { .. }
        | DbError::Open { .. }
        | DbError::Transition { .. }
        | DbError::NoRow { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<PurgeError> for ApiError {
    fn from(error: PurgeError) -> Self {
        match error {
            PurgeError::Account(error) => error.into(),
            PurgeError::Pod(error) => error.into(),
        }
    }
}

impl From<CheckpointError> for ApiError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Pod(error) => error.into(),
            CheckpointError::Engine(error) => Self::Pod(error.into()),
            CheckpointError::Db(error) => error.into(),
            error => Self::Checkpoint(error),
        }
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        Self::Pod(error.into())
    }
}

impl ApiError {
    /// What a client does not see: a sentence of the database, of Docker or of CRIU about itself.
    fn hidden(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Pod(PodError::Db(error)) | Self::Account(AccountError::Db(error)) => {
                (db_status(error) == StatusCode::INTERNAL_SERVER_ERROR).then_some(error as _)
            }
            Self::Pod(PodError::Engine(error)) if error.status().is_some_and(|status| status >= 500) => Some(error),
            Self::Checkpoint(error) => {
                (checkpoint_status(error) == StatusCode::INTERNAL_SERVER_ERROR).then_some(error as _)
            }
            Self::BadRequest(_)
            | Self::Unprocessable(_)
            | Self::NotAuthenticated
            | Self::Auth(_)
            | Self::AdminsOnly
            | Self::OtherSite
            | Self::TooLong { .. }
            | Self::SlowBody
            | Self::NoRoute
            | Self::MethodNotAllowed
            | Self::Pod(_)
            | Self::Account(_)
            | Self::Service(_)
            | Self::Internal(_) => None,
        }
    }

    /// What a client may see of it: what is hidden goes to the log.
    pub fn disclosed(self) -> Self {
        let error = match self.hidden() {
            Some(error) => Self::internal(error),
            None => self,
        };
        if let Self::Pod(PodError::Engine(error @ (EngineError::Unavailable(_) | EngineError::AnswerLost(_)))) = &error
        {
            tracing::warn!(%error, "answered 503");
        }
        error
    }

    /// Headers that belong to the status.
    pub fn add_headers(&self, response: &mut Response) {
        let headers = response.headers_mut();
        if self.status() == StatusCode::UNAUTHORIZED {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"pody\", charset=\"UTF-8\""));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

fn disk_status(error: &DiskError) -> StatusCode {
    match error {
        DiskError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        DiskError::ReadOnly(_) => StatusCode::NOT_IMPLEMENTED,
        DiskError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
