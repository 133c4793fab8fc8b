//! What a test needs from the machine. If it is missing, the test says so and passes; with `PODY_TESTS_REQUIRE_ALL=1`,
//! which `tests/run.sh` sets, it fails.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// The image of the tests' pods.
pub const IMAGE: &str = "pody-base:latest";

/// A requirement that not every machine meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A Docker Engine that answers, and the image `pody-base`.
    Docker,
    /// `dockerd`, and root to start a separate one for the test.
    PrivateEngine,
    /// A CRIU that passes `criu check`.
    Criu,
    /// A virtual environment with the PyPI client `pody==0.4.1`, named by `PODY_TEST_PYCLIENT`.
    PythonClient,
    /// The same with the extra `server`.
    PythonServer,
    /// The program `schemathesis` from PyPI, named by `PODY_TEST_SCHEMATHESIS`.
    Schemathesis,
    /// libfaketime, which gives a program another time.
    FakeTime,
    /// A virtual environment with `moto[server]` from PyPI, named by `PODY_TEST_MOTO`.
    S3,
    /// The programs `ssh` and `ssh-keygen`.
    Ssh,
    /// The program `openssl`.
    OpenSsl,
    /// Tests built with `--features failpoints`.
    Failpoints,
}

impl Need {
    /// Whether this machine meets it. Says so if it does not.
    pub fn is_there(self) -> bool {
        let Err(why) = self.look() else { return true };
        assert!(std::env::var_os("PODY_TESTS_REQUIRE_ALL").is_none_or(|value| value != "1"), "needed here: {why}");
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Bypasses the output capture of the test program, so that a skip is visible.
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
        false
    }

    fn look(self) -> Result<(), String> {
        static DOCKER: OnceLock<Result<(), String>> = OnceLock::new();
        static CRIU: OnceLock<Result<(), String>> = OnceLock::new();
        match self {
            Self::Docker => DOCKER
                .get_or_init(|| {
                    succeeds("docker", &["version"]).map_err(|_| "no Docker Engine answers".to_owned())?;
                    succeeds("docker", &["image", "inspect", IMAGE])
                        .map_err(|_| format!("there is no image {IMAGE}; build it with images/build.sh"))
                })
                .clone(),
            Self::PrivateEngine => {
                succeeds("docker", &["--version"])?;
                succeeds("dockerd", &["--version"])?;
                match nix::unistd::geteuid().is_root() {
                    true => Ok(()),
                    false => Err("only root starts a dockerd".to_owned()),
                }
            }
            Self::Criu => CRIU.get_or_init(|| succeeds("criu", &["check"])).clone(),
            Self::PythonClient => python("podx").map(drop),
            Self::PythonServer => {
                let uvicorn = python("uvicorn")?;
                let python = uvicorn.with_file_name("python");
                succeeds(&python.to_string_lossy(), &["-c", "import fastapi, pody.svc.app"])
                    .map_err(|_| "PODY_TEST_PYCLIENT has no pody[server]==0.4.1 with fastapi==0.115.14".to_owned())
            }
            Self::S3 => moto().map(drop),
            Self::OpenSsl => succeeds("openssl", &["version"]),
            Self::Failpoints => match cfg!(feature = "failpoints") {
                true => Ok(()),
                false => Err("built without --features failpoints".to_owned()),
            },
            Self::Schemathesis => {
                let program =
                    std::env::var("PODY_TEST_SCHEMATHESIS").map_err(|_| "PODY_TEST_SCHEMATHESIS is not set")?;
                succeeds(&program, &["--version"])
            }
            Self::FakeTime => faketime().map(drop),
            Self::Ssh => {
                succeeds("ssh", &["-V"])?;
                // ssh-keygen without arguments would prompt for a file name.
                succeeds("sh", &["-c", "command -v ssh-keygen"])
            }
        }
    }
}

/// The library of libfaketime, in the path of Debian and Ubuntu.
pub fn faketime() -> Result<PathBuf, String> {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    let path = PathBuf::from(path);
    if path.exists() { Ok(path) } else { Err(format!("no {}; install libfaketime", path.display())) }
}

/// A program of the virtual environment with pody 0.4.1.
pub fn python(program: &str) -> Result<PathBuf, String> {
    let home = std::env::var_os("PODY_TEST_PYCLIENT").ok_or("PODY_TEST_PYCLIENT is not set")?;
    let path = Path::new(&home).join("bin").join(program);
    if path.exists() { Ok(path) } else { Err(format!("there is no {}", path.display())) }
}

/// The program that serves S3.
pub fn moto() -> Result<PathBuf, String> {
    let home = std::env::var_os("PODY_TEST_MOTO").ok_or("PODY_TEST_MOTO is not set")?;
    let path = Path::new(&home).join("bin/moto_server");
    if path.exists() { Ok(path) } else { Err(format!("there is no {}", path.display())) }
}

fn succeeds(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    match command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{program} {}` ended with {status}", arguments.join(" "))),
        Err(error) => Err(format!("no {program}: {error}")),
    }
}
