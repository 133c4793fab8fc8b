//! Clients, one per kind of caller, and responses that print the same on every machine.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

/// How long a response may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// Values that differ between runs, and their replacements. Longer texts first.
#[derive(Clone, Default)]
pub struct Redactions(pub Arc<Vec<(String, &'static str)>>);

impl Redactions {
    pub fn text(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    }

    /// By key where the value is not recognizable, by content elsewhere.
    pub fn json(&self, value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|value| self.json(value)),
            Value::Object(object) => {
                // Whether a map keeps its order depends on the enabled features.
                let sorted: BTreeMap<String, Value> = std::mem::take(object).into_iter().collect();
                object.extend(sorted);
                for (key, value) in object.iter_mut() {
                    match (key.as_str(), &value) {
                        ("at" | "created_at" | "expires_at" | "created", Value::String(_)) => *value = "[time]".into(),
                        ("container_id", Value::String(id)) if id.len() == 12 => *value = "[container id]".into(),
                        ("id", Value::String(id)) if id.starts_with("sha256:") => *value = "[image id]".into(),
                        ("token", Value::String(token)) if token.starts_with("pody_") => *value = "[token]".into(),
                        ("port_mapping", Value::Array(ports)) => {
                            let inside = |port: &Value| {
                                let text = port.as_str().unwrap_or_default();
                                let (host, inside) = text.split_once(':').unwrap_or(("?", text));
                                assert!(host.parse::<u16>().is_ok(), "a port mapping is HOST:POD, this is {text:?}");
                                Value::from(format!("[port]:{inside}"))
                            };
                            *value = ports.iter().map(inside).collect();
                        }
                        _ => self.json(value),
                    }
                }
            }
            Value::String(text) => *text = self.text(text),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// A response of the server. Prints as status and body, for snapshots.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
    redactions: Redactions,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, unredacted.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The value of `detail`.
    #[track_caller]
    pub fn detail(&self) -> String {
        let json = self.json();
        json["detail"].as_str().unwrap_or_else(|| panic!("no detail in {json}")).to_owned()
    }

    /// The value of `code`.
    #[track_caller]
    pub fn code(&self) -> String {
        let json = self.json();
        json["code"].as_str().unwrap_or_else(|| panic!("no code in {json}")).to_owned()
    }

    /// Fails the test unless the status is 200.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        match serde_json::from_slice::<Value>(&self.body) {
            Ok(mut json) => {
                self.redactions.json(&mut json);
                write!(f, "\n{json:#}")
            }
            Err(_) if self.body.is_empty() => Ok(()),
            Err(_) => write!(f, "\n{}", self.redactions.text(&self.text())),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A caller. Cheap to clone, also into threads.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
    redactions: Redactions,
}

impl Client {
    pub fn new(base: &str, authorization: Option<String>, redactions: Redactions) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .allow_non_standard_methods(true)
            .timeout_global(Some(PATIENCE))
            // Do not use the machine's proxy for this host.
            .proxy(None);
        Self { agent: config.build().into(), base: base.to_owned(), authorization, redactions }
    }

    pub fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
    }

    pub fn bearer(token: &str) -> String {
        format!("Bearer {token}")
    }

    /// The same server, called as someone else.
    pub fn with_authorization(&self, authorization: &str) -> Self {
        Self { authorization: Some(authorization.to_owned()), ..self.clone() }
    }

    /// Sends path and query unchanged.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[])
    }

    #[track_caller]
    pub fn post(&self, path: &str) -> Answer {
        self.send("POST", path, &[])
    }

    /// With parameters in the query.
    #[track_caller]
    pub fn get_with(&self, path: &str, parameters: &[(&str, &str)]) -> Answer {
        self.get(&with_query(path, parameters))
    }

    #[track_caller]
    pub fn post_with(&self, path: &str, parameters: &[(&str, &str)]) -> Answer {
        self.post(&with_query(path, parameters))
    }

    /// A request with additional headers.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_body(method, path, headers, b"")
    }

    #[track_caller]
    pub fn send_body(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// For servers that may not be running.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let response = match method {
            "GET" if body.is_empty() => self.agent.run(request.body(())?)?,
            // An empty body needs a length too: without one it would be sent in chunks.
            _ => self.agent.run(request.body(body)?)?,
        };
        let (parts, mut body) = response.into_parts();
        let body = body.with_config().limit(64 << 20).read_to_vec()?;
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, redactions: self.redactions.clone() })
    }
}

/// `path?a=b&c=d`, percent-encoded.
pub fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
