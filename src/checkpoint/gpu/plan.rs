//! Which GPUs a restore puts the memory of programs on. Pure: the saved and the current GPUs in, a map or a reason out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::verdict::{DEVICE_MAP, Found, Program};
use crate::{
    gpu::{Device, Health, Snapshot},
    model::{
        action::GpuProcess,
        quantities::{ByteSize, GpuSet},
    },
};

/// Limit for a manifest whose content a stranger may have chosen.
const MAX_GPUS: usize = 256;

const MAX_PROCESSES: usize = 50_000;

const MAX_NAME: usize = 200;

/// What a checkpoint records of GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGpus {
    pub driver: String,
    /// The engine had given them to the pod; otherwise it had them some other way.
    pub given: bool,
    /// All that a restore needs: those that the pod was given, otherwise those that its programs were on.
    pub devices: Vec<SavedGpu>,
    /// In the order in which they were locked.
    pub processes: Vec<SavedProcess>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGpu {
    pub uuid: String,
    pub model: String,
}

/// A process, and its bytes on each GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedProcess {
    #[serde(flatten)]
    pub process: GpuProcess,
    pub uses: BTreeMap<String, u64>,
}

/// A GPU that the pod has now.
#[derive(Clone, Debug)]
pub struct GpuNow {
    pub index: u32,
    pub uuid: String,
    pub model: String,
    /// Bytes; `None` where the driver does not report it.
    pub free: Option<u64>,
}

impl From<&Device> for GpuNow {
    fn from(device: &Device) -> Self {
        let free = match &device.health {
            Health::Known(reading) => {
                reading.memory_total.zip(reading.memory_used).map(|(total, used)| total.saturating_sub(used))
            }
            Health::Unknown { .. } => None,
        };
        Self { index: device.index, uuid: device.uuid.0.clone(), model: device.name.clone(), free }
    }
}

impl From<&Device> for SavedGpu {
    fn from(device: &Device) -> Self {
        Self { uuid: device.uuid.0.clone(), model: device.name.clone() }
    }
}

/// The devices of a set.
pub fn within<'a>(snapshot: &'a Snapshot, set: &'a GpuSet) -> impl Iterator<Item = &'a Device> {
    snapshot.devices.iter().filter(move |device| match set {
        GpuSet::All => true,
        GpuSet::Only(indices) => indices.contains(&device.index),
    })
}

/// What a restore will need: a program may have begun to use any GPU that it was given.
pub fn needed(snapshot: &Snapshot, given: Option<&GpuSet>, programs: &[Program]) -> Vec<SavedGpu> {
    let uses =
        |device: &Device| programs.iter().flat_map(|program| &program.uses).any(|used| used.uuid == device.uuid.0);
    let all = GpuSet::All;
    let devices = within(snapshot, given.unwrap_or(&all));
    devices.filter(|device| given.is_some() || uses(device)).map(SavedGpu::from).collect()
}

