//! The answer of `/host/gpus` as lines of text: a table of the GPUs, why some are not known, and their processes by owner.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width};
use serde::Deserialize;

use crate::cli::{
    bars,
    output::{self, Output, printable_line},
};

/// Length of a bar where there is no terminal whose width it could depend on.
const BAR: usize = 20;

/// What a process or a GPU does not tell.
const UNTOLD: &str = "-";

/// ANSI colours.
const RED: &str = "31";

const YELLOW: &str = "33";

#[derive(Deserialize)]
pub struct Gpus {
    /// When it was read, RFC 3339.
    pub at: String,
    pub library: Library,
    gpus: Vec<Gpu>,
    /// Pods that cannot open their GPUs any more.
    #[serde(default)]
    lost_pods: Vec<LostPod>,
}

#[derive(Deserialize)]
struct LostPod {
    pod: String,
    reason: String,
}

/// Whether the driver answers.
#[derive(Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Library {
    Starting,
    Absent,
    Working { driver: String },
    Failing { reason: String },
}

#[derive(Deserialize)]
struct Gpu {
    index: u32,
    name: String,
    /// Why it could not be read.
    reason: Option<String>,
    /// Absent while it is unknown.
    reading: Option<Reading>,
    users: Vec<String>,
    processes: Vec<Process>,
    #[serde(default)]
    mig: Vec<MigInstance>,
}

/// What a GPU says of itself, as far as it does.
#[derive(Deserialize)]
struct Reading {
    /// Bytes.
    memory_total: Option<i64>,
    memory_used: Option<i64>,
    /// Percent.
    utilization: Option<u32>,
    /// Watts.
    power: Option<f64>,
    power_limit: Option<f64>,
    /// Degrees Celsius.
    temperature: Option<u32>,
    ecc_errors: Option<u64>,
    #[serde(default)]
    throttle_reasons: Vec<String>,
}

#[derive(Deserialize)]
struct MigInstance {
    index: u32,
    name: String,
    /// Bytes.
    memory_total: Option<i64>,
    memory_used: Option<i64>,
    /// Percent.
    utilization: Option<u32>,
}

#[derive(Deserialize)]
struct Process {
    pid: i32,
    pid_in_pod: Option<i32>,
    /// Absent where it is in no pod.
    user: Option<String>,
    /// The container's name, "" for a process of the host.
    pod: String,
    cmd: String,
    /// Seconds.
    uptime: f64,
    /// Bytes.
    gpu_memory_used: Option<i64>,
    /// Percent.
    utilization: Option<u32>,
    gpu_instance: Option<u32>,
}

impl Gpus {
    /// All of it. With a width, lines keep to it by giving up the ends of names and commands.
    pub fn lines(&self, out: &Output, width: Option<u16>) -> Vec<String> {
        let wrapped = |text: String| wrap(&printable_line(&text), width.map_or(usize::MAX, usize::from));
        let coloured = |text: String, colour| {
            wrapped(text).into_iter().map(move |line| out.color(&line, colour)).collect::<Vec<_>>()
        };
        let mut lines = match &self.library {
            Library::Failing { .. } => coloured(self.sentence(), RED),
            Library::Starting | Library::Absent | Library::Working { .. } => wrapped(self.sentence()),
        };
        if self.gpus.is_empty() {
            return lines;
        }
        lines.extend(self.gpu_table(out, width).lines().map(|line| line.trim_end().to_owned()));
        for gpu in &self.gpus {
            if let Some(reason) = &gpu.reason {
                lines.extend(coloured(format!("GPU {} is unknown: {reason}", gpu.index), RED));
            }
            for note in gpu.notes() {
                lines.extend(coloured(format!("GPU {} {note}", gpu.index), YELLOW));
            }
        }
        for lost in &self.lost_pods {
            lines.extend(coloured(format!("{}: {}", lost.pod, lost.reason), RED));
        }
        lines.push(String::new());
        if self.gpus.iter().all(|gpu| gpu.processes.is_empty()) {
            lines.push("no processes on the GPUs".to_owned());
        } else {
            lines.extend(self.process_table(out, width).lines().map(|line| line.trim_end().to_owned()));
        }
        lines
    }

    /// What there is to say of the driver.
    fn sentence(&self) -> String {
        match &self.library {
            Library::Starting => "the GPUs are not read yet: the daemon has just started".to_owned(),
            Library::Absent => "there is no NVIDIA driver on this host, so there are no GPUs for pods".to_owned(),
            Library::Working { driver } if self.gpus.is_empty() => format!("NVIDIA driver {driver} sees no GPU"),
            Library::Working { driver } => format!("NVIDIA driver {driver}"),
            Library::Failing { reason } => format!("the NVIDIA driver does not work: {reason}"),
        }
    }

    fn gpu_table(&self, out: &Output, width: Option<u16>) -> Table {
        let bar = width.map_or(BAR, |width| (usize::from(width) / 12).clamp(4, 30));
        let rows = self
            .gpus
            .iter()
            .flat_map(|gpu| std::iter::once(gpu.row(bar)).chain(gpu.mig.iter().map(move |instance| instance.row(bar))));
        let mut table = out.table_of_cells(&["GPU", "NAME", "UTILIZATION", "MEMORY", "POWER", "TEMP", "USERS"], rows);
        fit(&mut table, width, &[1, 6]);
        table
    }

