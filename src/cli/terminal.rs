//! The terminal of the user: raw mode and full screen that always end, and questions.

use std::io::{self, BufRead, IsTerminal, Write};

use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    execute, terminal,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;

/// The size without a terminal.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Raw mode until this is dropped.
pub struct RawMode(());

impl RawMode {
    pub fn enter() -> Result<Self, CliError> {
        terminal::enable_raw_mode().map_err(CliError::Terminal)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
    }
}

/// The alternate screen until this is dropped: raw mode, no cursor, lines cut at the edge. The previous content is
/// restored at the end.
pub struct FullScreen {
    _raw: RawMode,
}

impl FullScreen {
    pub fn enter() -> Result<Self, CliError> {
        // In this order: if the rest fails, all of it is reverted.
        let screen = Self { _raw: RawMode::enter()? };
        execute!(io::stdout(), terminal::EnterAlternateScreen, terminal::DisableLineWrap, cursor::Hide)
            .map_err(CliError::Terminal)?;
        Ok(screen)
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), cursor::Show, terminal::EnableLineWrap, terminal::LeaveAlternateScreen);
    }
}

/// Columns and rows.
pub fn size() -> (u16, u16) {
    terminal::size().ok().filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or(DEFAULT_SIZE)
}

pub fn on_signal(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind).map_err(CliError::Terminal)
}

/// Whether the user can be asked.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a line of text.
pub fn ask(prompt: &str) -> Result<String, CliError> {
    eprint!("{prompt}: ");
    read_line()
}

/// Asks a yes-or-no question. Anything but y or yes is no, and so is the lack of a terminal.
pub fn confirm(question: &str) -> Result<bool, CliError> {
    if !is_interactive() {
        return Ok(false);
    }
    let answer = ask(&format!("{question} [y/N]"))?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// An existing password: typed without echo, or the first line of standard input if that is not a terminal.
pub fn ask_password(prompt: &str) -> Result<String, CliError> {
    let password = if is_interactive() { type_unseen(prompt)? } else { read_line()? };
    if password.is_empty() { Err(CliError::EmptyPassword) } else { Ok(password) }
}

/// A new password, which has to be typed twice on a terminal.
pub fn ask_new_password(prompt: &str) -> Result<String, CliError> {
    let password = ask_password(prompt)?;
    if is_interactive() && type_unseen("Repeat the password")? != password {
        return Err(CliError::PasswordsDiffer);
    }
    Ok(password)
}

/// One line of standard input, without its end. White space is kept: it may be part of a password.
pub fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(CliError::Stdin)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn type_unseen(prompt: &str) -> Result<String, CliError> {
    eprint!("{prompt}: ");
    io::stderr().flush().map_err(CliError::Terminal)?;
    let typed = {
        let _raw = RawMode::enter()?;
        type_line()
    };
    eprintln!();
    typed
}

/// Reads keys until Enter. In raw mode Ctrl-C is a key, so the terminal is restored before the program ends.
fn type_line() -> Result<String, CliError> {
    let mut line = String::new();
    loop {
        let Event::Key(key) = event::read().map_err(CliError::Terminal)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Enter => return Ok(line),
            KeyCode::Char('j') if control => return Ok(line),
            KeyCode::Char('c' | 'd') if control => return Err(CliError::Cancelled),
            KeyCode::Char('u') if control => line.clear(),
            KeyCode::Char(c) if !control => line.push(c),
            KeyCode::Backspace => {
                line.pop();
            }
            _ => {}
        }
    }
}
