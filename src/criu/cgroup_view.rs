//! What a restored pod sees of cgroups of version 1: its own, as at its creation, and not the host's whole tree.
//!
//! runc binds the cgroup that runc itself is in. At a container's creation that is the container's, since runc's init is
//! in it; in a restore it is the caller's, mostly the root. So in the mount namespace that the pod is about to get, and
//! only there, the pod's cgroup is mounted over the one that runc has told CRIU to bind. Version 2 needs nothing: the pod
//! has a cgroup namespace there.

use std::{fs::File, io, path::PathBuf};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns},
};

use crate::host::{
    cgroup::{self, Membership},
    mountinfo::{self, Mount},
};

/// In the mount namespace of a restored pod's first process, before CRIU fills it. Called by runc's hook: it is in runc's
/// own cgroup, and stays in that namespace.
pub fn confine(pid: i32) -> io::Result<()> {
    let (own, pods) = (cgroup::memberships_of(std::process::id() as i32), cgroup::memberships_of(pid));
    let (own, pods) = (own.unwrap_or_default(), pods.unwrap_or_default());
    let mounts = mountinfo::read(pid)?;
    let over = overmounts(&mounts, &own, &pods);
    if over.is_empty() {
        return Ok(());
    }
    setns(File::open(format!("/proc/{pid}/ns/mnt"))?, CloneFlags::CLONE_NEWNS)?;
    for (hierarchy, pods, runcs) in over {
        let none = None::<&str>;
        // What is mounted here must not appear on the host.
        mount(none, &hierarchy, none, MsFlags::MS_PRIVATE, none)?;
        mount(Some(&pods), &runcs, none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

/// For each hierarchy: where it is mounted, the pod's cgroup in it, and runc's own.
fn overmounts(mounts: &str, own: &str, pods: &str) -> Vec<(PathBuf, PathBuf, PathBuf)> {
    let of_version_1 = |mount: &Mount| mount.kind == "cgroup";
    let hierarchies = mountinfo::parse(mounts).filter(of_version_1);
    let found = hierarchies.filter_map(|mount| {
        let hierarchy = mount.path();
        let name = hierarchy.file_name()?.to_str()?.to_owned();
        let below = |text: &str| {
            let mut all = cgroup::memberships(text);
            let path = all.find(|membership| is_of(membership, &name))?.path.to_owned();
            Some(hierarchy.join(path.strip_prefix(mount.root)?.trim_start_matches('/')))
        };
        let (pods, runcs) = (below(pods)?, below(own)?);
        (pods != runcs).then_some((hierarchy, pods, runcs))
    });
    found.collect()
}

/// Whether a hierarchy that is mounted under this name has these controllers, in any order.
fn is_of(membership: &Membership, name: &str) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<_> = text.split(',').map(|part| part.trim_start_matches("name=").to_owned()).collect();
        parts.sort();
        parts
    };
    sorted(membership.controllers) == sorted(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_cgroup_covers_the_one_that_runc_is_in() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:cpuacct,cpu:/\n1:name=systemd:/system.slice/docker.service\n0::/\n";
        let pods = "4:cpuacct,cpu:/docker/ID\n1:name=systemd:/docker/ID\n0::/docker/ID\n";
        let path = |text: &str| PathBuf::from(format!("/sys/fs/cgroup/{text}"));
        assert_eq!(
            overmounts(mounts, own, pods),
            [
                (path("cpu,cpuacct"), path("cpu,cpuacct/docker/ID"), path("cpu,cpuacct/")),
                (path("systemd"), path("systemd/docker/ID"), path("systemd/system.slice/docker.service")),
            ]
        );
        assert!(overmounts(mounts, pods, pods).is_empty());
    }
}
