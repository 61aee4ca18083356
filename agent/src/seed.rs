//! The disk that tells a guest's cloud-init what to do: a file system of one folder, made from nothing.
//!
//! ISO 9660 with the names of Rock Ridge, labelled `cidata`: what cloud-init's data source NoCloud looks for, and what Linux,
//! the BSDs and Windows read. Knows only how it is laid out; the same in gives the same bytes on every host.
//!
//! ```text
//!   0..15     16       17    18,19        20      21...
//!   nothing | volume | end | path tables | folder | files, each from a block of its own
//! ```
//! Sources: ECMA-119 (the sections are named below), IEEE P1281 and P1282 (SUSP 1.10, RRIP 1.10).

use dunlin_model::vm::CloudInit;
use dunlin_model::{Name, Secret, VmId};

/// Bytes of a block.
const BLOCK: usize = 2048;
const VOLUME: usize = 16;
const END: usize = 17;
const PATHS_LITTLE: usize = 18;
const PATHS_BIG: usize = 19;
const FOLDER: usize = 20;
const FILES: usize = 21;
/// The root's entry in a path table, bytes: ECMA-119 9.4.
const PATHS_BYTES: usize = 10;
/// 1980-01-01: the same bytes must come out of every host, so no clock is asked. ECMA-119 9.1.5.
const DATE: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];
/// Rock Ridge's modes of a folder and of a file, which only root reads: it may hold passwords.
const FOLDER_MODE: usize = 0o040_755;
const FILE_MODE: usize = 0o100_400;

/// The seed of a VM.
pub(crate) fn image(vm: VmId, name: &Name, cloud_init: &CloudInit) -> Vec<u8> {
    let meta = format!("instance-id: {vm}\nlocal-hostname: {name}\n");
    // Without user data the guest would not take the disk for a seed.
    let user = cloud_init.user_data.as_ref().map_or("#cloud-config\n", Secret::expose);
    let mut files = vec![("META_DATA", "meta-data", meta.as_str())];
    if !cloud_init.network_config.is_empty() {
        files.push(("NETWORK_CONFIG", "network-config", &cloud_init.network_config));
    }
    files.push(("USER_DATA", "user-data", user));
    file_system(&files)
}

/// `files` are sorted by their plain names: ECMA-119 9.3.
fn file_system(files: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut disk = vec![0; FILES * BLOCK];
    let mut folder = Vec::new();
    let own = |id: u8, extra: Vec<u8>| record(&[id], FOLDER, BLOCK, true, &extra);
    let mut first = susp("SP", &[0xbe, 0xef, 0]);
    first.extend(susp("ER", &[&[10, 0, 0, 1][..], b"RRIP_1991A"].concat()));
    first.extend(posix(FOLDER_MODE, 2));
    folder.extend(own(0, first));
    folder.extend(own(1, posix(FOLDER_MODE, 2)));
    for (plain, name, text) in files {
        let at = disk.len() / BLOCK;
        disk.extend_from_slice(text.as_bytes());
        disk.resize(disk.len().next_multiple_of(BLOCK), 0);
        let mut extra = susp("NM", &[&[0][..], name.as_bytes()].concat());
        extra.extend(posix(FILE_MODE, 1));
        folder.extend(record(format!("{plain}.;1").as_bytes(), at, text.len(), false, &extra));
    }
    let blocks = disk.len() / BLOCK;
    put(&mut disk, FOLDER, &folder);
    put(&mut disk, VOLUME, &volume(blocks));
    put(&mut disk, END, &[&[255][..], b"CD001", &[1]].concat());
    let paths = |at: [u8; 4], parent: [u8; 2]| [&[1, 0][..], &at, &parent, &[0, 0]].concat();
    put(&mut disk, PATHS_LITTLE, &paths(word(FOLDER).to_le_bytes(), [1, 0]));
    put(&mut disk, PATHS_BIG, &paths(word(FOLDER).to_be_bytes(), [0, 1]));
    disk
}

fn put(disk: &mut [u8], block: usize, bytes: &[u8]) {
    disk[block * BLOCK..][..bytes.len()].copy_from_slice(bytes);
}

