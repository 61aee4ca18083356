//! Does KVM run a vCPU? Answered by running one.
//!
//! A device that exists and a vCPU that runs 16-bit code prove little: a nested or paravirtual KVM was seen to do both
//! and then fail in the first exception of a 64-bit kernel. So the vCPU here is in long mode, with its own page
//! tables and its own interrupt table; it takes a breakpoint, comes back with `iretq`, and stops.
//!
//! It runs in a forked child, because a broken KVM may never return from KVM_RUN: the child is killed at a deadline.
//! Layouts and numbers: linux/kvm.h, asm/kvm.h; page tables and gates: Intel SDM volume 3, chapters 4 and 6.

use std::ffi::{CStr, CString, c_int, c_ulong, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A vCPU that works is done in under a millisecond.
const DEADLINE: Duration = Duration::from_secs(5);
/// Guest memory, bytes.
const MEM_BYTES: usize = 64 << 10;
/// Port the guest reports its steps on.
const PORT: u16 = 0x42;
/// The KVM interface there is; all kernels since 2.6.22 say 12.
const API_VERSION: c_int = 12;
/// Exits the guest may make: three reports and a halt.
const EXITS_MAX: u32 = 16;

// Where things are in guest memory.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGE_DIRECTORY: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const CODE: usize = 0x6000;
const HANDLER: usize = 0x6100;
const STACK_TOP: usize = 0x8000;

/// Reports 1, takes a breakpoint, reports 3, halts.
const MAIN: [u8; 10] = [0xb0, 1, 0xe6, 0x42, 0xcc, 0xb0, 3, 0xe6, 0x42, 0xf4];
/// Reports 2 and returns from the exception.
const ON_BREAKPOINT: [u8; 6] = [0xb0, 2, 0xe6, 0x42, 0x48, 0xcf];

const KVM_GET_API_VERSION: c_ulong = 0xae00;
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_TSS_ADDR: c_ulong = 0xae47;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;

const KVM_EXIT_IO: u32 = 2;
const KVM_EXIT_HLT: u32 = 5;
const KVM_EXIT_INTERNAL_ERROR: u32 = 17;

/// What the child was doing when it ended; also its message to us.
#[repr(u32)]
#[derive(Clone, Copy)]
enum Stage {
    Open = 1,
    Api,
    CreateVm,
    Memory,
    CreateVcpu,
    Registers,
    Run,
    Done,
}

/// The child's message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    stage: u32,
    errno: i32,
    /// Last step the guest reported: 3 is all.
    step: u32,
    exit_reason: u32,
    suberror: u32,
}

/// The child writes its message whole: it is far below what a pipe takes in one piece.
const REPORT_BYTES: usize = size_of::<Report>();

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

/// rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags.
#[repr(C)]
#[derive(Default)]
struct Regs([u64; 18]);

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

