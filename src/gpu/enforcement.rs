//! Enforces the GPU quota against users whose processes are on more GPUs than it allows. Pure: snapshots and limits in,
//! actions out.
//!
//! The first snapshot that shows an overuse leads to a warning. Once it has lasted for the grace period, the newest
//! process on an excess GPU is killed, then, if that was not enough, the next one. Users keep the GPUs that they used
//! first: a process that is only on those is never killed.

use std::collections::{BTreeMap, HashMap};

use super::{GpuProcess, Health, Owner, Snapshot};
use crate::{
    config::OnOveruse,
    host::clock::Moment,
    model::{
        ids::{ContainerId, PodId, ProcessId},
        names::UserName,
        quota::CountLimit,
        usage::GpuUuid,
    },
};

/// Milliseconds that a killed process has to exit before the next one is considered.
const PATIENCE: i64 = 10_000;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Warn the user, in these pods.
    Warn {
        user: UserName,
        pods: Vec<PodId>,
        message: String,
    },
    /// Kill this process and its descendants.
    EndProcess {
        user: UserName,
        pod: PodId,
        container: ContainerId,
        process: ProcessId,
        message: String,
    },
    StopPod {
        user: UserName,
        pod: PodId,
        message: String,
    },
}

struct Overuse {
    since: Moment,
    last_act: Option<Moment>,
}

/// Remembers which users are over their quota, and since when.
#[derive(Default)]
pub struct Enforcer(HashMap<UserName, Overuse>);

/// The configured rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Milliseconds.
    pub grace: i64,
    pub then: OnOveruse,
}

/// A user's process on a GPU.
struct GpuUse<'a> {
    gpu: &'a GpuUuid,
    index: u32,
    process: &'a GpuProcess,
    pod: PodId,
    pod_name: &'a str,
    container: &'a ContainerId,
}

impl Enforcer {
    /// What this snapshot requires.
    pub fn decide(
        &mut self,
        snapshot: &Snapshot,
        limit: impl Fn(&UserName) -> CountLimit,
        rule: Rule,
    ) -> Vec<Enforcement> {
        let uses = uses(snapshot);
        self.0.retain(|user, _| uses.contains_key(user));
        let mut acts = Vec::new();
        for (user, uses) in uses {
            let CountLimit(Some(allowed)) = limit(user) else {
                self.0.remove(user);
                continue;
            };
            let excess = excess(&uses, allowed);
            if excess.is_empty() {
                self.0.remove(user);
                continue;
            }
            let used = gpus_in_order(&uses);
            let rule_text = format!(
                "gpu_count is {allowed} and your processes are on {} GPUs ({})",
                used.len(),
                list(&uses, &used)
            );
            match self.0.get_mut(user) {
                None => {
                    self.0.insert(user.clone(), Overuse { since: snapshot.at, last_act: None });
                    let mut pods: Vec<PodId> = uses.iter().map(|used| used.pod).collect();
                    pods.sort();
                    pods.dedup();
                    let next = match rule.then {
                        OnOveruse::Warn => "stop some of them".to_owned(),
                        OnOveruse::KillProcess => {
                            format!("stop some of them within {} s, or the newest is killed", rule.grace / 1000)
                        }
                        OnOveruse::StopPod => format!(
                            "stop some of them within {} s, or the newest one's pod is stopped",
                            rule.grace / 1000
                        ),
                    };
                    acts.push(Enforcement::Warn { user: user.clone(), pods, message: format!("{rule_text}: {next}") });
                }
                Some(overuse) => {
                    let over = snapshot.at.since(overuse.since) >= rule.grace;
                    let rested = overuse.last_act.is_none_or(|last| snapshot.at.since(last) >= PATIENCE);
                    let newest = excess.into_iter().max_by_key(|used| used.process.id.started);
                    if let Some(used) = newest.filter(|_| over && rested && rule.then != OnOveruse::Warn) {
                        overuse.last_act = Some(snapshot.at);
                        acts.push(act(user, used, rule, &rule_text));
                    }
                }
            }
        }
        acts
    }
}

