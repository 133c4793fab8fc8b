//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::{ffi::OsString, fmt::Display, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// The mounts that a process sees; `self` is this one. A member may choose a target of odd bytes: they are replaced, so
/// that they hide no other mount.
pub fn read(process: impl Display) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{process}/mountinfo"))?).into_owned())
}

/// All mounts of the file; a line of another form is left out.
pub fn parse(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(Mount::parse)
}

/// One mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    pub number: u32,
    /// The kernel's number of the file system, see [`device_number`].
    pub device: u64,
    /// What of the file system is mounted, with the kernel's escapes.
    pub root: &'a str,
    /// Where, with the kernel's escapes; [`Self::path`] is without.
    pub target: &'a str,
    pub is_writable: bool,
    /// `ext4`, `overlay`, `tmpfs`, …
    pub kind: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // The kernel escapes spaces in names, but none of Unicode's others.
        let mut fields = line.split(' ');
        let number = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some(Self {
            number,
            device: device_number(major.parse().ok()?, minor.parse().ok()?),
            root: fields.next()?,
            target: fields.next()?,
            is_writable: fields.next()?.split(',').any(|option| option == "rw"),
            kind: line.split_once(" - ")?.1.split(' ').next()?,
        })
    }

    /// Where it is mounted. The kernel writes space, tab, newline and backslash as three octal digits.
    pub fn path(&self) -> PathBuf {
        let mut bytes = Vec::new();
        let mut rest = self.target.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            let escaped = match (first, after) {
                (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
                }
                _ => None,
            };
            bytes.push(escaped.unwrap_or(first));
            rest = if escaped.is_some() { &after[3..] } else { after };
        }
        PathBuf::from(OsString::from_vec(bytes))
    }
}

/// The kernel's own form of a device number: 12 bits and 20.
pub fn device_number(major: u32, minor: u32) -> u64 {
    u64::from(major) << 20 | u64::from(minor)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mounts_are_parsed_with_and_without_optional_fields() {
        let text = "111 62 0:50 / / rw,relatime master:3 - overlay overlay rw\n\
                    67 112 254:1 /data /proc/acpi ro,relatime - tmpfs tmpfs rw\nodd\n\n1 2 x:y / / rw - a b c\n";
        let overlay = Mount { number: 111, device: 50, root: "/", target: "/", is_writable: true, kind: "overlay" };
        let tmpfs = Mount {
            number: 67,
            device: (254 << 20) + 1,
            root: "/data",
            target: "/proc/acpi",
            is_writable: false,
            kind: "tmpfs",
        };
        assert_eq!(parse(text).collect::<Vec<_>>(), [overlay, tmpfs]);
    }

    #[test]
    fn escapes_of_the_kernel_are_undone_and_others_are_kept() {
        let path = |target: &str| {
            let line = format!("1 2 0:3 / {target} rw - tmpfs tmpfs rw");
            parse(&line).next().map(|mount| mount.path())
        };
        assert_eq!(path(r"/a\040b\134c\012").as_deref(), Some(Path::new("/a b\\c\n")));
        assert_eq!(path("/a\u{2003}b").as_deref(), Some(Path::new("/a\u{2003}b")));
        for odd in [r"/a\", r"/a\04", r"/a\999", r"/a\777", r"/ü\ü"] {
            assert_eq!(path(odd).as_deref(), Some(Path::new(odd)), "{odd}");
        }
    }

    #[test]
    fn our_own_mounts_can_be_read() {
        let text = read("self").unwrap();
        assert!(parse(&text).any(|mount| mount.path() == Path::new("/proc") && mount.kind == "proc"));
        assert!(read(-1).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}", target in r"[/\\0-9ü ]{0,20}") {
            let line = format!("{text}\n1 2 0:3 / {target} rw - tmpfs tmpfs rw\n");
            for mount in parse(&line) {
                let _ = mount.path();
            }
        }
    }
}
