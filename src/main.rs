//! Reads the arguments and runs the command; see `pody::cli`.

use std::process::ExitCode;

use pody::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::from_args(std::env::args_os());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    // A read of the standard input cannot be called off; do not wait for it.
    runtime.shutdown_background();
    ExitCode::from(code)
}
