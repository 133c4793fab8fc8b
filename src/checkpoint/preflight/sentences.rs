//! The sentences about a pod's programs, for people and for the manifest, which refuses sentences that no honest pod
//! would cause. A program chooses its name and how many of a thing it has.

use std::{collections::HashMap, fs};

/// Sentences shown for one pod: further ones are counted.
const MOST_SENTENCES: usize = 100;

/// Each sentence once, with its number of occurrences.
pub fn condensed(sentences: Vec<String>) -> Vec<String> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for sentence in sentences {
        let sentence = plain(&sentence);
        let place = *places.entry(sentence.clone()).or_insert(counted.len());
        match counted.get_mut(place) {
            Some((_, times)) => *times += 1,
            None => counted.push((sentence, 1)),
        }
    }
    let more = counted.len().saturating_sub(MOST_SENTENCES);
    counted.truncate(MOST_SENTENCES);
    let told = counted.into_iter().map(|(sentence, times)| match times {
        1 => sentence,
        times => format!("{sentence} ({times} times)"),
    });
    told.chain((more > 0).then(|| format!("and {more} more like these"))).collect()
}

/// A text on one line, whatever name a program in it has chosen.
pub fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(plain).collect()
}

/// A process's own name, which may be any bytes.
pub fn name_of(pid: i32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_names_cannot_make_lists_long_or_break_lines() {
        let many = (0..5_000).map(|_| "a\u{1b}[2J\nb[7] ticks".to_owned()).chain(["c[8] ticks".to_owned()]);
        assert_eq!(condensed(many.collect()), ["a\\u{1b}[2J\\nb[7] ticks (5000 times)", "c[8] ticks"]);
        let told = condensed((0..1_234).map(|number| format!("x[{number}] ticks")).collect());
        assert_eq!((told.len(), told[MOST_SENTENCES].as_str()), (MOST_SENTENCES + 1, "and 1134 more like these"));
        assert_eq!(condensed(Vec::new()), [""; 0]);
    }
}
