//! The client reads what the server answers: each JSON route that `pody` reads, decoded with the type of `model::view`
//! that the client decodes it with. Encoded again it is the same, so the type knows every field of the answer.

use std::time::Duration;

use pody::model::{
    action::ActionStatus,
    checkpoint::Kind,
    event::Event,
    gpu::Library,
    user::UserInfo,
    view::{
        Log, Message,
        account::{AccountView, AddedUser, NewToken, PurgedUser, QuotaView, SshKeyInfo, TokenInfo},
        action::ActionView,
        checkpoint::{CheckpointDetails, CheckpointView, RemoteCheckpoint, Verdict},
        gpu::{DeviceState, GpusView},
        help::HelpRow,
        image::ImageView,
        pod::{CommitView, CreatedPod, ExecView, PodStats, PodView, SessionView},
        schedule::PodSchedule,
        usage::UsageRow,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::common::{
    Answer, Server, eventually,
    gpus::{Code, Fault, Faults, Gpus, Process, State},
};

const PATIENCE: Duration = Duration::from_secs(60);

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJVbTpAcPB7dqXnNF0WYDoHZ8Sx7sZHSOhyVIn8P4tg alice@box";

#[track_caller]
fn read<T: Serialize + DeserializeOwned>(answer: Answer) -> T {
    let text = answer.ok().text();
    let view: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    // Through a `Value`, so that both numbers were parsed.
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&view).unwrap(), serde_json::to_string(&body).unwrap());
    view
}

#[test]
fn accounts_and_events() {
    let server = Server::builder().without_docker().start().unwrap();
    let (alice, admin) = (server.member("alice"), server.admin());
    assert!(!read::<Vec<HelpRow>>(alice.get("/help")).is_empty());
    read::<AccountView>(alice.get("/user/info"));
    assert_eq!(read::<AccountView<Map<String, Value>>>(admin.get("/user/info")).user.is_admin, 1);
    let token: NewToken = read(alice.post("/user/tokens/create?name=ci"));
    assert_eq!(read::<Vec<TokenInfo>>(alice.get("/user/tokens"))[0].id, token.info.id);
    read::<Message>(alice.post(&format!("/user/tokens/revoke?id={}", token.info.id)));
    let key: SshKeyInfo = read(alice.post_with("/user/ssh-keys/add", &[("key", KEY)]));
    assert_eq!(read::<Vec<SshKeyInfo>>(alice.get("/user/ssh-keys")).len(), 1);
    read::<Message>(alice.post(&format!("/user/ssh-keys/delete?id={}", key.id)));
    assert!(read::<AddedUser>(admin.post("/admin/user/add?username=carol")).password.is_some());
    read::<Message>(admin.post("/admin/quota/update?username=carol&max_pods=2&cpu_limit=0.5&gpus=0,1"));
    let quotas: Vec<QuotaView> = read(admin.get("/admin/quota/list"));
    assert!(quotas.iter().any(|row| row.stored.cpu_limit.is_some()));
    assert!(!read::<Vec<UserInfo>>(admin.get("/admin/user/list")).is_empty());
    read::<PurgedUser>(admin.post("/admin/user/purge?username=carol"));
    assert!(!read::<Vec<Event>>(admin.get("/events")).is_empty());
    read::<Message>(alice.post("/user/ch-passwd?passwd=a-very-secret-word"));
}

#[test]
fn gpus() {
    let gpus = Gpus::new(State::with_gpus(2));
    gpus.change(|state| {
        state.devices[0].processes.push(Process::computing(std::process::id(), 1 << 30));
        state.devices[1].faults = Faults::from([("*".to_owned(), Fault::Error(Code::GpuIsLost))]);
    });
    let Some(server) = Server::builder().without_docker().gpus(&gpus).start() else { return };
    let admin = server.admin();
    let seen = || read::<GpusView>(admin.get("/host/gpus"));
    eventually(PATIENCE, "the GPUs are read", || {
        matches!(seen().library, Library::Working { .. }) && seen().gpus.iter().any(|gpu| !gpu.processes.is_empty())
    });
    let states: Vec<DeviceState> = seen().gpus.iter().map(|gpu| gpu.state).collect();
    assert_eq!(states, [DeviceState::Ok, DeviceState::Unknown]);
    eventually(PATIENCE, "the GPUs have their rows", || {
        !read::<Vec<UsageRow>>(admin.get("/stat/usage?by=gpu")).is_empty()
    });
}

