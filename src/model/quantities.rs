//! Parsed quantities: sizes, GPUs, ports, durations.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{names::clipped_word, time::unit_seconds};

/// A number of bytes in the notation of pody's config: `512`, `64g`, `1.5t`, also `64GiB`. Units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write bytes or a number with k, m, g or t, for example 64g")]
pub struct ByteSizeError(String);

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(s: &str) -> Result<Self, ByteSizeError> {
        let error = || ByteSizeError(clipped_word(s));
        let lower = s.trim().to_ascii_lowercase();
        let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
        let (digits, unit) = lower.split_at(split);
        let factor: u64 = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            "t" => 1 << 40,
            _ => return Err(error()),
        };
        let bytes = match digits.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor),
            Err(_) => digits.parse::<f64>().ok().map(|f| (f * factor as f64) as u64),
        };
        // The engine uses signed 64-bit numbers.
        bytes.filter(|&b| b <= i64::MAX as u64).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// Two decimals and a unit (`1.50g`), exact whole units without decimals (`64g`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "t"), (30, "g"), (20, "m"), (10, "k")] {
            let whole = 1u64 << shift;
            if self.0 >= whole {
                return if self.0.is_multiple_of(whole) {
                    write!(f, "{}{unit}", self.0 >> shift)
                } else {
                    write!(f, "{:.2}{unit}", self.0 as f64 / whole as f64)
                };
            }
        }
        write!(f, "{}b", self.0)
    }
}

/// A set of GPUs: all of the host, none, or these indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuSet {
    All,
    Only(BTreeSet<u32>),
}

impl GpuSet {
    pub fn none() -> Self {
        Self::Only(BTreeSet::new())
    }

    /// In the form of the API's `gpu_ids`: `None` = all.
    pub fn ids(&self) -> Option<Vec<u32>> {
        match self {
            Self::All => None,
            Self::Only(ids) => Some(ids.iter().copied().collect()),
        }
    }
}

/// Why a text is not a set of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a set of GPUs; write \"all\", \"none\" or indices like \"0,1\"")]
pub struct GpuSetError(String);

impl FromStr for GpuSet {
    type Err = GpuSetError;

    fn from_str(s: &str) -> Result<Self, GpuSetError> {
        match s.trim().to_ascii_lowercase().as_str() {
            "" | "all" => Ok(Self::All),
            "none" => Ok(Self::none()),
            list => list
                .split(',')
                .map(|id| id.trim().parse::<u32>())
                .collect::<Result<_, _>>()
                .map(Self::Only)
                .map_err(|_| GpuSetError(clipped_word(s))),
        }
    }
}

impl fmt::Display for GpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(ids) if ids.is_empty() => f.write_str("none"),
            Self::Only(ids) => f.write_str(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

impl Serialize for GpuSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GpuSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A request for GPUs: none, a count, or these indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuRequest {
    Count(u32),
    Ids(BTreeSet<u32>),
}

/// Why a text is not a request for GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a request for GPUs; write a count like 2, indices with a comma like \"0,1\" or \"3,\", or none")]
pub struct GpuRequestError(String);

impl FromStr for GpuRequest {
    type Err = GpuRequestError;

    /// A bare number is a count; indices have a comma, at least at the end.
    fn from_str(s: &str) -> Result<Self, GpuRequestError> {
        let error = || GpuRequestError(clipped_word(s));
        match s.trim() {
            "none" => Ok(Self::Count(0)),
            list if list.contains(',') => {
                let ids = list.split(',').map(str::trim).filter(|id| !id.is_empty()).map(|id| id.parse::<u32>());
                let ids: BTreeSet<u32> = ids.collect::<Result<_, _>>().map_err(|_| error())?;
                if ids.is_empty() { Err(error()) } else { Ok(Self::Ids(ids)) }
            }
            count => count.parse().map(Self::Count).map_err(|_| error()),
        }
    }
}

/// Host ports that pods may get: `20000,20002-20010`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRanges(Vec<RangeInclusive<u16>>);

/// Why a text is not a list of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRangesError {
    #[error("{0:?} is not a port; ports are numbers from 1 to 65535 and ranges like 20000-20100")]
    Port(String),
    #[error("the port range {0:?} ends before it starts")]
    Backwards(String),
}

