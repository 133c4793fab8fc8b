//! The cgroup of a restored pod, on cgroups version 2.
//!
//! The path of a pod's cgroup contains the id of its container. CRIU puts programs back into the cgroup they were in,
//! but the engine of a new container knows nothing of that one: limits would not apply, and systemd would take the new
//! container's own cgroup, which is empty, for ended. So CRIU gets the current root as an option. On version 1 runc
//! does that itself.

use std::path::Path;

use crate::{host::cgroup, model::ids::ContainerId};

/// The version of cgroups that programs are sorted by on this host.
pub fn version() -> u8 {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 }
}

/// The path of a process's cgroup on version 2, as the host sees it.
pub fn of(pid: i32) -> Option<String> {
    let text = cgroup::memberships_of(pid)?;
    let unified = cgroup::memberships(&text).find(|line| line.hierarchy == "0" && line.controllers.is_empty())?;
    Some(unified.path.to_owned()).filter(|_| version() == 2)
}

/// The line for CRIU's options. `saved_path` is the cgroup's path at the dump and `old` the container at that time;
/// `driver` is the engine's current cgroup driver, and `parent` the parent cgroup given to the new container.
pub fn root_option(saved_path: Option<&str>, old: &str, new: &ContainerId, driver: &str, parent: &str) -> String {
    let is_systemd = driver == "systemd";
    let among_its_like = || {
        // It may come from a stranger, and ends up among the options.
        let is_plain = |path: &&str| path.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.:@\\".contains(c));
        let saved_path = saved_path.filter(is_plain)?;
        let is_likewise = saved_path.starts_with('/') && saved_path.ends_with(".scope") == is_systemd;
        (is_likewise && !old.is_empty() && saved_path.contains(old)).then(|| saved_path.replace(old, new.as_str()))
    };
    let root = among_its_like().unwrap_or_else(|| match (is_systemd, parent) {
        (true, "") => format!("/system.slice/docker-{new}.scope"),
        (true, slice) => format!("{}/docker-{new}.scope", directory_of(slice)),
        (false, "") => format!("/docker/{new}"),
        (false, parent) => format!("/{}/{new}", parent.trim_matches('/')),
    });
    format!("cgroup-root {root}\n")
}

/// Where systemd keeps a slice: below each slice that its name begins with (systemd.slice(5)).
fn directory_of(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_in_the_current_container() {
        let (old, new) = ("a".repeat(64), "b".repeat(64));
        let id: ContainerId = new.parse().unwrap();
        let root = |then: Option<&str>, driver: &str, parent: &str| {
            let option = root_option(then, &old, &id, driver, parent);
            option.strip_prefix("cgroup-root ").unwrap().trim_end().replace(&new, "NEW")
        };
        let scope = format!("/lab.slice/docker-{old}.scope");
        assert_eq!(root(Some(&scope), "systemd", ""), "/lab.slice/docker-NEW.scope", "as it was at the dump");
        assert_eq!(root(Some(&scope), "cgroupfs", ""), "/docker/NEW", "under another driver");
        assert_eq!(root(Some(&format!("/pods/{old}")), "cgroupfs", ""), "/pods/NEW");
        assert_eq!(root(None, "systemd", ""), "/system.slice/docker-NEW.scope");
        assert_eq!(root(None, "systemd", "lab-gpu.slice"), "/lab.slice/lab-gpu.slice/docker-NEW.scope");
        assert_eq!(root(None, "cgroupfs", "/lab/gpu"), "/lab/gpu/NEW");
        let foreign = format!("/x\naction-script /evil\n/{old}.scope");
        assert_eq!(root(Some(&foreign), "systemd", ""), "/system.slice/docker-NEW.scope");
    }
}
