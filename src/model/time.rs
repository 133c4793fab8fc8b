//! Times as they are stored (milliseconds since 1970) and as they are shown (RFC 3339).

use serde::{Serialize, Serializer};

pub fn as_time<S: Serializer>(millis: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*millis))
}

pub fn as_time_if_any<S: Serializer>(millis: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    millis.map(rfc3339).serialize(serializer)
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
