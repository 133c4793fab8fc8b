//! `pody gpu` on a terminal: one question a second, whose answer is drawn over the last, until q or Ctrl-C.

use std::{pin::pin, time::Duration};

use crossterm::{
    cursor::MoveTo,
    event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    queue,
    style::Print,
    terminal::{BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate},
};
use futures_util::{StreamExt, stream};
use jiff::{Timestamp, tz::TimeZone};
use reqwest::StatusCode;
use tokio::{
    signal::unix::SignalKind,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{ROUTE, view::Gpus};
use crate::cli::{
    client::{Client, ClientError},
    error::CliError,
    exit,
    output::{Output, printable_line},
    terminal::{self, FullScreen},
};

const PERIOD: Duration = Duration::from_secs(1);

/// How long an answer may take before the screen says that it is old.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows the GPUs until the person has seen enough.
pub async fn watch(client: &Client, first: Gpus, out: &Output) -> Result<u8, CliError> {
    let mut terminated = terminal::on_signal(SignalKind::terminate())?;
    let mut hung_up = terminal::on_signal(SignalKind::hangup())?;
    let mut interrupted = terminal::on_signal(SignalKind::interrupt())?;
    let ended_by = |kind: SignalKind| Ok(exit::SIGNAL_BASE + kind.as_raw_value() as u8);
    let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A stream, so that a key does not make it forget the question that is under way.
    let mut answers = pin!(stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        Some((ask(client).await, ticks))
    }));
    let _screen = FullScreen::enter()?;
    let mut events = EventStream::new();
    let mut live = Live { server: client.server(), out, gpus: first, trouble: None, scroll: 0 };
    live.draw()?;
    loop {
        tokio::select! {
            Some(answer) = answers.next() => live.take(answer)?,
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if is_end(key) {
                        return Ok(exit::OK);
                    }
                    live.scroll(key.code);
                }
                // A new size, or nothing that concerns us: drawing is cheap.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(CliError::Terminal(error)),
                None => return Ok(exit::OK),
            },
            _ = terminated.recv() => return ended_by(SignalKind::terminate()),
            _ = hung_up.recv() => return ended_by(SignalKind::hangup()),
            _ = interrupted.recv() => return ended_by(SignalKind::interrupt()),
        }
        live.draw()?;
    }
}

/// One question; `None` if there is no answer in time.
async fn ask(client: &Client) -> Option<Result<Gpus, ClientError>> {
    let answer = timeout(PATIENCE, client.get(ROUTE, &[])).await.ok()?;
    Some(answer.and_then(|answer| serde_json::from_value(answer).map_err(ClientError::Unintelligible)))
}

fn is_end(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        KeyCode::Char('q') | KeyCode::Esc => true,
        _ => false,
    }
}

struct Live<'a> {
    server: &'a str,
    out: &'a Output,
    /// What was read last.
    gpus: Gpus,
    /// Why there is nothing newer.
    trouble: Option<String>,
    /// Lines above the screen.
    scroll: usize,
}

impl Live<'_> {
    /// Takes what the server said. A server that is away may come back; one that refuses us will not change its mind.
    fn take(&mut self, answer: Option<Result<Gpus, ClientError>>) -> Result<(), CliError> {
        self.trouble = match answer {
            Some(Ok(gpus)) => {
                self.gpus = gpus;
                None
            }
            None => Some(format!("no answer for {} s", PATIENCE.as_secs())),
            Some(Err(error)) => match &error {
                ClientError::Unreachable { .. } | ClientError::BrokeOff(_) => Some(error.to_string()),
                ClientError::Refused(refusal)
                    if refusal.status.is_server_error() || refusal.status == StatusCode::TOO_MANY_REQUESTS =>
                {
                    Some(error.to_string())
                }
                _ => return Err(error.into()),
            },
        };
        Ok(())
    }

    fn scroll(&mut self, key: KeyCode) {
        let page = usize::from(terminal::size().1 / 2);
        self.scroll = match key {
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::PageDown => self.scroll + page,
            KeyCode::Home => 0,
            _ => self.scroll,
        };
    }

    /// The title.
    fn title(&self, width: usize) -> String {
        let time = self.gpus.at.parse::<Timestamp>().map(|at| at.to_zoned(TimeZone::system()).strftime("%H:%M:%S"));
        let time = time.map_or_else(|_| self.gpus.at.clone(), |time| time.to_string());
        let (text, colour) = match &self.trouble {
            None => (format!("{}  {time}  q ends", self.server), "1"),
            Some(trouble) => (format!("{}  as it was at {time}: {trouble}", self.server), "1;33"),
        };
        self.out.color(&printable_line(&text).chars().take(width).collect::<String>(), colour)
    }

    /// Draws the screen in one write, so that it does not flicker.
    fn draw(&mut self) -> Result<(), CliError> {
        let (columns, rows) = terminal::size();
        let body = self.gpus.lines(self.out, Some(columns));
        let room = usize::from(rows).saturating_sub(1);
        self.scroll = self.scroll.min(body.len().saturating_sub(room));
        let mut shown: Vec<String> = body[self.scroll..].iter().take(room).cloned().collect();
        let below = body.len() - self.scroll - shown.len();
        if let Some(last) = shown.last_mut().filter(|_| below > 0) {
            *last = format!("… {} more lines: arrow keys", below + 1);
        }
        shown.insert(0, self.title(columns.into()));
        let mut screen = Vec::new();
        queue!(screen, BeginSynchronizedUpdate)?;
        for row in 0..rows {
            queue!(screen, MoveTo(0, row), Clear(ClearType::CurrentLine))?;
            if let Some(line) = shown.get(usize::from(row)) {
                queue!(screen, Print(line))?;
            }
        }
        queue!(screen, EndSynchronizedUpdate)?;
        self.out.bytes(&screen)
    }
}
