//! Queries over the buckets.

use std::collections::BTreeMap;

use crate::{
    db::{Db, DbError},
    model::{
        buckets::step_for,
        names::UserName,
        time::Millis,
        usage::{Amount, Subject},
    },
};

/// A span of time, in seconds since 1970: the unit of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from_seconds: i64,
    pub to_seconds: i64,
}

impl Window {
    /// From this many seconds ago, or from the beginning, to now.
    pub fn last(seconds: Option<f64>) -> Self {
        let to_seconds = Millis::now().seconds() + 1;
        Self { from_seconds: seconds.map_or(0, |seconds| (to_seconds - seconds as i64).max(0)), to_seconds }
    }

    /// The fraction of a bucket that lies in the window.
    fn share(self, at: i64, step: i64) -> f64 {
        if step == 0 || at == 0 {
            return 1.0;
        }
        let inside = (at + step).min(self.to_seconds) - at.max(self.from_seconds);
        // The current bucket is not scaled by time that has not passed yet.
        let length = (at + step).min(self.to_seconds) - at;
        if length <= 0 { 0.0 } else { (inside as f64 / length as f64).clamp(0.0, 1.0) }
    }
}

/// What each subject used in the window.
pub async fn totals(db: &Db, window: Window) -> Result<BTreeMap<Subject, Amount>, DbError> {
    let step = step_for(window.from_seconds, Millis::now().seconds());
    let rows = db.read(move |tx| tx.list_usage(step, window.from_seconds, window.to_seconds)).await?;
    let mut totals: BTreeMap<Subject, Amount> = BTreeMap::new();
    for row in rows {
        totals.entry(row.subject).or_default().add(&row.amount.scaled(window.share(row.at, step)));
    }
    Ok(totals)
}

/// CPU and GPU seconds per user in the window, including imported usage.
pub async fn seconds_by_user(db: &Db, window: Window) -> Result<BTreeMap<UserName, (f64, f64)>, DbError> {
    let mut sums = db.read(move |tx| tx.sum_legacy_usage(Millis::from_seconds(window.from_seconds))).await?;
    for (subject, amount) in totals(db, window).await? {
        let sum = sums.entry(subject.user).or_default();
        sum.0 += amount.cpu_seconds;
        sum.1 += amount.gpu_seconds();
    }
    Ok(sums)
}

/// What the GPUs did in the window, per bucket; those at its edges are scaled.
pub async fn gpu_parts(db: &Db, window: Window) -> Result<Vec<crate::db::GpuUsageRow>, DbError> {
    let (step, mut rows) = gpu_series(db, window).await?;
    rows.iter_mut().for_each(|row| row.amount = row.amount.scaled(window.share(row.at, step)));
    Ok(rows)
}

/// The finest buckets that reach back to the window's begin: their length in seconds, and the rows.
pub async fn series(db: &Db, window: Window) -> Result<(i64, Vec<crate::db::UsageRow>), DbError> {
    let step = step_for(window.from_seconds, Millis::now().seconds());
    let mut rows = db.read(move |tx| tx.list_usage(step, window.from_seconds.max(1), window.to_seconds)).await?;
    rows.retain(|row| row.at > 0);
    Ok((step, rows))
}

/// The same for the GPUs.
pub async fn gpu_series(db: &Db, window: Window) -> Result<(i64, Vec<crate::db::GpuUsageRow>), DbError> {
    let step = step_for(window.from_seconds, Millis::now().seconds());
    let rows = db.read(move |tx| tx.list_gpu_usage(step, window.from_seconds, window.to_seconds)).await?;
    Ok((step, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_at_the_edge_counts_in_part() {
        let window = Window { from_seconds: 1005, to_seconds: 2000 };
        assert_eq!(window.share(1000, 10), 0.5);
        assert_eq!(window.share(1010, 10), 1.0);
        assert_eq!(window.share(0, 0), 1.0);
        // The current bucket: 1990 to 2000 of an hour that began at 1800.
        assert_eq!(Window { from_seconds: 1990, to_seconds: 2000 }.share(1800, 3600), 0.05);
    }
}
