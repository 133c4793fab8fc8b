//! The API from outside: a daemon per test, real pods, one module per first part of the URL. What goes across routes has
//! modules of its own: who may do what (`access`), limits of requests (`requests`), each
//! answer as described (`conformance`), `names`, `config`, `tls`, the original
//! pody as client (`python_client`), as other node (`remote`) and as predecessor (`import`).

#[path = "../common/mod.rs"]
mod common;

mod access;
mod admin;
mod config;
mod conformance;
mod event;
mod host;
mod image;
mod import;
mod meta;
mod names;
mod pod;
mod python_client;
mod remote;
mod requests;
mod stat;
mod throttle;
mod tls;
mod user;
mod user_api;
mod v2;
