//! `/v2/events`: the audit trail, in this dialect's words.

use serde::Serialize;
use serde_json::{Value, json};

use super::{EmptyAsNone, V2Error};
use crate::{
    db::{EventSearch, FoundEvent},
    http::{endpoint::Ctx, json::Json},
    model::time::Millis,
    params,
};

/// Default window, seconds.
const WINDOW: u32 = 3600;

/// The maximum of the editions' type.
const MAX_WINDOW: u32 = i32::MAX as u32;

/// Events of one response, the newest.
const LIMIT: u32 = 1000;

#[derive(Serialize)]
struct Event {
    id: i64,
    status: String,
    operation: String,
    resource_type: String,
    message: String,
    metadata: Value,
    source: String,
    /// Seconds since 1970.
    timestamp: i64,
}

impl From<FoundEvent> for Event {
    fn from(found: FoundEvent) -> Self {
        let event = found.event;
        let (subject, verb) = event.action.split_once('.').unwrap_or(("", &event.action));
        let reason = event.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        Self {
            id: event.id,
            message: format!("{} {} {}{reason}", event.actor, event.action, event.object),
            metadata: json!({"actor": event.actor, "object": event.object, "at": event.at, "detail": event.detail}),
            operation: verb.to_owned(),
            resource_type: subject.to_owned(),
            source: event.source,
            status: event.outcome.to_string(),
            timestamp: found.at.seconds().max(0),
        }
    }
}

params! { List { ; time: EmptyAsNone<u32>, operation: EmptyAsNone<String>, resource_type: EmptyAsNone<String> } }

/// Members see their own, admins everybody's.
pub async fn list(ctx: Ctx, params: List) -> Result<Json<impl Serialize>, V2Error> {
    let caller = ctx.caller();
    let window = params.time.and_then(|time| time.0).unwrap_or(WINDOW);
    if window > MAX_WINDOW {
        return Err(V2Error::BadRequest(format!("time: at most {MAX_WINDOW} s, not {window}")));
    }
    let search = EventSearch {
        user: (!caller.is_admin).then(|| caller.user.clone()),
        since: Millis::now() - i64::from(window) * 1000,
        subject: params.resource_type.and_then(|kind| kind.0),
        verb: params.operation.and_then(|operation| operation.0),
        limit: LIMIT,
    };
    let found = ctx.app.db.read::<_, crate::db::DbError>(move |tx| tx.find_events(&search)).await?;
    Ok(Json(found.into_iter().map(Event::from).collect::<Vec<_>>()))
}
