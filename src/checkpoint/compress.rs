//! Packing the large files of a checkpoint, after the pod goes on, and unpacking them for a restore.
//!
//! The manifest decides which file counts: a packed file is written beside the plain one, then the manifest is replaced,
//! then the plain one removed. A kill in between leaves a file that the manifest does not name.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    num::NonZero,
    path::{Path, PathBuf},
};

use super::{
    CheckpointError, Compression,
    manifest::{self, Manifest, Packed},
    store,
};

/// Smaller files are not worth it.
const LARGE: u64 = 1 << 20;
/// zstd's level: a third of its default's time for nearly the same result on memory.
const ZSTD_LEVEL: i32 = 1;
const BUFFER: usize = 1 << 20;

/// Packs what saves a tenth at least, and puts the manifest right.
pub fn pack_all(
    manifest: &mut Manifest,
    folder: &Path,
    by: Compression,
    progress: &dyn Fn(u64),
) -> Result<(), CheckpointError> {
    let mut packed_files = Vec::new();
    let large: Vec<PathBuf> =
        manifest.files.iter().filter(|(_, file)| file.size >= LARGE).map(|(path, _)| path.clone()).collect();
    for path in large {
        let packed_path = with_extension(&path, by);
        let (plain, packed) = (folder.join(&path), folder.join(&packed_path));
        pack(&plain, &packed, by, progress).map_err(CheckpointError::io("packing", &plain))?;
        let Some(entry) = manifest.files.get_mut(&path) else { continue };
        let size = fs::metadata(&packed).map_or(u64::MAX, |file| file.len());
        if size > entry.size / 10 * 9 {
            fs::remove_file(&packed).map_err(CheckpointError::io("removing", &packed))?;
            continue;
        }
        let blake3 = manifest::hash(&packed, &|_| {}).map_err(CheckpointError::io("hashing", &packed))?;
        entry.packed = Some(Packed { by, path: packed_path, size, blake3 });
        packed_files.push(plain);
    }
    if packed_files.is_empty() {
        return Ok(());
    }
    manifest.write(folder)?;
    for plain in packed_files {
        fs::remove_file(&plain).map_err(CheckpointError::io("removing", &plain))?;
    }
    Ok(())
}

/// Removes files that the manifest does not name: what a kill left while files were packed.
pub fn sweep(manifest: &Manifest, folder: &Path) -> Result<(), CheckpointError> {
    for path in store::files_below(folder).map_err(CheckpointError::io("reading", folder))? {
        let is_named = manifest.files.iter().any(|(name, entry)| match &entry.packed {
            Some(packed) => packed.path == path,
            None => *name == path,
        });
        if !is_named && path != Path::new(store::MANIFEST) {
            let full = folder.join(&path);
            fs::remove_file(&full).map_err(CheckpointError::io("removing", &full))?;
        }
    }
    Ok(())
}

/// Where each file is to be read from: packed ones are unpacked into `scratch`, with size and hash looked at again.
pub fn unpack_all(
    manifest: &Manifest,
    folder: &Path,
    scratch: &Path,
    progress: &dyn Fn(u64),
) -> Result<Vec<(PathBuf, PathBuf)>, CheckpointError> {
    let mut files = Vec::new();
    for (path, entry) in &manifest.files {
        let Some(packed) = &entry.packed else {
            files.push((path.clone(), folder.join(path)));
            continue;
        };
        let (from, to) = (folder.join(&packed.path), scratch.join(path));
        let damaged =
            |why: String| CheckpointError::Damaged { id: manifest.id, file: packed.path.display().to_string(), why };
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(CheckpointError::io("making the folder of", &to))?;
        unpack(&from, &to, packed.by, progress).map_err(|error| damaged(error.to_string()))?;
        let size = fs::metadata(&to).map_or(0, |file| file.len());
        let blake3 = manifest::hash(&to, &|_| {}).map_err(CheckpointError::io("hashing", &to))?;
        if (size, blake3.as_str()) != (entry.size, entry.blake3.as_str()) {
            return Err(damaged("it does not unpack to what it was".to_owned()));
        }
        files.push((path.clone(), to));
    }
    Ok(files)
}

fn with_extension(path: &Path, by: Compression) -> PathBuf {
    let extension = match by {
        Compression::None => "plain",
        Compression::Zstd => "zst",
        Compression::Lz4 => "lz4",
        Compression::Gzip => "gz",
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

fn threads() -> u32 {
    u32::try_from(std::thread::available_parallelism().map_or(1, NonZero::get)).unwrap_or(1)
}

fn pack(from: &Path, to: &Path, by: Compression, progress: &dyn Fn(u64)) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, File::open(from)?);
    let output = BufWriter::with_capacity(BUFFER, File::create(to)?);
    let mut output = match by {
        Compression::None => {
            let mut output = output;
            copy(&mut input, &mut output, progress)?;
            output
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL)?;
            encoder.multithread(threads())?;
            copy(&mut input, &mut encoder, progress)?;
            encoder.finish()?
        }
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(output);
            copy(&mut input, &mut encoder, progress)?;
            encoder.finish().map_err(io::Error::other)?
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::fast());
            copy(&mut input, &mut encoder, progress)?;
            encoder.finish()?
        }
    };
    output.flush()?;
    output.get_ref().sync_all()
}

fn unpack(from: &Path, to: &Path, by: Compression, progress: &dyn Fn(u64)) -> io::Result<()> {
    let input = BufReader::with_capacity(BUFFER, File::open(from)?);
    let mut output = BufWriter::with_capacity(BUFFER, File::create(to)?);
    match by {
        Compression::None => copy(&mut { input }, &mut output, progress)?,
        Compression::Zstd => copy(&mut zstd::Decoder::with_buffer(input)?, &mut output, progress)?,
        Compression::Lz4 => copy(&mut lz4_flex::frame::FrameDecoder::new(input), &mut output, progress)?,
        Compression::Gzip => copy(&mut flate2::bufread::MultiGzDecoder::new(input), &mut output, progress)?,
    }
    output.flush()
}

fn copy(input: &mut impl Read, output: &mut impl Write, progress: &dyn Fn(u64)) -> io::Result<()> {
    let mut chunk = vec![0; BUFFER];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                output.write_all(&chunk[..read])?;
                progress(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_gives_back_what_it_took() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("pages-1.img");
        let content: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 1000).to_le_bytes()).collect();
        fs::write(&plain, &content).unwrap();
        for by in Compression::ALL {
            let (packed, again) = (folder.path().join("packed"), folder.path().join("again"));
            pack(&plain, &packed, *by, &|_| {}).unwrap();
            unpack(&packed, &again, *by, &|_| {}).unwrap();
            assert!(fs::read(&again).unwrap() == content, "{by}");
            let ratio = content.len() as u64 / fs::metadata(&packed).unwrap().len();
            assert!(*by == Compression::None || ratio >= 10, "{by}: {ratio}");
        }
    }
}
