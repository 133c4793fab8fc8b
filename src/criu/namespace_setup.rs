//! What a restore does in the pod's new network and mount namespaces once they exist and its processes do not: CRIU's
//! script stage `post-setup-namespaces`. It is this program again, started by CRIU.
//!
//! *Addresses.* Docker gives the pod another address than it had, and a socket that is bound to the old one cannot be
//! created again. The old one is added on the loopback interface: listeners return, and connections between programs of
//! the pod continue, in any number of clones, since nobody outside sees the address.
//!
//! *Settings.* Docker sets some kernel parameters for the network of each container, but not for one that CRIU
//! restores: without them nobody could `ping`, and normal users could not listen on low ports.
//!
//! *`/etc/hosts`.* The engine rewrites it at each start. What the pod's owner wrote into it is put back.
//!
//! *tmpfs.* CRIU unpacks their content with `tar --gzip`, which is as slow as gzip. The large ones are left empty for
//! CRIU and filled here, before any file in them is opened.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::{
    error::{CriuFailure, FailureKind},
    gzip,
    network::sockets,
    runc,
};
use crate::host::{
    cgroup,
    mountinfo::{self, Mount},
    netlink,
};

/// The hidden command under which this program does it.
pub const COMMAND: &str = "namespace-setup";

/// Files beside the log of the restore.
const PLAN: &str = "namespace-setup.json";

const SCRIPT: &str = "namespace-setup.sh";

const FAILURE: &str = "namespace-setup.error";

/// Exists once the pod has its addresses.
const ADDRESSED: &str = "namespace-setup.addressed";

const DONE: &str = "namespace-setup.done";

/// CRIU unpacks smaller ones in no time, bytes.
const LARGE: u64 = 4 << 20;

/// A larger `/etc/hosts` is left as the engine writes it, bytes.
const MOST_HOSTS: u64 = 64 << 10;

/// The network parameters that Docker and pods' own settings change, below /proc/sys.
const SETTINGS: [&str; 3] = ["net/ipv4/ping_group_range", "net/ipv4/ip_unprivileged_port_start", "net/mptcp/enabled"];

/// Bytes of the pipe to tar, which takes them all at once.
const PIPE: i32 = 1 << 20;

const RECORDS: &str = "--blocking-factor=2048";

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The address that the engine must have given the pod.
    pub again: Option<Ipv4Addr>,
    /// Added on the loopback interface.
    pub addresses: Vec<Ipv4Addr>,
    pub memory_files: Vec<Filling>,
    #[serde(default)]
    pub network: BTreeMap<String, String>,
    #[serde(default)]
    pub hosts: Option<Hosts>,
}

/// A pod's `/etc/hosts`: the file as the host sees it, and its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hosts {
    pub file: PathBuf,
    pub content: String,
}

/// An archive, and the tmpfs that it goes into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filling {
    pub archive: PathBuf,
    /// Where the programs of the pod see it.
    pub target: PathBuf,
    /// The number of the mount at the checkpoint: CRIU first mounts it under that name.
    pub mount: u32,
}

