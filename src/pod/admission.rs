//! Whether a user may have one more pod, GPU or commit. Pure: numbers in, a reason out.

use crate::{
    gpu::ledger::{GpuLoad, least_used},
    model::{
        quantities::{ByteSize, GpuRequest, GpuSet},
        quota::Quota,
    },
};

/// A pod that counts against its user's quota.
#[derive(Clone, Debug)]
pub struct HeldQuota {
    pub name: String,
    /// Bytes; `None` = unlimited.
    pub memory: Option<u64>,
}

/// Which rule refuses, with its numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Refusal {
    #[error("{}", too_many("max_pods", *.limit, .pods, "pody rm NAME"))]
    MaxPods { limit: u64, pods: Vec<String> },
    #[error("total_memory is {} and your pods hold {} of it; {}; delete one with `pody rm NAME`, or ask an admin",
        ByteSize(*.limit), ByteSize(*.held),
        if *.asked == 0 { "none is left for another".to_owned() } else { format!("this one would take {}", ByteSize(*.asked)) })]
    TotalMemory { limit: u64, held: u64, asked: u64 },
    #[error("total_memory is {} and {pod} has no limit of its own; create it again, or ask an admin", ByteSize(*.limit))]
    UnlimitedPod { limit: u64, pod: String },
    #[error("gpu_count is {limit} and you ask for {asked} GPUs; ask for fewer, or ask an admin")]
    GpuCount { limit: u64, asked: u64 },
    #[error(
        "your quota lets your pods see the GPUs {allowed} and you ask for {asked}; choose among those, or ask an admin"
    )]
    Gpus { allowed: GpuSet, asked: GpuSet },
    #[error("you ask for {asked} GPUs and your pods may see {there} of this host's")]
    TooFewGpus { there: usize, asked: u32 },
    #[error("{}", too_many("commit_count", *.limit, .images, "pody post image/delete image:NAME"))]
    CommitCount { limit: u64, images: Vec<String> },
    #[error("commit_size_limit is {} and the pod has written {}; delete files in it, or move them to a volume", ByteSize(*.limit), ByteSize(*.size))]
    #[strum(serialize = "commit_size_limit")]
    CommitSize { limit: u64, size: u64 },
}

fn too_many(rule: &str, limit: u64, held: &[String], delete: &str) -> String {
    match held {
        [] => format!("{rule} is {limit} and lets you have none; ask an admin for more"),
        _ => format!("{rule} is {limit} and you have {}: {}; delete one with `{delete}`", held.len(), held.join(", ")),
    }
}

/// What a new pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Bytes; `None` = unlimited.
    pub memory: Option<u64>,
}

/// Admits one more pod besides those held. A pod without a memory limit of its own gets what is left of `total_memory`.
pub fn admit_pod(quota: &Quota, held: &[HeldQuota]) -> Result<Grant, Refusal> {
    if let Some(limit) = quota.max_pods.0
        && held.len() as u64 >= limit
    {
        return Err(Refusal::MaxPods { limit, pods: held.iter().map(|pod| pod.name.clone()).collect() });
    }
    let Some(total) = quota.total_memory.0 else { return Ok(Grant { memory: quota.memory_limit.0 }) };
    let mut used: u64 = 0;
    for pod in held {
        let memory = pod.memory.ok_or_else(|| Refusal::UnlimitedPod { limit: total, pod: pod.name.clone() })?;
        used = used.saturating_add(memory);
    }
    let left = total.saturating_sub(used);
    let asked = quota.memory_limit.0.unwrap_or(left);
    if asked > left || left == 0 {
        return Err(Refusal::TotalMemory { limit: total, held: used, asked });
    }
    Ok(Grant { memory: Some(asked) })
}

/// The GPUs that a new pod sees: the requested ones, within the quota. A count gets the least used.
pub fn choose_gpus(quota: &Quota, request: &GpuRequest, gpus: &[GpuLoad]) -> Result<GpuSet, Refusal> {
    let asked = match request {
        GpuRequest::Count(count) => u64::from(*count),
        GpuRequest::Ids(ids) => ids.len() as u64,
    };
    if let Some(limit) = quota.gpu_count.0
        && asked > limit
    {
        return Err(Refusal::GpuCount { limit, asked });
    }
    let is_allowed = |index: &u32| match &quota.gpus {
        GpuSet::All => gpus.iter().any(|gpu| gpu.index == *index),
        GpuSet::Only(allowed) => allowed.contains(index),
    };
    match request {
        GpuRequest::Ids(ids) if ids.iter().all(is_allowed) => Ok(GpuSet::Only(ids.clone())),
        GpuRequest::Ids(ids) => {
            let there = gpus.iter().map(|gpu| gpu.index).filter(|index| is_allowed(index)).collect();
            Err(Refusal::Gpus { allowed: GpuSet::Only(there), asked: GpuSet::Only(ids.clone()) })
        }
        GpuRequest::Count(count) => {
            let chosen = least_used(gpus, *count as usize, |index| is_allowed(&index));
            chosen.map(GpuSet::Only).map_err(|there| Refusal::TooFewGpus { there, asked: *count })
        }
    }
}

