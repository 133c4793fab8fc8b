//! `gzip` for CRIU's own `tar`. CRIU packs the content of tmpfs mounts with `tar --gzip` while the pod is frozen, at 25
//! to 45 MB/s. This program, found under the name `gzip`, writes gzip's format (RFC 1952) with stored blocks (RFC 1951,
//! 3.2.4): as fast as memory, and readable by any gzip. [`unpack`] is as fast, where gzip reads 200 MB/s.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, Write},
    os::fd::AsFd,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SpliceFFlags, fcntl, splice},
};

/// The largest stored block, bytes: its length has 16 bits.
const BLOCK: usize = 65_535;
/// Magic, deflate, no flags, no time, no extra flags, Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// Bytes per read.
const CHUNK: usize = 1 << 20;

/// Copies the input as one gzip member.
pub fn store(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    output.write_all(&HEADER)?;
    let mut checksum = crc32fast::Hasher::new();
    let mut size: u32 = 0;
    let mut chunk = vec![0; CHUNK];
    let mut packed = Vec::with_capacity(CHUNK + CHUNK / BLOCK * 5 + 16);
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        checksum.update(&chunk[..read]);
        size = size.wrapping_add(read as u32);
        packed.clear();
        for block in chunk[..read].chunks(BLOCK) {
            let length = block.len() as u16;
            packed.push(0);
            packed.extend_from_slice(&length.to_le_bytes());
            packed.extend_from_slice(&(!length).to_le_bytes());
            packed.extend_from_slice(block);
        }
        output.write_all(&packed)?;
    }
    // An empty block that is the last.
    output.write_all(&[1, 0, 0, 0xff, 0xff])?;
    output.write_all(&checksum.finalize().to_le_bytes())?;
    output.write_all(&size.to_le_bytes())?;
    output.flush()
}

/// Copies the content of a gzip file into a pipe. The checksum is not verified: the caller has verified the file's own.
pub fn unpack(packed: &mut File, pipe: &mut (impl Write + AsFd)) -> io::Result<()> {
    let mut header = [0; HEADER.len()];
    packed.read_exact(&mut header)?;
    let mut block = [0; 5];
    packed.read_exact(&mut block)?;
    if header != HEADER || block[0] > 1 || stored_length(block).is_err() {
        packed.rewind()?;
        let packed = BufReader::with_capacity(CHUNK, packed);
        return io::copy(&mut flate2::read::MultiGzDecoder::new(packed), pipe).map(drop);
    }
    loop {
        hand_on(packed, pipe, stored_length(block)?)?;
        if block[0] == 1 {
            return pipe.flush();
        }
        packed.read_exact(&mut block)?;
    }
}

/// Moves this many bytes of a file into a pipe: the kernel's own pages, not copies. `io::copy` does not do that, as the
/// file might change before the pipe is read; nothing changes this one.
fn hand_on(file: &mut File, pipe: &mut (impl Write + AsFd), length: u64) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        match splice(&*file, None, &*pipe, None, left as usize, SpliceFFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => left -= moved as u64,
            Err(Errno::EINTR) => {}
            // Not every file system supports it.
            Err(Errno::EINVAL) => {
                return match io::copy(&mut file.take(left), pipe)? == left {
                    true => Ok(()),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The length of a stored block, by its header: the last-block flag, the length, and its complement.
fn stored_length([mark, a, b, c, d]: [u8; 5]) -> io::Result<u64> {
    let (length, turned) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    match mark <= 1 && length == !turned {
        true => Ok(u64::from(length)),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "not a stored block")),
    }
}

/// An empty archive.
pub fn empty_archive() -> Vec<u8> {
    // tar ends with two blocks of 512 zeros.
    let mut packed = Vec::new();
    let written = store(&mut [0; 1024].as_slice(), &mut packed);
    debug_assert!(written.is_ok(), "writing to memory cannot fail");
    packed
}

/// The program: packs, as tar calls it. Returns whether it was called like that.
pub fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> bool {
    if arguments.into_iter().next().is_some() {
        eprintln!("pody's gzip: only compresses standard input");
        return false;
    }
    // A pipe as large as one read saves switches between the programs.
    let _ = fcntl(io::stdin(), FcntlArg::F_SETPIPE_SZ(CHUNK as i32));
    match store(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("pody's gzip: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The system's own gzip reads it back.
    #[test]
    fn gzip_reads_what_is_stored() {
        for size in [0, 1, BLOCK, BLOCK + 1, 3 * CHUNK + 17] {
            let content: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
            let mut packed = Vec::new();
            store(&mut content.as_slice(), &mut packed).unwrap();
            let mut gzip =
                Command::new("gzip").args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut input = gzip.stdin.take().unwrap();
            let writer = std::thread::spawn(move || input.write_all(&packed));
            let output = gzip.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(output.status.success());
            assert!(output.stdout == content, "{size} bytes");
        }
    }

    #[test]
    fn what_is_stored_or_packed_by_another_gzip_is_unpacked() {
        let unpacked = |packed: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(packed).unwrap();
            file.rewind().unwrap();
            let (mut reader, mut writer) = io::pipe().unwrap();
            let read = std::thread::spawn(move || {
                let mut found = Vec::new();
                reader.read_to_end(&mut found).map(|_| found)
            });
            let done = unpack(&mut file, &mut writer);
            drop(writer);
            let found = read.join().unwrap().unwrap();
            done.map(|()| found)
        };
        for size in [0, 1, BLOCK, BLOCK + 1, 3 * CHUNK + 17] {
            let content: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
            let mut stored = Vec::new();
            store(&mut content.as_slice(), &mut stored).unwrap();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&content).unwrap();
            for packed in [stored.clone(), encoder.finish().unwrap()] {
                assert!(unpacked(&packed).unwrap() == content, "{size} bytes");
            }
            stored.truncate(stored.len() - 20);
            assert!(unpacked(&stored).is_err(), "{size} bytes, cut");
        }
    }
}