impl Plan {
    /// The line for CRIU's options that has it done; empty where there is nothing to do. `scratch` is the restore's own
    /// directory.
    pub fn option(&self, scratch: &Path) -> io::Result<String> {
        for old in [FAILURE, ADDRESSED, DONE, PLAN] {
            let _ = fs::remove_file(scratch.join(old));
        }
        if *self == Self::default() {
            return Ok(String::new());
        }
        let (plan, script, failure) = (scratch.join(PLAN), scratch.join(SCRIPT), scratch.join(FAILURE));
        fs::write(&plan, serde_json::to_vec(self)?)?;
        let text = format!(
            "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-setup-namespaces ] || exit 0\n\
             /proc/{}/exe {COMMAND} '{}' \"$CRTOOLS_INIT_PID\" 2>'{}' && : >'{}'\n",
            std::process::id(),
            plan.display(),
            failure.display(),
            scratch.join(DONE).display(),
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
        Ok(format!("action-script {}\n", script.display()))
    }
}

/// Returns when the pod has its addresses.
pub async fn wait_addressed(scratch: &Path) {
    while !scratch.join(ADDRESSED).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether all that was planned for the last start was done. Where it was not, CRIU has not read the options that it
/// was started with, and the running pod is not what was saved.
pub fn is_done(scratch: &Path) -> bool {
    !scratch.join(PLAN).exists() || scratch.join(DONE).exists()
}

/// Why it was not done, where it was not.
pub fn failure(scratch: &Path) -> Option<CriuFailure> {
    let text = fs::read_to_string(scratch.join(FAILURE)).ok()?;
    let line = text.lines().next().map(str::trim).filter(|line| !line.is_empty())?;
    Some(serde_json::from_str(line).unwrap_or_else(|_| CriuFailure::other(line)))
}

/// CRIU's name for the content of a tmpfs, by the kernel's device number.
fn image_of(device: u64) -> String {
    format!("tmpfs-dev-{device}.tar.gz.img")
}

/// The names that CRIU will give the images of a pod's tmpfs mounts.
pub fn memory_images(pid: i32) -> Vec<String> {
    let mounts = mountinfo::read(pid).unwrap_or_default();
    whole(&mounts).map(|mount| image_of(mount.device)).collect()
}

/// The large tmpfs images, by the mounts of the frozen pod.
pub fn memory_files(images: &Path, pid: i32) -> Vec<MemoryFiles> {
    let mounts = mountinfo::read(pid).unwrap_or_default();
    let of_mount = |Mount { number, device, target, .. }| {
        let name = image_of(device);
        let is_large = fs::metadata(images.join(&name)).is_ok_and(|image| image.len() > LARGE);
        is_large.then(|| MemoryFiles {
            image: Path::new(runc::IMAGES).join(name),
            target: PathBuf::from(target),
            mount: number,
        })
    };
    whole(&mounts).filter_map(of_mount).collect()
}

/// The content of a pod's `/etc/hosts`, which is the engine's file and not one of the pod's layer.
pub fn hosts(pid: i32) -> Option<String> {
    let mut content = String::new();
    let file = File::open(format!("/proc/{pid}/root/etc/hosts")).ok()?;
    io::Read::read_to_string(&mut io::Read::take(file, MOST_HOSTS + 1), &mut content).ok()?;
    (content.len() as u64 <= MOST_HOSTS).then_some(content)
}

/// Puts the pod's current address into the engine's line of `/etc/hosts`. The programs run by then, and never see the
/// file empty.
pub fn renew_hosts(file: &Path, saved: &str, current: &str) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    let renewed: String = text
        .split_inclusive('\n')
        .map(|line| match line.strip_prefix(saved) {
            Some(rest) if rest.starts_with(['\t', ' ']) => format!("{current}{rest}"),
            _ => line.to_owned(),
        })
        .collect();
    if renewed == text {
        return Ok(());
    }
    let file = File::options().write(true).open(file)?;
    file.write_all_at(renewed.as_bytes(), 0)?;
    file.set_len(renewed.len() as u64)
}

/// The parameters of a process's network. One that this kernel does not know is missing.
pub fn network_settings(pid: i32) -> BTreeMap<String, String> {
    let read = || {
        let values = SETTINGS.iter().filter_map(|name| {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
            Some(((*name).to_owned(), value.trim().to_owned()))
        });
        Ok(values.collect())
    };
    netlink::in_network_of(pid, read).unwrap_or_default()
}

/// Sets parameters of a process's network; those that this kernel does not know are skipped.
fn set_network(pid: i32, settings: &BTreeMap<String, String>) {
    let write = || {
        for name in SETTINGS {
            if let Some(value) = settings.get(name) {
                let _ = fs::write(Path::new("/proc/sys").join(name), value);
            }
        }
        Ok(())
    };
    let _ = netlink::in_network_of(pid, write);
}

/// The tmpfs mounts that are mounted whole, writable, once, and with nothing mounted over them.
fn whole(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    let mounts: Vec<Mount> = mountinfo::parse(mountinfo).collect();
    let all = mounts.clone();
    mounts.into_iter().filter(move |mount| {
        let times = all.iter().filter(|other| other.device == mount.device || other.target == mount.target).count();
        mount.kind == "tmpfs" && mount.root == "/" && mount.is_writable && times == 1
    })
}

/// Where CRIU has mounted the mount that had this number: at this stage every mount of the pod lies flat in a directory
/// of its own, `mnt-` and ten digits below `.criu.mntns.` and some letters (criu/mount-v2.c).
fn made_for(number: u32, mountinfo: &str) -> Option<&str> {
    let name = format!("mnt-{number:010}");
    let is_it = |mount: &Mount| {
        let mut parts = mount.target.rsplit('/');
        let (last, directory) = (parts.next(), parts.next().unwrap_or_default());
        mount.kind == "tmpfs" && last == Some(&name) && directory.starts_with(".criu.mntns.")
    };
    mountinfo::parse(mountinfo).find(is_it).map(|mount| mount.target)
}

/// Does what the plan says, for the pod whose first process this is. It runs in a process of its own, which then enters
/// the pod's cgroup, so that the content is charged to the pod.
pub fn set_up(file: &Path, pid: i32) -> Result<(), CriuFailure> {
    let plan: Plan = fs::read(file)
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map_err(|error| CriuFailure::other(format!("reading {} failed: {error}", file.display())))?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
    let (routes, own) = (read("route"), sockets::own_addresses(&read("fib_trie")));
    // Reported at once: CRIU would report it only after it has read all memory.
    if let Some(again) = plan.again
        && !own.contains(&again)
        && !own.is_empty()
    {
        let log = format!("the engine gave the pod an address other than its original one, {again}");
        return Err(CriuFailure { kind: FailureKind::OtherAddress, log });
    }
    for address in &plan.addresses {
        // With the gateway's address the pod would no longer find its way out. CRIU's error says the rest.
        if own.contains(address) || gateways(&routes).any(|gateway| gateway == *address) {
            continue;
        }
        netlink::in_network_of(pid, || netlink::add_own_address(*address)).map_err(|error| CriuFailure {
            kind: FailureKind::AddressTaken,
            log: format!("the pod's original address {address} could not be added: {error}"),
        })?;
    }
    let addressed = file.with_file_name(ADDRESSED);
    fs::write(&addressed, "")
        .map_err(|error| CriuFailure::other(format!("writing {} failed: {error}", addressed.display())))?;
    set_network(pid, &plan.network);
    if let Some(hosts) = &plan.hosts {
        // Written in place, not as a new file: it is mounted. CRIU refuses a file whose length has changed.
        fs::write(&hosts.file, &hosts.content)
            .map_err(|error| CriuFailure::other(format!("writing {} failed: {error}", hosts.file.display())))?;
    }
    if !plan.memory_files.is_empty() {
        let members = cgroup::of_memory(pid)
            .ok_or_else(|| CriuFailure::other("the pod's cgroup was not found"))?
            .join("cgroup.procs");
        fs::write(&members, "0")
            .map_err(|error| CriuFailure::other(format!("entering the pod's cgroup failed: {error}")))?;
    }
    for filling in &plan.memory_files {
        filling.fill(pid).map_err(|why| CriuFailure {
            kind: FailureKind::NotFilled,
            log: format!(
                "the content of {} could not be put back; is it larger than the current quota allows? ({why})",
                filling.target.display()
            ),
        })?;
    }
    Ok(())
}

impl Filling {
    fn fill(&self, pid: i32) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let mounts = mountinfo::read(pid).map_err(text)?;
        let made = made_for(self.mount, &mounts).ok_or("CRIU's mount of it was not found")?;
        let target = File::open(format!("/proc/{pid}/root{made}")).map_err(text)?;
        let mut packed = File::open(&self.archive).map_err(text)?;
        // As CRIU does, but without gzip. tar inherits the open directory.
        fcntl(&target, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| text(error.into()))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-unquote", "--no-wildcards", "--directory"]);
        tar.arg(format!("/proc/self/fd/{}", target.as_raw_fd()));
        tar.args([RECORDS, "--read-full-records"]);
        tar.args(["--file", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tar = tar.spawn().map_err(|error| format!("tar: {error}"))?;
        let mut input = tar.stdin.take().ok_or("tar has no input")?;
        let _ = fcntl(&input, FcntlArg::F_SETPIPE_SZ(PIPE));
        let unpacked = gzip::unpack(&mut packed, &mut input);
        drop(input);
        let output = tar.wait_with_output().map_err(text)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("tar: {}", said.lines().next().unwrap_or("it was killed")));
        }
        unpacked.map_err(text)
    }
}

