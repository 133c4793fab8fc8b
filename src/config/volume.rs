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

/// A mapping's host directory that lies in a writable one of another mapping, after it.
pub(super) fn nested(mappings: &[VolumeMapping]) -> Option<(String, String)> {
    // With the links of the part that no member can change.
    let real = |source: &str| {
        let source = source.replace("${username}", "$username");
        let (fixed, rest) =
            source.split_once("$username").map_or((source.as_str(), None), |(fixed, rest)| (fixed, Some(rest)));
        let fixed = std::fs::canonicalize(fixed).unwrap_or_else(|_| PathBuf::from(fixed));
        match rest {
            Some(rest) => {
                PathBuf::from(format!("{}/$username{rest}", fixed.display().to_string().trim_end_matches('/')))
            }
            None => fixed,
        }
    };
    let sources = || {
        mappings.iter().filter_map(|mapping| match mapping {
            VolumeMapping::Bind { source, read_only, .. } => Some((source, real(source), *read_only)),
            VolumeMapping::Tmpfs { .. } => None,
        })
    };
    sources().filter(|(.., read_only)| !read_only).find_map(|(outer, above, _)| {
        let inner = sources().find(|(_, below, _)| *below != above && below.starts_with(&above));
        inner.map(|(inner, ..)| (outer.clone(), inner.clone()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_a_writable_one_of_another_mapping_is_found() {
        let found = |lines: &[&str]| nested(&lines.iter().map(|line| line.parse().unwrap()).collect::<Vec<_>>());
        let pair = |outer: &str, inner: &str| Some((outer.to_owned(), inner.to_owned()));
        assert_eq!(
            found(&["/vol/$username:/workspace:rw", "/vol/${username}/cache:/cache:rw"]),
            pair("/vol/$username", "/vol/${username}/cache")
        );
        assert_eq!(found(&["/vol/$username:/home", "/vol:/all"]), pair("/vol", "/vol/$username"));
        assert_eq!(found(&["/vol/a/b:/b:ro", "/vol/a:/a"]), pair("/vol/a", "/vol/a/b"), "also for reading");
        for good in [
            &["/vol/$username:/home", "/vol:/all:ro"][..],
            &["/vol/$username:/home", "/volume/$username:/other"],
            &["/vol/$username:/home", "/vol/$username:/again", "tmpfs:/vol"],
        ] {
            assert_eq!(found(good), None, "{good:?}");
        }
    }

    #[test]
    fn links_of_the_host_are_seen_through() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, link) = (folder.path().join("disk"), folder.path().join("link"));
        std::fs::create_dir(&disk).unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let line = |directory: &std::path::Path, rest: &str| format!("{}{rest}", directory.display()).parse().unwrap();
        assert!(nested(&[line(&disk, ":/all"), line(&link, "/$username:/home")]).is_some());
    }
}
