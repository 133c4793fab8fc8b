//! The HTTP side of the client: server, identity, requests, and the message of a refusal.
//!
//! The identity comes from the environment (`PODY_USERNAME` and `PODY_PASSWORD`, or `PODY_TOKEN`), else from the stored
//! login, whose token is sent only to the server that issued it. Secrets and commands travel in the form body: URLs end
//! up in logs.

use std::{error::Error, io, path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, Response, StatusCode, Upgraded, Url, header};
use serde_json::Value;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::{
    credentials::{self, StoreError, StoredLogin},
    exit,
};
use crate::config::DEFAULT_PORT;

/// How long a server may take to accept a connection. Responses may take as long as the work does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Names and values of a query or a form.
pub type Params<'a> = &'a [(&'a str, &'a str)];

/// Who sends a request.
#[derive(Clone)]
pub enum Identity {
    Password { user: String, password: String },
    Token(String),
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach {server}")]
    Unreachable { server: String, source: reqwest::Error },
    #[error("{}", .0.text())]
    Refused(Box<Refusal>),
    #[error("cannot parse the server's response; is it a pody server of this version?")]
    Unintelligible(#[source] serde_json::Error),
    #[error("the server refused the WebSocket upgrade")]
    NoWebSocket,
    #[error("the response was cut off")]
    BrokeOff(#[source] reqwest::Error),
    #[error("{server:?} is not a server address")]
    BadServer { server: String },
    #[error("${set} is set, but ${missing} is not")]
    HalfIdentity { set: &'static str, missing: &'static str },
    #[error("cannot use $PODY_CA_CERT {path}: {reason}")]
    CaCert { path: PathBuf, reason: String },
    #[error("cannot set up TLS")]
    Tls(#[source] reqwest::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A response that is not a success.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// What the server says, usually a sentence.
    pub detail: Value,
    /// What the server calls the error. An older server and a proxy give none.
    pub code: Option<String>,
    pub method: Method,
    pub url: String,
    retry_after: Option<String>,
}

impl Refusal {
    pub fn text(&self) -> String {
        match &self.detail {
            Value::String(text) if !text.is_empty() => text.clone(),
            Value::String(_) => format!("the server answered {}", self.status),
            detail => invalid_parameters(detail).unwrap_or_else(|| detail.to_string()),
        }
    }
}

impl ClientError {
    /// Whether a retry may succeed: the pod or the server is not up, or busy.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::BrokeOff(_) => true,
            Self::Refused(refusal) => refusal.status == StatusCode::CONFLICT || refusal.status.is_server_error(),
            Self::Unintelligible(_)
            | Self::NoWebSocket
            | Self::BadServer { .. }
            | Self::HalfIdentity { .. }
            | Self::CaCert { .. }
            | Self::Tls(_)
            | Self::Store(_) => false,
        }
    }

    /// Names every error, so that a new one does not compile until it has a code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => exit::UNREACHABLE,
            Self::Refused(refusal) if refusal.status == StatusCode::UNAUTHORIZED => exit::CREDENTIALS,
            Self::HalfIdentity { .. } => exit::CREDENTIALS,
            Self::BadServer { .. } => exit::USAGE,
            Self::Refused(_)
            | Self::Unintelligible(_)
            | Self::NoWebSocket
            | Self::BrokeOff(_)
            | Self::CaCert { .. }
            | Self::Tls(_)
            | Self::Store(_) => exit::FAILED,
        }
    }

    /// What the server calls the error.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.code.as_deref(),
            Self::Unreachable { .. }
            | Self::Unintelligible(_)
            | Self::NoWebSocket
            | Self::BrokeOff(_)
            | Self::BadServer { .. }
            | Self::HalfIdentity { .. }
            | Self::CaCert { .. }
            | Self::Tls(_)
            | Self::Store(_) => None,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } if is_bad_certificate(source) => {
                Some("if it is the right server, set PODY_CA_CERT to its certificate or authority (PEM)".to_owned())
            }
            Self::Unreachable { .. } => Some(
                "is `pody serve` running there? other server: `pody login --server http://HOST:8799`, or PODY_API_BASE"
                    .to_owned(),
            ),
            Self::Refused(refusal) => match (refusal.status, &refusal.retry_after) {
                (StatusCode::UNAUTHORIZED, _) => {
                    Some("log in with `pody login`, or set PODY_USERNAME and PODY_PASSWORD, or PODY_TOKEN".to_owned())
                }
                (_, Some(seconds)) => Some(format!("try again in {seconds} s")),
                (_, None) => None,
            },
            Self::BadServer { .. } => Some("write it like http://box:8799".to_owned()),
            Self::Tls(_) => {
                Some("install ca-certificates, or set PODY_CA_CERT to your authority's PEM file".to_owned())
            }
            Self::Unintelligible(_)
            | Self::NoWebSocket
            | Self::BrokeOff(_)
            | Self::HalfIdentity { .. }
            | Self::CaCert { .. }
            | Self::Store(_) => None,
        }
    }
}