/// Gateways of /proc/net/route: `Iface Destination Gateway …`, 32-bit words in host byte order.
fn gateways(routes: &str) -> impl Iterator<Item = Ipv4Addr> {
    let words = routes.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2));
    words.filter_map(|word| Some(Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())))
}

/// The content of a tmpfs, in an image that we put back instead of CRIU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryFiles {
    /// Its path in the checkpoint's directory.
    pub image: PathBuf,
    /// Where it was mounted in the pod, and the kernel's number of that mount at the checkpoint.
    pub target: PathBuf,
    pub mount: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_mounts_are_found_where_they_are_mounted_whole_and_writable() {
        let mounts = "111 62 0:50 / / rw - overlay overlay rw\n113 111 0:54 / /dev rw,nosuid - tmpfs tmpfs rw\n\
                      127 113 0:58 / /dev/shm rw,nosuid - tmpfs shm rw\n68 112 0:54 /null /proc/keys rw - tmpfs tmpfs rw\n\
                      67 112 0:59 / /proc/acpi ro,relatime - tmpfs tmpfs ro\n131 111 0:61 / /scratch rw - tmpfs tmpfs rw\n\
                      132 111 0:62 / /twice rw - tmpfs tmpfs rw\n133 111 0:63 / /twice rw - tmpfs tmpfs rw\n";
        let found: Vec<(u32, u64, &str)> =
            whole(mounts).map(|mount| (mount.number, mount.device, mount.target)).collect();
        assert_eq!(found, [(127, 58, "/dev/shm"), (131, 61, "/scratch")]);
    }

    #[test]
    fn the_mounts_of_criu_are_found_by_the_saved_numbers() {
        let mounts = "1346 1345 0:23 / /dev/shm rw - tmpfs tmpfs rw\n\
                      3352 1192 0:1161 / /tmp/.criu.mntns.NvAo4u rw,relatime - tmpfs none rw\n\
                      3375 3352 0:201 / /tmp/.criu.mntns.NvAo4u/mnt-0000003391 rw - overlay overlay rw\n\
                      3407 3352 0:1173 / /tmp/.criu.mntns.NvAo4u/mnt-0000003410 rw,nosuid - tmpfs shm rw\n\
                      3408 3352 0:1174 / /tmp/elsewhere/mnt-0000003411 rw,nosuid - tmpfs shm rw\n";
        assert_eq!(made_for(3410, mounts), Some("/tmp/.criu.mntns.NvAo4u/mnt-0000003410"));
        assert_eq!(made_for(3391, mounts), None, "not a tmpfs");
        assert_eq!(made_for(3411, mounts), None, "not CRIU's");
    }

    #[test]
    fn gateways_are_read_from_routes() {
        let routes =
            "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t010011AC\t0003\neth0\t000011AC\t00000000\t0001\n";
        assert!(gateways(routes).any(|gateway| gateway == Ipv4Addr::new(172, 17, 0, 1)));
    }
}
