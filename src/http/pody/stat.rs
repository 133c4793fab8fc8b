//! `/stat/…`, `/pod/series`, `/host/series`: usage from the buckets of `usage/`.

use std::collections::BTreeMap;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, json::Json},
    model::{
        names::{PodRef, UserName, clipped},
        quantities::Span,
        time::Millis,
        usage::{Amount, GpuAmount, GpuUuid, Subject},
        view::usage::{GpuPoint, PodPoint, Series, UsageKey, UsageRow},
    },
    params,
    usage::query::{self, Window},
};

/// Default window of a series, seconds: an hour.
const SERIES: f64 = 3600.0;

params! { Times { ; user: String, t: Span } }

pub async fn cpu_time(ctx: Ctx, params: Times) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(seconds(ctx, params, |(cpu, _)| cpu).await?))
}

pub async fn gpu_time(ctx: Ctx, params: Times) -> Result<Json<impl Serialize>, ApiError> {
    Ok(Json(seconds(ctx, params, |(_, gpu)| gpu).await?))
}

async fn seconds(
    ctx: Ctx,
    params: Times,
    pick: impl Fn((f64, f64)) -> f64,
) -> Result<BTreeMap<UserName, f64>, ApiError> {
    let wanted = params.user.map(names);
    ctx.app.usage.catch_up().await;
    let sums = query::seconds_by_user(&ctx.app.db, Window::last(params.t.map(|span| span.0))).await?;
    let sums = sums.into_iter().map(|(user, both)| (user, pick(both)));
    Ok(sums.filter(|(user, seconds)| *seconds > 0.0 && is_wanted(wanted.as_ref(), user.as_str())).collect())
}

/// A comma-separated list.
fn names(list: String) -> Vec<String> {
    list.split(',').map(|name| name.trim().to_owned()).collect()
}

fn is_wanted(wanted: Option<&Vec<String>>, name: &str) -> bool {
    wanted.is_none_or(|list| list.iter().any(|wanted| wanted == name))
}

params! { Usage { ; t: Span, user: String, by: String, format: String } }

/// How to split the sums: parts of `user,pod,gpu` and one of `hour,day`.
struct Split {
    user: bool,
    pod: bool,
    gpu: bool,
    /// Seconds.
    period: Option<i64>,
}

impl Split {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let mut split = Self { user: false, pod: false, gpu: false, period: None };
        for part in text.split(',').map(str::trim) {
            match part {
                "user" => split.user = true,
                "pod" => split.pod = true,
                "gpu" => split.gpu = true,
                "hour" => split.period = Some(3600),
                "day" => split.period = Some(86_400),
                other => {
                    return Err(ApiError::BadRequest(format!(
                        "by: {:?} is not one of user, pod, gpu, hour, day; separate several with commas",
                        clipped(other)
                    )));
                }
            }
        }
        Ok(split)
    }

    /// Whether a sum is of everything on a GPU.
    fn is_of_gpus(&self) -> bool {
        self.gpu && !self.user && !self.pod
    }

    fn key_of_gpu(&self, at: i64, gpu: GpuUuid) -> UsageKey {
        UsageKey { at: self.begin(at), gpu: Some(gpu), ..UsageKey::default() }
    }

    /// Of the period.
    fn begin(&self, at: i64) -> Option<String> {
        self.period.map(|period| Millis::from_seconds(at.div_euclid(period) * period).to_string())
    }

    fn key(&self, at: i64, subject: &Subject) -> UsageKey {
        UsageKey {
            at: self.begin(at),
            user: self.user.then(|| subject.user.clone()),
            pod: self.pod.then(|| subject.pod.clone()),
            gpu: self.gpu.then(|| subject.gpu.clone()).flatten(),
        }
    }
}