/// Admits one more committed image besides those held.
pub fn admit_commit(quota: &Quota, held: &[String], size: u64) -> Result<(), Refusal> {
    if let Some(limit) = quota.commit_count.0
        && held.len() as u64 >= limit
    {
        return Err(Refusal::CommitCount { limit, images: held.to_vec() });
    }
    match quota.commit_size_limit.0 {
        Some(limit) if size > limit => Err(Refusal::CommitSize { limit, size }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::quota::{CountLimit, SizeLimit};

    fn quota(max_pods: Option<u64>, memory: Option<u64>, total: Option<u64>) -> Quota {
        Quota {
            max_pods: CountLimit(max_pods),
            memory_limit: SizeLimit(memory),
            total_memory: SizeLimit(total),
            ..Quota::default()
        }
    }

    #[test]
    fn a_refusal_names_the_rule_the_numbers_and_the_next_step() {
        let held = [HeldQuota { name: "alice-a".into(), memory: None }];
        let refusal = admit_pod(&quota(Some(1), None, None), &held).unwrap_err();
        assert_eq!(refusal.to_string(), "max_pods is 1 and you have 1: alice-a; delete one with `pody rm NAME`");
    }

    #[test]
    fn a_gpu_count_gets_the_least_used_gpus_within_the_quota() {
        let gpus = [(0, 0.9), (1, 0.1), (2, 0.0), (3, 0.5)].map(|(index, load)| GpuLoad { index, load });
        let mut quota = quota(None, None, None);
        let choose =
            |quota: &Quota, text: &str| choose_gpus(quota, &text.parse().unwrap(), &gpus).map(|set| set.to_string());
        assert_eq!(choose(&quota, "2").unwrap(), "1,2");
        assert_eq!(choose(&quota, "0").unwrap(), "none");
        assert_eq!(choose(&quota, "0,3").unwrap(), "0,3");
        assert!(matches!(choose(&quota, "4,"), Err(Refusal::Gpus { .. })));
        quota.gpus = "0,3".parse().unwrap();
        assert_eq!(choose(&quota, "1").unwrap(), "3");
        assert!(matches!(choose(&quota, "3"), Err(Refusal::TooFewGpus { there: 2, asked: 3 })));
        assert_eq!(
            choose(&quota, "1,").unwrap_err().to_string(),
            "your quota lets your pods see the GPUs 0,3 and you ask for 1; choose among those, or ask an admin"
        );
        quota.gpu_count = CountLimit(Some(1));
        assert!(matches!(choose(&quota, "0,3"), Err(Refusal::GpuCount { limit: 1, asked: 2 })));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Create,
        Delete(usize),
    }

    proptest! {
        /// Whatever is created and deleted in whatever order, the held pods never exceed the quota, and nothing
        /// that fits is refused.
        #[test]
        fn held_pods_never_exceed_the_quota(
            max_pods in prop::option::of(0u64..6),
            memory in prop::option::of(1u64..50),
            total in prop::option::of(0u64..120),
            steps in prop::collection::vec(prop_oneof![3 => Just(Step::Create), 1 => (0usize..6).prop_map(Step::Delete)], 0..40),
        ) {
            let quota = quota(max_pods, memory, total);
            let mut held: Vec<HeldQuota> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Delete(at) if at < held.len() => { held.remove(at); }
                    Step::Delete(_) => {}
                    Step::Create => {
                        let used: u64 = held.iter().filter_map(|pod| pod.memory).sum();
                        let left = total.map(|total| total - used);
                        let fits = max_pods.is_none_or(|max| (held.len() as u64) < max)
                            && left.is_none_or(|left| left > 0 && memory.unwrap_or(left) <= left);
                        match admit_pod(&quota, &held) {
                            Ok(grant) => {
                                prop_assert!(fits);
                                held.push(HeldQuota { name: number.to_string(), memory: grant.memory });
                            }
                            Err(_) => prop_assert!(!fits),
                        }
                    }
                }
                prop_assert!(max_pods.is_none_or(|max| held.len() as u64 <= max));
                prop_assert!(total.is_none_or(|total| held.iter().filter_map(|pod| pod.memory).sum::<u64>() <= total));
            }
        }

        #[test]
        fn commits_never_exceed_the_quota(count in prop::option::of(0u64..5), limit in prop::option::of(0u64..100), held in 0usize..8, size in 0u64..120) {
            let mut quota = quota(None, None, None);
            quota.commit_count = CountLimit(count);
            quota.commit_size_limit = SizeLimit(limit);
            let images: Vec<String> = (0..held).map(|n| n.to_string()).collect();
            let fits = count.is_none_or(|count| (held as u64) < count) && limit.is_none_or(|limit| size <= limit);
            prop_assert_eq!(admit_commit(&quota, &images, size).is_ok(), fits);
        }
    }
}
