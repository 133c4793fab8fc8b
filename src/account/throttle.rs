//! Runs before the password hash: counts wrong passwords per account and per address, and rejects attempts above a
//! limit without checking them.
//!
//! Each count is a bucket that leaks one failure every `forget_seconds`. A user whose password was verified within the
//! last minute skips this check, so guessing at an account does not lock out its owner's scripts at once; bearer tokens
//! always skip it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::AuthError;
use crate::config::ThrottleConfig;

/// Most buckets kept; beyond that the emptiest are dropped first.
const MAX_BUCKETS: usize = 20_000;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Account(String),
    Address(IpAddr),
}

struct Bucket {
    /// Failures at the time `at`.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn level_now(&self, now: Instant, forget: f64) -> f64 {
        (self.level - now.duration_since(self.at).as_secs_f64() / forget).max(0.0)
    }
}

/// The counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct Throttle(Arc<Mutex<HashMap<Key, Bucket>>>);

impl Throttle {
    /// Refuses while the account's or the address's bucket is full.
    pub fn check(&self, account: &str, address: IpAddr, limits: &ThrottleConfig) -> Result<(), AuthError> {
        let now = Instant::now();
        let forget = limits.forget_seconds.max(1) as f64;
        let buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = keys(account, address, limits)
            .into_iter()
            .filter_map(|(key, limit)| {
                let level = buckets.get(&key)?.level_now(now, forget);
                let excess = level - f64::from(limit) + 1.0;
                (excess > 0.0).then_some(excess * forget)
            })
            .fold(0.0, f64::max);
        match wait {
            0.0 => Ok(()),
            wait => Err(AuthError::Throttled { retry_after: Duration::from_secs(wait.ceil() as u64) }),
        }
    }

    pub fn count_failure(&self, account: &str, address: IpAddr, limits: &ThrottleConfig) {
        let now = Instant::now();
        let forget = limits.forget_seconds.max(1) as f64;
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, bucket| bucket.level_now(now, forget) > 1.0);
        }
        if buckets.len() >= MAX_BUCKETS {
            buckets.clear();
        }
        for (key, _) in keys(account, address, limits) {
            let bucket = buckets.entry(key).or_insert(Bucket { level: 0.0, at: now });
            bucket.level = bucket.level_now(now, forget) + 1.0;
            bucket.at = now;
        }
    }
}

fn keys(account: &str, address: IpAddr, limits: &ThrottleConfig) -> [(Key, u32); 2] {
    [
        (Key::Account(account.to_owned()), limits.account_failures),
        (Key::Address(network(address)), limits.address_failures),
    ]
}

/// An IPv6 client owns its /64, so failures are counted per /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> ThrottleConfig {
        ThrottleConfig { account_failures: 3, address_failures: 5, forget_seconds: 30 }
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn an_account_is_closed_from_every_address() {
        let throttle = Throttle::default();
        for from in 0..3 {
            throttle.check("alice", address(from), &limits()).unwrap();
            throttle.count_failure("alice", address(from), &limits());
        }
        assert!(matches!(throttle.check("alice", address(9), &limits()),
            Err(AuthError::Throttled { retry_after }) if retry_after.as_secs() >= 29));
        throttle.check("bob", address(9), &limits()).unwrap();
    }

    #[test]
    fn an_address_is_closed_for_every_account() {
        let throttle = Throttle::default();
        for account in ["a", "b", "c", "d", "e"] {
            throttle.count_failure(account, address(1), &limits());
        }
        assert!(throttle.check("f", address(1), &limits()).is_err());
        throttle.check("f", address(2), &limits()).unwrap();
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff:1".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), address(1));
    }
}
