//! The `/v2` dialect: the API of a checkpoint service, in the shapes of its three editions. One file per resource.
//!
//! A "pod" here is one of ours, its namespace is its owner, and the cluster and the node are this host; what an outside
//! agent reports of other clusters is listed beside them and marked as such. Responses that are one id are plain text.
//! Ids are accepted with and without quotes around them, since clients send back what they were shown.

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

use std::{borrow::Cow, fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;

pub use self::error::{V2Error, V2ErrorBody};
use super::params::{BadParam, Parameter};
use crate::{
    app::App,
    model::{
        ids::ClusterId,
        names::{PodRef, UserName, clipped},
    },
    pod::PodError,
};

/// An id that may have quotes around it.
#[derive(Clone, Copy, Debug)]
pub struct QuotedId<T>(pub T);

/// Why a text is not an id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a UUID")]
pub struct NoUuid(String);

impl<T: FromStr> FromStr for QuotedId<T> {
    type Err = NoUuid;

    fn from_str(s: &str) -> Result<Self, NoUuid> {
        let id = s.trim();
        let id = id.strip_prefix('"').and_then(|id| id.strip_suffix('"')).unwrap_or(id);
        id.parse().map(Self).map_err(|_| NoUuid(clipped(s)))
    }
}

impl<T: FromStr> Parameter for QuotedId<T> {
    const KIND: &'static str = "string";

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
        text.parse().map_err(|error: NoUuid| BadParam::Rule { name: name.into(), rule: error.to_string() })
    }
}

impl<'de, T: FromStr> Deserialize<'de> for QuotedId<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

/// A filter or an optional field: clients send an empty text for a field that nobody filled in.
#[derive(Clone, Copy, Debug)]
pub struct EmptyAsNone<T>(pub Option<T>);

impl<T> Default for EmptyAsNone<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Parameter> Parameter for EmptyAsNone<T> {
    const KIND: &'static str = T::KIND;

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
        match text {
            "" => Ok(Self(None)),
            text => T::parse(name, text).map(|value| Self(Some(value))),
        }
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for EmptyAsNone<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Value::deserialize(deserializer)? {
            Value::Null => return Ok(Self(None)),
            Value::String(text) if text.is_empty() => return Ok(Self(None)),
            Value::String(text) => text,
            // Not a text at all: the parser's error says what it should be.
            other => other.to_string(),
        };
        text.parse().map(|value| Self(Some(value))).map_err(Error::custom)
    }
}

/// An object or null. A struct could also be parsed from an array, by the undocumented order of its fields.
fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or null")
        }

        fn visit_unit<E>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Object(PhantomData))
}

/// The reasons of one route, as an enum `Reason`.
macro_rules! reasons {
    ($($variant:ident = $word:literal),* $(,)?) => {
        $crate::model::words::words! {
            #[derive(utoipa::ToSchema)]
            Reason, "reason" {
                $(#[schema(rename = $word)] $variant = $word),*
            }
        }
    };
}

use reasons;

/// A pod by its container name, or by its own name with the owner as namespace.
pub fn pod_ref(name: &str, namespace: Option<&str>) -> Result<PodRef, PodError> {
    let not_found = || PodError::NotFound(clipped(name));
    // What is not a name is no pod's name.
    let mut wanted: PodRef = name.parse().map_err(|_| not_found())?;
    if let Some(namespace) = namespace {
        let owner: UserName = namespace.parse().map_err(|_| not_found())?;
        if wanted.user.as_ref().is_some_and(|user| *user != owner) {
            return Err(not_found());
        }
        wanted.user = Some(owner);
    }
    Ok(wanted)
}

/// Nothing is done on other clusters: a request for one of them must not be done here either.
pub fn ensure_this_host(app: &App, wanted: Option<&str>) -> Result<(), V2Error> {
    let Some(wanted) = wanted.map(|id| id.trim().trim_matches('"')).filter(|id| !id.is_empty()) else { return Ok(()) };
    let host = app.clusters.host();
    let is_host = match wanted.parse::<ClusterId>() {
        Ok(id) => id == host,
        Err(_) => wanted == app.clusters.host_name(),
    };
    if is_host {
        return Ok(());
    }
    Err(V2Error::BadRequest(format!("cluster_id is not this host, whose id is {host}; leave it out, or send that id")))
}

/// The agent's value, if it sent one.
pub fn platform() -> String {
    format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The GPUs of this host.
pub fn gpu(app: &App) -> String {
    let snapshot = app.gpus.snapshot();
    snapshot.devices.first().map_or_else(|| "none".to_owned(), |device| device.name.clone())
}
