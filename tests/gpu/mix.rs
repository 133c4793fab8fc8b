//! Twenty pods, processes of the host and of a foreign container, and everything changes under the poller: every
//! snapshot that was seen must be exact.
//!
//! For each (GPU, PID), the test records what was there from when to when. A snapshot was read between the time of the
//! previous one and its own time: what was there all that time must be in it, what was there at no time of it must not,
//! and whatever is in it must be what was there.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{
    common::{
        Client, Server,
        gpus::{Gpus, Kind, Process, State},
    },
    create, end, run,
    twin::Twin,
    wait_for,
};

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const PODS: usize = 5;
const GPUS: usize = 4;
/// Changes while snapshots are taken.
const ROUNDS: usize = 60;
const CONFIG: &str = "[gpu]\npoll_seconds = 0.1\nidle_poll_seconds = 0.1\n[usage]\nsample_seconds = 0.5\n";

fn now() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as i64
}

/// The processes by GPU and PID.
type Rows = BTreeMap<(usize, u32), Value>;

/// Where a process lives, as the API shows it.
#[derive(Clone, Debug, PartialEq)]
struct Home {
    /// The container; "" for the host.
    pod: String,
    user: Option<&'static str>,
}

/// A process on a GPU. It was not there before the first time, was surely there from the second to the third, and was
/// not there after the fourth. Milliseconds since 1970.
#[derive(Clone, Debug)]
struct Stay {
    row: Value,
    times: [i64; 4],
}

#[derive(Default)]
struct Book(HashMap<(usize, u32), Vec<Stay>>);

impl Book {
    /// Records what is there from now on.
    fn begin(&mut self, gpu: usize, pid: u32, row: Value, since: i64) {
        self.0.entry((gpu, pid)).or_default().push(Stay { row, times: [since, now(), i64::MAX, i64::MAX] });
    }

    /// Records that what was there may have left since then, and has left by now.
    fn end(&mut self, gpu: usize, pid: u32, since: i64) {
        let stay = self.0.get_mut(&(gpu, pid)).and_then(|stays| stays.last_mut()).expect("it was there");
        (stay.times[2], stay.times[3]) = (since, now());
    }

    fn check(&self, (from, to): (i64, i64), seen: &Rows) {
        for (key, row) in seen {
            let stays = self.0.get(key).unwrap_or_else(|| panic!("{key:?} was never there: {row}"));
            let may = |stay: &&Stay| stay.times[0] <= to && stay.times[3] >= from;
            let rows: Vec<_> = stays.iter().filter(may).map(|stay| &stay.row).collect();
            assert!(
                rows.contains(&row),
                "{key:?} between {from} and {to}: {row}, and there were {rows:?} of {stays:?}"
            );
        }
        for (key, stays) in &self.0 {
            for stay in stays.iter().filter(|stay| stay.times[1] < from && stay.times[2] > to) {
                assert_eq!(seen.get(key), Some(&stay.row), "{key:?} between {from} and {to}");
            }
        }
    }
}

/// The processes in a snapshot, and when it was taken.
fn read(snapshot: &Value) -> (i64, Rows) {
    let at: jiff::Timestamp = snapshot["at"].as_str().expect("a time").parse().expect("RFC 3339");
    let mut seen = BTreeMap::new();
    for (gpu, device) in snapshot["gpus"].as_array().expect("a list").iter().enumerate() {
        for p in device["processes"].as_array().expect("a list") {
            let row = json!([p["pod"], p["user"], p["gpu_memory_used"], p["kinds"]]);
            let key = (gpu, u32::try_from(p["pid"].as_u64().expect("a PID")).expect("a PID"));
            assert_eq!(seen.insert(key, row), None, "{key:?} is there twice");
        }
    }
    (at.as_millisecond(), seen)
}

/// A process on GPUs.
struct GpuJob {
    pid: u32,
    home: Home,
    gpus: Vec<usize>,
    memory: u64,
    kinds: Vec<Kind>,
    /// The handle of a process that this test must end itself.
    held: Option<Held>,
}

enum Held {
    Host(Child),
    Twin(Twin),
}

impl GpuJob {
    fn row(&self) -> Value {
        json!([self.home.pod, self.home.user, self.memory, self.kinds])
    }

