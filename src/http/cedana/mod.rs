//! The `/v2` dialect: the API of a checkpoint service, in the shapes of its three editions. One file per resource.
//!
//! A "pod" here is one of ours, its namespace is its owner, and the cluster and the node are this host; what an outside
//! agent tells of other clusters is listed beside them and named as such. Answers that are one id are plain text. Ids are
//! taken with and without quotes around them, since clients send back what they were shown.

pub mod action;
pub mod checkpoint;
pub mod cluster;
mod conditions;
mod error;
pub mod event;
pub mod file;
pub mod resource;
pub mod restore;
pub mod user;

use std::{borrow::Cow, str::FromStr};

pub use error::V2Error;
use serde::{Deserialize, Deserializer};

use crate::http::params::{BadParam, Parameter};

/// An id that may have come with quotes around it.
#[derive(Clone, Copy, Debug)]
pub struct Loose<T>(pub T);

impl<T: FromStr> FromStr for Loose<T> {
    type Err = T::Err;

    fn from_str(s: &str) -> Result<Self, T::Err> {
        let s = s.trim();
        s.strip_prefix('"').and_then(|s| s.strip_suffix('"')).unwrap_or(s).parse().map(Self)
    }
}

impl<T: FromStr> Parameter for Loose<T> {
    const KIND: &'static str = "string";

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
        text.parse().map_err(|_| BadParam::Rule { name, rule: format!("{text:?} is no UUID") })
    }
}

/// The same in a filter, where clients send an empty text for a field that nobody filled in.
#[derive(Clone, Copy, Debug)]
pub struct Filled<T>(pub Option<T>);

impl<T: FromStr> Parameter for Filled<T> {
    const KIND: &'static str = "string";

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
        match text {
            "" => Ok(Self(None)),
            text => <Loose<T> as Parameter>::parse(name, text).map(|Loose(id)| Self(Some(id))),
        }
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is no UUID")))
    }
}