#[test]
fn pods() {
    let Some(server) = Server::start() else { return };
    let alice = server.member("alice");
    read::<CreatedPod>(alice.post("/pod/create?ins=main&image=pody-base"));
    assert_eq!(read::<Vec<PodView>>(alice.get("/pod/ps")).len(), 1);
    read::<PodStats>(alice.get("/pod/stats?ins=main"));
    assert_eq!(read::<ExecView>(alice.post("/pod/exec?ins=main&cmd=false")).exit_code, 1);
    assert!(read::<ExecView>(alice.post("/pod/exec?ins=main&cmd=sleep+99&timeout=1")).output.is_some());
    let started: ExecView = read(alice.post("/pod/exec?ins=main&cmd=sleep+99&detach=true"));
    let sessions: Vec<SessionView> = read(alice.get("/pod/sessions?ins=main"));
    assert_eq!(Some(sessions[0].session.clone()), started.session.map(|id| id.to_string()));
    read::<Log>(alice.get("/pod/logs?ins=main"));
    let set: PodSchedule = read(alice.post("/pod/schedule?ins=main&every=6h&keep=4"));
    assert_eq!(read::<PodSchedule>(alice.get("/pod/schedule?ins=main")).schedule.next_at, set.schedule.next_at);
    assert_eq!(read::<Vec<PodSchedule>>(alice.get("/pod/schedules")).len(), 1);
    assert!(read::<PodView>(alice.get("/pod/inspect?ins=main")).schedule.is_some());
    read::<Message>(alice.post("/pod/schedule?ins=main&off=true"));
    read::<CommitView>(alice.post("/pod/commit?ins=main&tag=v1"));
    let images: Vec<String> = read(alice.get("/image/list"));
    read::<ImageView>(alice.get_with("/image/inspect", &[("image", &images[0])]));
    read::<Log>(alice.post_with("/image/delete", &[("image", &images[0])]));
    eventually(PATIENCE, "the pod has a row", || {
        !read::<Vec<UsageRow>>(alice.get("/stat/usage?by=user,pod")).is_empty()
    });
    read::<Log>(alice.post("/pod/stop?ins=main"));
    read::<Log>(alice.post("/pod/delete?ins=main"));
}

/// Of files alone, which needs no CRIU.
#[test]
fn checkpoints_and_restores() {
    let store = tempfile::Builder::new().prefix("pody-test-store-").tempdir().unwrap();
    let config = format!("[checkpoint.remote]\nurl = \"file://{}\"\n", store.path().display());
    let Some(server) = Server::builder().config(&config).start() else { return };
    let alice = server.member("alice");
    read::<CreatedPod>(alice.post("/pod/create?ins=main&image=pody-base"));
    assert_eq!(read::<Verdict>(alice.get("/checkpoint/check?ins=main&kind=rootfsonly")).kind, Kind::RootfsOnly);
    let end = |begun: ActionView| {
        let status = || read::<ActionView>(alice.get(&format!("/action/status?id={}", begun.id)));
        eventually(PATIENCE, "the action ends", || status().status != ActionStatus::Running);
        assert_eq!(status().error, None);
        begun.checkpoint
    };
    let id = end(read(alice.post("/pod/checkpoint?ins=main&kind=rootfsonly&remote=true")));
    let listed = || read::<Vec<CheckpointView>>(alice.get("/pod/checkpoints"));
    eventually(PATIENCE, "it is copied", || listed()[0].remote.as_ref().is_some_and(|copy| copy.state == "copied"));
    let details: CheckpointDetails = read(alice.get(&format!("/checkpoint/inspect?checkpoint={id}")));
    assert!(details.content.is_some() && details.checkpoint.remote.is_some());
    let remote: Vec<RemoteCheckpoint> = read(alice.get("/checkpoint/remote"));
    assert!(remote[0].is_here && remote[0].content.is_some());
    end(read(alice.post("/pod/restore?ins=main&as=twin")));
    assert_eq!(read::<Vec<ActionView>>(alice.get("/action/list")).len(), 2);
    read::<Log>(alice.post(&format!("/checkpoint/delete?checkpoint={id}")));
    for pod in ["main", "twin"] {
        read::<Log>(alice.post(&format!("/pod/delete?ins={pod}")));
    }
}