fn act(user: &UserName, used: &GpuUse, rule: Rule, rule_text: &str) -> Enforcement {
    let pid = used.process.pid_inside.unwrap_or(used.process.id.pid);
    let seconds = rule.grace / 1000;
    match rule.then {
        OnOveruse::StopPod => {
            let message = format!(
                "{rule_text} for more than {seconds} s: pod {} was stopped; start it with `pody start`",
                used.pod_name
            );
            Enforcement::StopPod { user: user.clone(), pod: used.pod, message }
        }
        OnOveruse::Warn | OnOveruse::KillProcess => {
            let message = format!(
                "{rule_text} for more than {seconds} s: process {pid} of pod {} on GPU {} was killed; use fewer GPUs, or ask an admin for a higher quota",
                used.pod_name, used.index
            );
            let (process, container) = (used.process.id, used.container.clone());
            Enforcement::EndProcess { user: user.clone(), pod: used.pod, container, process, message }
        }
    }
}

/// The processes of pods on readable GPUs, by user.
fn uses(snapshot: &Snapshot) -> BTreeMap<&UserName, Vec<GpuUse<'_>>> {
    let mut uses: BTreeMap<&UserName, Vec<GpuUse>> = BTreeMap::new();
    for device in snapshot.devices.iter().filter(|device| matches!(device.health, Health::Known(_))) {
        for process in &device.processes {
            if let Owner::Pod { pod, user, name, container } = &*process.owner {
                let used =
                    GpuUse { gpu: &device.uuid, index: device.index, process, pod: *pod, pod_name: name, container };
                uses.entry(user).or_default().push(used);
            }
        }
    }
    uses
}

/// A user's GPUs in the order in which they were first used.
fn gpus_in_order<'a>(uses: &[GpuUse<'a>]) -> Vec<&'a GpuUuid> {
    let mut first: BTreeMap<&GpuUuid, u64> = BTreeMap::new();
    for used in uses {
        let started = used.process.id.started;
        first.entry(used.gpu).and_modify(|first| *first = started.min(*first)).or_insert(started);
    }
    let mut gpus: Vec<_> = first.into_iter().collect();
    gpus.sort_by_key(|(gpu, started)| (*started, *gpu));
    gpus.into_iter().map(|(gpu, _)| gpu).collect()
}

/// The processes on the excess GPUs.
fn excess<'a, 'b>(uses: &'b [GpuUse<'a>], allowed: u64) -> Vec<&'b GpuUse<'a>> {
    let gpus = gpus_in_order(uses);
    let too_many = gpus.get(usize::try_from(allowed).unwrap_or(usize::MAX).min(gpus.len())..).unwrap_or_default();
    uses.iter().filter(|used| too_many.contains(&used.gpu)).collect()
}

