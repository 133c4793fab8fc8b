//! `pody gpu` on a terminal: one request a second, whose response is drawn over the last one, until q or Ctrl-C.

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

use super::{ROUTE, view::lines};
use crate::{
    cli::{
        client::{Client, ClientError},
        error::CliError,
        exit,
        output::{Output, printable_line},
        terminal::{self, FullScreen},
    },
    model::{names::start_of, view::gpu::GpusView},
};

const PERIOD: Duration = Duration::from_secs(1);
/// How long a response may take before the screen says that it is outdated.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Shows the GPUs until the user quits.
pub async fn watch(client: &Client, first: GpusView, out: &Output) -> Result<u8, CliError> {
    let mut terminated = terminal::on_signal(SignalKind::terminate())?;
    let mut hung_up = terminal::on_signal(SignalKind::hangup())?;
    let mut interrupted = terminal::on_signal(SignalKind::interrupt())?;
    let ended_by = |kind: SignalKind| Ok(exit::SIGNAL_BASE + kind.as_raw_value() as u8);
    let mut ticks = interval_at(Instant::now() + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A stream, so that a key does not cancel the request in flight.
    let mut answers = pin!(stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        Some((fetch(client).await, ticks))
    }));
    let _screen = FullScreen::enter()?;
    let mut events = EventStream::new();
    let mut view = LiveView { server: client.server(), out, gpus: first, problem: None, scroll: 0 };
    view.draw()?;
    loop {
        tokio::select! {
            Some(answer) = answers.next() => view.update(answer)?,
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if is_end(key) {
                        return Ok(exit::OK);
                    }
                    view.scroll(key.code);
                }
                // A new size, or something irrelevant: drawing is cheap.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(CliError::Terminal(error)),
                None => return Ok(exit::OK),
            },
            _ = terminated.recv() => return ended_by(SignalKind::terminate()),
            _ = hung_up.recv() => return ended_by(SignalKind::hangup()),
            _ = interrupted.recv() => return ended_by(SignalKind::interrupt()),
        }
        view.draw()?;
    }
}

/// One request; `None` if there is no response in time.
async fn fetch(client: &Client) -> Option<Result<GpusView, ClientError>> {
    let answer = timeout(RESPONSE_TIMEOUT, client.get(ROUTE, &[])).await.ok()?;
    Some(answer.and_then(|answer| serde_json::from_value(answer).map_err(ClientError::Unintelligible)))
}

fn is_end(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        KeyCode::Char('q') | KeyCode::Esc => true,
        _ => false,
    }
}

struct LiveView<'a> {
    server: &'a str,
    out: &'a Output,
    /// The last response.
    gpus: GpusView,
    /// Why there is no newer one.
    problem: Option<String>,
    /// Lines above the screen.
    scroll: usize,
}

impl LiveView<'_> {
    /// Takes a response. An unreachable server may come back; a refusal ends the view.
    fn update(&mut self, answer: Option<Result<GpusView, ClientError>>) -> Result<(), CliError> {
        self.problem = match answer {
            Some(Ok(gpus)) => {
                self.gpus = gpus;
                None
            }
            None => Some(format!("no answer for {} s", RESPONSE_TIMEOUT.as_secs())),
            Some(Err(error)) => match &error {
                ClientError::Unreachable { .. } | ClientError::BrokeOff(_) => Some(error.to_string()),
                ClientError::Refused(refusal)
                    if refusal.status.is_server_error() || refusal.status == StatusCode::TOO_MANY_REQUESTS =>
                {
                    Some(error.to_string())
                }
                ClientError::Refused(_)
                | ClientError::Unintelligible(_)
                | ClientError::NoWebSocket
                | ClientError::BadServer { .. }
                | ClientError::HalfIdentity { .. }
                | ClientError::CaCert { .. }
                | ClientError::Tls(_)
                | ClientError::Store(_) => return Err(error.into()),
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

    /// The first line.
    fn title(&self, width: usize) -> String {
        let time = self.gpus.at.parse::<Timestamp>().map(|at| at.to_zoned(TimeZone::system()).strftime("%H:%M:%S"));
        let time = time.map_or_else(|_| self.gpus.at.clone(), |time| time.to_string());
        let (text, colour) = match &self.problem {
            None => (format!("{}  {time}  q to quit", self.server), "1"),
            Some(problem) => (format!("{}  as of {time}: {problem}", self.server), "1;33"),
        };
        self.out.color(start_of(&printable_line(&text), width), colour)
    }

    /// Draws the screen in one write, so that it does not flicker.
    fn draw(&mut self) -> Result<(), CliError> {
        let (columns, rows) = terminal::size();
        let body = lines(&self.gpus, self.out, Some(columns));
        let room = usize::from(rows).saturating_sub(1);
        self.scroll = self.scroll.min(body.len().saturating_sub(room));
        let mut shown: Vec<String> = body[self.scroll..].iter().take(room).cloned().collect();
        let below = body.len() - self.scroll - shown.len();
        if let Some(last) = shown.last_mut().filter(|_| below > 0) {
            *last = format!("… {} more lines: scroll with the arrow keys", below + 1);
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
