//! Names of files, decoded from a URL.

use std::{fmt, str::FromStr};

/// Longest path, and longest part of one, in bytes; the file system allows 255 per part.
const MAX_PATH: usize = 1024;
const MAX_PART: usize = 255;
/// Most parts of a path.
const MAX_DEPTH: usize = 32;

/// A path below a user's directory: parts separated by single slashes, none of them `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FilePath(String);

/// Why a text is not a path of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilePathError {
    #[error("a path has 1 to {MAX_PATH} bytes and at most {MAX_DEPTH} parts")]
    Long,
    #[error("a path is relative to your folder; leave out the leading '/'")]
    Absolute,
    #[error("a path must not have an empty part or end in '/'")]
    Empty,
    #[error("a path must not have '.' or '..' as a part")]
    Dots,
    #[error("a part of a path has at most {MAX_PART} bytes")]
    Part,
    #[error("a path must not contain control characters")]
    Control,
}

impl FromStr for FilePath {
    type Err = FilePathError;

    fn from_str(s: &str) -> Result<Self, FilePathError> {
        if s.chars().any(char::is_control) {
            return Err(FilePathError::Control);
        }
        if s.starts_with('/') {
            return Err(FilePathError::Absolute);
        }
        if s.is_empty() || s.len() > MAX_PATH || s.split('/').count() > MAX_DEPTH {
            return Err(FilePathError::Long);
        }
        for part in s.split('/') {
            match part {
                "" => return Err(FilePathError::Empty),
                "." | ".." => return Err(FilePathError::Dots),
                part if part.len() > MAX_PART => return Err(FilePathError::Part),
                _ => {}
            }
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FilePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its directory, and its name there.
    pub fn split(&self) -> (Option<Self>, &str) {
        match self.0.rsplit_once('/') {
            Some((directory, name)) => (Some(Self(directory.to_owned())), name),
            None => (None, &self.0),
        }
    }

    /// Its directories and itself, outermost first, each as a path.
    pub fn steps(&self) -> impl Iterator<Item = &str> {
        let ends = self.0.match_indices('/').map(|(at, _)| at).chain([self.0.len()]);
        ends.map(|end| &self.0[..end])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bad_path_is_refused_with_a_reason() {
        use FilePathError::*;
        let long_part = "x".repeat(256);
        let deep = ["a"; 33].join("/");
        let cases = [
            ("", Long),
            ("/etc/passwd", Absolute),
            ("//x", Absolute),
            ("a//b", Empty),
            ("a/", Empty),
            ("..", Dots),
            ("a/../../b", Dots),
            ("./a", Dots),
            ("a/.", Dots),
            ("a\0b", Control),
            ("a\nb", Control),
            (long_part.as_str(), Part),
            (deep.as_str(), Long),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<FilePath>(), Err(error), "{text:?}");
        }
        for good in ["a", "a/b.tar", "...", "..a", ".hidden", "a b/c", "%2e%2e", "ümlaut", "-x", "a\\..\\b"] {
            assert_eq!(good.parse::<FilePath>().map(|path| path.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn steps_lead_down() {
        let path: FilePath = "a/b/c".parse().unwrap();
        assert_eq!(path.steps().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
        assert_eq!(path.split(), (Some("a/b".parse().unwrap()), "c"));
    }

    proptest! {
        /// Joined to a directory, a path is below it.
        #[test]
        fn no_path_leads_out(text in "[./a\\\\]{1,12}") {
            if let Ok(path) = text.parse::<FilePath>() {
                let joined = std::path::Path::new("/base/folder").join(path.as_str());
                prop_assert!(joined.starts_with("/base/folder"));
                let plain = joined.components().all(|part| !matches!(part, std::path::Component::ParentDir));
                prop_assert!(plain);
            }
        }
    }
}
