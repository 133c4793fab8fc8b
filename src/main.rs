//! Reads the arguments and runs the command; see `pody::cli`. Under the name `gzip` it serves CRIU: `pody::criu::gzip`.

use std::{path::Path, process::ExitCode};

use pody::{cli::Cli, criu::gzip};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| Path::new(&name).file_name() == Some("gzip".as_ref())) {
        return if gzip::run(arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
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
