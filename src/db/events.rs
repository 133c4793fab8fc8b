//! The table `events`: who did what to what, from where, with what outcome.
//!
//! An event is written in the same transaction as the change that it records. Work that continues after that starts as
//! `pending` and is closed when it ends; what a kill left open is closed as `interrupted` at the next start.

use rusqlite::{Row, params};

use super::{Db, DbError, Tx, collect, parsed};
use crate::model::{
    event::{Event, Outcome},
    names::UserName,
    time::Millis,
    user::Actor,
};

/// An event to record: `NewEvent::by(&actor).did("user.update", &name).of(&name)`. Without more it succeeded, has no
/// detail, and only admins may read it.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// A user, or `pody` for the daemon's own actions and `root` for admin commands on the host; its source is the
    /// address it came from, or `local`.
    actor: Actor,
    /// `pod.create`, `user.update`, …
    action: &'static str,
    object: String,
    user: Option<UserName>,
    outcome: Outcome,
    detail: Option<String>,
}

/// The author of an event that is being built.
#[derive(Clone, Debug)]
pub struct EventAuthor(Actor);

impl EventAuthor {
    pub fn did(self, action: &'static str, object: impl ToString) -> NewEvent {
        let object = object.to_string();
        NewEvent { actor: self.0, action, object, user: None, outcome: Outcome::Ok, detail: None }
    }
}

impl NewEvent {
    pub fn by(actor: &Actor) -> EventAuthor {
        EventAuthor(actor.clone())
    }

    /// The user it concerns, who may read it.
    #[must_use]
    pub fn of(self, user: &UserName) -> Self {
        Self { user: Some(user.clone()), ..self }
    }

    /// The work begins now; [`Tx::close_event`] records its end.
    #[must_use]
    pub fn pending(self) -> Self {
        self.outcome(Outcome::Pending)
    }

