//! The time of day, which anybody may set, beside the time since boot, which nobody can. Spans are measured by the second one:
//! a host whose clock jumps by a day has not used a day of anything, and no deadline has passed.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds by which the two clocks may come apart between two looks and nobody has set one: a clock that is merely slewed
/// runs half a millisecond fast per second.
const SLEWED: i64 = 1000;

/// One time on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub wall: i64,
    /// Milliseconds since boot, also those that the host slept.
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

/// Notices that the clock was set. Who keeps times of day moves them along.
#[derive(Debug, Default)]
pub struct ClockWatch(Option<i64>);

impl ClockWatch {
    /// Milliseconds by which the clock was set since the last look; 0 at the first.
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
    fn a_clock_that_is_set_is_noticed_once_and_one_that_is_slewed_never() {
        let mut watch = ClockWatch::default();
        let moves = [(100_000, 5_000), (101_001, 6_000), (90_000_000, 6_500), (90_001_000, 7_500), (50_000, 8_500)];
        let seen = moves.map(|(wall, steady)| watch.set_by(Moment { wall, steady }));
        assert_eq!(seen, [0, 0, 89_898_499, 0, -89_952_000]);
    }

    #[test]
    fn both_clocks_go_on() {
        let first = Moment::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(Moment::now().since(first) >= 20 && first.wall > 1_600_000_000_000);
    }
}
