//! Parsed names and quantities. All input becomes one of these before the domain sees it; each is made only by
//! `FromStr`, with one sentence per rejection, so no handler can hold an invalid one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest part of a container name, in characters. From pody 0.4.1.
const MAX_PART: usize = 20;

/// Characters of an input that a message shows.
const SHOWN: usize = 100;

/// Characters of a word that a message shows.
const SHOWN_OF_WORD: usize = 40;

/// The part of an input that a message shows: all of it, or its beginning. Nobody reads the rest of a long one.
pub fn clipped(text: &str) -> String {
    match start_of(text, SHOWN) {
        shown if shown.len() < text.len() => format!("{shown}…"),
        whole => whole.to_owned(),
    }
}

/// The same of what should be one word, such as a name or a number, without a mark that there is more.
pub fn clipped_word(text: &str) -> String {
    start_of(text, SHOWN_OF_WORD).to_owned()
}

/// The first characters of a text, so many at most.
pub fn start_of(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
}

/// Why a name was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name has 1 to {MAX_PART} characters, {0:?} has {len}", len = .0.chars().count())]
    Length(String),
    #[error("a name is made of letters, digits and '_' and starts with a letter; {0:?} has {1:?}")]
    Character(String, char),
    #[error("a name does not start or end with '_', {0:?} does")]
    Underscore(String),
    #[error("{0:?} is reserved")]
    Reserved(String),
}

/// An ASCII identifier of 1 to 20 characters that neither starts nor ends with `_`.
fn parse_part(s: &str) -> Result<String, NameError> {
    let clipped = || clipped_word(s);
    if s.is_empty() || s.chars().count() > MAX_PART {
        return Err(NameError::Length(clipped()));
    }
    if let Some(bad) = s.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '_') {
        return Err(NameError::Character(clipped(), bad));
    }
    if s.starts_with('_') || s.ends_with('_') {
        return Err(NameError::Underscore(clipped()));
    }
    if let Some(digit) = s.chars().next().filter(char::is_ascii_digit) {
        return Err(NameError::Character(clipped(), digit));
    }
    Ok(s.to_owned())
}

/// Implements the string conversions of a newtype that only `FromStr` can make.
macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The name of an account. `share` is reserved: volume mappings use it for the directory shared by all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(String);

text_newtype!(UserName);

impl FromStr for UserName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if s == "share" {
            return Err(NameError::Reserved(s.to_owned()));
        }
        parse_part(s).map(Self)
    }
}

/// The name of a pod among its user's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(String);

text_newtype!(InstanceName);

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        parse_part(s).map(Self)
    }
}

/// The part of a committed image's name after the user's name: `pody-commit:<user>-<tag>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitTag(String);

text_newtype!(CommitTag);

impl FromStr for CommitTag {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        parse_part(s).map(Self)
    }
}

/// The part of a container name before the user's name, where several pody hosts share one engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamePrefix(String);

text_newtype!(NamePrefix);

impl FromStr for NamePrefix {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        parse_part(s).map(Self)
    }
}

/// How people refer to a pod: `ins`, `user-ins` or `prefix-user-ins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    pub prefix: Option<NamePrefix>,
    pub user: Option<UserName>,
    pub instance: InstanceName,
}

/// Why a text does not refer to a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodRefError {
    #[error("a pod is named INSTANCE, USER-INSTANCE or PREFIX-USER-INSTANCE; this has {0} parts")]
    Parts(usize),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for PodRef {
    type Err = PodRefError;

    fn from_str(s: &str) -> Result<Self, PodRefError> {
        let parts: Vec<&str> = s.split('-').collect();
        let (prefix, user, instance) = match parts[..] {
            [instance] => (None, None, instance),
            [user, instance] => (None, Some(user), instance),
            [prefix, user, instance] => (Some(prefix), Some(user), instance),
            _ => return Err(PodRefError::Parts(parts.len())),
        };
        Ok(Self {
            prefix: prefix.map(str::parse).transpose()?,
            user: user.map(str::parse).transpose()?,
            instance: instance.parse()?,
        })
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [self.prefix.as_ref().map(NamePrefix::as_str), self.user.as_ref().map(UserName::as_str)]
            .into_iter()
            .flatten()
        {
            write!(f, "{part}-")?;
        }
        self.instance.fmt(f)
    }
}

/// The name of our container in the engine: `<user>-<instance>`, after `<prefix>-` where one is configured.
pub fn container_name(prefix: Option<&NamePrefix>, user: &UserName, instance: &InstanceName) -> String {
    match prefix {
        Some(prefix) => format!("{prefix}-{user}-{instance}"),
        None => format!("{user}-{instance}"),
    }
}

/// Parses a [`container_name`]; `None` for containers that are not named like ours.
pub fn parse_container_name(prefix: Option<&NamePrefix>, name: &str) -> Option<(UserName, InstanceName)> {
    let parsed: PodRef = name.parse().ok()?;
    (parsed.prefix.as_ref() == prefix).then_some((parsed.user?, parsed.instance))
}

/// An image as a user names it: `name`, `name:tag`, or only the tag of one of their own commits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef(String);

text_newtype!(ImageRef);

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    #[error("an image name has 1 to 256 characters")]
    Length,
    #[error(
        "an image name is made of letters, digits and '.', '_', '-', '/', ':', '@' and starts with a letter or digit; this has {0:?}"
    )]
    Character(char),
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(s: &str) -> Result<Self, ImageRefError> {
        if s.is_empty() || s.len() > 256 {
            return Err(ImageRefError::Length);
        }
        if let Some(bad) = s.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-/:@".contains(*c)) {
            return Err(ImageRefError::Character(bad));
        }
        match s.chars().next().filter(|c| !c.is_ascii_alphanumeric()) {
            Some(bad) => Err(ImageRefError::Character(bad)),
            None => Ok(Self(s.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_the_original_refuses_are_refused() {
        for bad in ["", "a-b", "a:b", "_a", "a_", "1a", "../x", "-x", "a\0b", "ünï", "a b", &"x".repeat(300)] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for good in ["a", "A1", "a_b", &"x".repeat(20)] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good:?}");
        }
        assert_eq!("share".parse::<UserName>(), Err(NameError::Reserved("share".into())));
    }

    #[test]
    fn a_long_text_is_shown_by_its_begin() {
        assert_eq!(clipped("ünï"), "ünï");
        assert_eq!(clipped(&"ü".repeat(SHOWN)), "ü".repeat(SHOWN));
        assert_eq!(clipped(&"ü".repeat(5000)), "ü".repeat(SHOWN) + "…");
        assert_eq!(clipped_word(&"ü".repeat(41)), "ü".repeat(40));
        assert_eq!((start_of("ünï", 2), start_of("ünï", 3), start_of("ünï", 9)), ("ün", "ünï", "ünï"));
        assert_eq!((start_of("ünï", 0), start_of("", 4)), ("", ""));
    }

    proptest! {
        #[test]
        fn container_names_read_back(user in "[a-z][a-z0-9]{0,18}", instance in "[a-z][a-z0-9]{0,18}", prefixed: bool) {
            prop_assume!(user != "share");
            let prefix: Option<NamePrefix> = prefixed.then(|| "pd".parse().unwrap());
            let (user, instance): (UserName, InstanceName) = (user.parse().unwrap(), instance.parse().unwrap());
            let name = container_name(prefix.as_ref(), &user, &instance);
            prop_assert_eq!(parse_container_name(prefix.as_ref(), &name), Some((user, instance)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,60}") {
            let _ = (text.parse::<PodRef>(), text.parse::<ImageRef>());
        }
    }
}
