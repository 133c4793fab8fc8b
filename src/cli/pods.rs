//! `pody ps`, `create`, `start`, `stop`, `restart`, `inspect`, `rm`, `stats`: pods by their names.

use clap::Args;
use serde_json::Value;

use super::{
    client::Client,
    error::CliError,
    exit,
    output::{self, Output},
    terminal,
};
use crate::model::view::{
    Message,
    pod::{CreatedPod, PodStats, PodView},
    schedule::ScheduleView,
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

impl PsArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        let query: &[(&str, &str)] = if self.all { &[("all", "true")] } else { &[] };
        let answer = Client::from_environment()?.get("pod/ps", query).await?;
        let mut header = vec!["NAME", "STATUS", "IMAGE", "PORTS", "GPUS", "MEMORY", "CREATED"];
        if self.all {
            header.insert(0, "USER");
        }
        out.show(answer, |pods: Vec<PodView>| {
            if pods.is_empty() && !self.all {
                return "no pods yet; `pody create NAME --image IMAGE` creates one, `pody images` lists images"
                    .to_owned();
            }
            let notes: String = pods
                .iter()
                .filter_map(|pod| Some(format!("\n{}-{}: {}", pod.user, pod.instance, pod.gpu_trouble.as_ref()?)))
                .collect();
            let row = |pod: PodView| {
                let mut row = vec![
                    pod.instance.to_string(),
                    pod.status.to_string(),
                    pod.image,
                    pod.port_mapping.join(" "),
                    output::gpus(pod.gpu_ids.as_deref()),
                    output::size(pod.memory_limit, 1),
                    output::ago(&pod.created_at),
                ];
                if self.all {
                    row.insert(0, pod.user.to_string());
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
        out.show(answer, |pod: CreatedPod| {
            let has_ssh = pod.info.port_mapping.iter().any(|mapping| mapping.ends_with(":22"));
            let next = match has_ssh {
                true => format!("`pody shell {name}` or `pody ssh {name}`"),
                false => format!("`pody shell {name}`"),
            };
            format!("{name} is running; connect with {next}")
        })?;
        Ok(exit::OK)
    }
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
        out.show(answer, |stats| {
            let header = ["NAME", "CPU TIME", "CORES", "MEMORY", "PROCESSES", "DISK READ", "WRITTEN"];
            out.table(&header, [stats_row(stats)])
        })?;
        Ok(exit::OK)
    }
}

/// What a pod uses at the moment, as a row of the table.
fn stats_row(stats: PodStats) -> Vec<String> {
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::bytes);
    let of = |used: String, limit: i64, text: String| if limit < 0 { used } else { format!("{used} of {text}") };
    vec![
        stats.instance.to_string(),
        output::duration(stats.cpu_seconds),
        format!("{:.2}", stats.cpu_cores),
        of(output::bytes(stats.memory_used), stats.memory_limit, output::size(stats.memory_limit, 1)),
        of(stats.pids.to_string(), stats.pids_limit, stats.pids_limit.to_string()),
        bytes(stats.disk_read),
        bytes(stats.disk_written),
    ]
}

/// A field of `pod/inspect` for people.
fn field_text(key: &str, value: &Value) -> String {
    match (key, value) {
        ("memory_limit" | "shm_size", Value::Number(bytes)) => output::size(bytes.as_i64().unwrap_or(-1), 1),
        ("gpu_ids", value) => match serde_json::from_value::<Option<Vec<u32>>>(value.clone()) {
            Ok(ids) => output::gpus(ids.as_deref()),
            Err(_) => value.to_string(),
        },
        ("schedule", value) => match serde_json::from_value::<ScheduleView>(value.clone()) {
            Ok(schedule) => {
                [Some(schedule.rule), schedule.last_error].into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
            Err(_) => value.to_string(),
        },
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

/// Shows the sentence about a finished request.
pub fn show_message(answer: Value, out: &Output) -> Result<u8, CliError> {
    out.show(answer, |Message { message }| message)?;
    Ok(exit::OK)
}
