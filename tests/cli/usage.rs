//! `pody stat usage`.

use pody::model::{
    usage::GpuUuid,
    view::usage::{UsageKey, UsageRow},
};
use serde_json::json;

use super::fake::Fake;

fn row(key: UsageKey, cpu: f64, active: f64, held: f64) -> UsageRow {
    UsageRow {
        key,
        cpu_seconds: cpu,
        memory_byte_seconds: 1.0,
        gpu_active_seconds: active,
        gpu_held_seconds: held,
        gpu_memory_byte_seconds: 3600.0 * (80u64 << 30) as f64,
        estimated_kwh: 1.234,
        gpu_free_seconds: None,
    }
}

fn of_user(name: &str) -> UsageKey {
    UsageKey { user: Some(name.parse().unwrap()), ..UsageKey::default() }
}

fn of_gpu(uuid: &str) -> UsageKey {
    UsageKey { gpu: Some(GpuUuid(uuid.to_owned())), ..UsageKey::default() }
}

#[test]
fn usage_is_a_table_with_bars_of_two_tones() {
    let fake = Fake::start();
    let rows = json!([
        row(of_user("alice"), 30.0, 0.0, 3600.0),
        row(of_user("bob"), 60.0, 3600.0, 3600.0),
        row(of_user("eve"), 0.0, 0.0, 0.0),
    ]);
    fake.on("/stat/usage", rows.clone());
    let shown = fake.run(&["stat", "usage", "1w"]).ok();
    assert_eq!(fake.seen_one().line, "GET /stat/usage?by=user&t=1w");
    let lines: Vec<String> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "USER CPU TIME GPU ACTIVE █ HELD ▒ GPU GiB·h EST. kWh");
    assert_eq!(lines[1], "bob 1m 0s ██████████ 1h 0m 1h 0m ██████████▒▒▒▒▒▒▒▒▒▒ 80.00 1.23");
    assert_eq!(lines[2], "alice 30s █████ 0s 1h 0m ▒▒▒▒▒▒▒▒▒▒ 80.00 1.23");
    assert_eq!(lines[3], "eve 0s 0s 0s 80.00 1.23");

    assert_eq!(fake.run(&["stat", "usage", "--json"]).json(), rows);
    assert_eq!(fake.seen_one().line, "GET /stat/usage?by=user");
    fake.on("/stat/usage", json!([]));
    assert_eq!(fake.run(&["stat", "usage", "1s"]).ok(), "no usage in this time\n");
}

#[test]
fn usage_can_be_split() {
    let fake = Fake::start();
    let key = |at: &str, key| UsageKey { at: Some(at.to_owned()), pod: Some("alice-main".to_owned()), ..key };
    let uuid = of_gpu("GPU-5c8a1f2e-0000-1111-2222-333344445555");
    let second = row(key("2026-01-02T14:00:00Z", UsageKey::default()), 5.0, 9.0, 0.0);
    let first = row(key("2026-01-02T13:00:00Z", uuid), 5.0, 1.0, 0.0);
    fake.on("/stat/usage", [second, first]);
    let shown = fake.run(&["stat", "usage", "--by", "gpu,pod,hour", "--user", "alice,bob", "2d"]).ok();
    assert_eq!(fake.seen_one().line, "GET /stat/usage?by=gpu,pod,hour&t=2d&user=alice,bob");
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].starts_with("HOUR (UTC)        POD         GPU           CPU TIME"), "{shown}");
    assert!(lines[1].starts_with("2026-01-02 13:00  alice-main  GPU-5c8a1f2e  5s"), "{shown}");
    assert!(lines[2].starts_with("2026-01-02 14:00  alice-main  -             5s"), "{shown}");
    let shown = fake.run(&["stat", "usage", "--by=day"]).ok();
    assert!(shown.contains("\n2026-01-02  5s"), "{shown}");
}

#[test]
fn gpu_free_time_is_a_column_if_the_server_sends_it() {
    let fake = Fake::start();
    let idle = UsageRow { gpu_free_seconds: Some(3600.0), ..row(of_gpu("GPU-1"), 0.0, 0.0, 0.0) };
    fake.on("/stat/usage", [row(of_gpu("GPU-0"), 0.0, 60.0, 0.0), idle]);
    let shown = fake.run(&["stat", "usage", "--by", "gpu"]).ok();
    let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    assert!(lines[0].ends_with("EST. kWh  FREE"), "{shown}");
    assert!(lines[1].starts_with("GPU-0") && lines[1].ends_with("-"), "{shown}");
    assert!(lines[2].starts_with("GPU-1") && lines[2].ends_with("1h 0m"), "{shown}");
}

#[test]
fn csv_is_printed_unchanged_and_errors_are_as_elsewhere() {
    let fake = Fake::start();
    fake.on_text("/stat/usage", 200, "at,user\n,alice\n");
    assert_eq!(fake.run(&["stat", "usage", "--csv", "--by", "user,day", "1d"]).ok(), "at,user\n,alice\n");
    assert_eq!(fake.seen_one().line, "GET /stat/usage?by=user,day&t=1d&format=csv");
    for bad in [&["--csv", "--json"][..], &["--by", "hour,day"], &["--by", "moon"]] {
        assert_eq!(fake.run(&[&["stat", "usage"], bad].concat()).code, 2, "{bad:?}");
    }
    assert!(fake.seen().is_empty());
    fake.on_status("/stat/usage", 400, json!({"detail": "t: \"x\" is not a duration"}));
    let refused = fake.run(&["stat", "usage", "x", "--csv"]);
    assert_eq!((refused.code, refused.stderr.as_str()), (1, "error: t: \"x\" is not a duration\n"));
}
