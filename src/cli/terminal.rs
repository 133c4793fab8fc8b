//! The terminal of the person: raw mode and full screen that always end, and questions.

use std::io::{self, BufRead, IsTerminal, Write};

use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    execute, terminal,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;

/// The size of a terminal where there is none.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Raw mode as long as this lives, whichever way the code below it is left.
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

/// The whole screen as long as this lives: raw mode, no cursor, lines that are cut at the edge; and what was there before
/// comes back at the end.
pub struct FullScreen {
    _raw: RawMode,
}

impl FullScreen {
    pub fn enter() -> Result<Self, CliError> {
        // In this order: if the rest fails, all of it is undone.
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

/// Whether a person can be asked.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a line of text.
pub fn ask(prompt: &str) -> Result<String, CliError> {
    eprint!("{prompt}: ");
    read_line()
}

/// Asks a question that is no unless the answer is y or yes. Where nobody can be asked it is no.
pub fn confirm(question: &str) -> Result<bool, CliError> {
    if !is_interactive() {
        return Ok(false);
    }
    let answer = ask(&format!("{question} [y/N]"))?;
    Ok(matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// A password that exists: typed without echo, or the first line of the standard input where that is no terminal.
pub fn ask_password(prompt: &str) -> Result<String, CliError> {
    let password = if is_interactive() { type_unseen(prompt)? } else { read_line()? };
    if password.is_empty() { Err(CliError::EmptyPassword) } else { Ok(password) }
}

/// A new password, which a person has to type twice.
pub fn ask_new_password(prompt: &str) -> Result<String, CliError> {
    let password = ask_password(prompt)?;
    if is_interactive() && type_unseen("The same again")? != password {
        return Err(CliError::PasswordsDiffer);
    }
    Ok(password)
}

/// One line of the standard input, without its end. White space is part of a password.
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

/// Reads keys until Enter. Ctrl-C arrives here as a key, so the terminal is restored before the program ends.
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
