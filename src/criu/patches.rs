//! Adds to the images of a dump, before they are hashed, what CRIU does not record of a pod.
//!
//! *Timers.* The kernel rearms a periodic timerfd when its program reads that it has expired. One that was not read yet
//! has no time left, and CRIU restores it disarmed (fs/timerfd.c and CRIU's timerfd.c). With a nanosecond left it
//! expires at once and runs on.
//!
//! *Names of sockets.* CRIU records the name that a unix socket was bound under; where it has another name now, it must
//! be restored under that one: see [`super::network::socket_names`].
//!
//! *Time.* A restored pod has a clock of its own (time_namespaces(7)), and what the engine execs in it has the host's.
//! CRIU restores one time for all programs or none: what such a command left running gets the pod's.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::Path,
};

use super::{
    image::{self, New, field, number},
    network::socket_names::LONGEST,
};

/// The image of all open files of a pod.
const FILES: &str = "files.img";

/// images/fdinfo.proto: the parts of an entry for timers and for unix sockets.
const TIMER: u64 = 12;

const UNIX_SOCKET: u64 = 16;

/// images/timerfd.proto: how often it has expired since it was read; seconds and nanoseconds that are left; those of
/// its interval.
const TICKS: u64 = 5;

const LEFT: [u64; 2] = [7, 8];

const INTERVAL: [u64; 2] = [9, 10];

/// images/sk-unix.proto: inode and name; the directory that a relative name begins in, and whether its file was
/// deleted.
const INODE: u64 = 2;

const NAME: u64 = 11;

const DIRECTORY: u64 = 14;

const DELETED: u64 = 15;

/// The part of an internet socket; in it (images/sk-inet.proto) protocol, state, ports, addresses, and which directions
/// are shut down.
const INTERNET_SOCKET: u64 = 4;

const PROTOCOL: u64 = 5;

const STATE: u64 = 6;

const PORTS: [u64; 2] = [7, 8];

const ADDRESSES: [u64; 2] = [11, 12];

const SHUT: u64 = 19;

/// Values of these: TCP, a closed socket, and both directions (images/sk-opts.proto).
const TCP: u64 = 6;

const CLOSED: u64 = 7;

const BOTH: u64 = 3;

/// The prefix of the images of what a process shares with others; this one is of the pod's first process.
const SHARED: &str = "ids-";

const FIRST: &str = "ids-1.img";

/// images/core.proto: the time namespace.
const TIME: u64 = 12;

/// Corrects the images in this directory. `names` are the current names, by the inode of the socket.
pub fn correct(directory: &Path, names: &BTreeMap<u64, String>) -> io::Result<()> {
    change(&directory.join(FILES), |image| corrected(image, names))?;
    let first = fs::read(directory.join(FIRST))?;
    let Some(time) = time_of(&first) else { return Ok(()) };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(SHARED) {
            change(&entry.path(), |image| in_time(image, time))?;
        }
    }
    Ok(())
}

/// In a copy of images: closes TCP connections with others, so that their programs find them as CRIU closes them, and
/// keeps those between programs of the pod, which has these addresses. CRIU alone closes all or none.
pub fn close_outside(directory: &Path, own: &[Ipv4Addr]) -> io::Result<()> {
    change(&directory.join(FILES), |image| {
        let mut closed = image.get(..image::HEADER)?.to_vec();
        for entry in image::entries(image) {
            let mut entry = image[entry?].to_vec();
            if let Some(socket) = part(&entry, INTERNET_SOCKET)
                && leads_outside(&entry[socket.clone()], own)?
            {
                let none = [(STATE, New::Number(CLOSED)), (PORTS[0], New::Number(0)), (PORTS[1], New::Number(0))];
                let mut socket = image::with(&image::with(&entry[socket], &none)?, &[(SHUT, New::Nothing)])?;
                image::push_field(&mut socket, SHUT, BOTH);
                entry = image::with(&entry, &[(INTERNET_SOCKET, New::Bytes(&socket))])?;
            }
            image::push_entry(&mut closed, &entry);
        }
        Some(closed)
    })
}

