//! Whether a user may have one more checkpoint. Pure: numbers in, a reason out.

use super::CheckpointError;
use crate::model::quota::Quota;

/// Admits a checkpoint of about `size` bytes beside those held, given by their sizes.
pub fn admit_checkpoint(quota: &Quota, held: &[u64], size: u64) -> Result<(), CheckpointError> {
    if let Some(limit) = quota.checkpoint_count.0
        && held.len() as u64 >= limit
    {
        return Err(CheckpointError::Count { limit, held: held.len() as u64 });
    }
    let taken = held.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    match quota.checkpoint_size.0 {
        Some(limit) if taken.saturating_add(size) > limit => {
            Err(CheckpointError::Size { limit, held: taken, asked: size })
        }
        _ => Ok(()),
    }
}

/// Admits a checkpoint that may replace some of `own`, oldest first, beside the others. Returns how many of them have
/// to be deleted, once the new one is complete.
pub fn admit_in_place_of(quota: &Quota, others: &[u64], own: &[u64], size: u64) -> Result<usize, CheckpointError> {
    let admit_without = |gone: usize| {
        let held: Vec<u64> = others.iter().chain(&own[gone..]).copied().collect();
        admit_checkpoint(quota, &held, size)
    };
    match admit_without(0) {
        Ok(()) => Ok(0),
        // The refusal names all that the user has.
        Err(refused) => (1..=own.len()).find(|gone| admit_without(*gone).is_ok()).ok_or(refused),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::quota::{CountLimit, SizeLimit};

    proptest! {
        #[test]
        fn checkpoints_never_exceed_the_quota(
            count in prop::option::of(0u64..6), limit in prop::option::of(0u64..300),
            held in prop::collection::vec(0u64..100, 0..8), size in 0u64..200,
        ) {
            let quota = Quota {
                checkpoint_count: CountLimit(count),
                checkpoint_size: SizeLimit(limit),
                ..Quota::default()
            };
            let fits = count.is_none_or(|count| (held.len() as u64) < count)
                && limit.is_none_or(|limit| held.iter().sum::<u64>() + size <= limit);
            prop_assert_eq!(admit_checkpoint(&quota, &held, size).is_ok(), fits);
        }

        /// As few of its own as needed are deleted, and none where that does not help.
        #[test]
        fn no_more_are_deleted_than_needed(
            count in prop::option::of(0u64..6), limit in prop::option::of(0u64..300),
            others in prop::collection::vec(0u64..100, 0..5), own in prop::collection::vec(0u64..100, 0..5), size in 0u64..200,
        ) {
            let quota = Quota {
                checkpoint_count: CountLimit(count),
                checkpoint_size: SizeLimit(limit),
                ..Quota::default()
            };
            let fits = |gone: usize| {
                let held: Vec<u64> = others.iter().chain(&own[gone..]).copied().collect();
                admit_checkpoint(&quota, &held, size).is_ok()
            };
            match admit_in_place_of(&quota, &others, &own, size) {
                Ok(gone) => prop_assert!(fits(gone) && (gone == 0 || !fits(gone - 1))),
                Err(_) => prop_assert!(!fits(own.len())),
            }
        }
    }
}
