//! Typed ids. A [`PodId`] cannot be passed where an [`OpId`] is expected, and none of them is a bare string.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::names::start_of;

/// Characters of a text that is no id that a message shows.
const SHOWN: usize = 60;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id; an id looks like 01a1ff4b-2c76-709c-a7c8-ecb5ea72c60e, and lists show them")]
pub struct BadId(String);

/// Ids that we generate: UUIDv7, so that they sort by creation time.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new, unique id.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(s: &str) -> Result<Self, BadId> {
                Uuid::parse_str(s).map(Self).map_err(|_| BadId(start_of(s, SHOWN).to_owned()))
            }
        }
    };
}

uuid_id! {
    /// One container that we created (or adopted), from its creation to its deletion.
    PodId
}

uuid_id! {
    /// A pod's name, across the pods that are created and deleted under it.
    WorkloadId
}

uuid_id! {
    /// One attempt to change something outside the database. It is written into the row before the work starts and into
    /// the label `pody.op` of the result, which distinguishes a lost response from work never done.
    OpId
}

uuid_id! {
    /// A terminal session of a pod's first process.
    SessionId
}

uuid_id! {
    /// One saved state of a pod.
    CheckpointId
}

uuid_id! {
    /// One checkpoint or restore, in progress or ended.
    ActionId
}

uuid_id! {
    /// A cluster of an external agent, or this host as one.
    ClusterId
}

/// The engine's full 64-character container id. Never a prefix: a container may be *named* like another's short id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// The first 12 characters, the form that Docker and pody 0.4.1 show.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a container id.
#[derive(Debug, thiserror::Error)]
#[error("a container id is 64 hexadecimal digits, this has {0} characters")]
pub struct BadContainerId(usize);

impl FromStr for ContainerId {
    type Err = BadContainerId;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(s.to_owned()))
        } else {
            Err(BadContainerId(s.chars().count()))
        }
    }
}

/// A process, identified for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the host sees it.
    pub pid: i32,
    /// Start time, in clock ticks since boot.
    pub started: u64,
}
