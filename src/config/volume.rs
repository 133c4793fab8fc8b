//! `volume_mappings`

use std::path::PathBuf;

use serde::Deserialize;

use crate::model::names::UserName;

/// One line of `volume_mappings`: `/host/$username:/in/pod[:ro|:rw]` or `tmpfs:/in/pod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeMapping {
    Bind { source: String, target: String, read_only: bool },
    Tmpfs { target: String },
}

impl VolumeMapping {
    /// The host directory of a bind mount for this user.
    pub fn source_for(source: &str, user: &UserName) -> PathBuf {
        PathBuf::from(source.replace("${username}", user.as_str()).replace("$username", user.as_str()))
    }
}

/// Why a line is not a volume mapping.
#[derive(Debug, thiserror::Error)]
pub enum VolumeMappingError {
    #[error(
        "{0:?} is not a volume mapping; write /host/path:/in/pod, optionally followed by :ro or :rw, or tmpfs:/in/pod"
    )]
    PodSpec(String),
    #[error("{0:?} must be an absolute path without '..'")]
    Path(String),
    #[error("{0:?} is not a volume mode; write ro or rw")]
    Mode(String),
}

impl std::str::FromStr for VolumeMapping {
    type Err = VolumeMappingError;

    fn from_str(s: &str) -> Result<Self, VolumeMappingError> {
        let absolute = |path: &str| {
            let clean = path.starts_with('/') && !path.split('/').any(|part| part == "..");
            if clean { Ok(path.to_owned()) } else { Err(VolumeMappingError::Path(path.to_owned())) }
        };
        match s.split(':').collect::<Vec<_>>()[..] {
            ["tmpfs", target] => Ok(Self::Tmpfs { target: absolute(target)? }),
            [source, target] => {
                Ok(Self::Bind { source: absolute(source)?, target: absolute(target)?, read_only: false })
            }
            [source, target, mode @ ("ro" | "rw")] => {
                Ok(Self::Bind { source: absolute(source)?, target: absolute(target)?, read_only: mode == "ro" })
            }
            [_, _, mode] => Err(VolumeMappingError::Mode(mode.to_owned())),
            _ => Err(VolumeMappingError::PodSpec(s.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for VolumeMapping {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
