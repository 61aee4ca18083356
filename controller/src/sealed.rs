//! Files that prove themselves: a head, a body, and a tail with the length and the checksum of both.
//!
//! ```text
//! magic 8 bytes  version u32  head length u32  head  body ...  length u64  crc32 u32
//!                                                              \__ of everything before __/
//! ```
//! Integers are little-endian. Snapshots and backups are such files. Everything here blocks.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

/// Length and checksum behind the content.
const TAIL_BYTES: u64 = 12;

/// A head is a few names and numbers; more than this is garbage that claims to be a length.
const HEAD_BYTES_MAX: u32 = 1 << 20;

/// Copied at a time.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// What it begins with.
    pub(crate) magic: &'static [u8; 8],
    /// The version written, and the only one read.
    pub(crate) version: u32,
    /// What it is called in a refusal.
    pub(crate) noun: &'static str,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0}")]
    Content(String),
    #[error("its version is {found}, and this binary knows {known}")]
    Version { found: u32, known: u32 },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Writes a whole file; gives `out` back, flushed but not synced.
pub(crate) fn write<W: Write>(
    format: Format,
    out: W,
    head: &[u8],
    body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<W> {
    let mut out = Counted { inner: out, crc: crc32fast::Hasher::new(), length: 0 };
    out.write_all(format.magic)?;
    out.write_all(&format.version.to_le_bytes())?;
    out.write_all(&u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(head)?;
    body(&mut out)?;
    let Counted { mut inner, crc, length } = out;
    inner.write_all(&length.to_le_bytes())?;
    inner.write_all(&crc.finalize().to_le_bytes())?;
    inner.flush()?;
    Ok(inner)
}

/// Checks a whole file, then reads its head and hands its body to `decode`.
pub(crate) fn read<T>(
    format: Format,
    file: &mut File,
    decode: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<(Vec<u8>, T), Unreadable> {
    let end = verify(format, file)?;
    file.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, file).take(end);
    let mut fixed = [0_u8; 16];
    input.read_exact(&mut fixed)?;
    let version = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    if version != format.version {
        return Err(Unreadable::Version { found: version, known: format.version });
    }
    let head_length = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]);
    if head_length > HEAD_BYTES_MAX {
        return Err(Unreadable::Content("its head is impossibly long".into()));
    }
    let mut head = vec![0; head_length as usize];
    input.read_exact(&mut head)?;
    let body = decode(&mut input)?;
    Ok((head, body))
}

/// Checks beginning, length and checksum; returns where the body ends.
fn verify(format: Format, file: &mut File) -> Result<u64, Unreadable> {
    let content = |text: &str| Unreadable::Content(text.to_owned());
    let length = file.seek(SeekFrom::End(0))?;
    let end =
        length.checked_sub(TAIL_BYTES).filter(|end| *end >= 16).ok_or_else(|| content("it is too short"))?;
    file.seek(SeekFrom::Start(0))?;
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = end;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        file.read_exact(&mut buffer[..want])?;
        if left == end && !buffer.starts_with(format.magic) {
            return Err(Unreadable::Content(format!("it does not begin like a {}", format.noun)));
        }
        crc.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut tail = [0_u8; 12];
    file.read_exact(&mut tail)?;
    let (told_length, told_crc) = tail.split_at(8);
    if told_length != end.to_le_bytes() {
        return Err(content("its length is not what it says"));
    }
    if told_crc != crc.finalize().to_le_bytes() {
        return Err(content("its checksum does not match"));
    }
    Ok(end)
}

/// Counts and sums what passes.
struct Counted<W> {
    inner: W,
    crc: crc32fast::Hasher,
    length: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
