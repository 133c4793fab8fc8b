//! What is done again and again, and what is done with all pods.
//!
//! - [`schedule`]: the words and rows of `every 6h keep 4`, [`scheduler`]: acts on them; [`retention`]: which checkpoints have
//!   had their time
//! - [`drain`]: maintenance of the host, asked for and shown; [`drainer`]: all pods saved and stopped, and brought back

pub mod drain;
pub mod drainer;
pub mod retention;
pub mod schedule;
pub mod scheduler;
