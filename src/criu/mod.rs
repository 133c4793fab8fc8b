//! The mechanics of a dump and a restore. This module knows no pod, no row and no Docker: callers pass what it needs.
//!
//! - [`runc`]: runs runc and CRIU, each call with a deadline; [`kill`] ends what they started, [`freezer`] and
//!   [`leftovers`] clean up after a CRIU that was killed
//! - [`version`]: whether this CRIU can save pods on this kernel; [`command`]: short calls of other programs
//! - [`restore`]: what a restore by the OCI runtime needs, and where the daemon leaves it
//! - [`namespace_setup`]: what a restore does in the pod's new namespaces before its first process exists
//! - [`image`]: CRIU's image files, as far as they are read here; [`patches`]: what is changed in them
//! - [`image_buffer`]: memory that receives images while the pod is frozen; [`gzip`]: a stand-in for CRIU's `gzip`
//! - [`stopped_tasks`], [`thread_attributes`]: what CRIU cannot attach to, and what it does not save
//! - [`cgroup_root`], [`cgroup_view`]: the cgroup of a restored pod, and what it sees of cgroups
//! - [`network`]: sockets, addresses and packets
//! - [`cuda`]: NVIDIA's `cuda-checkpoint`
//! - [`diagnosis`]: the one place that reads CRIU's log and names the kind of a failure; [`error`]: those kinds

pub mod cgroup_root;
pub mod cgroup_view;
pub mod command;
pub mod cuda;
pub mod diagnosis;
pub mod error;
pub mod freezer;
pub mod gzip;
pub mod image;
pub mod image_buffer;
pub mod kill;
pub mod leftovers;
pub mod namespace_setup;
pub mod network;
pub mod patches;
pub mod restore;
pub mod runc;
pub mod stopped_tasks;
pub mod thread_attributes;
pub mod version;
