//! What a daemon that has started up keeps resident of its own program.
//!
//! Starting takes code that never runs again: arguments, probes, the first look at everything. The kernel has mapped it, in
//! clusters of sixteen pages, and counts it as this process's memory for as long as it lives.

use std::io;

use rustix::mm::{Advice, madvise};

/// Lets go of the pages of the program's code. What is still needed is mapped again when it runs, from the page cache.
///
/// # Errors
/// The system's, when the map of this process cannot be read or the advice is refused.
pub fn release_code() -> io::Result<()> {
    let map = std::fs::read_to_string("/proc/self/maps")?;
    let program = std::env::current_exe()?;
    for range in map.lines().filter_map(|line| code(line, &program.to_string_lossy())) {
        // SAFETY: the range is a private mapping of our own program's file without the right to write (`r-x`), as the
        // kernel has just listed it, and nothing in this process unmaps or remaps its program. Code is linked without
        // relocations into it, so no page of it differs from the file, and what is discarded is read again as it was.
        unsafe { madvise(range.0 as *mut _, range.1 - range.0, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// The addresses of a line of `/proc/PID/maps` that maps code of `program`. Source: proc_pid_maps(5).
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let (addresses, rest) = line.split_once(' ')?;
    let mapped = rest.starts_with("r-xp ") && rest.ends_with(program);
    let (from, to) = addresses.split_once('-').filter(|_| mapped)?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_code_kib(program: &str) -> u64 {
        let map = std::fs::read_to_string("/proc/self/smaps").expect("proc");
        let mut lines = map.lines();
        lines.find(|line| code(line, program).is_some()).expect("a program has code");
        let rss = lines.find(|line| line.starts_with("Rss:")).expect("every mapping has one");
        rss.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Code that ran is let go of, and runs again afterwards as before; data is never touched.
    #[test]
    fn code_is_let_go_of_and_runs_on() {
        let program = std::env::current_exe().expect("a program").to_string_lossy().into_owned();
        let map = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let (from, to) = map.lines().find_map(|line| code(line, &program)).expect("a program has code");
        for page in (from..to).step_by(4096) {
            // SAFETY: a mapped page of our own code, which may be read.
            let _ = unsafe { std::ptr::read_volatile(page as *const u8) };
        }
        let before_kib = resident_code_kib(&program);
        release_code().expect("our own map");
        let after_kib = resident_code_kib(&program);
        assert!(after_kib < before_kib / 2, "{before_kib} KiB before, {after_kib} KiB after");

        let data = "55d0-55e0 r--p 00000000 fe:00 7 /bin/dunlin";
        assert_eq!(code(data, "/bin/dunlin"), None);
        assert_eq!(code(&data.replace("r--p", "r-xp"), "/bin/dunlin"), Some((0x55d0, 0x55e0)));
        assert_eq!(code(&data.replace("r--p", "r-xp"), "/bin/other"), None);
    }
}
