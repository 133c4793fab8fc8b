//! HTTP: the only place that knows axum.
//!
//! [`router`] lists every route once; the list feeds the router, `/help` and `/openapi.json`. A dialect (one directory
//! each) translates: parse, call the domain, render. [`server`] accepts connections and guards against slow and many
//! clients.

pub mod cedana;
#[cfg(test)]
mod codes;
#[cfg(test)]
mod document;
pub mod endpoint;
pub mod error;
pub mod identity;
pub mod json;
pub mod params;
pub mod pody;
pub mod router;
pub mod server;
