//! The API from outside: a daemon per test, real pods, one module per first part of the URL. Tests that concern all
//! routes have their own modules: access rights (`access`), what an admin does meanwhile (`authority`), limits of requests (`requests`), responses that match their
//! description (`conformance`), what the client reads (`views`), `names`, `config`, `tls`, and pody 0.4.1 as client (`python_client`), as other node
//! (`remote`) and as predecessor (`import`).

#[path = "../common/mod.rs"]
mod common;

mod access;
mod admin;
mod authority;
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
mod views;
