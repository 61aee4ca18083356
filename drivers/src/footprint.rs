//! What a daemon keeps resident of its own program.
//!
//! Starting takes code that never runs again: arguments, probes, the first look at everything. So does each guest's start, for a
//! while. The kernel has mapped it, in clusters of sixteen pages, and counts it as this process's memory as long as it lives.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Lets go of the pages of code and constants, the program's and its libraries'. What is still needed is mapped again when
/// it is used, from the page cache. Then the allocator gives back what it holds and nobody uses.
///
/// # Errors
/// The system's, when the map of this process cannot be read or the advice is refused.
pub fn release() -> io::Result<()> {
    let map = std::fs::read_to_string("/proc/self/smaps")?;
    for range in unchanged(&map) {
        // SAFETY: the range is a mapping of a file that this process may not write to, as the kernel has just listed it,
        // with no page of its own in it (`Anonymous: 0`): whatever is discarded is read again from the file as it was.
        // The mappings of a program and its libraries are not unmapped or replaced while it runs; this program loads no
        // library later.
        unsafe { madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) }?;
    }
    trim();
    Ok(())
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes a number, may be called at any time from any thread; source: malloc_trim(3).
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// The addresses of mappings in a `/proc/PID/smaps` that hold a file's bytes and nothing else. Source: proc_pid_smaps(5).
fn unchanged(map: &str) -> Vec<Range<usize>> {
    let (mut found, mut last) = (Vec::new(), None);
    for line in map.lines() {
        if line.split_ascii_whitespace().eq(["Anonymous:", "0", "kB"]) {
            found.extend(last.take());
        } else if let Some(range) = of_a_file(line) {
            last = range;
        }
    }
    found
}

/// The addresses that a mapping's first line gives; none when it may be written to or has no file. The outer none: the
/// line is no such line.
fn of_a_file(line: &str) -> Option<Option<Range<usize>>> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
    let constant = words.next().is_some_and(|rights| matches!(rights, "r-xp" | "r--p"));
    let file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((constant && file).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the mappings that only hold a file's bytes which this process has in memory.
    fn resident_kib(map: &str) -> u64 {
        let unchanged = unchanged(map);
        let (mut counts, mut sum) = (false, 0);
        for line in map.lines() {
            if let Some(range) = of_a_file(line) {
                counts = range.is_some_and(|range| unchanged.contains(&range));
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| counts) {
                sum += rss.split_whitespace().next().expect("a number").parse::<u64>().expect("a number");
            }
        }
        sum
    }

    fn smaps() -> String {
        std::fs::read_to_string("/proc/self/smaps").expect("proc")
    }

    /// Code that ran is let go of, and runs again afterwards as before; what was written stays.
    #[test]
    fn code_is_let_go_of_and_runs_on() {
        let written = vec![7_u8; 1 << 20];
        for range in unchanged(&smaps()) {
            for page in range.step_by(4096) {
                // SAFETY: a page of a mapping that may be read, and whose file is as long as it was.
                let _ = unsafe { std::ptr::read_volatile(page as *const u8) };
            }
        }
        let before_kib = resident_kib(&smaps());
        release().expect("our own map");
        let after_kib = resident_kib(&smaps());
        assert!(after_kib < before_kib / 2, "{before_kib} KiB before, {after_kib} KiB after");
        assert!(written.iter().all(|byte| *byte == 7));
    }

    /// Only what nobody can have changed: not data, not a mapping with pages of its own, nothing without a file.
    #[test]
    fn only_unchanged_mappings_are_named() {
        let check = |first: &str, anonymous: u32, named: bool| {
            let map =
                format!("{first}\nSize: 64 kB\nRss: 4 kB\nAnonymous:  {anonymous} kB\nVmFlags: rd ex\n");
            let expected = named.then_some(0x5000..0x6000);
            assert_eq!(unchanged(&map).first(), expected.as_ref(), "{map}");
        };
        check("5000-6000 r-xp 00000000 fe:00 7   /bin/dunlin", 0, true);
        check("5000-6000 r--p 00000000 fe:00 7   /bin/dunlin", 0, true);
        check("5000-6000 r--p 00000000 fe:00 7   /bin/dunlin", 4, false);
        check("5000-6000 rw-p 00000000 fe:00 7   /bin/dunlin", 0, false);
        check("5000-6000 r-xs 00000000 fe:00 7   /bin/dunlin", 0, false);
        check("5000-6000 r-xp 00000000 00:00 0   [vdso]", 0, false);
        check("5000-6000 r--p 00000000 00:00 0", 0, false);
    }
}
