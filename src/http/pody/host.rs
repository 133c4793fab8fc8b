//! `/host/…`

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::ApiError;
use crate::{
    config::Config,
    gpu::{Device, GpuProcess, Health, Owner},
    host::clock::Moment,
    http::{endpoint::Ctx, json::Json, params::NoParams},
    model::{
        gpu::Library,
        names::{UserName, clipped},
        time::Millis,
        user::Caller,
        view::gpu::{DeviceState, DeviceView, GpusView, LostPod, ProcessView},
    },
    params,
};

/// How long a program may take to print its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(2);

/// A process as this caller may see it.
fn process_view(process: &GpuProcess, caller: &Caller, config: &Config) -> ProcessView {
    let shown = || {
        process.command.as_deref().map_or(Cow::Borrowed("[ended or not readable]"), |text| Cow::Owned(text.to_owned()))
    };
    let (pod, cmd) = match &*process.owner {
        Owner::Host => (String::new(), Cow::Borrowed("[host process]")),
        Owner::Container { name } if caller.is_admin => (name.clone(), shown()),
        Owner::Container { name } => (name.clone(), Cow::Borrowed("[container that is no pod]")),
        Owner::Pod { user, name, .. } if user == &caller.user || caller.is_admin || config.gpu.show_commands => {
            (name.clone(), shown())
        }
        Owner::Pod { name, .. } => (name.clone(), Cow::Borrowed("[hidden]")),
    };
    ProcessView {
        pid: process.id.pid,
        pod,
        cmd,
        uptime: process.uptime,
        memory_used: process.resident,
        gpu_memory_used: process.gpu_memory,
        user: process.owner.user().cloned(),
        pid_in_pod: process.pid_inside,
        utilization: process.utilization,
        kinds: process.kinds.listed(),
        gpu_instance: process.gpu_instance,
    }
}

// One edition of the documents calls it `gpu-id`.
params! { Processes { ; id: String, gpu_id: String } }

pub async fn gpu_processes(ctx: Ctx, params: Processes) -> Result<Json<impl Serialize>, ApiError> {
    let snapshot = ctx.app.gpus.look().await;
    let config = ctx.app.config.get();
    let wanted = match params.id.or(params.gpu_id) {
        None => None,
        Some(list) => {
            let parse = |id: &str| {
                let bad = || format!("id: {:?} is not a GPU index; write 0 or 0,1", clipped(id));
                id.trim().parse::<u32>().map_err(|_| ApiError::BadRequest(bad()))
            };
            Some(list.split(',').map(parse).collect::<Result<Vec<u32>, _>>()?)
        }
    };
    if let Some(missing) =
        wanted.iter().flatten().find(|index| !snapshot.devices.iter().any(|device| device.index == **index))
    {
        let count = snapshot.devices.len();
        return Err(ApiError::BadRequest(format!("id: there is no GPU {missing}; this host has {count}")));
    }
    let is_wanted = |device: &&Device| wanted.as_ref().is_none_or(|list| list.contains(&device.index));
    let rows = snapshot.devices.iter().filter(is_wanted).map(|device| {
        let processes = device.processes.iter().map(|process| process_view(process, ctx.caller(), &config));
        (device.index, processes.collect::<Vec<_>>())
    });
    Ok(Json(rows.collect::<BTreeMap<_, _>>()))
}

pub async fn gpus(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let snapshot = ctx.app.gpus.look().await;
    let config = ctx.app.config.get();
    let gpus = snapshot.devices.iter().map(|device| {
        let mut users: Vec<UserName> =
            device.processes.iter().filter_map(|process| process.owner.user().cloned()).collect();
        users.sort();
        users.dedup();
        let (state, reason, reading) = match &device.health {
            Health::Known(reading) => (DeviceState::Ok, None, Some(reading.clone())),
            Health::Unknown { reason } => (DeviceState::Unknown, Some(reason.clone()), None),
        };
        DeviceView {
            index: device.index,
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            state,
            reason,
            reading,
            users,
            processes: device.processes.iter().map(|process| process_view(process, ctx.caller(), &config)).collect(),
            mig: device.mig.clone(),
        }
    });
    let age = Moment::now().since(snapshot.at).max(0) as f64 / 1000.0;
    let pods = match ctx.caller().is_admin {
        true => ctx.app.pods.list_all(),
        false => ctx.app.pods.list(&ctx.caller().user),
    };
    let lost_pods = pods.iter().filter_map(|pod| {
        let reason = ctx.app.pods.gpu_trouble(pod)?;
        Some(LostPod { pod: pod.container_name.clone(), user: pod.user.clone(), reason })
    });
    Ok(Json(GpusView {
        at: Millis(snapshot.at.wall).to_string(),
        age,
        library: snapshot.library.clone(),
        gpus: gpus.collect(),
        lost_pods: lost_pods.collect(),
    }))
}

#[derive(Serialize)]
struct Spec {
    pody_version: &'static str,
    docker_version: String,
    nvidia_driver_version: String,
    nvidia_ctk_version: String,
}

/// What pody 0.4.1 shows where there is no value.
fn not_available() -> String {
    "N/A".to_owned()
}

pub async fn spec(ctx: Ctx, _: NoParams) -> Result<Json<impl Serialize>, ApiError> {
    let docker_version = ctx.app.engine.facts().await.map_or_else(|_| not_available(), |facts| facts.version.clone());
    let toolkit = tokio::process::Command::new("nvidia-ctk").arg("--version").kill_on_drop(true).output();
    let toolkit = tokio::time::timeout(VERSION_DEADLINE, toolkit).await.ok().and_then(Result::ok);
    Ok(Json(Spec {
        pody_version: crate::VERSION,
        docker_version,
        nvidia_driver_version: match &ctx.app.gpus.snapshot().library {
            Library::Working { driver } => driver.clone(),
            Library::Starting | Library::Absent | Library::Failing { .. } => not_available(),
        },
        nvidia_ctk_version: toolkit
            .filter(|output| output.status.success())
            .map_or_else(not_available, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
    }))
}