    /// Ends it and waits until its PID is free.
    fn end(&mut self) {
        match self.held.take() {
            Some(Held::Host(mut child)) => {
                child.kill().expect("our own child");
                child.wait().expect("our own child");
            }
            Some(Held::Twin(twin)) => drop(twin),
            None => {
                end(self.pid);
                while fs::exists(format!("/proc/{}", self.pid)).unwrap_or(false) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

/// Starts one `sleep` for each number in a container, and returns their PIDs.
fn sleepers(container: &str, numbers: &[u32]) -> Vec<u32> {
    let list = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    run("docker", &["exec", "-d", container, "sh", "-c", &format!("for n in {list}; do sleep $n & done; wait")]);
    let find = |number: &u32| {
        let wanted = format!("sleep\0{number}\0");
        let pids =
            fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.into_iter().find(|pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == wanted))
    };
    numbers.iter().map(|number| wait_for("a sleeper", || find(number), Option::is_some).expect("found")).collect()
}

struct Mix<'a> {
    gpus: &'a Gpus,
    book: Book,
    jobs: Vec<GpuJob>,
    homes: Vec<Home>,
    /// Distinguishes our sleepers from those of others.
    number: u32,
}

impl Mix<'_> {
    fn random(&self, below: usize) -> usize {
        usize::try_from(rand::random::<u32>()).expect("enough bits") % below
    }

    /// What the driver lists from now on, including dead processes until they are removed.
    fn publish(&self, left: &[(usize, Process)]) {
        self.gpus.change(|state| {
            for (gpu, device) in state.devices.iter_mut().enumerate() {
                let on_gpu = self
                    .jobs
                    .iter()
                    .filter(|job| job.gpus.contains(&gpu))
                    .map(|job| Process { kinds: job.kinds.clone(), ..Process::computing(job.pid, job.memory) });
                let left = left.iter().filter(|(on, _)| *on == gpu).map(|(_, process)| process.clone());
                device.processes = on_gpu.chain(left).collect();
            }
        });
    }

    fn join_gpus(&mut self, pid: u32, home: Home, held: Option<Held>) {
        // A process that is younger than the driver's list is ignored; ticks are hundredths of a second.
        thread::sleep(Duration::from_millis(25));
        let first = self.random(GPUS);
        let mut on = vec![first];
        on.extend((self.random(3) == 0).then_some((first + 1) % GPUS));
        let kinds = [vec![Kind::Compute], vec![Kind::Compute, Kind::Graphics], vec![Kind::Graphics], vec![Kind::Mps]];
        let kinds = kinds[self.random(kinds.len())].clone();
        let job = GpuJob { pid, home, gpus: on, memory: u64::from(rand::random::<u32>()), kinds, held };
        let (since, row, on) = (now(), job.row(), job.gpus.clone());
        self.jobs.push(job);
        self.publish(&[]);
        on.into_iter().for_each(|gpu| self.book.begin(gpu, pid, row.clone(), since));
    }

    fn start(&mut self, home: Home) {
        self.number += 1;
        let number = self.number;
        if home.pod.is_empty() {
            let child = Command::new("sleep").arg(number.to_string()).spawn().expect("sleep is there");
            self.join_gpus(child.id(), home, Some(Held::Host(child)));
        } else {
            let pid = sleepers(&home.pod, &[number])[0];
            self.join_gpus(pid, home, None);
        }
    }

    /// Takes one off its GPUs, alive.
    fn leave_gpus(&mut self) {
        let job = self.jobs.swap_remove(self.random(self.jobs.len()));
        let since = now();
        self.publish(&[]);
        job.gpus.iter().for_each(|gpu| self.book.end(*gpu, job.pid, since));
        let mut job = job;
        job.end();
    }

    /// Ends one, which the driver keeps listing for a moment.
    fn die(&mut self) {
        let at = self.random(self.jobs.len());
        let since = now();
        self.jobs[at].end();
        let job = self.jobs.swap_remove(at);
        job.gpus.iter().for_each(|gpu| self.book.end(*gpu, job.pid, since));
        thread::sleep(Duration::from_millis(150));
        self.publish(&[]);
    }

    /// Ends one whose PID is reused in another home; the driver lists that PID all the time.
    fn replace(&mut self) {
        let at = self.random(self.jobs.len());
        let since = now();
        self.jobs[at].end();
        let old = self.jobs.swap_remove(at);
        old.gpus.iter().for_each(|gpu| self.book.end(*gpu, old.pid, since));
        let home = self.homes[self.random(self.homes.len())].clone();
        let born = now();
        self.number += 1;
        let twin = Twin::start(old.pid, Some(&*home.pod).filter(|pod| !pod.is_empty()), self.number);
        thread::sleep(Duration::from_millis(25));
        let job = GpuJob { home, held: Some(Held::Twin(twin)), ..old };
        let row = job.row();
        job.gpus.iter().for_each(|gpu| self.book.begin(*gpu, job.pid, row.clone(), born));
        self.jobs.push(job);
    }
}

/// Collects every distinct snapshot until `done`.
fn watch(admin: &Client, done: &AtomicBool) -> Vec<(i64, Rows)> {
    let mut seen: Vec<(i64, Rows)> = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let snapshot = read(&admin.get("/host/gpus").ok().json());
        if seen.last().is_none_or(|last| last.0 != snapshot.0) {
            seen.push(snapshot);
        }
        thread::sleep(Duration::from_millis(15));
    }
    seen
}