    fn process_table(&self, out: &Output, width: Option<u16>) -> Table {
        let mut processes: Vec<(u32, &Process)> =
            self.gpus.iter().flat_map(|gpu| gpu.processes.iter().map(|process| (gpu.index, process))).collect();
        // Pods by their users first, then what is in no pod.
        processes.sort_by_key(|(gpu, p)| (p.user.is_none(), &p.user, &p.pod, *gpu, p.pid));
        let mut before = None;
        let rows = processes.into_iter().map(|(gpu, process)| {
            let owner = Some(&process.user);
            let is_first = before != owner;
            before = owner;
            process.row(gpu, is_first)
        });
        let header = ["GPU", "PID", "IN POD", "USER", "POD", "MEMORY", "UTIL", "UPTIME", "COMMAND"];
        let mut table = out.table_of_cells(&header, rows);
        for number in [1, 2, 5, 6, 7] {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        fit(&mut table, width, &[8]);
        table
    }
}

/// Makes every row one line, of a width if there is one, at the cost of the `yielding` columns.
fn fit(table: &mut Table, width: Option<u16>, yielding: &[usize]) {
    let Some(width) = width else { return };
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width).set_truncation_indicator("…");
    for (index, column) in table.column_iter_mut().enumerate() {
        if yielding.contains(&index) {
            // Cut where the room ends and not at a space.
            column.set_delimiter('\0').set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(9)));
        } else {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for row in table.row_iter_mut() {
        row.max_height(1);
    }
}

impl Gpu {
    fn row(&self, bar: usize) -> Vec<Cell> {
        let of = |unit: &str, used: Option<f64>, limit: Option<f64>| match (used, limit) {
            (Some(used), Some(limit)) => format!("{used:.0}/{limit:.0}{unit}"),
            (Some(used), None) => format!("{used:.0}{unit}"),
            (None, _) => UNTOLD.to_owned(),
        };
        let mut row = vec![Cell::new(self.index), Cell::new(short_name(&self.name))];
        match &self.reading {
            None => {
                row.push(Cell::new("unknown").fg(Color::Red));
                row.extend([UNTOLD; 3].map(Cell::new));
            }
            Some(reading) => {
                row.push(utilization(reading.utilization, bar, UNTOLD));
                row.push(memory(reading.memory_used, reading.memory_total, bar));
                row.push(Cell::new(of("W", reading.power, reading.power_limit)));
                row.push(Cell::new(of("°C", reading.temperature.map(f64::from), None)));
            }
        }
        row.push(Cell::new(self.occupants().join(" ")));
        row
    }

    /// Users, and what else is on it.
    fn occupants(&self) -> Vec<String> {
        let is_any = |of: fn(&Process) -> bool| self.processes.iter().any(of);
        let mut names: Vec<String> = self.users.iter().map(|user| printable_line(user)).collect();
        if is_any(|process| process.user.is_none() && !process.pod.is_empty()) {
            names.push("(other container)".to_owned());
        }
        if is_any(|process| process.user.is_none() && process.pod.is_empty()) {
            names.push("(host)".to_owned());
        }
        names
    }

    /// What its owner should look at.
    fn notes(&self) -> Vec<String> {
        let Some(reading) = &self.reading else { return Vec::new() };
        let mut notes = Vec::new();
        if !reading.throttle_reasons.is_empty() {
            notes.push(format!("runs slower than it could: {}", reading.throttle_reasons.join(", ")));
        }
        if let Some(errors @ 1..) = reading.ecc_errors {
            notes.push(format!("has uncorrected memory errors since boot: {errors}"));
        }
        notes
    }
}

impl MigInstance {
    fn row(&self, bar: usize) -> Vec<Cell> {
        // `NVIDIA H200 MIG 1g.18gb`, below a line that says H200.
        let profile = self.name.split_once("MIG ").map_or(self.name.as_str(), |(_, profile)| profile);
        vec![
            Cell::new(""),
            Cell::new(format!("└ MIG {} {}", self.index, short_name(profile))),
            utilization(self.utilization, bar, ""),
            memory(self.memory_used, self.memory_total, bar),
        ]
    }
}

fn utilization(percent: Option<u32>, bar: usize, untold: &str) -> Cell {
    let Some(percent) = percent else { return Cell::new(untold) };
    let gauge = bars::gauge(percent.into(), 100.0, bar);
    Cell::new(format!("{gauge} {percent:>3}%")).fg(Color::Green)
}

/// Every name begins with the maker.
fn short_name(name: &str) -> String {
    printable_line(name.strip_prefix("NVIDIA ").unwrap_or(name))
}

fn memory(used: Option<i64>, total: Option<i64>, bar: usize) -> Cell {
    let (Some(used), Some(total)) = (used, total) else { return Cell::new(UNTOLD) };
    let gauge = bars::gauge(used as f64, total as f64, bar);
    Cell::new(format!("{gauge} {}/{}", output::size(used, 1), output::size(total, 1))).fg(Color::Cyan)
}

impl Process {
    fn row(&self, gpu: u32, is_first_of_user: bool) -> Vec<Cell> {
        let or_untold = |value: Option<String>| value.unwrap_or_else(|| UNTOLD.to_owned());
        let user = Cell::new(or_untold(self.user.as_deref().map(printable_line)));
        vec![
            // Within a MIG instance as nvidia-smi's GI.
            Cell::new(self.gpu_instance.map_or_else(|| gpu.to_string(), |instance| format!("{gpu}:{instance}"))),
            Cell::new(self.pid),
            Cell::new(or_untold(self.pid_in_pod.map(|pid| pid.to_string()))),
            if is_first_of_user { user.add_attribute(Attribute::Bold) } else { user.add_attribute(Attribute::Dim) },
            Cell::new(if self.pod.is_empty() { UNTOLD.to_owned() } else { printable_line(&self.pod) }),
            Cell::new(or_untold(self.gpu_memory_used.map(|bytes| output::size(bytes, 1)))),
            Cell::new(or_untold(self.utilization.map(|percent| format!("{percent}%")))),
            Cell::new(output::short_duration(self.uptime)),
            Cell::new(printable_line(&self.cmd)),
        ]
    }
}

/// Breaks a text at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