impl PortRanges {
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// The number of ports; overlapping ranges count once.
    pub fn count(&self) -> usize {
        self.iter().collect::<BTreeSet<_>>().len()
    }
}

impl FromStr for PortRanges {
    type Err = PortRangesError;

    fn from_str(s: &str) -> Result<Self, PortRangesError> {
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(0) | Err(_) => Err(PortRangesError::Port(text.trim().to_owned())),
            Ok(port) => Ok(port),
        };
        let range = |part: &str| match part.split_once('-') {
            None => port(part).map(|p| p..=p),
            Some((start, end)) => match port(start)?..=port(end)? {
                range if range.is_empty() => Err(PortRangesError::Backwards(part.to_owned())),
                range => Ok(range),
            },
        };
        s.split(',').filter(|part| !part.trim().is_empty()).map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for PortRanges {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A duration in the notation of the statistics routes: `1y`, `2w`, `3d`, `4h`, `30m`, `10s` or bare seconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Span(pub f64);

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write 1y, 1w, 1d, 1h, 1m, 1s or a number of seconds")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(s: &str) -> Result<Self, SpanError> {
        let lower = s.trim().to_ascii_lowercase();
        let last = lower.char_indices().next_back();
        let unit = last.and_then(|(at, unit)| Some((&lower[..at], unit_seconds(unit)?)));
        let (number, factor) = unit.unwrap_or((&lower, 1));
        match number.parse::<f64>() {
            Ok(n) if n.is_finite() && n >= 0.0 => Ok(Self(n * factor as f64)),
            _ => Err(SpanError(clipped_word(s))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("8k", 8192), ("1.5g", 3 << 29), ("64GiB", 64 << 30), ("2mb", 2 << 20)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "g", "-1", "1x", "99999999t", "1..2g"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, seconds) in [
            ("1y", 31_536_000.0),
            ("2w", 1_209_600.0),
            ("1.5d", 129_600.0),
            (" 4H ", 14_400.0),
            ("30m", 1800.0),
            ("10s", 10.0),
            ("90", 90.0),
        ] {
            assert_eq!(text.parse(), Ok(Span(seconds)), "{text}");
        }
        for bad in ["", "h", "-1h", "1 week", "infd", "1é"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_number_of_gpus_is_a_count() {
        assert_eq!("2".parse(), Ok(GpuRequest::Count(2)));
        assert_eq!("none".parse(), Ok(GpuRequest::Count(0)));
        assert_eq!("0,2".parse(), Ok(GpuRequest::Ids([0, 2].into())));
        assert_eq!("3,".parse(), Ok(GpuRequest::Ids([3].into())));
        for bad in ["", ",", "x", "1,x", "-1"] {
            assert!(bad.parse::<GpuRequest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let ranges: PortRanges = "20000, 20002-20004".parse().unwrap();
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [20000, 20002, 20003, 20004]);
        assert_eq!("5-4".parse::<PortRanges>(), Err(PortRangesError::Backwards("5-4".into())));
        assert!("0-70000".parse::<PortRanges>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,60}") {
            let _ = (text.parse::<ByteSize>(), text.parse::<Span>());
            let _ = (text.parse::<GpuSet>(), text.parse::<PortRanges>());
        }

        #[test]
        fn sizes_read_back(bytes in 0u64..1 << 50) {
            let shown = ByteSize(bytes).to_string().parse::<ByteSize>().unwrap();
            prop_assert!(shown.0.abs_diff(bytes) <= bytes / 100);
        }
    }
}
