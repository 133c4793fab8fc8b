//! Checkpoints in the remote store.
//!
//! - [`copies`]: which there are to be, and which there are; [`copying`]: those under way
//! - [`fetch`]: back from there

pub mod copies;
pub mod copying;
pub mod fetch;
