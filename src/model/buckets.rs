//! Distributes an amount between two times over buckets. Pure.

use super::usage::STEPS;

/// Most buckets of one step that a span is spread over: a longer gap is spread only in coarser ones.
const MAX_BUCKETS: i64 = 4000;

/// Start of a bucket in Unix seconds, and the fraction of the span that lies in it.
pub type Share = (i64, f64);

/// The buckets of `step` seconds that the span from `begin` to `end` (milliseconds) touches, with shares that add up to
/// 1. An empty span goes wholly into the bucket of its end.
pub fn spread(begin: i64, end: i64, step: i64) -> Vec<Share> {
    let step = step * 1000;
    let bucket_of = |time: i64| time.div_euclid(step) * step;
    if end <= begin || (end - begin) / step > MAX_BUCKETS {
        return vec![(bucket_of(end) / 1000, 1.0)];
    }
    let span = (end - begin) as f64;
    let mut shares = Vec::new();
    let mut from = begin;
    while from < end {
        let to = (bucket_of(from) + step).min(end);
        shares.push((bucket_of(from) / 1000, (to - from) as f64 / span));
        from = to;
    }
    shares
}

/// The finest step whose buckets still reach back to `from` (Unix seconds).
pub fn step_for(from: i64, now: i64) -> i64 {
    let fits = STEPS.iter().find(|step| from >= now - step.kept + step.seconds);
    fits.unwrap_or(&STEPS[STEPS.len() - 1]).seconds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_span_is_cut_at_the_edges_of_buckets() {
        assert_eq!(spread(5_000, 25_000, 10), [(0, 0.25), (10, 0.5), (20, 0.25)]);
        assert_eq!(spread(5_000, 5_000, 10), [(0, 1.0)]);
        assert_eq!(spread(12_000, 13_000, 10), [(10, 1.0)]);
    }

    #[test]
    fn the_finest_step_that_reaches_back_is_taken() {
        let now = 1_800_000_000;
        assert_eq!(step_for(now - 600, now), 10);
        assert_eq!(step_for(now - 2 * 86_400, now), 60);
        assert_eq!(step_for(now - 60 * 86_400, now), 3600);
        assert_eq!(step_for(0, now), 3600);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled(begin in 0i64..10_000_000, length in 0i64..10_000_000, step in prop_oneof![Just(10i64), Just(60), Just(3600)]) {
            let shares = spread(begin, begin + length, step);
            prop_assert!((shares.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(shares.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
