//! The process itself, as the kernel tells: proc(5).

use crate::{Cell, Family, Gauge, Metric};

/// Bytes of a page, on every machine we run on.
const PAGE_BYTES: u64 = 4096;

static BUILD: Family =
    Family::new("dunlin_build_info", "Always 1; the version is its label.", &["version"], Cell::Gauge);
static RESIDENT: Gauge = Gauge::new("process_resident_memory_bytes", "Memory in RAM, shared pages included.");
static FILES: Gauge = Gauge::new("process_open_fds", "Open file descriptors.");
static THREADS: Gauge = Gauge::new("process_threads", "Threads.");

static ALL: &[&dyn Metric] = &[&BUILD, &RESIDENT, &FILES, &THREADS];

/// Looks at this process, and gives its table.
#[must_use]
pub fn process(version: &str) -> &'static [&'static dyn Metric] {
    BUILD.set_all([(vec![version], 1)]);
    // What the kernel does not tell stays as it was.
    if let Some(pages) =
        std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| resident_pages(&text))
    {
        RESIDENT.set(pages * PAGE_BYTES);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        FILES.set(files.count() as u64);
    }
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        THREADS.set(threads.count() as u64);
    }
    ALL
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
}