#[repr(C)]
#[derive(Default)]
struct Sregs {
    cs: Segment,
    data: [Segment; 5],
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

// A wrong layout would make the kernel write past the end of ours; the ioctl numbers carry these sizes.
const _: () =
    assert!(size_of::<MemoryRegion>() == 0x20 && size_of::<Regs>() == 0x90 && size_of::<Sregs>() == 0x138);

/// The first bytes of the memory that KVM shares with us per vCPU.
#[repr(C)]
struct Run {
    request: [u8; 8],
    exit_reason: u32,
    state: [u8; 4],
    cr8: u64,
    apic_base: u64,
    /// For KVM_EXIT_IO: direction, size, port, count. For an internal error the first word is its number.
    io_direction: u8,
    io_size: u8,
    io_port: u16,
    io_count: u32,
    io_data_offset: u64,
}

/// Runs a vCPU. The evidence, either way.
pub(crate) fn try_vcpu(device: &Path) -> Result<String, String> {
    let shown = device.display();
    if !device.exists() {
        return Err(format!("there is no {shown}"));
    }
    let path = CString::new(device.as_os_str().as_bytes()).map_err(|_| format!("{shown} is no path"))?;
    let begun = Instant::now();
    let report = in_child(&path, probe, DEADLINE).map_err(|e| format!("cannot try {shown}: {e}"))?;
    let took_ms = begun.elapsed().as_millis();
    match report {
        None => Err(format!("{shown} is there, but a 64-bit vCPU did not come back within {DEADLINE:?}")),
        Some(report) => verdict(report)
            .map(|()| format!("a 64-bit vCPU took an exception and returned from it within {took_ms} ms"))
            .map_err(|why| format!("{shown} is there, but {why}")),
    }
}

fn verdict(report: Report) -> Result<(), String> {
    let errno = io::Error::from_raw_os_error(report.errno);
    let stage = |doing: &str| Err(format!("{doing} failed: {errno}"));
    let stages: [(Stage, &str); 6] = [
        (Stage::Open, "opening it"),
        (Stage::Api, "asking for its version"),
        (Stage::CreateVm, "making a machine"),
        (Stage::Memory, "giving it memory"),
        (Stage::CreateVcpu, "making a vCPU"),
        (Stage::Registers, "setting the vCPU's registers"),
    ];
    if let Some((_, doing)) = stages.iter().find(|(at, _)| *at as u32 == report.stage) {
        return stage(doing);
    }
    let done = match report.step {
        0 => "before its first instruction",
        1 => "when it took an exception",
        2 => "when it returned from an exception",
        _ => "after its last step",
    };
    match report {
        Report { stage: 0, .. } => Err("the vCPU took its whole process with it".to_owned()),
        Report { stage, step: 3, exit_reason: KVM_EXIT_HLT, .. } if stage == Stage::Done as u32 => Ok(()),
        Report { errno: 1.., .. } => Err(format!("a 64-bit vCPU failed {done}: {errno}")),
        Report { exit_reason: KVM_EXIT_INTERNAL_ERROR, suberror, .. } => {
            Err(format!("a 64-bit vCPU failed {done}: KVM internal error {suberror}"))
        }
        Report { exit_reason, .. } => Err(format!("a 64-bit vCPU failed {done}: KVM exit {exit_reason}")),
    }
}

/// Runs the probe in a child and waits for its report. None: it had to be killed.
///
/// `probe` runs in a fork of a process with many threads: it must neither allocate nor lock nor panic.
fn in_child(device: &CStr, probe: fn(&CStr) -> Report, limit: Duration) -> io::Result<Option<Report>> {
    let (reader, writer) = io::pipe()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: the child calls only `probe`, `write` and `_exit`: system calls and plain memory, no allocation and no
    // lock that another thread might have held at the fork.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let report = probe(device);
        // SAFETY: `report` is plain bytes without padding (five 32-bit fields) that live until the call returns.
        unsafe {
            libc::write(fd, (&raw const report).cast::<c_void>(), REPORT_BYTES);
            libc::_exit(0);
        }
    }
    drop(writer);
    let report = read_report(reader, limit);
    // SAFETY: `pid` is our own child, not yet waited for, so the number is still its.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
    }
    reap(pid);
    report
}

