//! Times as they are stored (milliseconds since 1970) and as they are shown (RFC 3339).

/// A time in JSON, for `#[serde(with = "as_time")]`.
pub mod as_time {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(millis: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::rfc3339(*millis))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        super::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A time or `null` in JSON, for `#[serde(with = "as_time_if_any")]`.
pub mod as_time_if_any {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(millis: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        millis.map(super::rfc3339).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.as_deref().map(super::parse_rfc3339).transpose().map_err(D::Error::custom)
    }
}

/// Milliseconds since 1970, as all times are stored.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Milliseconds since 1970 in RFC 3339.
pub fn rfc3339(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| millis.to_string(), |t| t.to_string())
}

/// Units of durations in texts, largest first, with their seconds.
pub const UNITS: [(char, i64); 6] =
    [('y', 365 * 86_400), ('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// The seconds of a unit, which may be a capital letter.
pub fn unit_seconds(unit: char) -> Option<i64> {
    UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&unit)).map(|(_, seconds)| *seconds)
}

fn parse_rfc3339(text: &str) -> Result<i64, jiff::Error> {
    text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond)
}
