//! CRIU's images: two magic numbers, then entries, each its length and a message of protocol buffers.

use std::ops::Range;

/// The two magic numbers.
const HEADER: usize = 8;
const LENGTH: usize = 4;
pub const PAGE: u64 = 4 << 10;
/// images/pagemap.proto: of the head the number of the image of pages; of an entry the address, the count of pages, whether a
/// checkpoint before this one has them, flags, and the count again in newer ones, which has more bits.
const PAGES: u64 = 1;
const ADDRESS: u64 = 1;
const COUNT: u64 = 2;
const FLAGS: u64 = 4;
const LONG_COUNT: u64 = 5;
/// Its pages are in the image of pages.
const PRESENT: u64 = 4;

/// Which memory of a process lies in which image of pages, in the order of that.
#[derive(Debug, PartialEq)]
pub struct Pagemap {
    pub pages: u64,
    pub ranges: Vec<Range<u64>>,
}

impl Pagemap {
    /// Reads an image `pagemap-PID.img`.
    pub fn parse(image: &[u8]) -> Option<Self> {
        let mut at = HEADER;
        let mut map: Option<Self> = None;
        while at < image.len() {
            let length = image.get(at..at + LENGTH)?.try_into().ok()?;
            let (begin, end) = (at + LENGTH, (at + LENGTH).checked_add(u32::from_le_bytes(length) as usize)?);
            image.get(begin..end)?;
            let value = |wanted| number(image, field(image, begin, end, wanted)?.0).map(|(value, _)| value);
            match &mut map {
                None => map = Some(Self { pages: value(PAGES)?, ranges: Vec::new() }),
                Some(map) if value(FLAGS).is_none_or(|flags| flags & PRESENT != 0) => {
                    let bytes = value(LONG_COUNT).or(value(COUNT))?.checked_mul(PAGE)?;
                    let address = value(ADDRESS)?;
                    map.ranges.push(address..address.checked_add(bytes)?);
                }
                Some(_) => {}
            }
            at = end;
        }
        map
    }

    /// Bytes of the image of pages.
    pub fn length(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The last so many bytes of the image of pages: where in it, and where in the process.
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

/// Where the value of a field begins and ends, in a message of protocol buffers that lies between two places.
pub fn field(bytes: &[u8], begin: usize, end: usize, wanted: u64) -> Option<(usize, usize)> {
    let mut at = begin;
    while at < end {
        let (key, after) = number(bytes, at)?;
        let (value, next) = match key & 7 {
            0 => (after, number(bytes, after)?.1),
            1 => (after, after.checked_add(8)?),
            2 => {
                let (length, value) = number(bytes, after)?;
                (value, value.checked_add(usize::try_from(length).ok()?)?)
            }
            5 => (after, after.checked_add(4)?),
            _ => return None,
        };
        if next > end {
            return None;
        }
        if key >> 3 == wanted {
            return Some((value, next));
        }
        at = next;
    }
    None
}

/// A number in groups of seven bits, the lowest first, and where it ends.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// For pages 7: two pages that are there, one that is in a checkpoint before, three with a long count, as CRIU 4.2 writes it.
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
    fn numbers_are_read_to_their_end() {
        assert_eq!(number(&[0x96, 0x01, 0xff], 0), Some((150, 2)));
        assert_eq!(number(&[0x96], 0), None);
        assert_eq!(number(&[0xff; 12], 0), None);
    }
}