/// One server and one identity.
pub struct Client {
    http: reqwest::Client,
    server: Url,
    identity: Option<Identity>,
}

impl Client {
    /// With the server and the identity from the environment and the stored login.
    pub fn from_environment() -> Result<Self, ClientError> {
        let stored = credentials::load()?;
        let server = server_in_use(stored.as_ref())?;
        let identity = match identity_from_environment()? {
            Some(identity) => Some(identity),
            None => {
                stored.filter(|login| same_server(&login.server, &server)).map(|login| Identity::Token(login.token))
            }
        };
        Self::new(server, identity)
    }

    pub fn new(server: Url, identity: Option<Identity>) -> Result<Self, ClientError> {
        crate::tls::install_provider();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("pody/", env!("CARGO_PKG_VERSION")));
        if server.scheme() == "https" {
            builder = builder.tls_certs_merge(extra_authorities()?);
        } else {
            // Plain HTTP must work on a machine that has no certificates.
            builder = builder.tls_certs_only([]);
        }
        Ok(Self { http: builder.build().map_err(ClientError::Tls)?, server, identity })
    }

    /// The address without a trailing slash.
    pub fn server(&self) -> &str {
        self.server.as_str().trim_end_matches('/')
    }

    /// The host's name or address, without brackets.
    pub fn host(&self) -> &str {
        self.server.host_str().unwrap_or_default().trim_matches(['[', ']'])
    }

    pub async fn get(&self, route: &str, query: Params<'_>) -> Result<Value, ClientError> {
        read_json(self.send(Method::GET, route, query, &[]).await?).await
    }

    /// Everything in the form body.
    pub async fn post(&self, route: &str, form: Params<'_>) -> Result<Value, ClientError> {
        read_json(self.send(Method::POST, route, &[], form).await?).await
    }

    /// Sends one request. A response that is not a success is an error.
    pub async fn send(
        &self,
        method: Method,
        route: &str,
        query: Params<'_>,
        form: Params<'_>,
    ) -> Result<Response, ClientError> {
        let mut request = self.request(method.clone(), route, query)?;
        if !form.is_empty() {
            request = request.form(form);
        }
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        refuse_failure(method, response).await
    }

    /// Opens a WebSocket over the same HTTP client, so with the same TLS, identity and refusals.
    pub async fn websocket(&self, route: &str, query: Params<'_>) -> Result<WebSocketStream<Upgraded>, ClientError> {
        let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
        let response = self
            .request(Method::GET, route, query)?
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        let response = refuse_failure(Method::GET, response).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(ClientError::NoWebSocket);
        }
        let stream = response.upgrade().await.map_err(ClientError::BrokeOff)?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    fn request(&self, method: Method, route: &str, query: Params<'_>) -> Result<reqwest::RequestBuilder, ClientError> {
        let text = format!("{}/{}", self.server(), route.trim_start_matches('/'));
        let url = Url::parse(&text).map_err(|_| ClientError::BadServer { server: text })?;
        let mut request = self.http.request(method, url);
        if !query.is_empty() {
            request = request.query(query);
        }
        Ok(match &self.identity {
            Some(Identity::Password { user, password }) => request.basic_auth(user, Some(password)),
            Some(Identity::Token(token)) => request.bearer_auth(token),
            None => request,
        })
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        // The URL may carry parameters; the server's name is enough.
        ClientError::Unreachable { server: self.server().to_owned(), source: source.without_url() }
    }
}

