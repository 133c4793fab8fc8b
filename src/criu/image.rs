//! CRIU's images: two magic numbers, then entries, each its length and a protobuf message.

use std::ops::Range;

/// The two magic numbers.
pub const HEADER: usize = 8;
const LENGTH: usize = 4;
/// The wire type of a field whose value is length-prefixed bytes.
const BYTES: u64 = 2;
pub const PAGE: u64 = 4 << 10;
/// images/pagemap.proto: in the head the number of the pages image; in an entry the address, the page count, whether an
/// earlier checkpoint has the pages, flags, and in newer images the count again with more bits.
const PAGES: u64 = 1;
const ADDRESS: u64 = 1;
const COUNT: u64 = 2;
const FLAGS: u64 = 4;
const LONG_COUNT: u64 = 5;
/// Its pages are in the pages image.
const PRESENT: u64 = 4;

/// Which memory of a process lies in which pages image, in the image's order.
#[derive(Debug, PartialEq)]
pub struct Pagemap {
    pub pages: u64,
    pub ranges: Vec<Range<u64>>,
}

impl Pagemap {
    /// Reads an image `pagemap-PID.img`.
    pub fn parse(image: &[u8]) -> Option<Self> {
        let mut map: Option<Self> = None;
        for entry in entries(image) {
            let Range { start, end } = entry?;
            let value = |wanted| number(image, field(image, start, end, wanted)?.0).map(|(value, _)| value);
            match &mut map {
                None => map = Some(Self { pages: value(PAGES)?, ranges: Vec::new() }),
                Some(map) if value(FLAGS).is_none_or(|flags| flags & PRESENT != 0) => {
                    let bytes = value(LONG_COUNT).or(value(COUNT))?.checked_mul(PAGE)?;
                    let address = value(ADDRESS)?;
                    map.ranges.push(address..address.checked_add(bytes)?);
                }
                Some(_) => {}
            }
        }
        map
    }

    /// Bytes of the pages image.
    pub fn length(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The last `most` bytes of the pages image: where in it, and where in the process.
    pub fn tail(&self, most: u64) -> Vec<(u64, Range<u64>)> {
        let mut offset = self.length();
        let mut left = most;
        let mut tail = Vec::new();
        for range in self.ranges.iter().rev() {
            let part = left.min(range.end - range.start);
            if part == 0 {
                break;
            }
            (offset, left) = (offset - part, left - part);
            tail.push((offset, range.end - part..range.end));
        }
        tail
    }
}

/// Where each entry of an image lies; `None` for a truncated one, which is the last.
pub fn entries(image: &[u8]) -> impl Iterator<Item = Option<Range<usize>>> {
    let entry = |at: usize| {
        let length = image.get(at..at.checked_add(LENGTH)?)?.try_into().ok()?;
        let begin = at + LENGTH;
        let end = begin.checked_add(u32::from_le_bytes(length) as usize)?;
        image.get(begin..end)?;
        Some(begin..end)
    };
    let mut at = HEADER;
    std::iter::from_fn(move || {
        (at < image.len()).then(|| {
            let found = entry(at);
            at = found.as_ref().map_or(image.len(), |found| found.end);
            found
        })
    })
}

/// Adds an entry to an image.
pub fn push_entry(image: &mut Vec<u8>, entry: &[u8]) {
    let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
    image.extend_from_slice(&length.to_le_bytes());
    image.extend_from_slice(entry);
}

/// Where the value of a field begins and ends, in a protobuf message between two offsets.
pub fn field(bytes: &[u8], begin: usize, end: usize, wanted: u64) -> Option<(usize, usize)> {
    let mut at = begin;
    while at < end {
        let (found, value) = next_field(bytes, at, end)?;
        if found == wanted {
            return Some((value.start, value.end));
        }
        at = value.end;
    }
    None
}

/// The new value of a field.
pub enum New<'a> {
    Bytes(&'a [u8]),
    Number(u64),
    Nothing,
}

/// A message with new values for some fields. Fields that it lacks are not added.
pub fn with(message: &[u8], changes: &[(u64, New)]) -> Option<Vec<u8>> {
    let mut changed = Vec::with_capacity(message.len());
    let mut at = 0;
    while at < message.len() {
        let (found, Range { end, .. }) = next_field(message, at, message.len())?;
        match changes.iter().find(|(field, _)| *field == found) {
            None => changed.extend_from_slice(&message[at..end]),
            Some((_, New::Nothing)) => {}
            Some((_, New::Number(value))) => {
                push_number(&mut changed, found << 3);
                push_number(&mut changed, *value);
            }
            Some((_, New::Bytes(value))) => {
                push_number(&mut changed, found << 3 | BYTES);
                push_number(&mut changed, value.len() as u64);
                changed.extend_from_slice(value);
            }
        }
        at = end;
    }
    Some(changed)
}

/// Adds a field to a message.
pub fn push_field(message: &mut Vec<u8>, field: u64, value: u64) {
    push_number(message, field << 3);
    push_number(message, value);
}

/// All values of a repeated number field.
pub fn numbers(message: &[u8], wanted: u64) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let (field, value) = next_field(message, at, message.len())?;
        if field == wanted {
            found.push(number(message, value.start)?.0);
        }
        at = value.end;
    }
    Some(found)
}

