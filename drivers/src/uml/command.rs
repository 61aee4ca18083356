//! The words that start a User Mode Linux. Pure but for opening the files they name.
//!
//! Every file reaches the kernel as a descriptor that it inherits: its command line is split at spaces, its disks at
//! commas and colons, and no name of a file has a say in that. Words are kept in the guest's record with places for
//! descriptors: `<` a file to read, `<>` one to write as well, `{0}` the first of them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::Boot;

use crate::hypervisor::{Launch, LaunchNic};
use crate::keep::Fault;

/// The folder that the guest's hostfs is confined to.
pub(super) const EMPTY: &str = "empty";

/// How a copy-on-write file of User Mode Linux begins, of one byte order and of the other. A guest can write that to its
/// disk, and its kernel believes parts of it even when told not to.
const COW_MAGICS: [[u8; 4]; 2] = [*b"OOOM", *b"MOOO"];

/// A command that is ready to run.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
    /// Held until it runs.
    pub(super) files: Vec<OwnedFd>,
}

/// What to run for this launch: files first, then the program and its arguments.
pub(super) fn words(launch: &Launch, kernel: &Path, token: &str) -> Result<Vec<String>, Fault> {
    launch.spec.suits(DriverName::Uml).map_err(|e| Fault::refused(e.to_string()))?;
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| Fault::refused(format!("{} is no text", path.display())))
    };
    let mut files = Vec::new();
    let mut arguments = Vec::new();
    for (index, disk) in launch.disks.iter().enumerate() {
        let (mark, flags) = if disk.read_only { ("<", "rd") } else { ("<>", "d") };
        // `d`: its bytes are data. Without it a guest could write a copy-on-write header, and would be given any file of
        // the host as its backing at the next start.
        arguments.push(format!("ubd{index}{flags}={{{}}}", files.len()));
        files.push(format!("{mark}{}", text(&disk.path)?));
    }
    if let Some(initrd) = &launch.initrd {
        arguments.push(format!("initrd={{{}}}", files.len()));
        files.push(format!("<{}", text(initrd)?));
    }
    for (index, nic) in launch.nics.iter().enumerate() {
        let LaunchNic::Tap(interface) = nic else {
            return Err(Fault::refused(format!("spec.nics[{index}].network: uml has no NAT of its own")));
        };
        let mac = launch.spec.nics.get(index).and_then(|nic| nic.mac);
        let mac = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
        arguments.push(format!("vec{index}:transport=tap,ifname={interface}{mac}"));
    }
    arguments.extend([format!("mem={}M", launch.spec.mem_mib), format!("umid={token}")]);
    arguments.extend(
        ["uml_dir={dir}/", "hostfs={dir}/empty", "mconsole=notify:{dir}/notify.sock", "con=null", "ssl=null"]
            .map(str::to_owned),
    );
    arguments.extend(["con0=fd:{in},fd:{out}", "console=tty0"].map(str::to_owned));
    let program = launch.kernel.as_deref().unwrap_or(kernel);
    match &launch.spec.boot {
        Boot::Kernel { cmdline, .. } => arguments.extend(cmdline.split_ascii_whitespace().map(str::to_owned)),
        Boot::Disk => {
            let mode = if launch.disks.first().is_some_and(|disk| disk.read_only) { "ro" } else { "rw" };
            arguments.extend(["root=/dev/ubda".to_owned(), mode.to_owned()]);
        }
    }
    Ok([files, vec![text(program)?], arguments].concat())
}

/// Opens the files and puts their numbers into their places.
pub(super) fn open(words: &[String], dir: &File, typed: &File, said: &File) -> Result<Ready, Fault> {
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut words = words.iter();
    let program = loop {
        let word = words.next().ok_or_else(|| Fault::refused("no program is on record"))?;
        let Some(path) = word.strip_prefix('<') else { break word.clone() };
        let (path, write) = path.strip_prefix('>').map_or((path, false), |path| (path, true));
        let file = File::options().read(true).write(write).open(path);
        let file = file.map_err(|e| Fault::file("open", Path::new(path), &e))?;
        let mut begins = [0; 4];
        if file.read_at(&mut begins, 0).is_ok() && COW_MAGICS.contains(&begins) {
            let what = "begins as a copy-on-write file does, which names another file of the host";
            return Err(Fault::refused(format!("{path} {what}: it is not started from")));
        }
        files.push(file.into());
    };
    let at = |fd: &dyn AsRawFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let fill = |word: &String| {
        let mut word = word.replace("{dir}", &at(dir));
        word = word.replace("{in}", &typed.as_raw_fd().to_string());
        word = word.replace("{out}", &said.as_raw_fd().to_string());
        for (index, file) in files.iter().enumerate() {
            word = word.replace(&format!("{{{index}}}"), &at(file));
        }
        word
    };
    let arguments = words.map(fill).collect();
    Ok(Ready { program, arguments, files })
}
