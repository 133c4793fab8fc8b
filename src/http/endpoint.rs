//! What a route consists of: who may call it, what its handler receives and returns, and which dialect it belongs to.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use axum::{
    extract::Request,
    http::Method,
    response::{IntoResponse, Response},
};
use utoipa::openapi::{RefOr, Schema};

use super::{
    error::ApiError,
    params::{BodyUse, Input, Param, Params},
};
use crate::{
    app::App,
    model::{authority::Authority, user::Caller},
};

/// A family of routes with one prefix and one error format.
#[derive(Debug)]
pub struct Dialect {
    /// Empty for the dialect that gets all other paths.
    pub prefix: &'static str,
    /// Renders an error that occurs before a handler is called.
    pub refuse: fn(ApiError) -> Response,
    /// What its errors are called in `/openapi.json`, and their shape.
    pub error: (&'static str, fn() -> RefOr<Schema>),
    /// Whether a slash at the end of a path is ignored.
    pub ignores_last_slash: bool,
    /// Whether a missing or mistyped parameter is a 422; it is a 400 elsewhere.
    pub knows_422: bool,
}

impl Dialect {
    /// Whether a path belongs to this dialect.
    pub fn owns(&self, path: &str) -> bool {
        path.strip_prefix(self.prefix)
            .is_some_and(|rest| self.prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Open,
    Member,
    Admin,
    /// Another node, with the access token of `[remote_user_profile.service]`.
    Node,
    /// Anyone with a URL that this server has signed for the purpose.
    SignedUrl,
}

/// A request, as a handler sees it.
pub struct Ctx {
    pub app: App,
    pub peer: SocketAddr,
    pub caller: Option<Caller>,
    /// What the caller's right to act rests on; for what lasts longer than the handler.
    pub authority: Option<Authority>,
    /// All routes, for those that describe them.
    pub routes: Arc<[Route]>,
    /// The rest of the request, for handlers that stream the response or upgrade the connection.
    pub request: Request,
}

impl Ctx {
    /// The caller. Open routes and nodes have none and do not ask for one.
    pub fn caller(&self) -> &Caller {
        self.caller.as_ref().expect("a route with Access::Member or Access::Admin")
    }
}

/// What a handler returns: the response, ready to be sent.
pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A handler together with the parsing of its parameters.
pub type Handler = Arc<dyn Fn(Ctx, &Input) -> Answer + Send + Sync>;

/// One row of the list.
#[derive(Clone)]
pub struct Route {
    /// A part like `{id}` is a parameter; one called `{path}` takes the rest of the path.
    pub path: &'static str,
    pub method: Method,
    pub access: Access,
    pub params: &'static [Param],
    pub body: BodyUse,
    pub summary: &'static str,
    /// Whether `/help` shows it: one method per path, as the client's `fetch` expects.
    pub listed: bool,
    pub dialect: &'static Dialect,
    pub handler: Handler,
}

impl Route {
    /// Whether the parameter of this name is a part of the path.
    pub fn is_in_path(&self, name: &str) -> bool {
        self.path.split('/').any(|part| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) == Some(name))
    }

    /// The path in the router's syntax.
    pub fn pattern(&self) -> String {
        self.path.replace("{path}", "{*path}")
    }
}

/// Makes a row of the list from a handler: parses its parameters before it is called, and renders its errors.
pub fn route<P, F, Fut, T, E>(
    dialect: &'static Dialect,
    method: Method,
    path: &'static str,
    access: Access,
    summary: &'static str,
    handler: F,
) -> Route
where
    P: Params,
    F: Fn(Ctx, P) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: IntoResponse,
    E: IntoResponse + From<ApiError>,
{
    let refuse = |error: ApiError| E::from(error).into_response();
    let handler: Handler = Arc::new(move |ctx, input| match P::read(input) {
        Ok(params) => {
            let answer = handler(ctx, params);
            Box::pin(async move { answer.await.map_or_else(IntoResponse::into_response, IntoResponse::into_response) })
        }
        Err(bad) => Box::pin(std::future::ready(refuse(bad.into()))),
    });
    Route { path, method, access, params: P::LIST, body: P::BODY, summary, listed: true, dialect, handler }
}
