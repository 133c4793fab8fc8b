//! Reads the arguments and runs the command; see `pody::cli`. Under the name `gzip` it serves CRIU: `pody::criu::gzip`;
//! under `pody-runc` it is an OCI runtime: `pody::runtime`.

use std::{ffi::OsStr, path::Path, process::ExitCode};

use pody::{cli::Cli, criu::gzip, runtime};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(OsStr::to_str) {
        Some("gzip") => return if gzip::run(arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        Some(runtime::NAME) => return runtime::run(arguments.collect()),
        _ => {}
    }
    let cli = Cli::from_args(std::env::args_os());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    // A blocked read of standard input cannot be cancelled; do not wait for it.
    runtime.shutdown_background();
    ExitCode::from(code)
}
