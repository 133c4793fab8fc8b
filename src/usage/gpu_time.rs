//! Turns snapshots of the GPUs into seconds of GPU use. Pure: observations in, amounts out.
//!
//! A process that is on a GPU in two snapshots was there between them. A new one has been there since its start, but
//! not before the last snapshot without it. One that has left is credited half of the time until the snapshot without
//! it. A GPU that several of one user's pods use is one GPU: its time is shared among them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    gpu::{Device, GpuProcess, Health, Owner, Snapshot},
    host::clock::ClockWatch,
    model::{
        gpu::Reading,
        ids::ProcessId,
        names::UserName,
        usage::{Amount, GpuAmount, GpuCursor, GpuUuid, Subject},
    },
};

/// Most milliseconds that are credited to a process that ended between snapshots.
const MAX_GUESS: i64 = 30_000;

/// Milliseconds after which the processes of an unknown GPU are forgotten: what they did meanwhile is unknown too.
const MAX_UNKNOWN: i64 = 60_000;

/// The processes on each GPU.
pub type GpuCursors = HashMap<GpuUuid, HashMap<ProcessId, GpuCursor>>;

/// What was used between two snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Used {
    /// Begin and end in milliseconds, owner, amount.
    pub pods: Vec<(i64, i64, Subject, Amount)>,
    pub gpus: Vec<(i64, i64, GpuUuid, GpuAmount)>,
    /// Whether a process was added, was removed or changed its owner.
    pub has_moved: bool,
}

/// Follows the snapshots.
#[derive(Debug, Default)]
pub struct GpuClock {
    cursors: GpuCursors,
    /// The last snapshot's time; `None` before the first.
    last: Option<i64>,
    watch: ClockWatch,
}

impl GpuClock {
    /// Continues where an earlier clock stopped.
    pub fn resume(cursors: GpuCursors, last: Option<i64>) -> Self {
        Self { cursors, last, ..Self::default() }
    }

    pub fn cursors(&self) -> &GpuCursors {
        &self.cursors
    }

    pub fn last(&self) -> Option<i64> {
        self.last
    }

    fn move_cursors(&mut self, to: impl Fn(i64) -> i64) {
        self.cursors.values_mut().flat_map(HashMap::values_mut).for_each(|cursor| cursor.counted = to(cursor.counted));
    }

    /// Counts up to this snapshot. Entries are changed in place: there may be a thousand per second.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Used {
        let at = snapshot.at.wall;
        let mut used = Used::default();
        let set_by = self.watch.set_by(snapshot.at);
        self.last = self.last.map(|last| last + set_by);
        if set_by != 0 {
            self.move_cursors(|counted| counted + set_by);
        }
        let last = self.last.unwrap_or(at);
        if at <= last && self.last.is_some() {
            // The clock was set back between snapshots: nothing is counted for the time that did not pass.
            self.move_cursors(|_| at);
            self.last = Some(at);
            return used;
        }
        let mut known: HashSet<&GpuUuid> = HashSet::new();
        for device in &snapshot.devices {
            let Health::Known(reading) = &device.health else { continue };
            known.insert(&device.uuid);
            let mut cursors = self.cursors.remove(&device.uuid).unwrap_or_default();
            count_device(device, reading, last, at, &mut used, &mut cursors);
            count_gone(&device.uuid, at, &mut used, &mut cursors);
            if !cursors.is_empty() {
                self.cursors.insert(device.uuid.clone(), cursors);
            }
            let seconds = (at - last) as f64 / 1000.0;
            let free = device.processes.is_empty();
            let amount = GpuAmount {
                known_seconds: seconds,
                free_seconds: if free { seconds } else { 0.0 },
                busy_seconds: seconds * f64::from(reading.utilization.unwrap_or(0)) / 100.0,
                memory_byte_seconds: seconds * reading.memory_used.unwrap_or(0) as f64,
                joules: seconds * reading.power.unwrap_or(0.0),
            };
            if seconds > 0.0 {
                used.gpus.push((last, at, device.uuid.clone(), amount));
            }
        }
        // The processes on the other GPUs are unknown now; they are counted, or not, when those GPUs are known again.
        self.cursors.retain(|gpu, cursors| {
            if !known.contains(gpu) {
                cursors.retain(|_, cursor| at - cursor.counted < MAX_UNKNOWN);
            }
            !cursors.is_empty()
        });
        self.last = Some(at);
        used
    }
}

