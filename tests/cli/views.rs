//! What the server of a test answers, made of the server's own types: a field that is renamed does not compile here.

use pody::model::{
    checkpoint::{Checkpoint, CheckpointStatus, Compression, Kind, Origin},
    event::{Event, Outcome},
    ids::PodId,
    pod::{ContainerStatus, PodStatus},
    time::Millis,
    view::{
        account::{NewToken, SshKeyInfo, TokenInfo},
        action::ActionView,
        checkpoint::{CheckpointView, CopyView, ProcessVerdict, RemoteCheckpoint, RemoteContent, Saved, Verdict},
        pod::{CreatedPod, ExecView, PodStats, PodView, SessionView},
        schedule::{PodSchedule, ScheduleView},
    },
};

/// The ids of all actions, checkpoints and pods.
pub const ACTION: &str = "01a22f71-3bc4-7107-b013-464a3160d1a1";
pub const CHECKPOINT: &str = "01a22f71-3bc4-7107-b013-464a3160d1c1";
pub const POD: &str = "01a22f71-3bc4-7107-b013-464a3160d1b1";
/// The id of a background command's session.
pub const SESSION: &str = "01a22f71-3bc4-7107-b013-464a3160d1e1";

/// 2020-01-01T00:00:00Z.
const LONG_AGO: Millis = Millis(1_577_836_800_000);
const LONG_AGO_TEXT: &str = "2020-01-01T00:00:00Z";

fn pod_id() -> PodId {
    POD.parse().unwrap()
}

/// alice's pod `main`, which runs.
pub fn pod() -> PodView {
    PodView {
        instance: "main".parse().unwrap(),
        container_id: Some("0123456789ab".to_owned()),
        name: "alice-main".to_owned(),
        status: PodStatus::Container(ContainerStatus::Running),
        image: "pody-base:latest".to_owned(),
        networks: Vec::new(),
        port_mapping: vec!["20806:22".to_owned()],
        gpu_ids: None,
        memory_limit: 64 << 30,
        shm_size: -1,
        user: "alice".parse().unwrap(),
        created_at: LONG_AGO_TEXT.to_owned(),
        gpu_trouble: None,
        schedule: None,
    }
}

pub fn created() -> CreatedPod {
    CreatedPod { log: String::new(), info: pod() }
}

pub fn stats() -> PodStats {
    PodStats {
        instance: "main".parse().unwrap(),
        cpu_seconds: 61.2,
        cpu_cores: 1.5,
        memory_used: 1 << 30,
        memory_limit: 4 << 30,
        pids: 3,
        pids_limit: -1,
        disk_read: Some(3 << 20),
        disk_written: None,
    }
}

pub fn ended(exit_code: i64, log: &str) -> ExecView {
    ExecView { exit_code, log: log.to_owned(), truncated: false, output: None, session: None }
}

pub fn session(id: &str, attached: bool, exit_code: Option<i64>) -> SessionView {
    SessionView { session: id.to_owned(), command: "/bin/bash -l".to_owned(), started: 1, attached, exit_code }
}

/// An action of 1 GiB, in the words of the API.
pub fn action(kind: &str, status: &str, phase: &str) -> ActionView {
    ActionView {
        id: ACTION.parse().unwrap(),
        kind: kind.parse().unwrap(),
        user: "alice".parse().unwrap(),
        pod: pod_id(),
        container_name: "alice-main".to_owned(),
        checkpoint: CHECKPOINT.parse().unwrap(),
        status: status.parse().unwrap(),
        phase: phase.parse().unwrap(),
        bytes: 1 << 30,
        total_bytes: None,
        frozen_ms: Some(1234),
        losses: Vec::new(),
        error: None,
        remote: None,
        started_at: LONG_AGO,
        ended_at: None,
    }
}

/// A checkpoint of `main`.
pub fn checkpoint() -> CheckpointView {
    let row = Checkpoint {
        id: CHECKPOINT.parse().unwrap(),
        user: "alice".parse().unwrap(),
        pod: pod_id(),
        instance: "main".parse().unwrap(),
        container_name: "alice-main".to_owned(),
        kind: Kind::Rootfs,
        compression: Compression::None,
        name: None,
        reason: None,
        status: CheckpointStatus::Ready,
        size: 1 << 30,
        image: "sha256:1".to_owned(),
        created_at: LONG_AGO,
        origin: Origin::Hand,
    };
    CheckpointView { row, remote: None }
}

pub fn copy(state: &str) -> CopyView {
    CopyView { state: state.to_owned(), bytes: None, total_bytes: None }
}

/// One that can be read, and one that cannot.
pub fn remote_checkpoints() -> [RemoteCheckpoint; 2] {
    let content =
        RemoteContent { instance: "main".parse().unwrap(), kind: Kind::Rootfs, size: 1 << 30, created_at: LONG_AGO };
    let (id, user) = (CHECKPOINT.parse().unwrap(), "alice".parse().unwrap());
    let good = RemoteCheckpoint { id, user, is_here: false, content: Some(content), problem: None };
    let bad =
        RemoteCheckpoint { is_here: true, content: None, problem: Some("it is bob's".to_owned()), ..good.clone() };
    [good, bad]
}

/// Whether `main` can be saved, of which one process is in the way if not.
pub fn verdict(can_be_saved: bool) -> Verdict {
    let problems: Vec<String> = if can_be_saved { Vec::new() } else { vec!["why".to_owned()] };
    let saved = if can_be_saved { Saved::Yes } else { Saved::No };
    Verdict {
        pod: "alice-main".to_owned(),
        kind: Kind::Rootfs,
        can_be_saved,
        problems: problems.clone(),
        losses: Vec::new(),
        processes: vec![ProcessVerdict { pid: 41, name: "node".to_owned(), saved, notes: problems }],
        memory: 1 << 30,
        gpu_memory: 0,
        files: 1 << 20,
        freeze_ms: 2500,
        space_needed: 1 << 30,
        space_free: 5 << 30,
    }
}

/// The schedule of `main`, whose last checkpoint was skipped.
pub fn schedule() -> PodSchedule {
    let schedule = ScheduleView {
        rule: "every 6h keep 4".to_owned(),
        every_seconds: 21_600,
        keep: 4,
        next_at: LONG_AGO,
        last_at: None,
        last_checkpoint: None,
        last_error: Some("skipped: alice-main is exited".to_owned()),
    };
    PodSchedule { user: "alice".parse().unwrap(), instance: "main".parse().unwrap(), schedule }
}

pub fn event() -> Event {
    Event {
        id: 1,
        at: LONG_AGO_TEXT.to_owned(),
        actor: "eve".to_owned(),
        source: "::1".to_owned(),
        action: "pod.exec".to_owned(),
        object: "eve-x".to_owned(),
        outcome: Outcome::Ok,
        detail: None,
    }
}

pub fn token(id: i64, token: &str) -> NewToken {
    let (created_at, expires_at) = (LONG_AGO_TEXT.to_owned(), "2030-01-01T00:00:00Z".to_owned());
    NewToken { info: TokenInfo { id, name: "ci".to_owned(), created_at, expires_at }, token: token.to_owned() }
}

pub fn key() -> SshKeyInfo {
    SshKeyInfo {
        id: 1,
        key_type: "ssh-ed25519".to_owned(),
        fingerprint: "SHA256:x".to_owned(),
        comment: "a@b".to_owned(),
        created_at: LONG_AGO_TEXT.to_owned(),
    }
}