#[test]
fn every_snapshot_of_twenty_pods_is_exact_while_everything_changes() {
    let gpus = Gpus::new(State::with_gpus(u32::try_from(GPUS).expect("few")));
    let builder = USERS[2..].iter().fold(Server::builder().config(CONFIG), |builder, user| builder.member(user));
    let Some(server) = builder.gpus(&gpus).start() else { return };
    let pods: Vec<Home> = thread::scope(|scope| {
        let makers = USERS.map(|user| {
            let server = &server;
            let make = move |number| Home { pod: create(server, user, &format!("p{number}")), user: Some(user) };
            scope.spawn(move || (0..PODS).map(make).collect::<Vec<_>>())
        });
        makers.into_iter().flat_map(|maker| maker.join().expect("pods")).collect()
    });
    let foreign = format!("{}foreign", server.prefix);
    run("docker", &["run", "-d", "--name", &foreign, "pody-base"]);
    let mut homes = pods.clone();
    homes.extend([Home { pod: foreign.clone(), user: None }, Home { pod: String::new(), user: None }]);
    let number = 1_000_000 + rand::random::<u32>() % 1_000_000_000;
    let mut mix = Mix { gpus: &gpus, book: Book::default(), jobs: Vec::new(), homes: homes.clone(), number };

    let (admin, done) = (server.admin(), AtomicBool::new(false));
    wait_for("the GPUs", || read_count(&admin), |count| *count == GPUS);
    let seen = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&admin, &done));
        homes.iter().for_each(|home| mix.start(home.clone()));
        for round in 0..ROUNDS {
            match round % 4 {
                0 => mix.start(homes[mix.random(homes.len())].clone()),
                1 => mix.replace(),
                2 => mix.die(),
                _ => mix.leave_gpus(),
            }
            thread::sleep(Duration::from_millis(u64::from(rand::random::<u8>())));
        }
        thread::sleep(Duration::from_millis(500));
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("snapshots")
    });
    let mut rows = 0;
    for pair in seen.windows(2) {
        mix.book.check((pair[0].0, pair[1].0), &pair[1].1);
        rows += pair[1].1.len();
    }
    // There were many snapshots, with many processes.
    assert!(seen.len() >= ROUNDS && rows > 10 * seen.len(), "{} snapshots, {rows} rows", seen.len());

    mix.jobs.iter_mut().for_each(GpuJob::end);
    run("docker", &["rm", "-f", &foreign]);
    thread::scope(|scope| {
        for user in USERS {
            let member = server.member(user);
            scope.spawn(move || {
                (0..PODS).for_each(|number| drop(member.post(&format!("/pod/delete?ins=p{number}")).ok()));
            });
        }
    });
}

fn read_count(admin: &Client) -> usize {
    admin.get("/host/gpus").ok().json()["gpus"].as_array().map_or(0, Vec::len)
}
