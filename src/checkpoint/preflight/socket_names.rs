//! Unix sockets with another name in the file system than they were bound under: bound under a name for the moment, then linked
//! or renamed to the one that is known, as supervisord does. CRIU binds the first name again and takes it away; the other is
//! in no archive, since a socket is no file with content.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use crate::host::process;

/// What is told of them.
pub fn losses(init: i32, upper: &Path) -> Vec<String> {
    let table = process::read(format!("/proc/{init}/net/unix")).unwrap_or_default();
    let bound = bound(&table);
    let root = PathBuf::from(format!("/proc/{init}/root"));
    let is_gone = |path: &str| fs::symlink_metadata(root.join(path.trim_start_matches('/'))).is_err();
    // Most have the name that they were bound under: then no file need be looked at.
    if !bound.iter().any(|path| is_gone(path)) {
        return Vec::new();
    }
    let mut names = Vec::new();
    sockets_below(upper, upper, &mut names);
    let others = names.into_iter().filter(|name| !bound.contains(name.as_str()));
    let told = |name: String| {
        format!(
            "the socket {name} was given its name after it was bound, as supervisord does; after a restore its program is not reached there: restart that program then"
        )
    };
    others.map(told).collect()
}

/// Absolute paths that sockets were bound under: the last column, where there is one.
fn bound(table: &str) -> BTreeSet<&str> {
    let path = |line: &'_ str| line.find(" /").map(|at| at + 1);
    table.lines().skip(1).filter_map(|line| Some(&line[path(line)?..])).collect()
}

/// Sockets in a writable layer, as the pod names them.
fn sockets_below(folder: &Path, upper: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sockets_below(&entry.path(), upper, found),
            Ok(kind) if kind.is_socket() => {
                let path = entry.path();
                found.push(format!("/{}", path.strip_prefix(upper).unwrap_or(&path).display()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_kernel_names_what_was_bound() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 101 /root/a b.sock\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 102\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 103 @/abstract\n";
        assert_eq!(bound(table), BTreeSet::from(["/root/a b.sock"]));
    }
}
