//! The rows of the database, the words of the domain (ids, names, quantities, quotas, states, times), and in [`view`] what
//! the API answers.
//!
//! The lowest layer: pure values that every layer shares, the client included. No I/O, no async, no SQL.

pub mod action;
pub mod agent;
pub mod authority;
pub mod buckets;
pub mod checkpoint;
pub mod drain;
pub mod event;
pub mod gpu;
pub mod ids;
pub mod names;
pub mod phase;
pub mod pod;
pub mod quantities;
pub mod quota;
pub mod schedule;
pub mod time;
pub mod transitions;
pub mod usage;
pub mod user;
pub mod view;
pub mod words;
