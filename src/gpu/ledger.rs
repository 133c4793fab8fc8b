//! Which GPUs are how much in use, and which of them come first for a new pod. Pure: snapshots and rows in, a choice out.
//!
//! The quota decides what a pod may have (`pod::admission`); this module decides which GPUs those are.

use std::collections::BTreeSet;

use super::{Device, Health};
use crate::model::quantities::GpuSet;

/// The load of a pod that was assigned a GPU, in addition to that of its processes: more than the memory use of an idle
/// GPU.
const ASSIGNED: f64 = 0.5;

/// A GPU of the host and how much it is used: the smaller the load, the sooner it is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuLoad {
    pub index: u32,
    pub load: f64,
}

/// The load of each GPU: its memory, its utilization, the number of its processes, and the pods that it is assigned to, which
/// may start to use it.
pub fn loads(devices: &[Device], assigned: &[&GpuSet]) -> Vec<GpuLoad> {
    let pods_on = |index: u32| {
        let has = |gpus: &&GpuSet| matches!(gpus, GpuSet::Only(ids) if ids.contains(&index));
        assigned.iter().filter(|gpus| has(gpus)).count() as f64
    };
    let used = |device: &Device| match &device.health {
        // Assigned last.
        Health::Unknown { .. } => f64::INFINITY,
        Health::Known(reading) => {
            let memory = reading.memory_used.unwrap_or(0) as f64 / reading.memory_total.unwrap_or(1).max(1) as f64;
            device.processes.len() as f64 + memory + f64::from(reading.utilization.unwrap_or(0)) / 100.0
        }
    };
    let load = |device: &Device| GpuLoad { index: device.index, load: used(device) + pods_on(device.index) * ASSIGNED };
    devices.iter().map(load).collect()
}

/// The `count` least used GPUs among those allowed; if there are fewer, how many there are.
pub fn least_used(gpus: &[GpuLoad], count: usize, is_allowed: impl Fn(u32) -> bool) -> Result<BTreeSet<u32>, usize> {
    let mut allowed: Vec<&GpuLoad> = gpus.iter().filter(|gpu| is_allowed(gpu.index)).collect();
    allowed.sort_by(|a, b| a.load.total_cmp(&b.load).then(a.index.cmp(&b.index)));
    match allowed.len() >= count {
        true => Ok(allowed.iter().take(count).map(|gpu| gpu.index).collect()),
        false => Err(allowed.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_come_first_and_the_lower_index_among_equals() {
        let gpus = [(0, 0.9), (1, 0.0), (2, 0.0), (3, f64::INFINITY)].map(|(index, load)| GpuLoad { index, load });
        assert_eq!(least_used(&gpus, 1, |_| true), Ok([1].into()));
        assert_eq!(least_used(&gpus, 3, |_| true), Ok([0, 1, 2].into()));
        assert_eq!(least_used(&gpus, 1, |index| index == 3), Ok([3].into()));
        assert_eq!(least_used(&gpus, 2, |index| index == 3), Err(1));
    }
}
