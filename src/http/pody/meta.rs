//! `/version`, `/healthz`, `/help`, `/openapi.json`, `/metrics`: the server about itself.

use axum::{
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::openapi::{
    HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, Required, ResponseBuilder, ResponsesBuilder,
    content::Content,
    path::{OperationBuilder, ParameterBuilder, ParameterIn, PathItem},
    request_body::RequestBodyBuilder,
    schema::{ObjectBuilder, Type},
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::ApiError;
use crate::{
    engine::Health,
    http::{
        endpoint::{Access, Ctx, Route},
        json::Json,
        params::{BodyUse, NoParams},
    },
    model::view::help::{HelpParam, HelpRow},
    params,
};

/// The version of pody whose API this is: clients compare it with their own.
const API_VERSION: [u32; 3] = [0, 4, 1];

pub async fn version(_: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(API_VERSION))
}

#[derive(Serialize)]
struct HealthAnswer {
    /// `ok`, or `degraded`: reads work, some writes do not.
    status: &'static str,
    version: &'static str,
    docker: String,
    /// Seconds since the containers were listed.
    inventory_age: Option<f64>,
    database: String,
}

pub async fn health(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let docker = match ctx.app.engine.health() {
        Health::Up => "ok".to_owned(),
        Health::Unknown => "not checked yet".to_owned(),
        Health::Down(_) => "down".to_owned(),
    };
    let read = ctx.app.db.read(|tx| tx.is_empty().map(|_| ())).await.and_then(|()| ctx.app.db.ensure_in_place());
    let database = read.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
    let status = if docker == "down" || database != "ok" { "degraded" } else { "ok" };
    let inventory_age = ctx.app.engine.inventory().age().map(|age| (age.as_secs_f64() * 10.0).round() / 10.0);
    Ok(Json(HealthAnswer { status, version: crate::VERSION, docker, inventory_age, database }))
}

params! { Help { ; path: String } }

pub async fn help(ctx: Ctx, params: Help) -> Result<Json<impl Serialize>, ApiError> {
    let wanted = params.path.as_deref().map(|path| path.split('?').next().unwrap_or_default().to_owned());
    let wanted = wanted.map(|path| if path.starts_with('/') { path } else { format!("/{path}") });
    let rows = ctx.routes.iter().filter(|route| route.listed).filter(|route| match &wanted {
        None => true,
        Some(prefix) if prefix.ends_with('/') => route.path.starts_with(prefix.as_str()),
        Some(path) => route.path == path,
    });
    let rows = rows.map(|route| HelpRow {
        path: route.path.into(),
        methods: vec![route.method.to_string()],
        params: route
            .params
            .iter()
            .map(|param| HelpParam { name: param.name.into(), optional: param.optional })
            .collect(),
        summary: route.summary.into(),
    });
    Ok(Json(rows.collect::<Vec<_>>()))
}

pub async fn openapi(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(describe(&ctx.routes)))
}

/// The list of routes as an OpenAPI document.
fn describe(routes: &[Route]) -> OpenApi {
    let mut paths = PathsBuilder::new();
    for route in routes {
        let mut operation = OperationBuilder::new().summary(Some(route.summary)).responses(responses(route));
        for param in route.params {
            let kind = match param.kind {
                "integer" => Type::Integer,
                "boolean" => Type::Boolean,
                _ => Type::String,
            };
            let place = if route.is_in_path(param.name) { ParameterIn::Path } else { ParameterIn::Query };
            let parameter = ParameterBuilder::new().name(param.name).parameter_in(place);
            let required = if param.optional { Required::False } else { Required::True };
            let schema = ObjectBuilder::new().schema_type(kind).build();
            operation = operation.parameter(parameter.required(required).schema(Some(schema)).build());
        }
        if let BodyUse::Json(schema) = route.body {
            let body = RequestBodyBuilder::new().content("application/json", Content::new(Some(schema())));
            operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
        }
        if !matches!(route.access, Access::Open | Access::SignedUrl) {
            for scheme in ["basic", "bearer"].into_iter().skip(usize::from(route.access == Access::Node)) {
                operation = operation.security(SecurityRequirement::new(scheme, Vec::<String>::new()));
            }
        }
        let method = match route.method {
            Method::PUT => HttpMethod::Put,
            Method::PATCH => HttpMethod::Patch,
            Method::DELETE => HttpMethod::Delete,
            Method::POST => HttpMethod::Post,
            _ => HttpMethod::Get,
        };
        paths = paths.path(route.path, PathItem::new(method, operation.build()));
    }
    let mut components = utoipa::openapi::Components::new();
    for (name, schema) in routes.iter().map(|route| route.dialect.error) {
        components.schemas.entry(name.to_owned()).or_insert_with(schema);
    }
    for (name, scheme) in [("basic", HttpAuthScheme::Basic), ("bearer", HttpAuthScheme::Bearer)] {
        components.add_security_scheme(name, SecurityScheme::Http(Http::new(scheme)));
    }
    let info = InfoBuilder::new().title("pody").version(crate::VERSION);
    let info = info.description(Some("All parameters go into the query string, or into a form body of a POST."));
    OpenApiBuilder::new().info(info.build()).paths(paths.build()).components(Some(components)).build()
}

fn responses(route: &Route) -> utoipa::openapi::Responses {
    let mut all: Vec<(&str, &str)> = vec![("200", "done")];
    if route.access != Access::Open {
        all.extend([
            ("401", "not authenticated"),
            ("403", "not allowed, or over a quota"),
            ("429", "too many wrong passwords"),
        ]);
    }
    if !route.dialect.knows_422 && (!route.params.is_empty() || matches!(route.body, BodyUse::Json(_))) {
        all.push(("400", "a parameter or the body is missing, of another type, or breaks a rule"));
    } else if !route.params.is_empty() {
        all.extend([("400", "a parameter breaks a rule"), ("422", "a parameter is missing or of another type")]);
    }
    if route.path.starts_with("/pod/") || route.path.starts_with("/image/") {
        all.extend([
            ("404", "you own nothing of that name or id"),
            ("409", "not allowed in its current state"),
            ("503", "Docker or the database is not available"),
        ]);
    }
    let error = Ref::from_schema_name(route.dialect.error.0);
    let add = |builder: ResponsesBuilder, (status, text): (&str, &str)| {
        let response = ResponseBuilder::new().description(text);
        let response = match status {
            "200" => response,
            _ => response.content("application/json", Content::new(Some(error.clone()))),
        };
        builder.response(status, response.build())
    };
    all.into_iter().fold(ResponsesBuilder::new(), add).build()
}

pub async fn metrics(ctx: Ctx, _: NoParams) -> Result<Response, ApiError> {
    let text = ctx.app.metrics.render(&ctx.app.pods, &ctx.app.gpus, &ctx.app.engine);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, kind)], text).into_response())
}
