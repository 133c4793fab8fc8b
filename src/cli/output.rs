//! What commands print: tables and sentences for people, or with `--json` one JSON value on standard output and nothing
//! else there.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{client::ClientError, error::CliError, terminal};

/// The reader of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    People,
    Json,
}

pub struct Output {
    format: Format,
    color: bool,
}

impl Output {
    /// Colours only on a terminal and without `NO_COLOR`.
    pub fn new(format: Format) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { format, color: io::stdout().is_terminal() && !no_color }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Columns of standard output, if it is a terminal.
    pub fn width(&self) -> Option<u16> {
        io::stdout().is_terminal().then(|| terminal::size().0)
    }

    /// Shows a response of the server: unchanged as JSON, rendered by `render` for people.
    pub fn show<T: DeserializeOwned>(&self, answer: Value, render: impl FnOnce(T) -> String) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(&answer),
            Format::People => {
                let parsed = serde_json::from_value(answer).map_err(ClientError::Unintelligible)?;
                self.line(render(parsed))
            }
        }
    }

    /// One JSON value on a line.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(io::Error::from)?;
        Ok(writeln!(io::stdout(), "{text}")?)
    }

    /// Text and a newline; nothing for an empty text.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        match text.as_ref().trim_end_matches('\n') {
            "" => Ok(()),
            text => Ok(writeln!(io::stdout(), "{text}")?),
        }
    }

    /// Bytes, unchanged.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// A table with a header. On a terminal it fits the width; in a pipe every row is one line.
    pub fn table(&self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
        let cells = |row: Vec<String>| row.iter().map(|cell| Cell::new(printable(cell))).collect();
        let mut table = self.table_of_cells(header, rows.into_iter().map(cells));
        if let Some(width) = self.width() {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        table.trim_fmt()
    }

    /// A table of cells with colours. Their text has to be `printable`.
    pub fn table_of_cells(&self, header: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|title| {
            let cell = Cell::new(title);
            if self.color { cell.add_attribute(Attribute::Bold) } else { cell }
        }));
        table.add_rows(rows);
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        table
    }

    /// The result of a command: the response as JSON, a sentence for people.
    pub fn done(&self, answer: &Value, sentence: impl AsRef<str>) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(answer),
            Format::People => self.line(sentence),
        }
    }

    pub fn warn(&self, message: impl std::fmt::Display) {
        eprintln!("{} {message}", self.paint("warning:", "33"));
    }

    /// The error of a failed command, on standard error.
    pub fn error(&self, error: &CliError) {
        if matches!(error, CliError::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        match self.format {
            Format::Json => {
                eprintln!("{}", json!({"error": error.message(), "code": error.code(), "hint": error.hint()}));
            }
            Format::People => {
                eprintln!("{} {}", self.paint("error:", "1;31"), printable(&error.message()));
                if let Some(hint) = error.hint() {
                    eprintln!("{} {hint}", self.paint("hint:", "36"));
                }
            }
        }
    }

    /// Text in an ANSI colour, for standard output.
    pub fn color(&self, text: &str, code: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text in an ANSI colour, for standard error.
    fn paint(&self, text: &str, code: &str) -> String {
        if io::stderr().is_terminal() { self.color(text, code) } else { text.to_owned() }
    }
}

/// Foreign text without control characters, so that an image name of one user cannot move the cursor of another.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unprintable(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The same on one line.
pub fn printable_line(text: &str) -> String {
    printable(text).replace('\n', "\u{fffd}")
}

/// Control characters, and those that are invisible or reorder the text around them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `1.5G` (as pody 0.4.1 writes sizes), `-` for -1, which means no limit.
pub fn size(bytes: i64, decimals: usize) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    match units.iter().find(|(shift, _)| bytes >= 1 << shift) {
        _ if bytes < 0 => "-".to_owned(),
        Some((shift, unit)) => format!("{:.decimals$}{unit}", bytes as f64 / (1i64 << shift) as f64),
        None => format!("{bytes}B"),
    }
}

/// A number of bytes: `1.5G`.
pub fn bytes(count: u64) -> String {
    size(i64::try_from(count).unwrap_or(i64::MAX), 1)
}

/// `2d 3h 4m 5s`, from the first unit that is not zero.
pub fn duration(seconds: f64) -> String {
    let all = seconds.max(0.0) as u64;
    let (days, hours, minutes, seconds) = (all / 86_400, all / 3600 % 24, all / 60 % 60, all % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m {seconds}s"),
        _ => format!("{days}d {hours}h {minutes}m {seconds}s"),
    }
}

/// The same, shorter: the two largest units.
pub fn short_duration(seconds: f64) -> String {
    duration(seconds).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The age of an RFC 3339 time, in its largest unit: `3h ago`.
pub fn ago(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else { return time.to_owned() };
    let seconds = Timestamp::now().as_second() - time.as_second();
    match seconds {
        ..60 => "just now".to_owned(),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// GPUs as the API has them: `null` = all.
pub fn gpus(ids: Option<&[u32]>) -> String {
    match ids {
        None => "all".to_owned(),
        Some([]) => "none".to_owned(),
        Some(ids) => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_written_as_in_pody_0_4_1() {
        assert_eq!(size(64 << 30, 1), "64.0G");
        assert_eq!(size(1536, 1), "1.5K");
        assert_eq!(size(12, 1), "12B");
        assert_eq!(size(-1, 1), "-");
        assert_eq!(duration(59.9), "59s");
        assert_eq!(duration(3600.0), "1h 0m 0s");
        assert_eq!(duration(90061.0), "1d 1h 1m 1s");
        assert_eq!(short_duration(90061.0), "1d 1h");
        assert_eq!(short_duration(5.0), "5s");
    }

    #[test]
    fn control_characters_do_not_pass() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(printable_line("a\nb\u{202e}c é"), "a\u{fffd}b\u{fffd}c é");
    }
}
