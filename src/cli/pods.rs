//! `pody ps`, `create`, `start`, `stop`, `restart`, `inspect`, `rm`, `stats`: pods by their names.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::Client,
    error::CliError,
    exit,
    output::{self, Format, Output},
    terminal,
};

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Everybody's pods (admins only); your stopped pods are always listed
    #[arg(short, long)]
    all: bool,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The name of the new pod: letters, digits and '_', at most 20
    name: String,
    /// The image, as `pody images` lists it
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// The GPUs it sees: a number like 2, indices with a comma like 0,1 or 3, or none [default: all that your quota
    /// allows]
    #[arg(long, value_name = "GPUS")]
    gpus: Option<String>,
}

#[derive(Debug, Args)]
pub struct PodArgs {
    /// The pod
    name: String,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// The pod
    name: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// What can be done to a pod that exists.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    Start,
    Stop,
    Restart,
}

impl Action {
    fn route(self) -> &'static str {
        match self {
            Self::Start => "pod/start",
            Self::Stop => "pod/stop",
            Self::Restart => "pod/restart",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
        }
    }
}

/// A line of `pody ps`.
#[derive(Deserialize)]
struct PodLine {
    instance: String,
    user: String,
    status: String,
    image: String,
    port_mapping: Vec<String>,
    gpu_ids: Option<Vec<u32>>,
    memory_limit: i64,
    created_at: String,
    gpu_trouble: Option<String>,
}

impl PsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let query: &[(&str, &str)] = if self.all { &[("all", "true")] } else { &[] };
        let answer = Client::from_environment()?.get("pod/ps", query).await?;
        let mut header = vec!["NAME", "STATUS", "IMAGE", "PORTS", "GPUS", "MEMORY", "CREATED"];
        if self.all {
            header.insert(0, "USER");
        }
        out.show(answer, |pods: Vec<PodLine>| {
            if pods.is_empty() && !self.all {
                return "no pods yet; `pody create NAME --image IMAGE` creates one, `pody images` lists images"
                    .to_owned();
            }
            let notes: String = pods
                .iter()
                .filter_map(|pod| Some(format!("\n{}-{}: {}", pod.user, pod.instance, pod.gpu_trouble.as_ref()?)))
                .collect();
            let row = |pod: PodLine| {
                let mut row = vec![
                    pod.instance,
                    pod.status,
                    pod.image,
                    pod.port_mapping.join(" "),
                    output::gpus(pod.gpu_ids.as_deref()),
                    output::size(pod.memory_limit, 1),
                    output::ago(&pod.created_at),
                ];
                if self.all {
                    row.insert(0, pod.user);
                }
                row
            };
            out.table(&header, pods.into_iter().map(row)) + &output::printable(&notes)
        })?;
        Ok(exit::OK)
    }
}

impl CreateArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let mut form = vec![("ins", self.name.as_str()), ("image", self.image.as_str())];
        form.extend(self.gpus.as_deref().map(|gpus| ("gpus", gpus)));
        let answer = Client::from_environment()?.post("pod/create", &form).await?;
        let name = &self.name;
        let has_ssh = ports(&answer["info"]).iter().any(|mapping| mapping.ends_with(":22"));
        let next =
            if has_ssh { format!("`pody shell {name}` or `pody ssh {name}`") } else { format!("`pody shell {name}`") };
        out.done(&answer, format!("{name} is running; connect with {next}"))?;
        Ok(exit::OK)
    }
}

/// The port mappings of a pod's description.
fn ports(info: &Value) -> Vec<&str> {
    info["port_mapping"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

impl PodArgs {
    pub async fn act(self, action: Action, out: &Output) -> Result<u8, CliError> {
        let answer = Client::from_environment()?.post(action.route(), &[("ins", &self.name)]).await?;
        out.done(&answer, format!("{} {}", self.name, action.past()))?;
        Ok(exit::OK)
    }

    pub async fn inspect(self, out: &Output) -> Result<u8, CliError> {
        let answer = Client::from_environment()?.get("pod/inspect", &[("ins", &self.name)]).await?;
        out.show(answer, |fields: serde_json::Map<String, Value>| {
            out.table(&["FIELD", "VALUE"], fields.iter().map(|(key, value)| vec![key.clone(), field_text(key, value)]))
        })?;
        Ok(exit::OK)
    }

    pub async fn stats(self, out: &Output) -> Result<u8, CliError> {
        let answer = Client::from_environment()?.get("pod/stats", &[("ins", &self.name)]).await?;
        out.show(answer, |stats: Stats| {
            out.table(&["NAME", "CPU TIME", "CORES", "MEMORY", "PROCESSES", "DISK READ", "WRITTEN"], [stats.row()])
        })?;
        Ok(exit::OK)
    }
}

/// What a pod uses at the moment.
#[derive(Deserialize)]
struct Stats {
    instance: String,
    cpu_seconds: f64,
    /// Cores in use.
    cpu_cores: f64,
    memory_used: i64,
    memory_limit: i64,
    pids: i64,
    pids_limit: i64,
    /// Absent from an older server, and where the kernel does not count.
    disk_read: Option<i64>,
    disk_written: Option<i64>,
}

impl Stats {
    fn row(self) -> Vec<String> {
        let bytes = |bytes: Option<i64>| bytes.map_or_else(|| "-".to_owned(), |bytes| output::size(bytes, 1));
        let of = |used: String, limit: i64, text: String| if limit < 0 { used } else { format!("{used} of {text}") };
        vec![
            self.instance,
            output::duration(self.cpu_seconds),
            format!("{:.2}", self.cpu_cores),
            of(output::size(self.memory_used, 1), self.memory_limit, output::size(self.memory_limit, 1)),
            of(self.pids.to_string(), self.pids_limit, self.pids_limit.to_string()),
            bytes(self.disk_read),
            bytes(self.disk_written),
        ]
    }
}

/// A field of `pod/inspect` for people.
fn field_text(key: &str, value: &Value) -> String {
    match (key, value) {
        ("memory_limit" | "shm_size", Value::Number(bytes)) => output::size(bytes.as_i64().unwrap_or(-1), 1),
        ("gpu_ids", value) => match serde_json::from_value::<Option<Vec<u32>>>(value.clone()) {
            Ok(ids) => output::gpus(ids.as_deref()),
            Err(_) => value.to_string(),
        },
        ("schedule", Value::Object(schedule)) => {
            let field = |key: &str| schedule.get(key).and_then(Value::as_str);
            let words = [field("rule"), field("last_error")].into_iter().flatten();
            words.collect::<Vec<_>>().join("; ")
        }
        (_, Value::Null) => "-".to_owned(),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(" "),
        (_, other) => other.to_string(),
    }
}

impl RmArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let question = format!("delete {} and all its files outside of volumes?", self.name);
        if !self.yes && !terminal::confirm(&question)? {
            return Err(CliError::NotConfirmed(format!("{} was not deleted", self.name)));
        }
        let answer = Client::from_environment()?.post("pod/delete", &[("ins", &self.name)]).await?;
        out.done(&answer, format!("{} deleted", self.name))?;
        Ok(exit::OK)
    }
}

/// Shows the message of a finished request.
pub fn show_log(answer: &Value, out: &Output) -> Result<u8, CliError> {
    match (out.format(), answer["log"].as_str().or(answer["message"].as_str())) {
        (Format::People, Some(log)) => out.line(log)?,
        _ => out.json(answer)?,
    }
    Ok(exit::OK)
}
