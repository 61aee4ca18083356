//! What the log promises of its lines.

use std::path::Path;

use dunlin_model::Timestamp;

use super::files::{Files, Wanted, list, verify};
use super::{Audit, Entry};
use crate::rights::Caller;
use crate::testing::eventually;

fn entry(number: u64, who: &str) -> Entry {
    let entry = Entry::of(&Caller::nobody("x"), "create").about("Vm", &format!("vm{number}"), None);
    Entry { at: Timestamp(1_000 * number), who: who.to_owned(), ..entry }
}

fn write(dir: &Path, numbers: std::ops::Range<u64>) {
    let mut files = Files::open(dir, 7).unwrap();
    let entries: Vec<_> = numbers.map(|number| entry(number, "ada")).collect();
    files.append(&entries).unwrap();
    files.sync().unwrap();
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir.join("audit")).unwrap().flatten();
    entries.map(|entry| entry.path()).find(|path| path.extension().is_some()).unwrap()
}

/// A line that was changed, cut out, swapped, or cut off at the end is found; a log nobody touched, opened again and again
/// and torn by a crash, is whole.
#[test]
fn a_cut_or_changed_line_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 0..3);
    write(dir.path(), 3..6);
    let file = only_file(dir.path());
    std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| {
            use std::io::Write as _;
            file.write_all(b"{\"seq\":7,\"torn")
        })
        .unwrap();
    write(dir.path(), 6..8);
    assert_eq!(verify(dir.path()).unwrap(), (8, None));
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let without = |cut: &dyn Fn(usize) -> bool| {
        let kept = lines.iter().enumerate().filter(|(at, _)| !cut(*at)).map(|(_, line)| format!("{line}\n"));
        kept.collect::<String>()
    };
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    for (text, says) in [
        (whole.replace("vm4", "vm5"), "it was changed"),
        (without(&|at| at == 4), "lines are missing"),
        (without(&|at| at > 5), "lines are cut off"),
        (without(&|_| true), "lines are cut off"),
        (swapped.join("\n") + "\n", "lines are missing"),
        (whole.replacen("\"hash\"", "\"hush\"", 1), "it has no hash"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (_, broken) = verify(dir.path()).unwrap();
        assert!(broken.as_ref().is_some_and(|broken| broken.contains(says)), "{says}: {broken:?}");
    }
}

/// The log is turned over when it is large, the oldest goes when there are too many, and what is left is whole and can be
/// listed from both ends.
#[test]
fn it_is_bounded_and_can_be_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files::open(dir.path(), 1).unwrap();
    let long = "x".repeat(40_000);
    for number in 0..4_000 {
        files
            .append(&[Entry {
                name: long.clone(),
                ..entry(number, if number % 2 == 0 { "ada" } else { "bob" })
            }])
            .unwrap();
    }
    files.sync().unwrap();
    let sizes = std::fs::read_dir(dir.path().join("audit")).unwrap().flatten();
    let total: u64 = sizes.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(total < 140 << 20, "{total}");
    let (count, broken) = verify(dir.path()).unwrap();
    assert!(broken.is_none() && count > 2_000 && count < 4_000, "{count}, {broken:?}");
    let newest = Wanted { user: "bob".to_owned(), limit: 2, ..Wanted::default() };
    let at: Vec<u64> = list(dir.path(), &newest).unwrap().into_iter().map(|(at, _)| at).collect();
    assert_eq!(at, [3_997_000, 3_999_000]);
    let next = Wanted { limit: 2, after: Some(3_990), ..Wanted::default() };
    let at: Vec<u64> = list(dir.path(), &next).unwrap().into_iter().map(|(at, _)| at).collect();
    assert_eq!(at, [3_990_000, 3_991_000]);
}

/// A flood of refusals of unknown callers is counted, not written, and pushes no other line out.
#[tokio::test]
async fn a_flood_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::start(Files::open(dir.path(), 1).unwrap());
    for _ in 0..1_000 {
        audit.refusal(entry(5, ""));
    }
    audit.note(entry(6, "ada")).await;
    audit.refusal(entry(7, ""));
    audit.written().await;
    let lines = list(dir.path(), &Wanted { limit: 100, ..Wanted::default() }).unwrap();
    assert_eq!(lines.len(), 22);
    assert!(lines[21].1.contains("\"unwritten\":980"), "{}", lines[21].1);
    eventually("all is on disk", || verify(dir.path()).unwrap() == (22, None)).await;
}