pub async fn usage(ctx: Ctx, params: Usage) -> Result<Response, ApiError> {
    let split = Split::parse(params.by.as_deref().unwrap_or("user"))?;
    let wanted = params.user.map(names);
    ctx.app.usage.catch_up().await;
    let window = Window::last(params.t.map(|span| span.0));
    let mut sums: BTreeMap<UsageKey, Amount> = BTreeMap::new();
    if split.period.is_some() {
        let (_, rows) = query::series(&ctx.app.db, window).await?;
        for row in rows.iter().filter(|row| is_wanted(wanted.as_ref(), row.subject.user.as_str())) {
            sums.entry(split.key(row.at, &row.subject)).or_default().add(&row.amount);
        }
    } else {
        for (subject, amount) in query::totals(&ctx.app.db, window).await? {
            if is_wanted(wanted.as_ref(), subject.user.as_str()) {
                sums.entry(split.key(0, &subject)).or_default().add(&amount);
            }
        }
    }
    let mut free: BTreeMap<UsageKey, f64> = BTreeMap::new();
    if split.is_of_gpus() && wanted.is_none() {
        let rows = match split.period {
            Some(_) => query::gpu_series(&ctx.app.db, window).await?.1,
            None => query::gpu_parts(&ctx.app.db, window).await?,
        };
        for row in rows {
            *free.entry(split.key_of_gpu(row.at, row.gpu)).or_default() += row.amount.free_seconds;
        }
        // GPUs that nobody used have a row, too.
        for key in free.keys() {
            sums.entry(key.clone()).or_default();
        }
    }
    let rows: Vec<UsageRow> = sums
        .into_iter()
        .map(|(key, amount)| UsageRow { gpu_free_seconds: free.get(&key).copied(), ..UsageRow::new(key, amount) })
        .collect();
    match params.format.as_deref() {
        None | Some("json") => Ok(Json(rows).into_response()),
        Some("csv") => Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv(&rows)).into_response()),
        Some(other) => {
            Err(ApiError::BadRequest(format!("format: {:?} is not a format; use json or csv", clipped(other))))
        }
    }
}

/// No value contains a comma or a quote: names are parsed, the rest are numbers and UUIDs.
fn csv(rows: &[UsageRow]) -> String {
    let head = "at,user,pod,gpu,cpu_seconds,memory_byte_seconds,gpu_active_seconds,gpu_held_seconds,gpu_memory_byte_seconds,estimated_kwh,gpu_free_seconds\n";
    let lines = rows.iter().map(|row| {
        let UsageKey { at, user, pod, gpu } = &row.key;
        format!(
            "{},{},{},{},{:.3},{:.0},{:.3},{:.3},{:.0},{:.6},{}\n",
            at.as_deref().unwrap_or_default(),
            user.as_ref().map(UserName::as_str).unwrap_or_default(),
            pod.as_deref().unwrap_or_default(),
            gpu.as_ref().map(|gpu| gpu.0.as_str()).unwrap_or_default(),
            row.cpu_seconds,
            row.memory_byte_seconds,
            row.gpu_active_seconds,
            row.gpu_held_seconds,
            row.gpu_memory_byte_seconds,
            row.estimated_kwh,
            row.gpu_free_seconds.map(|seconds| format!("{seconds:.3}")).unwrap_or_default(),
        )
    });
    std::iter::once(head.to_owned()).chain(lines).collect()
}

params! { PodSeries { ins: PodRef; t: Span } }

pub async fn pod_series(ctx: Ctx, params: PodSeries) -> Result<Json<impl Serialize>, ApiError> {
    let pod = ctx.app.pods.find(ctx.caller(), &params.ins)?;
    ctx.app.usage.catch_up().await;
    let window = Window::last(Some(params.t.map_or(SERIES, |span| span.0)));
    let (step, rows) = query::series(&ctx.app.db, window).await?;
    let mut points: BTreeMap<i64, Amount> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.subject.pod == pod.container_name && row.subject.user == pod.user) {
        points.entry(row.at).or_default().add(&row.amount);
    }
    let per_second = |sum: f64, at: i64| sum / (window.to_seconds - at).clamp(1, step) as f64;
    let points = points.into_iter().map(|(at, a)| PodPoint {
        at: Millis::from_seconds(at).to_string(),
        cpu_cores: per_second(a.cpu_seconds, at),
        memory: per_second(a.memory_byte_seconds, at),
        gpus_active: per_second(a.gpu_active_seconds, at),
        gpus_held: per_second(a.gpu_held_seconds, at),
        gpu_memory: per_second(a.gpu_memory_byte_seconds, at),
    });
    Ok(Json(Series { step, points: points.collect() }))
}

params! { HostSeries { ; t: Span } }

pub async fn host_series(ctx: Ctx, params: HostSeries) -> Result<Json<impl Serialize>, ApiError> {
    ctx.app.usage.catch_up().await;
    let window = Window::last(Some(params.t.map_or(SERIES, |span| span.0)));
    let (step, rows) = query::gpu_series(&ctx.app.db, window).await?;
    let points = rows.into_iter().map(|row| {
        let GpuAmount { known_seconds, free_seconds, busy_seconds, memory_byte_seconds, joules } = row.amount;
        let mean = |sum: f64| (known_seconds > 0.0).then(|| sum / known_seconds);
        GpuPoint {
            at: Millis::from_seconds(row.at).to_string(),
            gpu: row.gpu,
            utilization: mean(busy_seconds).map(|share| share * 100.0),
            memory: mean(memory_byte_seconds),
            power: mean(joules),
            free: mean(free_seconds),
        }
    });
    Ok(Json(Series { step, points: points.collect::<Vec<_>>() }))
}