/// Whether a connection failed because the server's certificate is not trusted.
fn is_bad_certificate(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // The source of an I/O error is not the error it wraps, but that error's source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as _).or_else(|| error.source());
    }
    false
}

/// The server: `PODY_API_BASE`, else that of the stored login, else this machine.
pub fn server_in_use(stored: Option<&StoredLogin>) -> Result<Url, ClientError> {
    match (environment("PODY_API_BASE"), stored) {
        (Some(server), _) => parse_server(&server),
        (None, Some(login)) => parse_server(&login.server),
        (None, None) => parse_server(&format!("http://127.0.0.1:{DEFAULT_PORT}")),
    }
}

pub fn parse_server(server: &str) -> Result<Url, ClientError> {
    let url = Url::parse(server.trim_end_matches('/')).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none())
        .ok_or_else(|| ClientError::BadServer { server: server.to_owned() })
}

/// The identity in the environment.
pub fn identity_from_environment() -> Result<Option<Identity>, ClientError> {
    match (environment("PODY_USERNAME"), environment("PODY_PASSWORD"), environment("PODY_TOKEN")) {
        (Some(user), Some(password), _) => Ok(Some(Identity::Password { user, password })),
        (_, _, Some(token)) => Ok(Some(Identity::Token(token))),
        (Some(_), None, None) => Err(ClientError::HalfIdentity { set: "PODY_USERNAME", missing: "PODY_PASSWORD" }),
        (None, Some(_), None) => Err(ClientError::HalfIdentity { set: "PODY_PASSWORD", missing: "PODY_USERNAME" }),
        (None, None, None) => Ok(None),
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn same_server(stored: &str, server: &Url) -> bool {
    parse_server(stored).is_ok_and(|stored| stored == *server)
}

/// The PEM file in `PODY_CA_CERT`, trusted in addition to the system's authorities.
fn extra_authorities() -> Result<Vec<reqwest::Certificate>, ClientError> {
    let Some(path) = environment("PODY_CA_CERT").map(PathBuf::from) else { return Ok(Vec::new()) };
    let error = |reason: String| ClientError::CaCert { path: path.clone(), reason };
    let pem = std::fs::read(&path).map_err(|e| error(e.to_string()))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if certificates.is_empty() => Err(error("it contains no certificate".to_owned())),
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(error(e.to_string())),
    }
}

pub async fn read_json(response: Response) -> Result<Value, ClientError> {
    let body = response.bytes().await.map_err(ClientError::BrokeOff)?;
    serde_json::from_slice(&body).map_err(ClientError::Unintelligible)
}

async fn refuse_failure(method: Method, response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let url = response.url().to_string();
    let retry_after =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = response.text().await.map_err(ClientError::BrokeOff)?;
    let mut parsed = serde_json::from_str::<Value>(&body).unwrap_or_default();
    let code = parsed["code"].as_str().map(str::to_owned);
    let detail = match parsed.get_mut("detail").map(Value::take) {
        Some(detail) => missing_parameters(&detail).map_or(detail, Value::String),
        None => Value::String(body.trim().to_owned()),
    };
    Err(ClientError::Refused(Box::new(Refusal { status, detail, code, method, url, retry_after })))
}

/// `Missing query parameters: a, b`, if these are the only problems.
fn missing_parameters(detail: &Value) -> Option<String> {
    let missing = |problem: &Value| match (&problem["type"], &problem["loc"]) {
        (Value::String(kind), Value::Array(loc)) if kind == "missing" => loc.last()?.as_str().map(str::to_owned),
        _ => None,
    };
    let names: Vec<String> = detail.as_array()?.iter().map(missing).collect::<Option<_>>()?;
    (!names.is_empty()).then(|| format!("Missing query parameters: {}", names.join(", ")))
}

/// The problems of a FastAPI-like 422 as a sentence: `id: Input should be a valid integer`.
fn invalid_parameters(detail: &Value) -> Option<String> {
    let problem = |problem: &Value| {
        let name = problem["loc"].as_array()?.last()?.as_str()?;
        Some(format!("{name}: {}", problem["msg"].as_str()?))
    };
    let problems: Vec<String> = detail.as_array()?.iter().map(problem).collect::<Option<_>>()?;
    (!problems.is_empty()).then(|| problems.join("; "))
}
