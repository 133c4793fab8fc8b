//! Bars of block characters. Tones differ in shape, not only in colour, for pipes and `NO_COLOR`.

/// How many of `length` cells a part fills: at least one if it is not zero.
fn cells(part: f64, whole: f64, length: usize) -> usize {
    if part > 0.0 && whole > 0.0 { ((part / whole).min(1.0) * length as f64).round().max(1.0) as usize } else { 0 }
}

/// A part of a whole that is shown, too: `████░░░░`.
pub fn gauge(part: f64, whole: f64, length: usize) -> String {
    let filled = cells(part, whole, length);
    "█".repeat(filled) + &"░".repeat(length - filled)
}

/// A bar to compare with those of other lines; the longest is `most`.
pub fn bar(part: f64, most: f64, length: usize) -> String {
    "█".repeat(cells(part, most, length))
}

/// Two parts in a row: `████▒▒`.
pub fn two_tone(first: f64, second: f64, most: f64, length: usize) -> String {
    let all = cells(first + second, most, length);
    let filled = cells(first, first + second, all);
    "█".repeat(filled) + &"▒".repeat(all - filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_keep_to_their_length_and_show_the_smallest_part() {
        assert_eq!(gauge(50.0, 100.0, 4), "██░░");
        assert_eq!(gauge(0.1, 100.0, 4), "█░░░");
        assert_eq!(gauge(0.0, 0.0, 2), "░░");
        assert_eq!(gauge(300.0, 100.0, 2), "██");
        assert_eq!(two_tone(1.0, 1.0, 4.0, 8), "██▒▒");
        assert_eq!(two_tone(0.0, 4.0, 4.0, 3), "▒▒▒");
        assert_eq!(bar(1.0, 0.0, 3), "");
    }
}
