//! Times as they are stored (milliseconds since 1970) and as they are shown (RFC 3339).

use std::{
    fmt,
    ops::{Add, Sub},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A time of day, in milliseconds since 1970. RFC 3339 in JSON and texts. What is added and subtracted is milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// The host's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Milliseconds that passed since an earlier time; negative if it is later.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<i64> for Millis {
    type Output = Self;

    fn add(self, milliseconds: i64) -> Self {
        Self(self.0 + milliseconds)
    }
}

impl Sub<i64> for Millis {
    type Output = Self;

    fn sub(self, milliseconds: i64) -> Self {
        Self(self.0 - milliseconds)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => time.fmt(f),
            Err(_) => self.0.fmt(f),
        }
    }
}

impl FromStr for Millis {
    type Err = jiff::Error;

    /// RFC 3339.
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        Ok(Self(text.parse::<jiff::Timestamp>()?.as_millisecond()))
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A time that is an integer in stored JSON, for `#[serde(with = "as_integer")]`.
pub mod as_integer {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Millis;

    pub fn serialize<S: Serializer>(time: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
        time.0.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        i64::deserialize(deserializer).map(Millis)
    }
}

/// Units of durations in texts, largest first, with their seconds.
pub const UNITS: [(char, i64); 6] =
    [('y', 365 * 86_400), ('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// The seconds of a unit, which may be a capital letter.
pub fn unit_seconds(unit: char) -> Option<i64> {
    UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&unit)).map(|(_, seconds)| *seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        shown: Millis,
        #[serde(with = "as_integer")]
        stored: Millis,
        ended: Option<Millis>,
    }

    #[test]
    fn a_time_is_rfc_3339_in_json_and_an_integer_where_asked_for() {
        let row = Row { shown: Millis(1_700_000_000_123), stored: Millis(1_700_000_000_123), ended: None };
        let json = r#"{"shown":"2023-11-14T22:13:20.123Z","stored":1700000000123,"ended":null}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), json);
        assert_eq!(serde_json::from_str::<Row>(json).unwrap(), row);
        assert_eq!(Millis::from_seconds(0).to_string(), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_time_out_of_range_is_shown_as_its_number() {
        assert_eq!(Millis(i64::MAX).to_string(), i64::MAX.to_string());
    }
}
