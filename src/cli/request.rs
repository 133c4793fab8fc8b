//! `pody get`, `post` and `fetch`: any route of the API by its name, as in pody 0.4.1.

use std::io::Read;

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::{self, Client, ClientError},
    error::CliError,
    exit, original,
    output::{self, Format, Output},
};
use crate::model::{
    quota::{Limit, Unit},
    view::help::HelpRow,
};

/// A request as typed.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// The route, like pod/create; a route that ends in '/' lists all routes below it
    #[arg(value_name = "ROUTE")]
    route: String,
    /// Parameters; an empty last value is read from standard input
    #[arg(value_name = "KEY:VALUE")]
    params: Vec<String>,
    /// Print the response as one line of JSON, errors too
    #[arg(long)]
    raw: bool,
}

/// Which method a request is sent with.
#[derive(Clone, Copy, Debug)]
pub enum Verb {
    Get,
    Post,
    /// The method that the server lists for the route.
    Auto,
}

impl RequestArgs {
    pub async fn run(self, verb: Verb, out: &Output) -> Result<u8, CliError> {
        if self.route.ends_with('/') {
            return help(&self.route, out).await;
        }
        let raw = self.raw || out.format() == Format::Json;
        let mut params = Vec::new();
        let result = match parse_params(&self.params) {
            Ok(parsed) => {
                params = parsed;
                send(verb, &self.route, &params).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) if raw => out.json(&answer)?,
            Ok(answer) => out.line(readable(answer))?,
            Err(error) if raw => {
                out.json(&original::error_json(&error, &json_params(&params)))?;
                return Ok(exit::FAILED);
            }
            Err(error) => return original::end(Err(error)),
        }
        Ok(exit::OK)
    }
}

async fn send(verb: Verb, route: &str, params: &[(String, String)]) -> Result<Value, CliError> {
    let client = Client::from_environment()?;
    let method = match verb {
        Verb::Get => Method::GET,
        Verb::Post => Method::POST,
        Verb::Auto => find_method(&client, route).await?,
    };
    let (form, query): (Vec<_>, Vec<_>) = params
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .partition(|(key, value)| method == Method::POST && belongs_in_the_body(key, value));
    Ok(client::read_json(client.send(method, route, &query, &form).await?).await?)
}

/// A pody 0.4.1 server reads only the query string, so parameters travel there where possible. Secrets, which must not
/// appear in URLs, and values that are too long for one go into the body.
fn belongs_in_the_body(key: &str, value: &str) -> bool {
    const LONGEST_IN_URL: usize = 2048;
    is_secret(key) || value.len() > LONGEST_IN_URL
}

fn is_secret(key: &str) -> bool {
    matches!(key, "passwd" | "password" | "token" | "credential")
}

/// Asks the server which method a route has.
async fn find_method(client: &Client, route: &str) -> Result<Method, CliError> {
    let path = absolute(route);
    let routes = list_routes(client, &path).await?;
    match routes.as_slice() {
        [] => Err(CliError::NoRoute(path)),
        [route] => match route.methods.as_slice() {
            [method] if method == "GET" => Ok(Method::GET),
            [method] if method == "POST" => Ok(Method::POST),
            methods => Err(CliError::AmbiguousMethod(methods.join(", "))),
        },
        _ => Err(CliError::AmbiguousRoute(path)),
    }
}

/// Prints the table of routes at or below a path.
pub async fn help(path: &str, out: &Output) -> Result<u8, CliError> {
    let path = absolute(path);
    let table = async {
        let answer = Client::from_environment()?.get("help", &[("path", &path)]).await?;
        out.show(answer, |routes: Vec<HelpRow>| {
            out.table(&["Path", "Methods", "Params", "What"], routes.into_iter().map(row))
        })?;
        Ok(exit::OK)
    };
    original::end(table.await)
}

/// Whether the server has this route. A server that cannot be asked has none.
pub async fn is_route(path: &str) -> bool {
    let Ok(client) = Client::from_environment() else { return false };
    list_routes(&client, &absolute(path)).await.is_ok_and(|routes| !routes.is_empty())
}

