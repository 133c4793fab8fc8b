//! Scheduled checkpoints, how they make room for new ones, and the expiry of checkpoints.

use std::{thread, time::Duration};

use serde_json::Value;

use crate::{
    common::{Client, Need, Server, eventually},
    help::{
        COUNTER, assert_clean, count, create, delete, delete_checkpoints, done, folder, keeps_counting, run_python,
        save, start, start_with, status,
    },
};

/// A scheduled checkpoint may take this long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Allows schedules of seconds, which the default config does not.
const OFTEN: &str = "[checkpoint]\nschedule_minimum_seconds = 1";

fn checkpoints(client: &Client) -> Vec<Value> {
    client.get("/pod/checkpoints").ok().json().as_array().unwrap().clone()
}

fn ids(client: &Client, origin: &str) -> Vec<String> {
    let is_ready = |row: &&Value| row["origin"] == origin && row["status"] == "ready";
    checkpoints(client).iter().filter(is_ready).map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

fn events(client: &Client, action: &str) -> Vec<Value> {
    let events = client.get("/events?limit=1000").ok().json();
    events.as_array().unwrap().iter().filter(|event| event["action"] == action).cloned().collect()
}

fn schedule(client: &Client) -> Value {
    client.get("/pod/schedule?ins=main").ok().json()
}

fn is_at_work(server: &Server) -> bool {
    server.count("SELECT count(*) FROM actions WHERE status = 'running'") > 0
        || server.count("SELECT count(*) FROM schedules WHERE action IS NOT NULL") > 0
}

/// Makes the schedule due now.
fn make_due(server: &mut Server) {
    server.terminate();
    assert_eq!(server.database().execute("UPDATE schedules SET next_at = 1", []).unwrap(), 1);
    server.start_again();
}

#[test]
fn a_schedule_is_set_shown_kept_and_removed_by_its_owner() {
    let Some(mut server) = start() else { return };
    let (alice, bob) = (server.member("alice"), server.member("bob"));
    create(&alice, "main");
    for (who, query, status, words) in [
        (&alice, "ins=main&every=9m&keep=4", 400, "at most every 10m, not every 9m; for example"),
        (&alice, "ins=main&every=6h&keep=101", 400, "from 1 to 100, for example 4"),
        (&alice, "ins=main&every=6h&keep=0", 400, "from 1 to 100, for example 4"),
        (&alice, "ins=main&every=6&keep=4", 400, "whole number with m, h, d or w"),
        (&alice, "ins=main&every=6h", 400, "name both every and keep"),
        (&alice, "ins=main&every=6h&keep=4&off=true", 400, "name both every and keep"),
        (&alice, "ins=main&off=true", 404, "has no schedule; set one with"),
        (&alice, "ins=nope&every=6h&keep=4", 404, "there is no pod nope"),
        (&bob, "ins=alice-main&every=6h&keep=4", 404, "there is no pod alice-main"),
    ] {
        let refused = who.post(&format!("/pod/schedule?{query}"));
        assert_eq!(refused.status, status, "{query}: {refused}");
        assert!(refused.detail().contains(words), "{query}: {refused}");
    }
    assert_eq!(alice.get("/pod/schedule?ins=main").status, 404);

    let set = alice.post("/pod/schedule?ins=main&every=360m&keep=4").ok().json();
    assert_eq!((set["rule"].as_str(), set["every_seconds"].as_i64()), (Some("every 6h keep 4"), Some(21_600)));
    server.restart();
    assert_eq!(schedule(&alice), set);
    assert_eq!(alice.get("/pod/schedules").ok().json(), serde_json::json!([set]));
    assert_eq!(bob.get("/pod/schedules").ok().json(), serde_json::json!([]));
    assert_eq!(bob.get("/pod/schedules?all=true").status, 403);
    assert_eq!(server.admin().get("/pod/schedules?all=true").ok().json()[0]["user"], "alice");
    assert_eq!(alice.get("/pod/inspect?ins=main").ok().json()["schedule"]["rule"], "every 6h keep 4");
    let told = &events(&alice, "schedule.set")[0];
    assert_eq!(told["object"], server.container("alice", "main"));
    assert_eq!(told["detail"], "every 6h keep 4");

    alice.post("/pod/schedule?ins=main&off=true").ok();
    assert_eq!(events(&alice, "schedule.end").len(), 1);
    assert!(alice.get("/pod/inspect?ins=main").ok().json().get("schedule").is_none());

    // It is removed with its pod.
    alice.post("/pod/schedule?ins=main&every=1d&keep=1").ok();
    delete(&alice, "main");
    eventually(PATIENCE, "the schedule goes", || server.count("SELECT count(*) FROM schedules") == 0);
}

#[test]
fn pods_are_checkpointed_on_schedule_and_the_newest_are_kept() {
    let Some(server) = start_with(|builder| builder.config(OFTEN)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let by_hand = save(&alice, "ins=main&name=mine");
    let (from, identity) = count(&alice, "main");
    alice.post("/pod/schedule?ins=main&every=2s&keep=2").ok();
    eventually(PATIENCE, "old ones are deleted", || events(&alice, "checkpoint.expire").len() >= 2);
    alice.post("/pod/schedule?ins=main&off=true").ok();
    eventually(PATIENCE, "running actions end", || !is_at_work(&server));
    assert_clean(&server);

    let expired = events(&alice, "checkpoint.expire");
    assert_eq!(expired[0]["detail"], "the pod's schedule keeps 2");
    assert_eq!(ids(&alice, "hand"), std::slice::from_ref(&by_hand));
    let kept = ids(&alice, "schedule");
    // The last one may have been in progress when the schedule ended.
    assert!((2..=3).contains(&kept.len()), "{kept:?}");
    for id in &kept {
        assert!(!expired.iter().any(|event| event["object"].as_str().unwrap().starts_with(id)));
        assert!(folder(&server, id).exists());
    }
    let saved = events(&alice, "pod.checkpoint");
    assert_eq!(saved.iter().filter(|event| event["actor"] == "pody").count(), kept.len() + expired.len());
    keeps_counting(&alice, "main", from);

    alice.post("/pod/stop?ins=main").ok();
    done(&alice, &format!("/pod/restore?ins=main&checkpoint={}", kept[0]));
    assert_eq!(count(&alice, "main").1, identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Missed checkpoints are made up for once, and the next one is due after the interval.
#[test]
fn missed_times_are_made_up_for_once() {
    let Some(mut server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    alice.post("/pod/schedule?ins=main&every=1h&keep=10").ok();
    make_due(&mut server);
    eventually(PATIENCE, "the checkpoint is complete", || ids(&alice, "schedule").len() == 1 && !is_at_work(&server));
    let after = schedule(&alice);
    assert_eq!(after["last_checkpoint"], ids(&alice, "schedule")[0]);
    assert!(after["next_at"].as_str().unwrap() > after["last_at"].as_str().unwrap(), "{after}");
    thread::sleep(Duration::from_secs(4));
    server.restart();
    thread::sleep(Duration::from_secs(2));
    assert_eq!((ids(&alice, "schedule").len(), schedule(&alice)), (1, after));
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn at_the_limit_the_oldest_is_deleted_when_the_new_one_is_complete() {
    let Some(mut server) = start_with(|builder| builder.config("[default_quota]\ncheckpoint_count = 2")) else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "main");
    let by_hand = save(&alice, "ins=main");
    alice.post("/pod/schedule?ins=main&every=1h&keep=10").ok();
    make_due(&mut server);
    eventually(PATIENCE, "the checkpoint is complete", || ids(&alice, "schedule").len() == 1 && !is_at_work(&server));
    let first = ids(&alice, "schedule").remove(0);
    make_due(&mut server);
    eventually(PATIENCE, "it is replaced", || !ids(&alice, "schedule").contains(&first) && !is_at_work(&server));
    let second = ids(&alice, "schedule").remove(0);
    let expired = events(&alice, "checkpoint.expire");
    assert_eq!(expired[0]["detail"], format!("the quota was full: replaced by {second}"));
    assert_eq!(ids(&alice, "hand"), std::slice::from_ref(&by_hand));

    // The schedule has no checkpoint of its own to delete: those that people made stay, and the owner gets an event.
    server.admin().post("/admin/quota/update?username=alice&checkpoint_count=1").ok();
    alice.post(&format!("/checkpoint/delete?checkpoint={second}")).ok();
    make_due(&mut server);
    eventually(PATIENCE, "it is refused", || !events(&alice, "schedule.fail").is_empty());
    let refused = events(&alice, "schedule.fail");
    assert!(refused[0]["detail"].as_str().unwrap().starts_with("checkpoint_count is 1 and you have 1"), "{refused:?}");
    let shown = alice.get("/pod/inspect?ins=main").ok().json()["schedule"]["last_error"].clone();
    assert_eq!(shown, refused[0]["detail"]);
    assert_eq!(ids(&alice, "hand"), [by_hand]);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn a_stopped_pod_is_skipped_and_keeps_its_last_checkpoint() {
    let Some(mut server) = start_with(|builder| builder.config(OFTEN)) else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    alice.post("/pod/schedule?ins=main&every=2s&keep=3").ok();
    eventually(PATIENCE, "the checkpoints are complete", || ids(&alice, "schedule").len() >= 2);
    alice.post("/pod/stop?ins=main").ok();
    eventually(PATIENCE, "it is skipped", || !events(&alice, "schedule.skip").is_empty());
    let skipped = events(&alice, "schedule.skip");
    let why = skipped[0]["detail"].as_str().unwrap();
    assert!(why.starts_with("skipped: ") && why.contains("is exited"), "{why}");
    assert_eq!(schedule(&alice)["last_error"], why);
    // Reported once, not every time.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(events(&alice, "schedule.skip").len(), 1);

    alice.post("/pod/schedule?ins=main&off=true").ok();
    let kept = ids(&alice, "schedule");
    assert!(kept.len() >= 2, "{kept:?}");
    server.database().execute("UPDATE checkpoints SET created_at = created_at - 10 * 86400000", []).unwrap();
    server.reconfigure("[checkpoint]\nkeep_days = 9");
    eventually(PATIENCE, "old ones are deleted", || ids(&alice, "schedule").len() == 1);
    assert_eq!(ids(&alice, "schedule")[0], kept[0], "the newest stays");
    assert_eq!(events(&alice, "checkpoint.expire")[0]["detail"], "keep_days is 9");
    // For a running pod it is not the last resort.
    alice.post("/pod/start?ins=main").ok();
    eventually(PATIENCE, "the last one is deleted", || checkpoints(&alice).is_empty());
    assert_eq!(status(&alice, "main"), "running");
    delete(&alice, "main");
}

#[test]
fn old_checkpoints_of_people_expire_only_if_configured() {
    let Some(mut server) = start() else { return };
    let alice = server.member("alice");
    create(&alice, "main");
    let (old, new) = (save(&alice, "ins=main&kind=rootfsonly"), save(&alice, "ins=main&kind=rootfsonly"));
    let query = format!("UPDATE checkpoints SET created_at = created_at - 10 * 86400000 WHERE id = '{old}'");
    assert_eq!(server.database().execute(&query, []).unwrap(), 1);
    server.reconfigure("[checkpoint]\nkeep_days = 1\nkeep_automatic = 1");
    // Two passes of the expiry.
    thread::sleep(Duration::from_secs(22));
    assert_eq!(ids(&alice, "hand"), [new.clone(), old.clone()]);
    server.reconfigure("[checkpoint]\nkeep_days_hand_made = 9");
    eventually(PATIENCE, "the old one is deleted", || ids(&alice, "hand") == std::slice::from_ref(&new));
    assert_eq!(events(&alice, "checkpoint.expire")[0]["detail"], "keep_days_hand_made is 9");
    eventually(PATIENCE, "its directory is deleted", || !folder(&server, &old).exists());
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

/// Killed when the new one is complete and the old one still exists: both exist until the next start removes the old
/// one.
fn killed_before_the_removal(point: &str, quota: &str, keep: u32, why: &str) {
    if !Need::Failpoints.is_there() {
        return;
    }
    let Some(mut server) = start_with(|builder| builder.config(quota).env("TOKIO_WORKER_THREADS", "8")) else {
        return;
    };
    let alice = server.member("alice");
    create(&alice, "main");
    run_python(&alice, "main", "counter", COUNTER);
    let (_, identity) = count(&alice, "main");
    alice.post(&format!("/pod/schedule?ins=main&every=1h&keep={keep}")).ok();
    make_due(&mut server);
    eventually(PATIENCE, "the checkpoint is complete", || ids(&alice, "schedule").len() == 1 && !is_at_work(&server));
    let old = ids(&alice, "schedule").remove(0);

    server.set_env("FAILPOINTS", Some(&format!("{point}=pause")));
    make_due(&mut server);
    eventually(PATIENCE, "the new one is complete", || ids(&alice, "schedule").len() == 2);
    thread::sleep(Duration::from_secs(1));
    server.kill();
    assert!(folder(&server, &old).join("manifest.json").exists());
    server.set_env("FAILPOINTS", None);
    server.start_again();
    eventually(PATIENCE, "the old one is deleted", || ids(&alice, "schedule").len() == 1 && !is_at_work(&server));
    let new = ids(&alice, "schedule").remove(0);
    assert_ne!(new, old);
    assert_eq!(schedule(&alice)["last_checkpoint"], new.as_str());
    let expired = events(&alice, "checkpoint.expire");
    assert_eq!(expired.len(), 1, "{expired:?}");
    assert_eq!(expired[0]["detail"].as_str().unwrap().replace(&new, "NEW"), why);
    assert_clean(&server);
    assert!(!folder(&server, &old).exists());
    alice.post("/pod/stop?ins=main").ok();
    done(&alice, "/pod/restore?ins=main");
    assert_eq!(count(&alice, "main").1, identity);
    delete(&alice, "main");
    delete_checkpoints(&alice);
}

#[test]
fn a_kill_before_the_oldest_is_replaced_is_recovered() {
    let quota = "[default_quota]\ncheckpoint_count = 1";
    killed_before_the_removal("schedule-saved", quota, 10, "the quota was full: replaced by NEW");
}

#[test]
fn a_kill_before_the_expiry_of_the_oldest_is_recovered() {
    killed_before_the_removal("checkpoint-expire", "", 1, "the pod's schedule keeps 1");
}