/// Counts the processes on a GPU up to `at`, and remembers them.
fn count_device(
    device: &Device,
    reading: &Reading,
    last: i64,
    at: i64,
    used: &mut Used,
    cursors: &mut HashMap<ProcessId, GpuCursor>,
) {
    // Per pod: since when, whether it computes, how much GPU memory it holds.
    struct Share<'a> {
        user: &'a UserName,
        begin: i64,
        active: bool,
        memory: u64,
    }
    let mut pods: BTreeMap<&str, Share> = BTreeMap::new();
    let any_told = device.processes.iter().any(|process| process.utilization.is_some());
    for process in &device.processes {
        let Owner::Pod { user, name, .. } = &*process.owner else { continue };
        let active = is_active(process, reading.utilization, any_told);
        let begin = match cursors.get_mut(&process.id) {
            Some(cursor) => {
                let begin = cursor.counted.min(at);
                if cursor.user != *user || cursor.pod != *name {
                    (cursor.user, cursor.pod) = (user.clone(), name.clone());
                    used.has_moved = true;
                }
                (cursor.counted, cursor.active) = (at, active);
                begin
            }
            None => {
                cursors.insert(process.id, GpuCursor { user: user.clone(), pod: name.clone(), counted: at, active });
                used.has_moved = true;
                last.max(at - (process.uptime * 1000.0) as i64).min(at)
            }
        };
        let share = pods.entry(name).or_insert(Share { user, begin, active: false, memory: 0 });
        share.begin = share.begin.min(begin);
        share.active |= active;
        share.memory += process.gpu_memory.unwrap_or(0);
    }
    let active_pods = pods.values().filter(|share| share.active).count();
    let mut of_user: HashMap<&UserName, u32> = HashMap::new();
    pods.values().for_each(|share| *of_user.entry(share.user).or_default() += 1);
    for (pod, share) in &pods {
        let mut amount = seconds(at - share.begin, share.active).scaled(1.0 / f64::from(of_user[share.user]));
        amount.gpu_memory_byte_seconds = share.memory as f64 * (at - share.begin) as f64 / 1000.0;
        // Energy is charged to the pods that compute; if none does, to all that hold the GPU.
        let sharers = if active_pods > 0 { active_pods } else { pods.len() };
        if share.active || active_pods == 0 {
            amount.gpu_joules = reading.power.unwrap_or(0.0) * (at - share.begin) as f64 / 1000.0 / sharers as f64;
        }
        if at > share.begin {
            used.pods.push((share.begin, at, subject(share.user, pod, &device.uuid), amount));
        }
    }
}

/// Counts the processes that have left a GPU since the last snapshot, and forgets them. Those still there were already
/// counted up to `at`.
fn count_gone(gpu: &GpuUuid, at: i64, used: &mut Used, cursors: &mut HashMap<ProcessId, GpuCursor>) {
    cursors.retain(|_, cursor| {
        let missed = at - cursor.counted;
        if missed == 0 {
            return true;
        }
        let until = cursor.counted + (missed / 2).min(MAX_GUESS);
        let amount = seconds(until - cursor.counted, cursor.active);
        used.pods.push((cursor.counted, until, subject(&cursor.user, &cursor.pod, gpu), amount));
        used.has_moved = true;
        false
    });
}

/// Whether a process computes: as the driver reports for it, or, if the driver reports no process, as the whole GPU
/// does.
fn is_active(process: &GpuProcess, device: Option<u32>, any_told: bool) -> bool {
    match process.utilization {
        Some(percent) => percent > 0,
        None if any_told => false,
        None => device.unwrap_or(0) > 0,
    }
}

fn subject(user: &UserName, pod: &str, gpu: &GpuUuid) -> Subject {
    Subject { user: user.clone(), pod: pod.to_owned(), gpu: Some(gpu.clone()) }
}

