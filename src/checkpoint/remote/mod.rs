//! Checkpoints in the remote store.
//!
//! - [`copies`]: which copies there are and should be; [`copying`]: those in progress
//! - [`fetch`]: downloads from the store

pub mod copies;
pub mod copying;
pub mod fetch;
