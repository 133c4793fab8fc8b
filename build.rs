//! Compiles `init/`, the first process of every pod, into one static program that is embedded in the daemon
//! (`src/pod/init.rs`).
//!
//! It calls rustc directly: the program uses only std, so it needs neither another target nor a nested cargo. glibc's
//! static library comes with its headers (libc6-dev). The same sources and compiler produce the same bytes in any
//! location.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=init/src");
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("pody-init");
    let root = variable("CARGO_MANIFEST_DIR");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=pody_init", "--crate-type=bin", "--target", &variable("TARGET")]);
    for option in [
        "target-feature=+crt-static",
        "relocation-model=static",
        "panic=abort",
        "opt-level=s",
        "lto=fat",
        "strip=symbols",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    rustc.arg(format!("--remap-path-prefix={root}=."));
    let source = Path::new(&root).join("init/src/main.rs");
    let status = rustc.arg("-o").arg(&program).arg(source).status().expect("rustc runs");
    assert!(status.success(), "init/ does not compile: {status}; a static program needs glibc's libc.a (libc6-dev)");
}