    #[must_use]
    pub fn outcome(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    #[must_use]
    pub fn detail(self, detail: impl Into<Option<String>>) -> Self {
        Self { detail: detail.into(), ..self }
    }
}

impl Db {
    /// Inserts an event that records no change of the database.
    pub async fn insert_event(&self, event: NewEvent) -> Result<i64, DbError> {
        self.write(move |tx| tx.insert_event(&event)).await
    }
}

/// Which events to list.
#[derive(Clone, Debug)]
pub struct EventFilter {
    /// `None` = everybody's.
    pub user: Option<UserName>,
    /// Only events with a smaller id, for the next page.
    pub before: Option<i64>,
    pub limit: u32,
}

/// Which events to find, by what they are about.
#[derive(Clone, Debug)]
pub struct EventSearch {
    /// `None` = everybody's.
    pub user: Option<UserName>,
    pub since: Millis,
    /// An action is `SUBJECT.VERB`.
    pub subject: Option<String>,
    pub verb: Option<String>,
    pub limit: u32,
}

/// An event with its time as it is stored.
#[derive(Clone, Debug)]
pub struct FoundEvent {
    pub at: Millis,
    pub event: Event,
}

fn read(row: &Row) -> Result<Event, DbError> {
    Ok(Event {
        id: row.get(0)?,
        at: row.get::<_, Millis>(1)?.to_string(),
        actor: row.get(2)?,
        source: row.get(3)?,
        action: row.get(4)?,
        object: row.get(5)?,
        outcome: parsed(row.get(6)?)?,
        detail: row.get(7)?,
    })
}

impl Tx<'_> {
    /// Inserts an event and returns its id.
    pub fn insert_event(&self, event: &NewEvent) -> Result<i64, DbError> {
        self.0.execute(
            "INSERT INTO events (at, actor, source, action, object, user, outcome, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                Millis::now(),
                event.actor.name,
                event.actor.source,
                event.action,
                event.object,
                event.user.as_ref().map(UserName::as_str),
                event.outcome.as_str(),
                event.detail,
            ],
        )?;
        Ok(self.0.last_insert_rowid())
    }

    /// Closes a pending event.
    pub fn close_event(&self, id: i64, outcome: Outcome, detail: Option<&str>) -> Result<(), DbError> {
        self.0.execute(
            "UPDATE events SET outcome = ?2, detail = coalesce(?3, detail) WHERE id = ?1 AND outcome = 'pending'",
            params![id, outcome.as_str(), detail],
        )?;
        Ok(())
    }

    /// Closes the events that a kill left open, except those whose work is still to be recovered.
    pub fn interrupt_events(&self) -> Result<usize, DbError> {
        Ok(self.0.execute(
            "UPDATE events SET outcome = 'interrupted' WHERE outcome = 'pending'
             AND id NOT IN (SELECT event FROM pods WHERE state IN ('creating', 'deleting')) AND id NOT IN (SELECT event FROM commits)
             AND id NOT IN (SELECT event FROM actions WHERE status = 'running')",
            [],
        )?)
    }

    /// Newest first.
    pub fn list_events(&self, filter: &EventFilter) -> Result<Vec<Event>, DbError> {
        let query = "SELECT id, at, actor, source, action, object, outcome, detail FROM events
                     WHERE (?1 IS NULL OR user = ?1) AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3";
        collect(&self.0, query, params![filter.user.as_ref().map(UserName::as_str), filter.before, filter.limit], read)
    }

    /// The newest of these actions on an object since a time.
    pub fn last_event_of(
        &self,
        user: &UserName,
        object: &str,
        actions: [&str; 2],
        since: Millis,
    ) -> Result<Option<String>, DbError> {
        let query = "SELECT action FROM events WHERE user = ?1 AND object = ?2 AND action IN (?3, ?4) AND at >= ?5
                     ORDER BY id DESC LIMIT 1";
        let params = params![user.as_str(), object, actions[0], actions[1], since];
        Ok(collect(&self.0, query, params, |row| Ok(row.get(0)?))?.pop())
    }

    /// Newest first.
    pub fn find_events(&self, search: &EventSearch) -> Result<Vec<FoundEvent>, DbError> {
        let query = "SELECT id, at, actor, source, action, object, outcome, detail FROM events
                     WHERE (?1 IS NULL OR user = ?1) AND at >= ?2
                     AND (?3 IS NULL OR substr(action, 1, instr(action, '.') - 1) = ?3)
                     AND (?4 IS NULL OR substr(action, instr(action, '.') + 1) = ?4)
                     ORDER BY id DESC LIMIT ?5";
        let user = search.user.as_ref().map(UserName::as_str);
        let params = params![user, search.since, search.subject, search.verb, search.limit];
        collect(&self.0, query, params, |row| Ok(FoundEvent { at: row.get(1)?, event: read(row)? }))
    }

    /// Keeps the newest `keep` events.
    pub fn shrink_events(&self, keep: u64) -> Result<usize, DbError> {
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let query = "DELETE FROM events WHERE outcome != 'pending'
                     AND id <= (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?1)";
        Ok(self.0.execute(query, [keep])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_succeeded_and_is_for_admins_unless_it_says_otherwise() {
        let plain = NewEvent::by(&Actor::local()).did("host.drain", "host");
        assert_eq!((plain.actor.name.as_str(), plain.actor.source.as_str()), ("root", "local"));
        assert_eq!((plain.action, plain.object.as_str(), plain.outcome), ("host.drain", "host", Outcome::Ok));
        assert_eq!((&plain.user, &plain.detail), (&None, &None));
        let user: UserName = "alice".parse().unwrap();
        let full = NewEvent::by(&Actor::daemon()).did("pod.create", 7).of(&user).detail("why".to_owned()).pending();
        assert_eq!((full.object.as_str(), full.outcome), ("7", Outcome::Pending));
        assert_eq!((full.user, full.detail.as_deref()), (Some(user), Some("why")));
    }
}
