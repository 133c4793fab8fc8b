//! The table of error codes in docs/API.md, made of one sample of every error.

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        fmt::Write as _,
        io,
        time::Duration,
    };

    use strum::VariantNames;

    use crate::{
        account::{AccountError, AuthError, RemoteError},
        agents::{ClusterError, reports::ReportError},
        checkpoint::CheckpointError,
        criu::error::CriuFailure,
        db::DbError,
        engine::{Answer, EngineError},
        files::FileError,
        host::disk::DiskError,
        http::{
            cedana::V2Error,
            document,
            error::{ApiError, ServiceRefusal},
        },
        model::{
            authority::Lapse,
            checkpoint::CheckpointStatus,
            drain::{Drain, DrainState},
            ids::{ActionId, CheckpointId, OpId},
            pod::ContainerStatus,
            quantities::{ByteSize, GpuSet},
            schedule::Interval,
            time::Millis,
        },
        objects::ObjectError,
        pod::{PodError, Refusal},
    };

    const ID: &str = "01a1ff4b-2c76-709c-a7c8-ecb5ea72c60e";
    const GIB: u64 = 1 << 30;

    /// Names of the variants that have the code of the error in them.
    const WRAPPERS: [&str; 15] = [
        "account",
        "auth",
        "checkpoint",
        "cluster",
        "db",
        "disk",
        "engine",
        "file",
        "lapsed",
        "pod",
        "refused",
        "remote",
        "reports",
        "request",
        "service",
    ];

    /// The name of each variant of each error that a response can be made of, wrappers included.
    fn all_names() -> impl Iterator<Item = &'static str> {
        let all = [
            ApiError::VARIANTS,
            ServiceRefusal::VARIANTS,
            AuthError::VARIANTS,
            AccountError::VARIANTS,
            RemoteError::VARIANTS,
            PodError::VARIANTS,
            Refusal::VARIANTS,
            EngineError::VARIANTS,
            DbError::VARIANTS,
            Lapse::VARIANTS,
            CheckpointError::VARIANTS,
            DiskError::VARIANTS,
            ObjectError::VARIANTS,
            FileError::VARIANTS,
            ClusterError::VARIANTS,
            ReportError::VARIANTS,
            V2Error::VARIANTS,
        ];
        all.into_iter().flatten().copied()
    }

    struct Sample {
        /// The name of the innermost error, also of one that clients do not see.
        name: &'static str,
        code: &'static str,
        status: u16,
        sentence: String,
    }

    impl Sample {
        fn of_request(error: impl Into<ApiError>) -> Self {
            let error = error.into();
            let name = (&error).into();
            let before = error.code();
            let error = error.disclosed();
            assert_eq!(error.code(), before, "a code is the same before and after disclosure");
            let sentence = match error.detail() {
                serde_json::Value::String(sentence) => sentence,
                _ => error.to_string(),
            };
            Self { name, code: before, status: error.status().as_u16(), sentence }
        }

        fn of_v2(error: impl Into<V2Error>) -> Self {
            let error = error.into();
            Self {
                name: (&error).into(),
                code: error.reason(),
                status: error.status().as_u16(),
                sentence: error.to_string(),
            }
        }
    }

    fn requests() -> Vec<ApiError> {
        vec![
            ApiError::BadRequest("ins: \"a-b\" is not a name".to_owned()),
            ApiError::Unprocessable(Vec::new()),
            ApiError::NotAuthenticated,
            ApiError::AdminsOnly,
            ApiError::OtherSite,
            ApiError::TooLong { part: "body", max: 1 << 20 },
            ApiError::SlowBody,
            ApiError::NoRoute,
            ApiError::MethodNotAllowed,
            ServiceRefusal::Disabled.into(),
            ServiceRefusal::NoAccessToken.into(),
            ServiceRefusal::BadAccessToken.into(),
            ServiceRefusal::ReadOnly.into(),
            ApiError::Internal(ID.parse::<OpId>().unwrap()),
        ]
    }

    fn remotes() -> Vec<RemoteError> {
        crate::tls::install_provider();
        let source = reqwest::Client::new().get("no URL").build().unwrap_err().without_url();
        let endpoint = "http://home:8799".to_owned();
        vec![
            RemoteError::Unreachable { endpoint: endpoint.clone(), source },
            RemoteError::Token { endpoint: endpoint.clone() },
            RemoteError::ReadOnly { endpoint: endpoint.clone() },
            RemoteError::Disabled { endpoint: endpoint.clone() },
            RemoteError::Refused { endpoint: endpoint.clone(), status: 400, detail: "a rule".to_owned() },
            RemoteError::Refused { endpoint: endpoint.clone(), status: 404, detail: "there is no user bob".to_owned() },
            RemoteError::Refused { endpoint: endpoint.clone(), status: 409, detail: "bob exists".to_owned() },
            RemoteError::Refused { endpoint: endpoint.clone(), status: 422, detail: "a parameter".to_owned() },
            RemoteError::Refused { endpoint, status: 500, detail: "a fault".to_owned() },
        ]
    }

    fn authentications() -> Vec<AuthError> {
        let plain = [
            AuthError::Wrong,
            AuthError::BadToken,
            AuthError::Disabled,
            AuthError::Throttled { retry_after: Duration::from_secs(4) },
            AuthError::Busy,
        ];
        plain.into_iter().chain(remotes().into_iter().map(AuthError::Remote)).collect()
    }

    fn accounts() -> Vec<AccountError> {
        let bob = || "bob".parse().unwrap();
        let plain = [
            AccountError::NoUser(bob()),
            AccountError::Exists(bob()),
            AccountError::LastAdmin(bob()),
            AccountError::HasPods { user: bob(), pods: vec!["bob-main".to_owned()] },
            AccountError::Password,
            AccountError::NoToken(7),
            AccountError::NoKey(7),
            AccountError::TooMany(64),
        ];
        plain.into_iter().chain(remotes().into_iter().map(AccountError::Remote)).collect()
    }

    fn databases() -> Vec<DbError> {
        vec![
            DbError::Busy,
            DbError::Full,
            DbError::Gone,
            Lapse::AccountGone.into(),
            Lapse::Disabled.into(),
            Lapse::PasswordChanged.into(),
            Lapse::TokenEnded.into(),
            Lapse::Demoted.into(),
            DbError::Row("a sentence".to_owned()),
            DbError::Transition { what: "pod", id: ID.to_owned(), from: "deleted".to_owned(), to: "running" },
            DbError::NoRow { what: "pod", id: ID.to_owned() },
        ]
    }

    fn engines() -> Vec<EngineError> {
        let answer = |status| Answer::new(status, "Docker's sentence");
        let run = "bash".to_owned();
        vec![
            EngineError::Unavailable(String::new()),
            EngineError::TimedOut(Duration::from_secs(60)),
            EngineError::AnswerLost(String::new()),
            EngineError::PortTaken(20000),
            EngineError::DiskFull,
            EngineError::NoImage(answer(404)),
            EngineError::NoNetwork(answer(404)),
            EngineError::NoPids(answer(500)),
            EngineError::CannotExecute { program: run, answer: answer(400) },
            EngineError::AlreadyPaused(answer(409)),
            EngineError::NotPaused(answer(500)),
            EngineError::Paused(answer(409)),
            EngineError::NotRunning(answer(409)),
            EngineError::RemovalInProgress(answer(409)),
            EngineError::StorageOptUnsupported(answer(500)),
            EngineError::NoGpuDriver(answer(500)),
            EngineError::NotFrozen(answer(500)),
            EngineError::NotFound(answer(404)),
            EngineError::Conflict(answer(409)),
            EngineError::Failed(answer(400)),
            EngineError::Failed(answer(403)),
            EngineError::Failed(answer(500)),
        ]
    }

    fn refusals() -> Vec<Refusal> {
        let one = || vec!["bob-main".to_owned()];
        vec![
            Refusal::MaxPods { limit: 1, pods: one() },
            Refusal::TotalMemory { limit: 8 * GIB, held: 6 * GIB, asked: 4 * GIB },
            Refusal::UnlimitedPod { limit: 8 * GIB, pod: "bob-main".to_owned() },
            Refusal::GpuCount { limit: 1, asked: 2 },
            Refusal::Gpus { allowed: "0,1".parse().unwrap(), asked: GpuSet::All },
            Refusal::TooFewGpus { there: 1, asked: 2 },
            Refusal::CommitCount { limit: 1, images: vec!["bob-one".to_owned()] },
            Refusal::CommitSize { limit: GIB, size: 2 * GIB },
        ]
    }

    fn pods() -> Vec<PodError> {
        let pod = || "bob-main".to_owned();
        let fault = || io::Error::from_raw_os_error(libc::EACCES);
        let drain = Drain {
            state: DrainState::Drained,
            actor: "boss".to_owned(),
            source: String::new(),
            reason: "driver upgrade".to_owned(),
            forced: false,
            shutdown: false,
            boot: String::new(),
            begun_at: Millis(0),
        };
        let plain = vec![
            PodError::NotFound("main".to_owned()),
            PodError::Draining(Box::new(drain)),
            PodError::Exists(pod()),
            PodError::Foreign(pod()),
            PodError::Busy { pod: pod(), what: "it is being started" },
            PodError::Image { image: "debian:13".parse().unwrap(), allowed: vec!["pody-base:latest".to_owned()] },
            PodError::NotYourImage("pody-base".to_owned()),
            PodError::ImageInUse { image: "bob-one".to_owned(), pods: vec![pod()] },
            PodError::ImageExists("bob-one".to_owned()),
            PodError::NoPort { needed: 2, free: 1, all: 40 },
            PodError::NotRunning { pod: pod(), status: "exited".to_owned(), next: "start it with `pody start`" },
            PodError::NoShell { pod: pod() },
            PodError::NoSession { pod: pod(), session: ID.parse().unwrap() },
            PodError::NoInit { pod: pod() },
            PodError::Command { max: 100_000 },
            PodError::Timeout { asked: 0, max: 3600 },
            PodError::Volume { path: "/srv/bob".into(), source: fault() },
            PodError::Init { path: "/root/.pody".into(), source: fault() },
            PodError::NoPids { pod: pod(), limit: 4096 },
            PodError::StorageUnsupported,
            PodError::NoGpuDriver,
            PodError::Network("lab".to_owned()),
        ];
        let wrapped = refusals().into_iter().map(PodError::Refused);
        let wrapped = wrapped.chain(engines().into_iter().map(PodError::Engine));
        plain.into_iter().chain(wrapped).chain(databases().into_iter().map(PodError::Db)).collect()
    }

    fn disks() -> Vec<DiskError> {
        vec![
            DiskError::Full { path: "/root/.pody/checkpoints".into(), free: 0 },
            DiskError::ReadOnly("/root/.pody/checkpoints".into()),
            DiskError::Io { what: "writing", path: "/root/.pody/checkpoints".into(), source: io::Error::other("why") },
        ]
    }

    fn objects() -> Vec<ObjectError> {
        vec![
            ObjectError::None,
            ObjectError::Config("url is not a URL".to_owned()),
            ObjectError::NotFound("checkpoint".to_owned()),
            ObjectError::Failed("timeout".to_owned()),
            ObjectError::Changed { key: "bob/manifest.json".to_owned(), why: "its size differs".to_owned() },
            ObjectError::Io { path: "/root/.pody".into(), source: io::Error::other("why") },
            ObjectError::Cancelled,
            ObjectError::NoSigner,
        ]
    }

    fn checkpoints() -> Vec<CheckpointError> {
        let pod = || "bob-main".to_owned();
        let id: CheckpointId = ID.parse().unwrap();
        let action: ActionId = ID.parse().unwrap();
        let hour = 3600;
        let plain = vec![
            CheckpointError::NotFound(ID.to_owned()),
            CheckpointError::NoAction(ID.to_owned()),
            CheckpointError::NoneOf(pod()),
            CheckpointError::NothingNamed,
            CheckpointError::Unavailable("CRIU is not installed".to_owned()),
            CheckpointError::NotPossible { pod: pod(), problems: vec!["python[7] has a camera open".to_owned()] },
            CheckpointError::InProgress { pod: pod(), action },
            CheckpointError::NotRunning { pod: pod(), status: ContainerStatus::Exited },
            CheckpointError::StillRuns { pod: pod(), status: ContainerStatus::Running },
            CheckpointError::NotReady { id, status: CheckpointStatus::Creating },
            CheckpointError::InUse(id),
            CheckpointError::HeldByDrain(id),
            CheckpointError::NoSchedule(pod()),
            CheckpointError::TooOften { asked: Interval(60), shortest: Interval(hour) },
            CheckpointError::Reason { longest: 200 },
            CheckpointError::Space { path: "/root/.pody/checkpoints".into(), needed: 2 * GIB, free: GIB },
            CheckpointError::Damaged { id, file: "pages-1.img".to_owned(), why: "its hash differs".to_owned() },
            CheckpointError::Unreadable("why".to_owned()),
            CheckpointError::Count { limit: 4, held: 4 },
            CheckpointError::Size { limit: 4 * GIB, held: 3 * GIB, asked: 2 * GIB },
            CheckpointError::ImageGone("pody-base:latest".to_owned()),
            CheckpointError::MountsChanged { then: "/data".to_owned(), now: "none".to_owned() },
            CheckpointError::Memory { needed: 2 * GIB, limit: GIB },
            CheckpointError::OtherHost { then: "an x86_64 CPU".to_owned(), now: "an aarch64 one".to_owned() },
            CheckpointError::GpusDiffer("the pod was on 2 GPUs, and it sees 1 now".to_owned()),
            CheckpointError::Cuda("why".to_owned()),
            CheckpointError::Criu(CriuFailure::other("why")),
            CheckpointError::AddressGone { address: [172, 17, 0, 2].into(), why: "another pod has it".to_owned() },
            CheckpointError::TimedOut { what: "the dump", limit: Duration::from_secs(60) },
            CheckpointError::EndedMeanwhile(pod()),
            CheckpointError::LetGo(pod()),
            CheckpointError::EndedAtOnce(1),
            CheckpointError::Program { program: "runc", message: "why".to_owned() },
            CheckpointError::Interrupted("dumped"),
            CheckpointError::Known(id),
        ];
        let wrapped = disks().into_iter().map(CheckpointError::Disk);
        let wrapped = wrapped.chain(objects().into_iter().map(CheckpointError::Remote));
        let wrapped = wrapped.chain(engines().into_iter().map(CheckpointError::Engine));
        plain.into_iter().chain(wrapped).chain(databases().into_iter().map(CheckpointError::Db)).collect()
    }

    fn files() -> Vec<FileError> {
        let path = || "runs/log.txt".to_owned();
        let plain = vec![
            FileError::NotFound(path()),
            FileError::NoDirectory("runs".to_owned()),
            FileError::Precondition(path()),
            FileError::NotAFile(path()),
            FileError::NotEmpty("runs".to_owned()),
            FileError::Symlink(path()),
            FileError::BadLink,
            FileError::AdminsOnly,
            FileError::Busy(path()),
            FileError::Offset { path: path(), have: 400, asked: 500 },
            FileError::Total { said: 400, found: 500 },
            FileError::Cut { said: 500, found: 400 },
            FileError::Slow { found: 400 },
            FileError::TooLarge { limit: ByteSize(GIB) },
            FileError::OverLimit { limit: ByteSize(GIB), used: GIB },
            FileError::TooMany { limit: 10_000 },
            FileError::DiskFull { keep_free: ByteSize(GIB) },
            FileError::Io(io::Error::other("why")),
        ];
        let wrapped = objects().into_iter().map(FileError::Remote);
        plain.into_iter().chain(wrapped).chain(databases().into_iter().map(FileError::Db)).collect()
    }

    fn clusters() -> Vec<ClusterError> {
        let id = ID.parse().unwrap();
        let bad = crate::model::agent::parse(serde_json::Map::new()).err().expect("it has no type");
        vec![
            ClusterError::NoCluster(id),
            ClusterError::ThisHost(id),
            ClusterError::Name,
            ClusterError::TooManyClusters,
            ClusterError::Resource(bad),
            ClusterError::TooLarge(100_000),
            ClusterError::TooMany { resources: 2000, bytes: 4 << 20 },
        ]
    }

    fn reports() -> Vec<ReportError> {
        vec![
            ReportError::TooLarge,
            ReportError::Control("name"),
            ReportError::TooMany { checkpoints: 2000, bytes: 4 << 20 },
        ]
    }

    fn samples() -> Vec<Sample> {
        let mut all: Vec<Sample> = requests().into_iter().map(Sample::of_request).collect();
        all.extend(authentications().into_iter().map(Sample::of_request));
        all.extend(accounts().into_iter().map(Sample::of_request));
        all.extend(pods().into_iter().map(Sample::of_request));
        all.extend(checkpoints().into_iter().map(Sample::of_request));
        all.push(Sample::of_v2(V2Error::BadRequest("time: at most 86400 s are looked back".to_owned())));
        all.push(Sample::of_v2(V2Error::NotFound("there is no checkpoint like this of yours".to_owned())));
        all.push(Sample::of_v2(V2Error::Range { size: 400 }));
        all.push(Sample::of_v2(ApiError::Unprocessable(Vec::new())));
        all.extend(files().into_iter().map(Sample::of_v2));
        all.extend(clusters().into_iter().map(Sample::of_v2));
        all.extend(reports().into_iter().map(Sample::of_v2));
        all
    }

    #[test]
    fn there_is_a_sample_of_every_error() {
        let names: BTreeSet<&str> = samples().iter().map(|sample| sample.name).collect();
        let mut known: BTreeSet<&str> = all_names().collect();
        for wrapper in WRAPPERS {
            assert!(known.remove(wrapper), "{wrapper} wraps nothing");
        }
        assert_eq!(names, known);
    }

    /// A client that reads only the code must know what happened: an error of one name has one meaning. These are the
    /// same in several places.
    #[test]
    fn no_two_errors_share_a_code_by_accident() {
        let same = [
            "internal",
            "bad_request",
            "admins_only",
            "pod_not_running",
            "slow_body",
            "account_disabled",
            "invalid_token",
        ];
        let mut seen = BTreeSet::new();
        for code in all_names().filter(|code| !WRAPPERS.contains(code) && !same.contains(code)) {
            assert!(seen.insert(code), "{code} is the code of two errors");
        }
    }

    /// The table in docs/API.md: statuses and a sentence of each code.
    fn table() -> String {
        let mut codes: BTreeMap<&str, (BTreeSet<u16>, String)> = BTreeMap::new();
        for sample in samples() {
            let row = codes.entry(sample.code).or_insert_with(|| (BTreeSet::new(), sample.sentence));
            row.0.insert(sample.status);
        }
        let mut text = String::from("| code | status | for example |\n| --- | --- | --- |\n");
        for (code, (statuses, sentence)) in codes {
            let statuses: Vec<String> = statuses.iter().map(u16::to_string).collect();
            let _ = writeln!(text, "| `{code}` | {} | {} |", statuses.join(", "), sentence.replace('|', "\\|"));
        }
        text
    }

    #[test]
    fn the_document_lists_every_error_code() {
        document::check("error codes", &table());
    }
}
