//! Reads the ring of tick records a test guest leaves on its disk; the format is in tests/guest/record.h.

use std::path::Path;

use anyhow::{Context, bail, ensure};

const RECORD_BYTES: usize = 512;
const RING_START: usize = 1 << 20;
const RING_SLOTS: usize = 65_536;
const MAGIC: &[u8; 8] = b"DUNTICK1";

/// The ticks on one disk, oldest first, proven to be without gap or repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Number of the oldest record.
    pub first_seq: u64,
    /// Number of the newest.
    pub last_seq: u64,
    /// How often the disk was booted.
    pub boots: u64,
}

impl Ring {
    /// Reads a raw disk, also one that a guest is writing to: a record half written then is ignored if it is the newest.
    pub fn read(disk: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(disk).with_context(|| format!("reading {}", disk.display()))?;
        ensure!(bytes.len() > RING_START, "{} is too short for a ring", disk.display());
        Self::parse(&bytes[RING_START..])
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let slots = RING_SLOTS.min(bytes.len() / RECORD_BYTES);
        let written = bytes.chunks_exact(RECORD_BYTES).take(slots).enumerate();
        let mut records = Vec::new();
        let mut torn = Vec::new();
        for (slot, record) in written.filter(|(_, record)| record.starts_with(MAGIC)) {
            match check(record) {
                Ok(found) => {
                    ensure!(found.0 % slots as u64 == slot as u64, "record {} lies in slot {slot}", found.0);
                    records.push(found);
                }
                Err(why) => torn.push((slot, why)),
            }
        }
        records.sort_unstable();
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            bail!("no tick on the disk yet")
        };
        for pair in records.windows(2) {
            let [(a, boot_a), (b, boot_b)] = pair else { continue };
            ensure!(*b == a + 1, "after tick {a} comes tick {b}");
            ensure!(boot_b >= boot_a, "boot falls from {boot_a} to {boot_b} at tick {b}");
        }
        let next_slot = usize::try_from((last.0 + 1) % slots as u64)?;
        if let Some((slot, why)) = torn.into_iter().find(|(slot, _)| *slot != next_slot) {
            bail!("the record in slot {slot} is broken: {why}");
        }
        Ok(Self { first_seq: first.0, last_seq: last.0, boots: last.1 })
    }
}

/// Number and boot of a whole record.
fn check(record: &[u8]) -> Result<(u64, u64), String> {
    let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
    let crc = u32::from_le_bytes(record[508..512].try_into().unwrap_or_default());
    if crc32fast::hash(&record[..508]) != crc {
        return Err("its checksum is wrong".to_owned());
    }
    let seq = number(8);
    let fill_is_right = |(offset, byte): (usize, &u8)| u64::from(*byte) == (seq + offset as u64) & 0xff;
    if !record.iter().enumerate().take(508).skip(80).all(fill_is_right) {
        return Err("its fill is another record's".to_owned());
    }
    Ok((seq, number(16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, boot: u64) -> Vec<u8> {
        let mut record = vec![0; RECORD_BYTES];
        record[..8].copy_from_slice(MAGIC);
        record[8..16].copy_from_slice(&seq.to_le_bytes());
        record[16..24].copy_from_slice(&boot.to_le_bytes());
        for (offset, byte) in record.iter_mut().enumerate().take(508).skip(80) {
            *byte = ((seq + offset as u64) & 0xff) as u8;
        }
        let crc = crc32fast::hash(&record[..508]);
        record[508..].copy_from_slice(&crc.to_le_bytes());
        record
    }

    fn disk(seqs: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; 16 * RECORD_BYTES];
        for seq in seqs {
            let at = usize::try_from(seq % 16).unwrap() * RECORD_BYTES;
            bytes[at..at + RECORD_BYTES].copy_from_slice(&record(*seq, 1));
        }
        bytes
    }

    /// A whole ring is read, also one that has wrapped; a gap, a torn record and a misplaced one are found.
    #[test]
    fn gaps_repeats_and_tears_are_found() {
        let whole = Ring::parse(&disk(&[0, 1, 2, 3])).unwrap();
        assert_eq!((whole.first_seq, whole.last_seq, whole.boots), (0, 3, 1));
        let wrapped: Vec<u64> = (5..21).collect();
        assert_eq!(Ring::parse(&disk(&wrapped)).unwrap().first_seq, 5);
        assert!(
            Ring::parse(&disk(&[0, 1, 3])).unwrap_err().to_string().contains("after tick 1 comes tick 3")
        );
        let mut torn = disk(&[0, 1, 2, 3]);
        torn[RECORD_BYTES + 100] ^= 1;
        assert!(Ring::parse(&torn).is_err());
        let mut newest_torn = disk(&[0, 1, 2, 3]);
        newest_torn[3 * RECORD_BYTES + 100] ^= 1;
        assert_eq!(Ring::parse(&newest_torn).unwrap().last_seq, 2);
        let mut misplaced = disk(&[0, 1]);
        misplaced[5 * RECORD_BYTES..6 * RECORD_BYTES].copy_from_slice(&record(2, 1));
        assert!(Ring::parse(&misplaced).unwrap_err().to_string().contains("lies in slot 5"));
        assert!(Ring::parse(&disk(&[])).is_err());
    }
}
