//! Pody: the pod manager for a shared GPU box.
//!
//! One binary is daemon, client and admin tool. Layout:
//!
//! - [`app`]: the handles that every part gets; starts and stops the workers. [`control`]: how admin commands tell a daemon
//! - [`config`]: `$PODY_HOME/config.toml`, strict, hot-reloaded
//! - [`model`]: rows, ids, names, quantities, quotas, states, times; pure, and shared by every layer
//! - [`account`]: users, passwords, tokens, throttle, quotas
//! - [`pod`]: the domain: life cycle, admission, create and delete as steps, ports, exec, commit
//! - [`checkpoint`]: running pods saved and brought back: phases, store, preflight, recovery
//! - [`cluster`]: this host as a cluster, and those that outside agents tell of
//! - [`engine`]: Docker, the only place that knows bollard; the inventory that reads are answered from
//! - [`db`]: the only place with SQL
//! - [`files`]: files of members behind signed URLs
//! - [`gpu`]: NVML behind one poller, the only place that knows nvml-wrapper; whose process is on which GPU
//! - [`host`]: processes and cgroups as /proc and /sys show them; whether a pod may open a device
//! - [`objects`]: a folder or a cloud's storage for copies of checkpoints, the only place that knows object_store
//! - [`registry`]: what agents tell of checkpoints and restores, beside ours
//! - [`http`]: the only place that knows axum; every route in one list, one folder per dialect
//! - [`cli`]: one file per command
//! - [`usage`]: sampler, accounting, time series
//! - [`metrics`], [`tls`]: numbers for Prometheus; one choice of cryptography

pub mod account;
pub mod app;
pub mod checkpoint;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod db;
pub mod engine;
pub mod files;
pub mod gpu;
pub mod host;
pub mod http;
pub mod metrics;
pub mod model;
pub mod objects;
pub mod pod;
pub mod registry;
pub mod tls;
pub mod usage;

/// This pody's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