fn list(uses: &[GpuUse], gpus: &[&GpuUuid]) -> String {
    let index = |gpu: &&GpuUuid| uses.iter().find(|used| used.gpu == *gpu).map(|used| used.index.to_string());
    gpus.iter().filter_map(index).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gpu::{Device, Kinds},
        model::gpu::{Library, Reading},
    };

    const RULE: Rule = Rule { grace: 60_000, then: OnOveruse::KillProcess };

    fn process(pid: i32, started: u64, owner: &str) -> GpuProcess {
        let owner = match owner {
            "" => Owner::Host,
            user => Owner::Pod {
                pod: "018f0000-0000-7000-8000-000000000000".parse().unwrap(),
                user: user.parse().unwrap(),
                name: format!("{user}-main"),
                container: "a".repeat(64).parse().unwrap(),
            },
        };
        GpuProcess {
            id: ProcessId { pid, started },
            owner: owner.into(),
            pid_inside: Some(pid),
            command: None,
            uptime: 1.0,
            resident: 0,
            gpu_memory: None,
            utilization: None,
            kinds: Kinds::default(),
            gpu_instance: None,
        }
    }

    /// A snapshot at this second, with processes by GPU.
    fn snapshot(second: i64, gpus: &[Vec<GpuProcess>]) -> Snapshot {
        let devices = gpus.iter().enumerate().map(|(index, processes)| Device {
            index: index as u32,
            uuid: GpuUuid(format!("GPU-{index}")),
            name: String::new(),
            health: Health::Known(Reading::default()),
            processes: processes.clone(),
            mig: Vec::new(),
        });
        Snapshot {
            at: Moment { wall: 0, steady: second * 1000 },
            library: Library::Starting,
            devices: devices.collect(),
        }
    }

    fn ended(acts: &[Enforcement]) -> Vec<i32> {
        acts.iter()
            .filter_map(|act| if let Enforcement::EndProcess { process, .. } = act { Some(process.pid) } else { None })
            .collect()
    }

    #[test]
    fn overuse_is_warned_about_at_once_and_the_newest_excess_process_is_killed_after_the_grace_period() {
        let mut enforcement = Enforcer::default();
        let gpus = [
            vec![process(1, 10, "alice"), process(9, 5, "")],
            vec![process(2, 20, "alice")],
            vec![process(3, 15, "alice"), process(4, 99, "bob")],
        ];
        let limit = |_: &UserName| CountLimit(Some(1));
        let acts = enforcement.decide(&snapshot(0, &gpus), limit, RULE);
        let [Enforcement::Warn { user, message, .. }] = &acts[..] else { panic!("{acts:?}") };
        assert_eq!(user.as_str(), "alice");
        assert_eq!(
            message,
            "gpu_count is 1 and your processes are on 3 GPUs (0, 2, 1): stop some of them within 60 s, or the newest is killed"
        );
        assert!(enforcement.decide(&snapshot(59, &gpus), limit, RULE).is_empty());
        assert_eq!(ended(&enforcement.decide(&snapshot(60, &gpus), limit, RULE)), [2]);
        // It has time to exit before the next one is killed.
        assert!(enforcement.decide(&snapshot(61, &gpus), limit, RULE).is_empty());
        let left = [gpus[0].clone(), vec![], gpus[2].clone()];
        assert_eq!(ended(&enforcement.decide(&snapshot(70, &left), limit, RULE)), [3]);
        let within = [gpus[0].clone(), vec![], vec![process(4, 99, "bob")]];
        assert!(enforcement.decide(&snapshot(80, &within), limit, RULE).is_empty());
        // Over the quota again: the grace period starts again.
        assert!(matches!(enforcement.decide(&snapshot(90, &gpus), limit, RULE)[..], [Enforcement::Warn { .. }]));
    }

    #[test]
    fn with_the_warn_setting_there_is_only_a_warning() {
        let mut enforcement = Enforcer::default();
        let gpus = [vec![process(1, 10, "alice")]];
        let rule = Rule { then: OnOveruse::Warn, ..RULE };
        let limit = |_: &UserName| CountLimit(Some(0));
        assert_eq!(enforcement.decide(&snapshot(0, &gpus), limit, rule).len(), 1);
        assert!(enforcement.decide(&snapshot(1000, &gpus), limit, rule).is_empty());
    }

    proptest! {
        /// For any layout: no process of other users is ever killed, none of users within their limit, and killing the
        /// newest excess process again and again brings the user within the limit.
        #[test]
        fn only_excess_processes_are_killed(
            layout in prop::collection::vec(prop::collection::vec((0u64..50, prop_oneof!["alice", "bob", Just(String::new())]), 0..4), 1..6),
            allowed in 0u64..4,
        ) {
            let mut pid = 0;
            let mut gpus: Vec<Vec<GpuProcess>> = layout.iter().map(|on| on.iter().map(|(started, owner)| {
                pid += 1;
                process(pid, *started, owner)
            }).collect()).collect();
            let limit = |user: &UserName| if user.as_str() == "alice" { CountLimit(Some(allowed)) } else { CountLimit(None) };
            let mut enforcement = Enforcer::default();
            let used = |gpus: &[Vec<GpuProcess>]| gpus.iter().filter(|on| on.iter().any(|p| p.owner.user().is_some_and(|u| u.as_str() == "alice"))).count() as u64;
            for round in 0..40 {
                let within = used(&gpus) <= allowed;
                let acts = enforcement.decide(&snapshot(round * 60, &gpus), limit, RULE);
                for act in &acts {
                    prop_assert!(!within);
                    if let Enforcement::EndProcess { user, process, .. } = act {
                        prop_assert_eq!(user.as_str(), "alice");
                        let mine = gpus.iter().flatten().any(|p| p.id == *process && p.owner.user() == Some(user));
                        prop_assert!(mine);
                        gpus.iter_mut().for_each(|on| on.retain(|p| p.id != *process));
                    }
                }
            }
            prop_assert!(used(&gpus) <= allowed);
        }
    }
}