/// The number of the field that begins here, and where its value lies.
fn next_field(bytes: &[u8], at: usize, end: usize) -> Option<(u64, Range<usize>)> {
    let (key, after) = number(bytes, at)?;
    let value = match key & 7 {
        0 => after..number(bytes, after)?.1,
        1 => after..after.checked_add(8)?,
        BYTES => {
            let (length, begin) = number(bytes, after)?;
            begin..begin.checked_add(usize::try_from(length).ok()?)?
        }
        5 => after..after.checked_add(4)?,
        _ => return None,
    };
    (value.end <= end).then_some((key >> 3, value))
}

/// A varint (groups of seven bits, lowest first), and where it ends.
pub fn number(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

fn push_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For pages 7: two pages that are present, one that is in an earlier checkpoint, three with a long count, as CRIU
    /// 4.2 writes it.
    fn image() -> Vec<u8> {
        let entries: [&[u8]; 4] = [
            &[0x08, 7],
            &[0x08, 0x80, 0x80, 0x04, 0x10, 2, 0x20, 4],
            &[0x08, 0x80, 0x80, 0x08, 0x10, 0, 0x20, 1, 0x28, 1],
            &[0x08, 0x80, 0x80, 0x10, 0x10, 0, 0x20, 4, 0x28, 3],
        ];
        let lengths = entries.iter().map(|entry| (entry.len() as u32).to_le_bytes());
        let body = lengths.zip(entries).flat_map(|(length, entry)| length.into_iter().chain(entry.iter().copied()));
        [0; HEADER].into_iter().chain(body).collect()
    }

    #[test]
    fn pages_are_found_by_their_place_in_the_image() {
        let map = Pagemap::parse(&image()).unwrap();
        assert_eq!(map, Pagemap { pages: 7, ranges: vec![0x10000..0x12000, 0x40000..0x43000] });
        assert_eq!(map.tail(0), []);
        assert_eq!(map.tail(PAGE), [(4 * PAGE, 0x42000..0x43000)]);
        assert_eq!(map.tail(4 * PAGE), [(2 * PAGE, 0x40000..0x43000), (PAGE, 0x11000..0x12000)]);
        assert_eq!(map.tail(u64::MAX), [(2 * PAGE, 0x40000..0x43000), (0, 0x10000..0x12000)]);
    }

    #[test]
    fn a_cut_pagemap_is_none_or_shorter() {
        let whole = Pagemap::parse(&image()).unwrap();
        for length in 0..image().len() {
            let cut = Pagemap::parse(&image()[..length]);
            assert!(cut.is_none_or(|cut| cut.ranges.len() < whole.ranges.len()), "{length}");
        }
    }

    #[test]
    fn fields_are_changed_and_all_others_stay() {
        // 1: 150; 2: "ab"; 15: true; 3: four bytes.
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'a', b'b', 0x78, 1, 0x1d, 1, 2, 3, 4];
        let long = [b'x'; 200];
        assert_eq!((numbers(&message, 1), numbers(&message, 9)), (Some(vec![150]), Some(vec![])));
        let changes = [(1, New::Number(300)), (2, New::Bytes(&long)), (15, New::Nothing), (9, New::Number(1))];
        let changed = with(&message, &changes).unwrap();
        let expected = [&[0x08, 0xac, 0x02, 0x12, 200, 1][..], &long, &[0x1d, 1, 2, 3, 4]].concat();
        assert_eq!(changed, expected);
        assert_eq!(with(&message, &[]).unwrap(), message);
        assert_eq!(with(&message[..message.len() - 1], &[]), None);
    }

    #[test]
    fn numbers_are_read_to_their_end() {
        assert_eq!(number(&[0x96, 0x01, 0xff], 0), Some((150, 2)));
        assert_eq!(number(&[0x96], 0), None);
        assert_eq!(number(&[0xff; 12], 0), None);
    }
}