fn read_report(mut reader: io::PipeReader, limit: Duration) -> io::Result<Option<Report>> {
    use std::io::Read;
    let timeout = rustix::event::Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut ready = [rustix::event::PollFd::new(&reader, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut ready, Some(&timeout))? == 0 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let word = |at: usize| {
        bytes.get(at * 4..at * 4 + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    };
    Ok(Some(Report {
        stage: word(0),
        errno: word(1).cast_signed(),
        step: word(2),
        exit_reason: word(3),
        suberror: word(4),
    }))
}

/// Waits for a killed child, but not for one that a broken kernel holds on to.
fn reap(pid: libc::pid_t) {
    let deadline = Instant::now() + DEADLINE;
    // SAFETY: a null status pointer is allowed; `pid` is our own child.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == 0 && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The child's part: no allocation, no panic, no lock.
fn probe(device: &CStr) -> Report {
    let mut report = Report::default();
    let ended = run(device, &mut report);
    if ended.is_none() {
        report.errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    }
    report
}

/// None: the stage in `report` failed with errno.
fn run(device: &CStr, report: &mut Report) -> Option<()> {
    report.stage = Stage::Open as u32;
    // SAFETY: a C string that outlives the call.
    let kvm = checked(unsafe { libc::open(device.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?;
    report.stage = Stage::Api as u32;
    // SAFETY: takes no pointer.
    let version = checked(unsafe { libc::ioctl(kvm, KVM_GET_API_VERSION, 0) })?;
    // SAFETY: takes no pointer.
    let run_bytes = checked(unsafe { libc::ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0) })?;
    let run_bytes = usize::try_from(run_bytes).ok()?;
    if version != API_VERSION || run_bytes < size_of::<Run>() {
        return None;
    }
    report.stage = Stage::CreateVm as u32;
    // SAFETY: takes no pointer.
    let vm = checked(unsafe { libc::ioctl(kvm, KVM_CREATE_VM, 0) })?;
    // Needed by Intel's hardware, refused by nobody who does not need it; below 4 GiB and above our memory.
    // SAFETY: takes an address in the guest, no pointer of ours.
    unsafe { libc::ioctl(vm, KVM_SET_TSS_ADDR, 0xfffb_d000_u64) };
    report.stage = Stage::Memory as u32;
    let memory = map(MEM_BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: a fresh private mapping of exactly this many bytes, never unmapped; the vCPU does not run yet, so
    // nobody else writes to it while this slice lives.
    fill(unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), MEM_BYTES) });
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEM_BYTES as u64,
        userspace_addr: memory as u64,
    };
    // SAFETY: a struct of the layout the number stands for, read during the call.
    checked(unsafe { libc::ioctl(vm, KVM_SET_USER_MEMORY_REGION, &raw const region) })?;
    report.stage = Stage::CreateVcpu as u32;
    // SAFETY: takes no pointer.
    let vcpu = checked(unsafe { libc::ioctl(vm, KVM_CREATE_VCPU, 0) })?;
    let shared = map(run_bytes, libc::MAP_SHARED, vcpu)?.cast::<Run>();
    report.stage = Stage::Registers as u32;
    set_registers(vcpu)?;
    report.stage = Stage::Run as u32;
    // SAFETY: `shared` is the vCPU's mapping, as large as the kernel said and at least a `Run`.
    unsafe { follow(vcpu, shared, report) }
}

/// Lets the vCPU run and counts its steps until it halts or fails.
///
/// # Safety
/// `shared` points to the mapped state of `vcpu`, of at least the size of [`Run`].
unsafe fn follow(vcpu: c_int, shared: *const Run, report: &mut Report) -> Option<()> {
    for _ in 0..EXITS_MAX {
        // SAFETY: takes no pointer; the kernel writes into the mapping, of which we hold no reference.
        checked(unsafe { libc::ioctl(vcpu, KVM_RUN, 0) })?;
        // SAFETY: by the contract; volatile because the kernel has written it behind the compiler's back.
        let exit = unsafe { shared.read_volatile() };
        report.exit_reason = exit.exit_reason;
        match exit.exit_reason {
            KVM_EXIT_IO if exit.io_port == PORT => report.step += 1,
            KVM_EXIT_HLT => {
                report.stage = Stage::Done as u32;
                return Some(());
            }
            _ => {
                // For an internal error the union begins with its number.
                report.suberror = u32::from(exit.io_direction) | u32::from(exit.io_size) << 8;
                return Some(());
            }
        }
    }
    Some(())
}

fn checked(result: c_int) -> Option<c_int> {
    (result >= 0).then_some(result)
}

fn map(bytes: usize, flags: c_int, fd: c_int) -> Option<*mut c_void> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory there is.
    let at =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    (at != libc::MAP_FAILED).then_some(at)
}

/// Page tables, descriptor tables and code. 2 MiB are mapped one to one, of which 64 KiB exist.
fn fill(memory: &mut [u8]) {
    let mut put = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    // Present and writable; in the last level also "large page".
    put(PML4, PDPT as u64 | 0x3);
    put(PDPT, PAGE_DIRECTORY as u64 | 0x3);
    put(PAGE_DIRECTORY, 0x83);
    // Entry 1: code, 64 bit, ring 0; entry 2: data.
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    // Vector 3: an interrupt gate to the handler, through selector 8.
    let low = HANDLER as u64 & 0xffff | 8 << 16 | 0x8e00 << 32;
    put(IDT + 3 * 16, low);
    memory[CODE..CODE + MAIN.len()].copy_from_slice(&MAIN);
    memory[HANDLER..HANDLER + ON_BREAKPOINT.len()].copy_from_slice(&ON_BREAKPOINT);
}

fn set_registers(vcpu: c_int) -> Option<()> {
    let mut sregs = Sregs::default();
    // SAFETY: a struct of the layout the number stands for, written during the call.
    checked(unsafe { libc::ioctl(vcpu, KVM_GET_SREGS, &raw mut sregs) })?;
    let flat = Segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Segment::default() };
    sregs.cs = Segment { selector: 8, kind: 0xb, l: 1, ..flat };
    sregs.data = [Segment { selector: 16, kind: 3, db: 1, ..flat }; 5];
    sregs.gdt = Table { base: GDT as u64, limit: 3 * 8 - 1, ..Table::default() };
    sregs.idt = Table { base: IDT as u64, limit: 4 * 16 - 1, ..Table::default() };
    // Paging and protection; physical address extension; long mode enabled and active.
    sregs.cr0 = 0x8000_0011;
    sregs.cr3 = PML4 as u64;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    // SAFETY: as above, read during the call.
    checked(unsafe { libc::ioctl(vcpu, KVM_SET_SREGS, &raw const sregs) })?;
    let mut regs = Regs::default();
    regs.0[6] = STACK_TOP as u64;
    regs.0[16] = CODE as u64;
    // Bit 1 of the flags is always set.
    regs.0[17] = 2;
    // SAFETY: as above, read during the call.
    checked(unsafe { libc::ioctl(vcpu, KVM_SET_REGS, &raw const regs) })?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a vCPU that made all its steps and halted counts; everything else says what went wrong and where.
    #[test]
    fn a_verdict_needs_every_step() {
        let all =
            Report { stage: Stage::Done as u32, step: 3, exit_reason: KVM_EXIT_HLT, ..Report::default() };
        assert_eq!(verdict(all), Ok(()));
        let run = Stage::Run as u32;
        let cases = [
            (Report::default(), "the vCPU took its whole process with it"),
            (
                Report { stage: Stage::Open as u32, errno: libc::EACCES, ..all },
                "opening it failed: Permission denied",
            ),
            (Report { step: 2, ..all }, "failed when it returned from an exception: KVM exit 5"),
            (
                Report { stage: run, step: 1, exit_reason: 17, suberror: 1, ..all },
                "failed when it took an exception: KVM internal error 1",
            ),
            (
                Report { stage: run, step: 0, errno: libc::EINTR, ..all },
                "before its first instruction: Interrupted",
            ),
            (Report { stage: run, step: 16, exit_reason: 2, ..all }, "after its last step: KVM exit 2"),
        ];
        for (report, part) in cases {
            let why = verdict(report).expect_err(part);
            assert!(why.contains(part), "{part:?} in {why:?}");
        }
    }

    /// What is no KVM is told as such.
    #[test]
    fn what_is_no_kvm_is_not_taken_for_one() {
        for (device, part) in
            [("/dev/kvm-absent", "there is no"), ("/dev/null", "asking for its version failed")]
        {
            let why = try_vcpu(Path::new(device)).expect_err(device);
            assert!(why.contains(part), "{why}");
        }
    }

    /// A vCPU that never comes back is given up and its process killed; one that takes its process along is noticed.
    #[test]
    fn a_probe_that_hangs_or_dies_is_noticed() {
        fn hangs(_: &CStr) -> Report {
            loop {
                // SAFETY: waits for a signal, takes nothing.
                unsafe { libc::pause() };
            }
        }
        fn dies(_: &CStr) -> Report {
            // SAFETY: ends the process at once, without running anything of its parent's.
            unsafe { libc::_exit(9) }
        }
        let begun = Instant::now();
        let limit = Duration::from_millis(100);
        assert_eq!(in_child(c"/", hangs, limit).expect("fork"), None);
        assert_eq!(in_child(c"/", dies, DEADLINE).expect("fork"), Some(Report::default()));
        assert!(begun.elapsed() < DEADLINE, "killed, not waited for");
    }

    /// Whatever this host has: the probe ends in time and gives a reason or a proof.
    #[test]
    fn this_host_gets_an_answer_in_time() {
        let begun = Instant::now();
        let verdict = try_vcpu(Path::new("/dev/kvm"));
        assert!(begun.elapsed() < DEADLINE * 2, "{verdict:?}");
        let (Ok(evidence) | Err(evidence)) = &verdict;
        assert!(evidence.contains("vCPU") || evidence.contains("/dev/kvm"), "{evidence}");
    }
}