fn seconds(milliseconds: i64, active: bool) -> Amount {
    let seconds = milliseconds.max(0) as f64 / 1000.0;
    match active {
        true => Amount { gpu_active_seconds: seconds, ..Amount::default() },
        false => Amount { gpu_held_seconds: seconds, ..Amount::default() },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        gpu::Kinds,
        host::clock::Moment,
        model::{gpu::Library, ids::PodId},
    };

    fn process(pid: i32, pod: &str, uptime: f64, utilization: Option<u32>) -> GpuProcess {
        let (user, _) = pod.split_once('-').unwrap();
        GpuProcess {
            id: ProcessId { pid, started: 1 },
            owner: Arc::new(Owner::Pod {
                pod: PodId::generate(),
                user: user.parse().unwrap(),
                name: pod.to_owned(),
                container: "a".repeat(64).parse().unwrap(),
            }),
            pid_inside: None,
            command: None,
            uptime,
            resident: 0,
            gpu_memory: Some(100),
            utilization,
            kinds: Kinds::default(),
            gpu_instance: None,
        }
    }

    fn snapshot(at: i64, processes: Vec<GpuProcess>) -> Snapshot {
        let reading = Reading { power: Some(200.0), utilization: Some(50), ..Reading::default() };
        let device = Device {
            index: 0,
            uuid: GpuUuid("G".into()),
            name: String::new(),
            health: Health::Known(reading),
            processes,
            mig: Vec::new(),
        };
        let at = Moment { wall: at, steady: at };
        Snapshot { at, library: Library::Working { driver: String::new() }, devices: vec![device] }
    }

    /// The same, as if the clock had been set by this many milliseconds.
    fn set_by(milliseconds: i64, mut snapshot: Snapshot) -> Snapshot {
        snapshot.at.wall += milliseconds;
        snapshot
    }

    fn totals(used: &[Used]) -> BTreeMap<String, (f64, f64)> {
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (_, _, subject, amount) in used.iter().flat_map(|used| &used.pods) {
            let sum = sums.entry(subject.pod.clone()).or_default();
            sum.0 += amount.gpu_active_seconds;
            sum.1 += amount.gpu_held_seconds;
        }
        sums
    }

    #[test]
    fn active_and_held_time_are_distinguished() {
        let mut clock = GpuClock::default();
        let used = [
            clock.advance(&snapshot(0, vec![])),
            clock.advance(&snapshot(10_000, vec![process(1, "a-x", 4.0, Some(80)), process(2, "b-y", 100.0, Some(0))])),
            clock
                .advance(&snapshot(20_000, vec![process(1, "a-x", 14.0, Some(80)), process(2, "b-y", 110.0, Some(0))])),
            clock.advance(&snapshot(30_000, vec![process(2, "b-y", 120.0, Some(0))])),
        ];
        // a: from its start at 6 s to 20 s, and half of the 10 s during which it ended.
        assert_eq!(totals(&used), BTreeMap::from([("a-x".into(), (19.0, 0.0)), ("b-y".into(), (0.0, 30.0))]));
    }

    #[test]
    fn a_restart_counts_the_gap_for_a_process_that_kept_running_and_nothing_twice() {
        let mut clock = GpuClock::default();
        let mut used = vec![
            clock.advance(&snapshot(0, vec![])),
            clock.advance(&snapshot(5_000, vec![process(1, "a-x", 5.0, Some(1))])),
        ];
        let mut resumed = GpuClock::resume(clock.cursors().clone(), clock.last());
        used.push(resumed.advance(&snapshot(65_000, vec![process(1, "a-x", 65.0, Some(1))])));
        assert_eq!(totals(&used)["a-x"], (65.0, 0.0));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut clock = GpuClock::default();
        clock.advance(&snapshot(0, vec![process(1, "a-x", 1.0, Some(1))]));
        let mut other = process(1, "b-y", 2.0, Some(1));
        other.id.started = 99;
        let used = clock.advance(&snapshot(10_000, vec![other]));
        assert_eq!(totals(&[used]), BTreeMap::from([("a-x".into(), (5.0, 0.0)), ("b-y".into(), (2.0, 0.0))]));
    }

    #[test]
    fn a_change_is_reported_only_when_processes_appear_leave_or_change_owner() {
        let mut clock = GpuClock::default();
        let mut moved = |at, processes| clock.advance(&snapshot(at, processes)).has_moved;
        assert!(!moved(0, vec![]));
        assert!(moved(1_000, vec![process(1, "a-x", 1.0, Some(1))]));
        assert!(!moved(2_000, vec![process(1, "a-x", 2.0, Some(0))]));
        assert!(moved(3_000, vec![process(1, "a-renamed", 3.0, Some(0))]));
        assert!(moved(4_000, vec![]));
        assert!(!moved(5_000, vec![]));
    }

    #[test]
    fn two_pods_of_one_user_on_one_gpu_are_one_gpu() {
        let mut clock = GpuClock::default();
        clock.advance(&snapshot(0, vec![]));
        let used =
            clock.advance(&snapshot(10_000, vec![process(1, "a-x", 99.0, Some(1)), process(2, "a-y", 99.0, Some(1))]));
        let sum: f64 = totals(&[used]).values().map(|(active, held)| active + held).sum();
        assert_eq!(sum, 10.0);
    }

    #[test]
    fn an_unknown_gpu_counts_nothing_until_it_is_known_again() {
        let mut clock = GpuClock::default();
        clock.advance(&snapshot(0, vec![process(1, "a-x", 1.0, Some(1))]));
        let mut lost = snapshot(10_000, vec![]);
        lost.devices[0].health = Health::Unknown { reason: String::new() };
        let gap = clock.advance(&lost);
        assert_eq!((gap.pods.len(), gap.gpus.len()), (0, 0));
        let used = clock.advance(&snapshot(20_000, vec![process(1, "a-x", 21.0, Some(1))]));
        assert_eq!(totals(&[used])["a-x"], (20.0, 0.0));
    }

    #[test]
    fn what_happened_in_a_long_gap_is_not_guessed() {
        let mut clock = GpuClock::default();
        clock.advance(&snapshot(0, vec![process(1, "a-x", 1.0, Some(1))]));
        let mut resumed = GpuClock::resume(clock.cursors().clone(), clock.last());
        assert_eq!(totals(&[resumed.advance(&snapshot(36_000_000, vec![]))])["a-x"], (30.0, 0.0));
        let mut lost = snapshot(0, vec![]);
        lost.devices.clear();
        for at in [100_000, 200_000] {
            clock.advance(&Snapshot { at: Moment { wall: at, steady: at }, ..lost.clone() });
        }
        assert!(clock.cursors().is_empty());
    }

    #[test]
    fn a_clock_that_is_set_changes_no_amount() {
        const DAY: i64 = 86_400_000;
        for set in [DAY, -DAY] {
            let mut clock = GpuClock::default();
            clock.advance(&snapshot(100_000, vec![process(1, "a-x", 1.0, Some(1))]));
            let used = [
                clock.advance(&set_by(set, snapshot(101_000, vec![process(1, "a-x", 2.0, Some(1))]))),
                clock.advance(&set_by(set, snapshot(102_000, vec![process(1, "a-x", 3.0, Some(1))]))),
                clock.advance(&snapshot(104_000, vec![process(1, "a-x", 5.0, Some(1))])),
            ];
            assert_eq!(totals(&used)["a-x"], (4.0, 0.0));
            assert_eq!(used[0].gpus[0].1, 101_000 + set, "it is recorded at the new clock's time");
        }
    }

    #[test]
    fn a_clock_set_back_between_snapshots_counts_nothing() {
        let mut clock = GpuClock::default();
        clock.advance(&snapshot(100_000, vec![process(1, "a-x", 1.0, Some(1))]));
        let mut clock = GpuClock::resume(clock.cursors().clone(), clock.last());
        assert_eq!(clock.advance(&snapshot(50_000, vec![process(1, "a-x", 2.0, Some(1))])), Used::default());
        let used = clock.advance(&snapshot(51_000, vec![process(1, "a-x", 3.0, Some(1))]));
        assert_eq!(totals(&[used])["a-x"], (1.0, 0.0));
    }
}
