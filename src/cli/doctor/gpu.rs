//! NVIDIA: the library that shows who uses a GPU, and the toolkit that gives GPUs to pods.

use std::fs;

use super::{Finding, ask_program, is_on_path, read_line};

const NVML: &str = "libnvidia-ml.so.1";
/// NVIDIA's PCI vendor id.
const PCI_VENDOR: &str = "0x10de";
const HOOK: &str = "nvidia-container-runtime-hook";

pub async fn examine() -> Vec<Finding> {
    let has_nvml = find_nvml().await;
    if !has_nvml && !has_nvidia_card() {
        return vec![Finding::ok("gpu", "no NVIDIA GPU in this host: pods run without")];
    }
    let nvml = if has_nvml {
        Finding::ok("nvml", format!("{NVML} found"))
    } else {
        Finding::fail("nvml", format!("{NVML} not found: cannot see who uses a GPU"), "install the NVIDIA driver")
    };
    vec![nvml, toolkit().await]
}

async fn toolkit() -> Finding {
    const INSTALL: &str = "install nvidia-container-toolkit, then `systemctl restart docker`";
    if !is_on_path(HOOK) {
        return Finding::fail("nvidia toolkit", format!("no {HOOK} on PATH: pods get no GPU"), INSTALL);
    }
    match ask_program("nvidia-ctk", &["--version"]).await {
        Ok(version) => Finding::ok("nvidia toolkit", version.lines().next().unwrap_or_default()),
        Err(why) => Finding::warn("nvidia toolkit", format!("{HOOK} found, but {why}"), INSTALL),
    }
}

/// Where the dynamic loader looks: its cache, and `LD_LIBRARY_PATH`.
async fn find_nvml() -> bool {
    let directories = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    if std::env::split_paths(&directories).any(|directory| directory.join(NVML).exists()) {
        return true;
    }
    ask_program("ldconfig", &["-p"]).await.is_ok_and(|cache| cache.contains(NVML))
}

fn has_nvidia_card() -> bool {
    let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    devices.into_iter().any(|device| read_line(device.path().join("vendor")).as_deref() == Some(PCI_VENDOR))
}
