//! What checkpoints of pods on GPUs need. Nothing is said where they are off, as they are by default.

use std::path::Path;

use super::{Finding, ask_program, version_in};
use crate::{
    config::{Config, GpuCheckpoints},
    objects,
};

const CHECK: &str = "gpu checkpoints";

/// The first driver that can lock and copy in steps.
const DRIVER: (u32, u32) = (570, 0);

/// Where distributions put CRIU's plugins.
const PLUGINS: [&str; 3] = ["/usr/lib/criu", "/usr/local/lib/criu", "/usr/lib64/criu"];

const GET: &str =
    "get cuda-checkpoint from github.com/NVIDIA/cuda-checkpoint, or name it in [checkpoint] cuda_checkpoint";

pub async fn examine(home: &Path) -> Vec<Finding> {
    let Ok(config) = Config::load(&home.join("config.toml"), objects::check) else { return Vec::new() };
    if config.checkpoint.gpu == GpuCheckpoints::Off {
        return Vec::new();
    }
    let program = config.checkpoint.cuda_checkpoint.as_deref().unwrap_or(Path::new("cuda-checkpoint"));
    let help = ask_program(&program.display().to_string(), &["--help"]).await;
    let driver = ask_program("nvidia-smi", &["--query-gpu=driver_version", "--format=csv,noheader"]).await;
    vec![judge(help, driver, has_plugin())]
}

/// CRIU's own way. It would do the same while the pod stands still; pody does it before.
fn has_plugin() -> bool {
    PLUGINS.iter().any(|folder| Path::new(folder).join("cuda_plugin.so").exists())
}

fn judge(help: Result<String, String>, driver: Result<String, String>, has_plugin: bool) -> Finding {
    let help = match help {
        Ok(help) => help,
        Err(why) => return Finding::fail(CHECK, why, GET),
    };
    let line = help.lines().find(|line| line.starts_with("Version ")).unwrap_or_default();
    let version = line.split_whitespace().nth(1).unwrap_or("of an unknown version").trim_end_matches('.');
    if !help.contains("--action") {
        return Finding::fail(CHECK, format!("cuda-checkpoint {version} is too old: it lacks --action"), GET);
    }
    let driver = match driver {
        Ok(text) => text.lines().next().unwrap_or_default().trim().to_owned(),
        Err(why) => {
            let found = format!("cuda-checkpoint {version}; the driver's version is not told: {why}");
            return Finding::warn(CHECK, found, "they need driver 570 or newer");
        }
    };
    let plugin = if has_plugin { "there, and not needed" } else { "not there, and not needed" };
    let found = format!("experimental: driver {driver}, cuda-checkpoint {version}; CRIU's cuda_plugin is {plugin}");
    match version_in(&driver) {
        Some(version) if version >= DRIVER => Finding::ok(CHECK, found),
        _ => Finding::fail(CHECK, found, "install driver 570 or newer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn program_and_driver_must_be_new_enough() {
        let help =
            |more: &str| Ok(format!("CUDA checkpoint and restore utility.\nVersion 570.86.10. Copyright\n{more}"));
        let driver = |version: &str| Ok(version.to_owned());
        for (help, driver, level) in [
            (help("--action lock"), driver("570.86.10"), Level::Ok),
            (help("--action lock"), driver("580.65.06\n580.65.06"), Level::Ok),
            (help("--action lock"), driver("565.57.01"), Level::Fail),
            (help("--toggle"), driver("570.86.10"), Level::Fail),
            (Err("cuda-checkpoint: No such file or directory".to_owned()), driver("570.86.10"), Level::Fail),
            (help("--action lock"), Err("nvidia-smi: No such file or directory".to_owned()), Level::Warn),
        ] {
            assert_eq!(judge(help, driver, false).level, level);
        }
        let good = judge(help("--action lock"), driver("570.86.10"), true);
        assert!(good.found.contains("cuda-checkpoint 570.86.10") && good.found.contains("not needed"), "{good:?}");
    }
}