/// Whether a socket is a TCP connection whose other end is no program of the pod.
fn leads_outside(socket: &[u8], own: &[Ipv4Addr]) -> Option<bool> {
    let first = |field| image::numbers(socket, field).map(|values| values.first().copied().unwrap_or(0));
    // Only a connection has another end.
    if first(PROTOCOL)? != TCP || first(PORTS[1])? == 0 {
        return Some(false);
    }
    let is_own = |field| {
        let words: Vec<u8> =
            image::numbers(socket, field)?.iter().flat_map(|&word| (word as u32).to_ne_bytes()).collect();
        let address = match words.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(words).ok()?).to_canonical(),
        };
        Some(match address {
            IpAddr::V4(address) => address.is_loopback() || own.contains(&address),
            IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
        })
    };
    Some(!(is_own(ADDRESSES[0])? && is_own(ADDRESSES[1])?))
}

fn change(path: &Path, correct: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> io::Result<()> {
    let image = fs::read(path)?;
    let corrected =
        correct(&image).ok_or_else(|| io::Error::other(format!("{} is not as CRIU writes it", path.display())))?;
    if corrected == image {
        return Ok(());
    }
    // A new file: this one may be a link to a checkpoint's.
    let new = path.with_extension("new");
    fs::write(&new, corrected)?;
    fs::rename(&new, path)
}

/// The time namespace of a process; `None` where the kernel has only one.
fn time_of(image: &[u8]) -> Option<u64> {
    let entry = &image[image::entries(image).next()??];
    Some(number(entry, field(entry, 0, entry.len(), TIME)?.0)?.0)
}

fn in_time(image: &[u8], time: u64) -> Option<Vec<u8>> {
    let mut corrected = image.get(..image::HEADER)?.to_vec();
    for entry in image::entries(image) {
        image::push_entry(&mut corrected, &image::with(&image[entry?], &[(TIME, New::Number(time))])?);
    }
    Some(corrected)
}

fn corrected(image: &[u8], names: &BTreeMap<u64, String>) -> Option<Vec<u8>> {
    let mut corrected = image.get(..image::HEADER)?.to_vec();
    for entry in image::entries(image) {
        let mut entry = image[entry?].to_vec();
        if let Some(timer) = part(&entry, TIMER) {
            wind_up(&mut entry, timer);
        } else if let Some(socket) = part(&entry, UNIX_SOCKET)
            && let Some(renamed) = renamed(&entry[socket], names)
        {
            entry = image::with(&entry, &[(UNIX_SOCKET, New::Bytes(&renamed))])?;
        }
        image::push_entry(&mut corrected, &entry);
    }
    Some(corrected)
}

fn part(entry: &[u8], wanted: u64) -> Option<Range<usize>> {
    field(entry, 0, entry.len(), wanted).map(|(begin, end)| begin..end)
}

/// Gives a timer a nanosecond if it has expired, is periodic and was not read. A disarmed one has not expired.
fn wind_up(entry: &mut [u8], timer: Range<usize>) {
    let value = |wanted| {
        let (begin, end) = field(entry, timer.start, timer.end, wanted)?;
        Some((number(entry, begin)?.0, begin..end))
    };
    let is_zero = |fields: [u64; 2]| fields.into_iter().all(|field| value(field).is_none_or(|(value, _)| value == 0));
    let has_expired = value(TICKS).is_some_and(|(ticks, _)| ticks > 0);
    let [_, nanoseconds] = LEFT;
    if has_expired
        && is_zero(LEFT)
        && !is_zero(INTERVAL)
        && let Some((_, place)) = value(nanoseconds)
    {
        entry[place.start] = 1;
    }
}

/// A unix socket under its current name, if that differs.
fn renamed(socket: &[u8], names: &BTreeMap<u64, String>) -> Option<Vec<u8>> {
    let (begin, _) = field(socket, 0, socket.len(), INODE)?;
    let name = names.get(&number(socket, begin)?.0).filter(|name| name.len() <= LONGEST)?;
    image::with(socket, &[(NAME, New::Bytes(name.as_bytes())), (DIRECTORY, New::Nothing), (DELETED, New::Nothing)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut image = vec![7; image::HEADER];
        entries.iter().for_each(|entry| image::push_entry(&mut image, entry));
        image
    }

    /// A file entry of this type with this part.
    fn entry(kind: u8, field: u64, part: &[u8]) -> Vec<u8> {
        let begin = [0x08, kind, 0x10, 3];
        let key = field << 3 | 2;
        let key = if key < 0x80 { vec![key as u8] } else { vec![key as u8 | 0x80, (key >> 7) as u8] };
        [&begin[..], &key, &[part.len() as u8], part].concat()
    }

    /// Ticks, seconds and nanoseconds left, and those of the interval.
    fn timer([ticks, seconds, nanoseconds, between_seconds, between_nanoseconds]: [u8; 5]) -> Vec<u8> {
        let part = [
            0x08,
            3,
            0x10,
            0,
            0x20,
            1,
            0x28,
            ticks,
            0x30,
            0,
            0x38,
            seconds,
            0x40,
            nanoseconds,
            0x48,
            between_seconds,
            0x50,
            between_nanoseconds,
        ];
        entry(17, TIMER, &part)
    }

    #[test]
    fn only_a_periodic_timer_that_has_expired_is_rearmed() {
        let timers = [[1, 0, 0, 0, 9], [1, 0, 0, 9, 0], [1, 0, 5, 0, 9], [0, 0, 0, 0, 9], [1, 0, 0, 0, 0]];
        let expected = [[1, 0, 1, 0, 9], [1, 0, 1, 9, 0], [1, 0, 5, 0, 9], [0, 0, 0, 0, 9], [1, 0, 0, 0, 0]];
        assert_eq!(corrected(&image(&timers.map(timer)), &BTreeMap::new()).unwrap(), image(&expected.map(timer)));
    }

    #[test]
    fn connections_with_others_are_closed_and_nothing_else() {
        let words = |field: u8, address: [u8; 4]| {
            let mut message = Vec::new();
            image::push_field(&mut message, field.into(), u32::from_ne_bytes(address).into());
            message
        };
        let socket = |[state, from, to]: [u8; 3], source, destination, rest: &[u8]| {
            let begin = [0x08, 3, 0x28, 6, 0x30, state, 0x38, from, 0x40, to];
            entry(4, INTERNET_SOCKET, &[&begin[..], &words(11, source), &words(12, destination), rest].concat())
        };
        let (own, other, loopback, any) = ([172, 17, 0, 2], [172, 17, 0, 1], [127, 0, 0, 1], [0; 4]);
        let same = [
            socket([1, 9, 8], loopback, loopback, &[]),
            socket([1, 9, 8], own, own, &[]),
            socket([10, 9, 0], any, any, &[]),
        ];
        let shut = [0x98, 0x01, 3];
        let before = [socket([1, 9, 8], own, other, &[]), socket([8, 9, 8], own, other, &[0x98, 0x01, 1])];
        let after = [socket([7, 0, 0], own, other, &shut), socket([7, 0, 0], own, other, &shut)];
        let directory = tempfile::tempdir().unwrap();
        let all = |changed: [Vec<u8>; 2]| image(&[&same[..], &changed].concat());
        fs::write(directory.path().join(FILES), all(before)).unwrap();
        close_outside(directory.path(), &[own.into()]).unwrap();
        assert_eq!(fs::read(directory.path().join(FILES)).unwrap(), all(after));
    }

    #[test]
    fn all_programs_get_the_time_of_the_first() {
        let shared = |time: &[u8]| image(&[[&[0x08, 1, 0x10, 2][..], time, &[0x58, 7]].concat()]);
        let (first, other) = (shared(&[0x60, 0x90, 0x01]), shared(&[0x60, 9]));
        assert_eq!((time_of(&first), time_of(&other), time_of(&shared(&[]))), (Some(144), Some(9), None));
        assert_eq!(in_time(&other, 144).unwrap(), first);
        assert_eq!(in_time(&other[..other.len() - 1], 144), None);
    }

    #[test]
    fn a_socket_gets_its_current_name() {
        let socket = |inode: u8, name: &str, rest: &[u8]| {
            let part = [&[0x08, 3, 0x10, inode, 0x5a, name.len() as u8], name.as_bytes(), rest].concat();
            entry(5, UNIX_SOCKET, &part)
        };
        // A directory "d", and the mark of a deleted file.
        let gone = [0x72, 1, b'd', 0x78, 1];
        let before = image(&[socket(1, "/a.1", &gone), socket(2, "/b.1", &gone), socket(3, "/c.1", &gone)]);
        let long = "x".repeat(LONGEST + 1);
        let names = BTreeMap::from([(1, "/run/longer".to_owned()), (3, long)]);
        let after = image(&[socket(1, "/run/longer", &[]), socket(2, "/b.1", &gone), socket(3, "/c.1", &gone)]);
        assert_eq!(corrected(&before, &names).unwrap(), after);
        for length in 0..before.len() {
            let cut = corrected(&before[..length], &names);
            assert!(cut.is_none_or(|cut| after.starts_with(&cut)), "{length}");
        }
    }
}
