//! The response of `/host/gpus` as lines of text: a table of the GPUs, why some are unknown, and their processes by
//! owner.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width};

use crate::{
    cli::{
        bars,
        output::{self, Output, printable_line},
    },
    model::{
        gpu::{Library, MigInstance},
        names::UserName,
        view::gpu::{DeviceView, GpusView, ProcessView},
    },
};

/// Length of a bar without a terminal.
const BAR: usize = 20;
/// A value that a process or a GPU does not report.
const UNREPORTED: &str = "-";
/// ANSI colours.
const RED: &str = "31";
const YELLOW: &str = "33";

/// The whole view. With a width, names and commands are cut to fit it.
pub fn lines(gpus: &GpusView, out: &Output, width: Option<u16>) -> Vec<String> {
    let wrapped = |text: String| wrap(&printable_line(&text), width.map_or(usize::MAX, usize::from));
    let coloured =
        |text: String, colour| wrapped(text).into_iter().map(move |line| out.color(&line, colour)).collect::<Vec<_>>();
    let mut lines = match &gpus.library {
        Library::Failing { .. } => coloured(sentence(gpus), RED),
        Library::Starting | Library::Absent | Library::Working { .. } => wrapped(sentence(gpus)),
    };
    if gpus.gpus.is_empty() {
        return lines;
    }
    lines.extend(gpu_table(gpus, out, width).lines().map(|line| line.trim_end().to_owned()));
    for gpu in &gpus.gpus {
        if let Some(reason) = &gpu.reason {
            lines.extend(coloured(format!("GPU {} is unknown: {reason}", gpu.index), RED));
        }
        for note in notes(gpu) {
            lines.extend(coloured(format!("GPU {} {note}", gpu.index), YELLOW));
        }
    }
    for lost in &gpus.lost_pods {
        lines.extend(coloured(format!("{}: {}", lost.pod, lost.reason), RED));
    }
    lines.push(String::new());
    if gpus.gpus.iter().all(|gpu| gpu.processes.is_empty()) {
        lines.push("no processes on the GPUs".to_owned());
    } else {
        lines.extend(process_table(gpus, out, width).lines().map(|line| line.trim_end().to_owned()));
    }
    lines
}

/// The sentence about the driver.
fn sentence(gpus: &GpusView) -> String {
    match &gpus.library {
        Library::Starting => "the GPUs have not been read yet: the daemon has just started".to_owned(),
        Library::Absent => "no NVIDIA driver on this host: no GPUs for pods".to_owned(),
        Library::Working { driver } if gpus.gpus.is_empty() => format!("NVIDIA driver {driver} sees no GPU"),
        Library::Working { driver } => format!("NVIDIA driver {driver}"),
        Library::Failing { reason } => format!("the NVIDIA driver does not work: {reason}"),
    }
}

fn gpu_table(gpus: &GpusView, out: &Output, width: Option<u16>) -> Table {
    let bar = width.map_or(BAR, |width| (usize::from(width) / 12).clamp(4, 30));
    let rows = gpus.gpus.iter().flat_map(|gpu| {
        std::iter::once(gpu_row(gpu, bar)).chain(gpu.mig.iter().map(move |instance| mig_row(instance, bar)))
    });
    let mut table = out.table_of_cells(&["GPU", "NAME", "UTILIZATION", "MEMORY", "POWER", "TEMP", "USERS"], rows);
    fit(&mut table, width, &[1, 6]);
    table
}

