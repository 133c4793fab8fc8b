//! `gzip` for CRIU's own `tar`. CRIU packs the content of memory file systems with `tar --gzip` while the pod stands still,
//! at 25 to 45 MB/s. Under this name the program writes gzip's format (RFC 1952) with stored blocks (RFC 1951, 3.2.4): as
//! fast as memory, and readable for any gzip, which is what a restore runs.

use std::io::{self, Read, Write};

/// Bytes of one stored block at most: its length has 16 bits.
const BLOCK: usize = 65_535;
/// Magic, deflate, no flags, no time, no extra flags, Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// Read at a time.
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

/// The program: packs, as tar calls it. Anything else is not its work.
pub fn run(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> bool {
    if arguments.into_iter().next().is_some() {
        eprintln!("gzip of pody: only packs the standard input");
        return false;
    }
    match store(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("gzip of pody: {error}");
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
}