/// The primary volume descriptor: ECMA-119 8.4.
fn volume(blocks: usize) -> Vec<u8> {
    let mut all = [&[1][..], b"CD001", &[1, 0]].concat();
    let text = |all: &mut Vec<u8>, text: &str, bytes: usize| {
        all.extend(text.bytes().chain(std::iter::repeat(b' ')).take(bytes));
    };
    text(&mut all, "", 32);
    text(&mut all, "cidata", 32);
    all.extend([0; 8]);
    all.extend(both(blocks));
    all.extend([0; 32]);
    [1, 1, BLOCK].iter().for_each(|number| all.extend(both_short(*number)));
    all.extend(both(PATHS_BYTES));
    all.extend(word(PATHS_LITTLE).to_le_bytes());
    all.extend([0; 4]);
    all.extend(word(PATHS_BIG).to_be_bytes());
    all.extend([0; 4]);
    all.extend(record(&[0], FOLDER, BLOCK, true, &[]));
    // Of a set of volumes, publisher, preparer and application; three files that say more: none.
    text(&mut all, "", 4 * 128 + 3 * 37);
    for _ in 0..4 {
        all.extend([b'0'; 16]);
        all.push(0);
    }
    all.push(1);
    all
}

/// One entry of a folder: ECMA-119 9.1, with what Rock Ridge has to say behind it.
fn record(id: &[u8], at: usize, bytes: usize, folder: bool, extra: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(at));
    record.extend(both(bytes));
    record.extend(DATE);
    record.extend([if folder { 2 } else { 0 }, 0, 0]);
    record.extend(both_short(1));
    record.push(byte(id.len()));
    record.extend(id);
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend(extra);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = byte(record.len());
    record
}

/// One entry of the System Use Sharing Protocol: SUSP 4.1.
fn susp(word: &str, content: &[u8]) -> Vec<u8> {
    [word.as_bytes(), &[byte(content.len() + 4), 1], content].concat()
}

/// A file's mode, its links and its owner, who is root: RRIP 4.1.1.
fn posix(mode: usize, links: usize) -> Vec<u8> {
    susp("PX", &[both(mode), both(links), both(0), both(0)].concat())
}

/// The longest entry has some hundred bytes.
fn byte(number: usize) -> u8 {
    u8::try_from(number).expect("entries are short")
}

/// What is told to a guest is bounded: `USER_DATA_MAX`, `NETWORK_CONFIG_MAX`.
fn word(number: usize) -> u32 {
    u32::try_from(number).expect("a seed has some hundred KiB at most")
}

/// In both byte orders: ECMA-119 7.3.3.
fn both(number: usize) -> [u8; 8] {
    let number = word(number);
    let mut both = [0; 8];
    both[..4].copy_from_slice(&number.to_le_bytes());
    both[4..].copy_from_slice(&number.to_be_bytes());
    both
}

/// The same of 16 bits: ECMA-119 7.2.3.
fn both_short(number: usize) -> [u8; 4] {
    let number = u16::try_from(number).expect("counts and sizes of blocks are small");
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others make of it: util-linux sees the label, and every field lies where ECMA-119 has it.
    #[test]
    fn it_is_what_cloud_init_looks_for() {
        let vm: VmId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let told = CloudInit {
            user_data: Some(Secret::new("#!/bin/sh\necho hi\n")),
            network_config: "version: 2\n".to_owned(),
        };
        let disk = image(vm, &"web".parse().unwrap(), &told);
        assert_eq!(disk, image(vm, &"web".parse().unwrap(), &told));
        assert_eq!(
            (disk.len() % BLOCK, &disk[16 * BLOCK + 1..][..5], disk[16 * BLOCK + 881]),
            (0, &b"CD001"[..], 1)
        );
        assert_eq!(&disk[16 * BLOCK + 40..][..8], b"cidata  ");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &disk).unwrap();
        let blkid =
            std::process::Command::new("blkid").args(["-p", "-o", "export"]).arg(file.path()).output();
        let said = String::from_utf8(blkid.unwrap().stdout).unwrap();
        assert!(said.contains("LABEL=cidata\n") && said.contains("TYPE=iso9660\n"), "{said}");
        let text = String::from_utf8_lossy(&disk);
        for part in ["local-hostname: web\n", "echo hi\n", "version: 2\n", "user-data", "network-config"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