/// A route as a row of the table.
fn row(route: HelpRow) -> Vec<String> {
    let params = route.params.iter().map(|p| format!("{}{}", p.name, if p.optional { "?" } else { "" }));
    let params = params.collect::<Vec<_>>().join(", ");
    vec![route.path.into_owned(), route.methods.join(", "), params, route.summary.into_owned()]
}

async fn list_routes(client: &Client, path: &str) -> Result<Vec<HelpRow>, CliError> {
    let answer = client.get("help", &[("path", path)]).await?;
    Ok(serde_json::from_value(answer).map_err(ClientError::Unintelligible)?)
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// Splits `key:value` and `key=value` at the first separator. An empty last value is read from standard input and
/// trimmed. A key given twice keeps its last value.
fn parse_params(args: &[String]) -> Result<Vec<(String, String)>, CliError> {
    let mut params: Vec<(String, String)> = Vec::new();
    for (at, arg) in args.iter().enumerate() {
        let (key, value) = arg.split_once([':', '=']).ok_or_else(|| CliError::NoSeparator(arg.clone()))?;
        let value = match value {
            "" if at + 1 < args.len() => return Err(CliError::StdinNotLast(key.to_owned())),
            "" => read_stdin()?,
            value => value.to_owned(),
        };
        params.retain(|(known, _)| known != key);
        params.push((key.to_owned(), value));
    }
    Ok(params)
}

fn read_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(CliError::Stdin)?;
    Ok(text.trim().to_owned())
}

/// Parameters for the context of an error, which may end up in a log: without secrets.
fn json_params(params: &[(String, String)]) -> Value {
    params.iter().map(|(key, value)| (key.clone(), json!(if is_secret(key) { "***" } else { value }))).collect()
}

/// Text unchanged, anything else as indented JSON with readable sizes and times.
fn readable(answer: Value) -> String {
    match spell_out(answer) {
        Value::String(text) => text,
        other => serde_json::to_string_pretty(&other).unwrap_or_else(|_| other.to_string()),
    }
}

/// `"memory_limit": 1073741824` becomes `"1.0G (1073741824)"`, and likewise the other sizes and times that pody knows.
fn spell_out(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(spell_out).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| spell_out_field(key, value)).collect(),
        other => other,
    }
}

fn spell_out_field(key: String, value: Value) -> (String, Value) {
    let is_size = |name: &str| {
        let limit = Limit::ALL.iter().find(|limit| limit.name == name);
        limit.is_some_and(|limit| limit.unit == Unit::Bytes) || matches!(name, "memory_used" | "gpu_memory_used")
    };
    let text = match key.as_str() {
        name if is_size(name) => value.as_i64().filter(|&bytes| bytes != -1).map(|bytes| output::size(bytes, 1)),
        "uptime" | "cputime" => value.as_f64().map(output::duration),
        _ => None,
    };
    match text {
        Some(text) => (key, Value::String(format!("{text} ({value})"))),
        None => (key, spell_out(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Vec<(String, String)>, CliError> {
        parse_params(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_separator_splits() {
        let parsed = parse(&["a:b=c", "d=e:f", "cmd:echo a:b"]).unwrap();
        let expected = [("a", "b=c"), ("d", "e:f"), ("cmd", "echo a:b")];
        assert_eq!(parsed, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_has_no_separator_or_no_value_is_refused() {
        assert!(matches!(parse(&["ab"]), Err(CliError::NoSeparator(_))));
        assert!(matches!(parse(&["a:", "b:c"]), Err(CliError::StdinNotLast(key)) if key == "a"));
    }

    #[test]
    fn sizes_and_times_are_spelt_out() {
        let shown = spell_out(json!([{"memory_limit": 1 << 30, "shm_size": -1, "uptime": 61.5, "ports": ["1:2"]}]));
        let expected = json!([
            {"memory_limit": "1.0G (1073741824)", "shm_size": -1, "uptime": "1m 1s (61.5)", "ports": ["1:2"]}
        ]);
        assert_eq!(shown, expected);
    }
}