fn process_table(gpus: &GpusView, out: &Output, width: Option<u16>) -> Table {
    let mut processes: Vec<(u32, &ProcessView)> =
        gpus.gpus.iter().flat_map(|gpu| gpu.processes.iter().map(|process| (gpu.index, process))).collect();
    // Processes in pods first, by user; then the others.
    processes.sort_by_key(|(gpu, p)| (p.user.is_none(), &p.user, &p.pod, *gpu, p.pid));
    let mut before = None;
    let rows = processes.into_iter().map(|(gpu, process)| {
        let owner = Some(&process.user);
        let is_first = before != owner;
        before = owner;
        process_row(process, gpu, is_first)
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

/// Makes every row one line that fits the width, by cutting the `shrinking` columns.
fn fit(table: &mut Table, width: Option<u16>, shrinking: &[usize]) {
    let Some(width) = width else { return };
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width).set_truncation_indicator("…");
    for (index, column) in table.column_iter_mut().enumerate() {
        if shrinking.contains(&index) {
            // Cut at the last column, not at a space.
            column.set_delimiter('\0').set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(9)));
        } else {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for row in table.row_iter_mut() {
        row.max_height(1);
    }
}

fn gpu_row(gpu: &DeviceView, bar: usize) -> Vec<Cell> {
    let of = |unit: &str, used: Option<f64>, limit: Option<f64>| match (used, limit) {
        (Some(used), Some(limit)) => format!("{used:.0}/{limit:.0}{unit}"),
        (Some(used), None) => format!("{used:.0}{unit}"),
        (None, _) => UNREPORTED.to_owned(),
    };
    let mut row = vec![Cell::new(gpu.index), Cell::new(short_name(&gpu.name))];
    match &gpu.reading {
        None => {
            row.push(Cell::new("unknown").fg(Color::Red));
            row.extend([UNREPORTED; 3].map(Cell::new));
        }
        Some(reading) => {
            row.push(utilization(reading.utilization, bar, UNREPORTED));
            row.push(memory(reading.memory_used, reading.memory_total, bar));
            row.push(Cell::new(of("W", reading.power, reading.power_limit)));
            row.push(Cell::new(of("°C", reading.temperature.map(f64::from), None)));
        }
    }
    row.push(Cell::new(occupants(gpu).join(" ")));
    row
}

/// The users of a GPU, other containers, and the host.
fn occupants(gpu: &DeviceView) -> Vec<String> {
    let is_any = |of: fn(&ProcessView) -> bool| gpu.processes.iter().any(of);
    let mut names: Vec<String> = gpu.users.iter().map(|user| user.to_string()).collect();
    if is_any(|process| process.user.is_none() && !process.pod.is_empty()) {
        names.push("(other container)".to_owned());
    }
    if is_any(|process| process.user.is_none() && process.pod.is_empty()) {
        names.push("(host)".to_owned());
    }
    names
}

/// What the users of a GPU should know.
fn notes(gpu: &DeviceView) -> Vec<String> {
    let Some(reading) = &gpu.reading else { return Vec::new() };
    let mut notes = Vec::new();
    if !reading.throttle_reasons.is_empty() {
        notes.push(format!("is throttled: {}", reading.throttle_reasons.join(", ")));
    }
    if let Some(errors @ 1..) = reading.ecc_errors {
        notes.push(format!("has uncorrected memory errors since boot: {errors}"));
    }
    notes
}

fn mig_row(instance: &MigInstance, bar: usize) -> Vec<Cell> {
    // `NVIDIA H200 MIG 1g.18gb`, below a line that says H200.
    let profile = instance.name.split_once("MIG ").map_or(instance.name.as_str(), |(_, profile)| profile);
    vec![
        Cell::new(""),
        Cell::new(format!("└ MIG {} {}", instance.index, short_name(profile))),
        utilization(instance.utilization, bar, ""),
        memory(instance.memory_used, instance.memory_total, bar),
    ]
}

fn utilization(percent: Option<u32>, bar: usize, unreported: &str) -> Cell {
    let Some(percent) = percent else { return Cell::new(unreported) };
    let gauge = bars::gauge(percent.into(), 100.0, bar);
    Cell::new(format!("{gauge} {percent:>3}%")).fg(Color::Green)
}

/// The name without the manufacturer.
fn short_name(name: &str) -> String {
    printable_line(name.strip_prefix("NVIDIA ").unwrap_or(name))
}

fn memory(used: Option<u64>, total: Option<u64>, bar: usize) -> Cell {
    let (Some(used), Some(total)) = (used, total) else { return Cell::new(UNREPORTED) };
    let gauge = bars::gauge(used as f64, total as f64, bar);
    Cell::new(format!("{gauge} {}/{}", output::bytes(used), output::bytes(total))).fg(Color::Cyan)
}

fn process_row(process: &ProcessView, gpu: u32, is_first_of_user: bool) -> Vec<Cell> {
    let or_unreported = |value: Option<String>| value.unwrap_or_else(|| UNREPORTED.to_owned());
    let user = Cell::new(or_unreported(process.user.as_ref().map(UserName::to_string)));
    vec![
        // With the GPU instance (MIG), as nvidia-smi's GI.
        Cell::new(process.gpu_instance.map_or_else(|| gpu.to_string(), |instance| format!("{gpu}:{instance}"))),
        Cell::new(process.pid),
        Cell::new(or_unreported(process.pid_in_pod.map(|pid| pid.to_string()))),
        if is_first_of_user { user.add_attribute(Attribute::Bold) } else { user.add_attribute(Attribute::Dim) },
        Cell::new(if process.pod.is_empty() { UNREPORTED.to_owned() } else { printable_line(&process.pod) }),
        Cell::new(or_unreported(process.gpu_memory_used.map(output::bytes))),
        Cell::new(or_unreported(process.utilization.map(|percent| format!("{percent}%")))),
        Cell::new(output::short_duration(process.uptime)),
        Cell::new(printable_line(&process.cmd)),
    ]
}

/// Breaks a text at spaces into lines of a width.
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
