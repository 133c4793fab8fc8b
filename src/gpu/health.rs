//! Records events when a GPU is lost, when it is back, and when the driver reports Xid errors.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use nvml_wrapper::{bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Device, Gpus, Health, Library, Snapshot, nvml};
use crate::{
    db::NewEvent,
    model::{usage::GpuUuid, user::Actor},
};

/// Pause before Xid errors are watched again after NVML failed.
const REOPEN: Duration = Duration::from_secs(30);

/// How long one wait for an Xid error lasts, milliseconds.
const WAIT: u32 = 2000;

/// How many incidents may wait to be recorded.
const QUEUE: usize = 64;

/// Something that happened to a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Incident {
    action: &'static str,
    object: String,
    detail: String,
}

/// Runs for the life of the daemon.
pub async fn run(gpus: Gpus, stop: CancellationToken) {
    let mut snapshots = gpus.changes();
    let mut before = gpus.snapshot();
    let (report, mut xids) = mpsc::channel(QUEUE);
    watch_xids(gpus.0.config.get().gpu.nvml_library.clone(), report);
    loop {
        let incidents = tokio::select! {
            () = stop.cancelled() => return,
            Some(xid) = xids.recv() => vec![xid],
            _ = snapshots.changed() => {
                let now = gpus.snapshot();
                let incidents = compare(&before, &now);
                before = now;
                incidents
            }
        };
        for incident in incidents {
            tracing::warn!(gpu = incident.object, what = incident.action, detail = incident.detail, "GPU");
            let Incident { action, object, detail } = incident;
            let event = NewEvent::by(&Actor::daemon()).did(action, object).detail(detail);
            if let Err(error) = gpus.0.db.insert_event(event).await {
                tracing::warn!(%error, "could not record the event");
            }
        }
    }
}

/// What changed between two snapshots.
fn compare(before: &Snapshot, now: &Snapshot) -> Vec<Incident> {
    let mut incidents = Vec::new();
    match (&before.library, &now.library) {
        (Library::Failing { reason: old }, Library::Failing { reason }) if old == reason => {}
        (_, Library::Failing { reason }) => {
            incidents.push(Incident {
                action: "gpu.driver-failed",
                object: "driver".to_owned(),
                detail: reason.clone(),
            });
        }
        (Library::Failing { .. }, Library::Working { driver }) => {
            incidents.push(Incident {
                action: "gpu.driver-back",
                object: "driver".to_owned(),
                detail: format!("driver {driver}"),
            });
        }
        _ => {}
    }
    let old: BTreeMap<&GpuUuid, &Device> = before.devices.iter().map(|device| (&device.uuid, device)).collect();
    for device in &now.devices {
        let was_known = old.get(&device.uuid).map(|device| matches!(device.health, Health::Known(_)));
        let incident = |action, detail| Incident { action, object: device.uuid.0.clone(), detail };
        match (was_known, &device.health) {
            (Some(true) | None, Health::Unknown { reason }) => {
                incidents.push(incident("gpu.lost", format!("GPU {}: {reason}", device.index)));
            }
            (Some(false), Health::Known(_)) => incidents.push(incident("gpu.back", format!("GPU {}", device.index))),
            _ => {}
        }
    }
    for (uuid, device) in old {
        if !now.devices.iter().any(|device| &device.uuid == uuid) && matches!(device.health, Health::Known(_)) {
            let detail = format!("GPU {}: the driver no longer lists it", device.index);
            incidents.push(Incident { action: "gpu.lost", object: uuid.0.clone(), detail });
        }
    }
    incidents
}

/// Uses a thread of its own that does nothing but wait, so a wait that hangs does no harm.
fn watch_xids(path: Option<PathBuf>, report: mpsc::Sender<Incident>) {
    let watcher = std::thread::Builder::new().name("xid".to_owned()).spawn(move || {
        while !report.is_closed() {
            if let Err(error) = report_xids(path.as_deref(), &report) {
                tracing::debug!(%error, "could not watch for Xid errors");
            }
            std::thread::sleep(REOPEN);
        }
    });
    if let Err(error) = watcher {
        tracing::warn!(%error, "could not start the thread for Xid errors");
    }
}

fn report_xids(path: Option<&std::path::Path>, report: &mpsc::Sender<Incident>) -> Result<(), nvml::DriverError> {
    let nvml = nvml::open(path)?;
    let mut set = nvml.create_event_set()?;
    for index in 0..nvml.device_count()? {
        set = nvml
            .device_by_index(index)?
            .register_events(EventTypes::CRITICAL_XID_ERROR, set)
            .map_err(|error| error.error)?;
    }
    while !report.is_closed() {
        match set.wait(WAIT) {
            Err(NvmlError::Timeout) => {}
            Err(error) => return Err(error.into()),
            Ok(event) => {
                let xid = match event.event_data {
                    Some(XidError::Value(xid)) => format!("Xid {xid}"),
                    Some(XidError::Unknown) | None => "an Xid error without a number".to_owned(),
                };
                let uuid = event.device.uuid().unwrap_or_else(|_| "unknown".to_owned());
                let detail = format!("{xid}: `dmesg | grep Xid` shows the process");
                let _ = report.blocking_send(Incident { action: "gpu.xid", object: uuid, detail });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gpu::Reading;

    fn snapshot(library: Library, health: &[Health]) -> Snapshot {
        let devices = health.iter().enumerate().map(|(index, health)| Device {
            index: index as u32,
            uuid: GpuUuid(format!("G{index}")),
            name: String::new(),
            health: health.clone(),
            processes: Vec::new(),
            mig: Vec::new(),
        });
        Snapshot { at: crate::host::clock::Moment::default(), library, devices: devices.collect() }
    }

    #[test]
    fn only_changes_are_reported() {
        let working = || Library::Working { driver: "570".into() };
        let known = || Health::Known(Reading::default());
        let lost = || Health::Unknown { reason: "lost".into() };
        let actions = |before: &Snapshot, now: &Snapshot| {
            compare(before, now).into_iter().map(|i| format!("{} {}", i.action, i.object)).collect::<Vec<_>>()
        };
        let good = snapshot(working(), &[known(), known()]);
        let one_lost = snapshot(working(), &[known(), lost()]);
        assert_eq!(actions(&snapshot(Library::Starting, &[]), &good), Vec::<String>::new());
        assert_eq!(actions(&good, &one_lost), ["gpu.lost G1"]);
        assert_eq!(actions(&one_lost, &one_lost), Vec::<String>::new());
        assert_eq!(actions(&one_lost, &good), ["gpu.back G1"]);
        assert_eq!(actions(&good, &snapshot(working(), &[known()])), ["gpu.lost G1"]);
        let failing = snapshot(Library::Failing { reason: "mismatch".into() }, &[lost(), lost()]);
        assert_eq!(actions(&good, &failing), ["gpu.driver-failed driver", "gpu.lost G0", "gpu.lost G1"]);
        assert_eq!(actions(&failing, &good), ["gpu.driver-back driver", "gpu.back G0", "gpu.back G1"]);
    }
}
