//! The time of day, which can be set, and the time since boot, which cannot. Durations are measured with the latter: on
//! a host whose clock jumps by a day, nothing has been used for a day and no deadline has passed.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds by which the two clocks may diverge between two readings without the clock having been set: a slewed
/// clock runs half a millisecond fast per second.
const SLEWED: i64 = 1000;

/// One point in time on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub wall: i64,
    /// Milliseconds since boot, including time that the host was suspended.
    pub steady: i64,
}

impl Moment {
    pub fn now() -> Self {
        Self { wall: milliseconds(ClockId::CLOCK_REALTIME), steady: milliseconds(ClockId::CLOCK_BOOTTIME) }
    }

    /// Milliseconds that passed since an earlier one.
    pub fn since(self, earlier: Self) -> i64 {
        self.steady - earlier.steady
    }
}

fn milliseconds(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000)
}

/// Notices that the clock was set. Code that stores times of day shifts them accordingly.
#[derive(Debug, Default)]
pub struct ClockWatch(Option<i64>);

impl ClockWatch {
    /// Milliseconds by which the clock was set since the last call; 0 at the first.
    pub fn set_by(&mut self, now: Moment) -> i64 {
        let apart = now.wall - now.steady;
        let moved = apart - self.0.replace(apart).unwrap_or(apart);
        if moved.abs() > SLEWED { moved } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_a_slewed_one_never() {
        let mut watch = ClockWatch::default();
        let moves = [(100_000, 5_000), (101_001, 6_000), (90_000_000, 6_500), (90_001_000, 7_500), (50_000, 8_500)];
        let seen = moves.map(|(wall, steady)| watch.set_by(Moment { wall, steady }));
        assert_eq!(seen, [0, 0, 89_898_499, 0, -89_952_000]);
    }

    #[test]
    fn both_clocks_advance() {
        let first = Moment::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(Moment::now().since(first) >= 20 && first.wall > 1_600_000_000_000);
    }
}
