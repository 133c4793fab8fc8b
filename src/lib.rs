//! Pody: the pod manager for a shared GPU box.
//!
//! One binary is daemon, client and admin tool. Layout:
//!
//! - [`app`]: the handles that every part gets. [`daemon`]: starts and stops the workers and the server
//! - [`control`]: how admin commands notify a running daemon
//! - [`config`]: `$PODY_HOME/config.toml`, strict, hot-reloaded
//! - [`model`]: rows, ids, names, quantities, quotas, states, times, and what the API answers; pure, and shared by every
//!   layer
//! - [`account`]: users, passwords, tokens, throttle, quotas
//! - [`pod`]: the domain: life cycle, admission, create and delete as steps, ports, exec, commit
//! - [`checkpoint`]: saves and restores running pods: phases, store, preflight, recovery
//! - [`agents`]: this host as a cluster; the clusters, checkpoints and actions that outside agents report
//! - [`criu`]: the mechanics of a dump and a restore: runc, CRIU, cuda-checkpoint, CRIU's images; knows no pod and no
//!   row
//! - [`runtime`]: the OCI runtime that restores pods; runc for every other container
//! - [`engine`]: Docker, the only place that knows bollard; the inventory that reads are answered from
//! - [`db`]: the only place with SQL
//! - [`files`]: files of members behind signed URLs
//! - [`gpu`]: NVML behind one poller, the only place that knows nvml-wrapper; whose process is on which GPU
//! - [`host`]: processes and cgroups as /proc and /sys show them; whether a pod may open a device
//! - [`objects`]: a directory or a cloud's object store for copies of checkpoints, the only place that knows
//!   object_store
//! - [`http`]: the only place that knows axum; every route in one list, one directory per dialect
//! - [`cli`]: one file per command
//! - [`usage`]: sampler, accounting, time series
//! - [`metrics`], [`tls`]: metrics for Prometheus; one choice of cryptography

pub mod account;
pub mod agents;
pub mod app;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod control;
pub mod criu;
pub mod daemon;
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
pub mod runtime;
pub mod tls;
pub mod usage;

/// This pody's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