impl SavedGpus {
    pub fn bytes(&self) -> u64 {
        self.processes.iter().flat_map(|process| process.uses.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Keeps only these processes: others ended, or appeared, before all were off the GPUs.
    pub fn keep(&mut self, processes: &[GpuProcess]) {
        let uses = |process: &GpuProcess| {
            let known = self.processes.iter().find(|saved| saved.process.pid == process.pid);
            known.map(|saved| saved.uses.clone()).unwrap_or_default()
        };
        let kept = processes.iter().map(|process| SavedProcess { process: process.clone(), uses: uses(process) });
        self.processes = kept.collect();
    }

    fn bytes_on(&self, uuid: &str) -> u64 {
        let on = self.processes.iter().filter_map(|process| process.uses.get(uuid));
        on.fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// The device map that a restore onto these GPUs needs: `None` if all are the same. Or why it is impossible.
    pub fn plan(&self, now: &[GpuNow], host: &Found) -> Result<Option<String>, String> {
        let has_room = |saved: &SavedGpu, gpu: &GpuNow| gpu.free.is_none_or(|free| free >= self.bytes_on(&saved.uuid));
        let unchanged = |saved: &SavedGpu| now.iter().find(|gpu| gpu.uuid == saved.uuid);
        // A process whose own GPU is present keeps it.
        let (same, moved): (Vec<&SavedGpu>, Vec<&SavedGpu>) =
            self.devices.iter().partition(|saved| unchanged(saved).is_some_and(|gpu| has_room(saved, gpu)));
        let mut pairs: Vec<(&SavedGpu, &GpuNow)> =
            same.iter().filter_map(|saved| Some((*saved, unchanged(saved)?))).collect();
        for saved in &moved {
            let is_left = |gpu: &&GpuNow| pairs.iter().all(|(_, taken)| taken.uuid != gpu.uuid);
            let mut fitting = now.iter().filter(is_left).filter(|gpu| gpu.model == saved.model);
            let full = unchanged(saved).or_else(|| fitting.clone().next());
            let Some(gpu) = fitting.find(|gpu| has_room(saved, gpu)) else {
                return Err(full.map_or_else(|| self.too_few(now), |full| no_room(self.bytes_on(&saved.uuid), full)));
            };
            pairs.push((*saved, gpu));
        }
        if moved.is_empty() {
            return Ok(None);
        }
        if !host.maps_devices() {
            if let Some((saved, full)) = moved.iter().find_map(|saved| Some((saved, unchanged(saved)?))) {
                return Err(no_room(self.bytes_on(&saved.uuid), full));
            }
            let names: Vec<&str> = moved.iter().map(|gpu| gpu.uuid.as_str()).collect();
            return Err(format!(
                "the checkpoint's programs were on {}, which the pod no longer has; moving them to others needs driver {DEVICE_MAP}+ and a cuda-checkpoint with --device-map (found: {host})",
                names.join(", ")
            ));
        }
        // In the saved order. It must name unchanged GPUs, too.
        let of = |saved: &SavedGpu| pairs.iter().find(|(then, _)| *then == saved).map(|(_, now)| now.uuid.as_str());
        let map = self.devices.iter().filter_map(|saved| Some(format!("{}={}", saved.uuid, of(saved)?)));
        Ok(Some(map.collect::<Vec<_>>().join(",")))
    }

    fn too_few(&self, now: &[GpuNow]) -> String {
        let then = counted(self.devices.iter().map(|gpu| gpu.model.as_str()));
        let now = counted(now.iter().map(|gpu| gpu.model.as_str()));
        format!(
            "the checkpoint's programs need the GPUs that the pod had, {then}, but it now has {now}; restore it where it has as many of the same model"
        )
    }

    /// Nothing in it can be taken for another argument, and nothing is larger than possible.
    pub fn check(&self) -> Result<(), String> {
        let is_uuid = |text: &str| {
            (1..=MAX_NAME).contains(&text.len())
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'/'))
        };
        let is_name = |text: &str| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        let process = |saved: &SavedProcess| {
            saved.process.pid > 0
                && is_name(&saved.process.name)
                && saved.uses.len() <= MAX_GPUS
                && saved.uses.keys().all(|uuid| is_uuid(uuid))
        };
        let is_good = is_name(&self.driver)
            && self.devices.len() <= MAX_GPUS
            && self.devices.iter().all(|gpu| is_uuid(&gpu.uuid) && is_name(&gpu.model))
            && self.processes.len() <= MAX_PROCESSES
            && self.processes.iter().all(process);
        if is_good { Ok(()) } else { Err("its GPU data is invalid".to_owned()) }
    }
}

fn no_room(needed: u64, gpu: &GpuNow) -> String {
    format!(
        "the checkpoint's programs had {} on a GPU, and GPU {} has {} free; end what uses it, see `pody gpu`",
        ByteSize(needed),
        gpu.index,
        ByteSize(gpu.free.unwrap_or(0))
    )
}

/// `2 of NVIDIA A100`, or `none`.
fn counted<'a>(models: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    models.for_each(|model| *counts.entry(model).or_default() += 1);
    let words: Vec<String> = counts.iter().map(|(model, count)| format!("{count} of {model}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" and ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::cuda::About;

    fn saved(devices: &[(&str, &str, u64)]) -> SavedGpus {
        let uses = devices.iter().map(|(uuid, _, bytes)| ((*uuid).to_owned(), *bytes)).collect();
        let process = GpuProcess { pid: 7, name: "python".to_owned() };
        SavedGpus {
            driver: "580.65.06".to_owned(),
            given: true,
            devices: devices
                .iter()
                .map(|(uuid, model, _)| SavedGpu { uuid: (*uuid).to_owned(), model: (*model).to_owned() })
                .collect(),
            processes: vec![SavedProcess { process, uses }],
        }
    }

    fn now(gpus: &[(&str, &str, u64)]) -> Vec<GpuNow> {
        let gpu = |(index, (uuid, model, free)): (usize, &(&str, &str, u64))| GpuNow {
            index: index as u32,
            uuid: (*uuid).to_owned(),
            model: (*model).to_owned(),
            free: Some(*free),
        };
        gpus.iter().enumerate().map(gpu).collect()
    }

    fn host(driver: &str) -> Found {
        let about = About { version: "580.65.06".to_owned(), has_actions: true, maps_devices: true };
        Found { driver: Some(driver.to_owned()), about: Some(Ok(about)) }
    }

    #[test]
    fn memory_returns_to_its_gpu_or_one_of_the_same_model() {
        let then = saved(&[("GPU-a", "A100", 5), ("GPU-b", "A100", 5)]);
        let here = host("580.65.06");
        assert_eq!(then.plan(&now(&[("GPU-b", "A100", 9), ("GPU-a", "A100", 9)]), &here), Ok(None));
        // The map names unchanged GPUs too, and gives away nobody's GPU.
        assert_eq!(
            then.plan(&now(&[("GPU-c", "A100", 9), ("GPU-a", "A100", 9)]), &here),
            Ok(Some("GPU-a=GPU-a,GPU-b=GPU-c".to_owned()))
        );
        // Its own is filled by a twin.
        assert_eq!(
            then.plan(&now(&[("GPU-a", "A100", 9), ("GPU-b", "A100", 1), ("GPU-c", "A100", 9)]), &here),
            Ok(Some("GPU-a=GPU-a,GPU-b=GPU-c".to_owned()))
        );
        // A full GPU is skipped.
        assert_eq!(
            then.plan(&now(&[("GPU-a", "A100", 9), ("GPU-c", "A100", 1), ("GPU-d", "A100", 5)]), &here),
            Ok(Some("GPU-a=GPU-a,GPU-b=GPU-d".to_owned()))
        );
    }

    #[test]
    fn other_models_fewer_or_full_ones_are_refused() {
        let then = saved(&[("GPU-a", "A100", 5), ("GPU-b", "A100", 5)]);
        let here = host("580.65.06");
        let why = |gpus: &[(&str, &str, u64)], host: &Found| then.plan(&now(gpus), host).unwrap_err();
        let other = why(&[("GPU-a", "A100", 9), ("GPU-x", "H200", 9)], &here);
        assert!(other.contains("2 of A100, but it now has 1 of A100 and 1 of H200"), "{other}");
        assert!(why(&[("GPU-a", "A100", 9)], &here).contains("it now has 1 of A100"));
        assert!(why(&[], &here).contains("it now has none"));
        let full = why(&[("GPU-a", "A100", 1), ("GPU-b", "A100", 9)], &here);
        let old = why(&[("GPU-a", "A100", 1), ("GPU-b", "A100", 9), ("GPU-c", "A100", 9)], &host("570.86.10"));
        assert_eq!(full, old, "one that could not be moved");
        assert!(full.contains("had 5b on a GPU, and GPU 0 has 1b free"), "{full}");
        let old = why(&[("GPU-a", "A100", 9), ("GPU-c", "A100", 9)], &host("575.57.08"));
        assert!(old.contains("GPU-b, which the pod no longer has") && old.contains("driver 580+"), "{old}");
    }

    #[test]
    fn hostile_gpu_data_is_refused() {
        assert_eq!(saved(&[("GPU-a", "A100", 5)]).check(), Ok(()));
        for uuid in ["--pid", "GPU-a,GPU-b=GPU-c", "", "GPU a", &"a".repeat(MAX_NAME + 1)] {
            assert!(saved(&[(uuid, "A100", 5)]).check().is_err(), "{uuid:?}");
        }
        assert!(saved(&[("GPU-a", "\u{1b}[2J", 5)]).check().is_err());
        assert_eq!(saved(&[("GPU-a", "A", u64::MAX), ("GPU-b", "A", 5)]).bytes(), u64::MAX);
    }
}
