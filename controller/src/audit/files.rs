//! The files of the log: appended to, turned over when large, dropped when old, and never changed.
//!
//! ```text
//!  data_dir/audit/00000000000000000001.jsonl   named by the number of its first line
//!                 00000000000000020417.jsonl
//!                 head                         number and hash of the last line known to be on disk
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::Entry;
use super::chain::{BEGINNING, Head, Line, follows, open, seal};

/// Size at which a file is turned over, bytes; some 30,000 lines.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files kept: 128 MiB in all, half a million lines.
const FILES_MAX: usize = 16;
/// Longest line read, bytes; ours are far shorter.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("use the audit log {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The log of one controller, for writing.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    controller: u64,
    head: Head,
    current: Option<(File, u64)>,
    unsynced: bool,
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io { path, source }
}

/// Every file, the oldest first.
fn files(dir: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let entries = std::fs::read_dir(dir).map_err(at(dir))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    Ok(files)
}

/// The lines of one file, a torn last one left out.
fn lines(path: &Path) -> Result<Vec<String>, AuditError> {
    let mut reader = BufReader::new(File::open(path).map_err(at(path))?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line).map_err(at(path))?;
        if read == 0 || !line.ends_with('\n') {
            return Ok(lines);
        }
        line.pop();
        lines.push(line);
    }
}

impl Files {
    /// Opens the log of a data directory, to go on behind its last whole line. One that a crash has torn is cut off.
    pub(crate) fn open(data_dir: &Path, controller: u64) -> Result<Self, AuditError> {
        let dir = data_dir.join("audit");
        std::fs::create_dir_all(&dir).map_err(at(&dir))?;
        let beginning = Head { seq: 0, hash: BEGINNING.to_owned() };
        let mut log = Self { dir, controller, head: beginning, current: None, unsynced: false };
        if let Some(newest) = files(&log.dir)?.pop() {
            let whole = lines(&newest)?;
            let kept: u64 = whole.iter().map(|line| line.len() as u64 + 1).sum();
            let mut file = OpenOptions::new().write(true).open(&newest).map_err(at(&newest))?;
            let size = file.metadata().map_err(at(&newest))?.len();
            if size > kept {
                tracing::warn!(
                    bytes = size - kept,
                    "the last line of the audit log was torn, and is cut off"
                );
                file.set_len(kept).map_err(at(&newest))?;
            }
            file.seek(SeekFrom::End(0)).map_err(at(&newest))?;
            log.current = Some((file, kept));
            log.head = log.last_head(&newest, whole.last())?;
        }
        Ok(log)
    }

    /// Where to go on. A line that was changed is for `verify` to find: the chain goes on behind it as it stands.
    fn last_head(&self, newest: &Path, last: Option<&String>) -> Result<Head, AuditError> {
        if let Some((line, hash)) = last.and_then(|text| open(text).ok()) {
            return Ok(Head { seq: line.seq, hash });
        }
        let noted = read_head(&self.dir)?;
        let first =
            newest.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        let before = Head { seq: first.unwrap_or(1) - 1, hash: BEGINNING.to_owned() };
        Ok(noted.unwrap_or(before))
    }

    /// Adds lines. They are with the kernel when it returns, and on disk after [`Files::sync`].
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), AuditError> {
        for entry in entries {
            let (text, head) = seal(&self.head, self.controller, entry);
            let dir = self.dir.clone();
            let (file, size) = self.writable(head.seq)?;
            file.write_all(text.as_bytes()).map_err(at(&dir))?;
            *size += text.len() as u64;
            self.head = head;
            self.unsynced = true;
        }
        Ok(())
    }

    fn writable(&mut self, seq: u64) -> Result<&mut (File, u64), AuditError> {
        if self.current.as_ref().is_some_and(|(_, size)| *size >= FILE_BYTES_MAX) {
            self.sync()?;
            self.current = None;
        }
        if self.current.is_none() {
            let path = self.dir.join(format!("{seq:020}.jsonl"));
            let file = OpenOptions::new().append(true).create(true).open(&path).map_err(at(&path))?;
            let mut old = files(&self.dir)?;
            old.truncate(old.len().saturating_sub(FILES_MAX));
            for path in old {
                std::fs::remove_file(&path).map_err(at(&path))?;
            }
            self.current = Some((file, 0));
        }
        Ok(self.current.as_mut().expect("it was opened right above"))
    }

    /// Brings every line to the disk, and then the head, which is never ahead of them.
    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        if !std::mem::take(&mut self.unsynced) {
            return Ok(());
        }
        if let Some((file, _)) = &self.current {
            file.sync_data().map_err(at(&self.dir))?;
        }
        let (path, fresh) = (self.dir.join("head"), self.dir.join("head.new"));
        let text = serde_json::to_vec(&self.head).expect("a head is JSON");
        std::fs::write(&fresh, text).map_err(at(&fresh))?;
        std::fs::rename(&fresh, &path).map_err(at(&path))
    }
}

fn read_head(dir: &Path) -> Result<Option<Head>, AuditError> {
    let path = dir.join("head");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) user: String,
    pub(crate) verb: String,
    pub(crate) outcome: String,
    pub(crate) since_ms: u64,
    pub(crate) limit: usize,
    /// The oldest behind this number, or else the newest.
    pub(crate) after: Option<u64>,
}

impl Wanted {
    fn takes(&self, line: &Line) -> bool {
        let is = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        let Line { seq, entry, .. } = line;
        is(&self.user, &entry.who)
            && is(&self.verb, &entry.verb)
            && is(&self.outcome, &entry.outcome)
            && entry.at.0 >= self.since_ms
            && self.after.is_none_or(|after| *seq > after)
    }
}

/// Lines of a data directory's log, each with its time, the oldest first. Lines that cannot be read are left out.
pub(crate) fn list(data_dir: &Path, wanted: &Wanted) -> Result<Vec<(u64, String)>, AuditError> {
    let mut found = Vec::new();
    let mut all = files(&data_dir.join("audit"))?;
    let newest_first = wanted.after.is_none();
    if newest_first {
        all.reverse();
    }
    for path in all {
        let mut lines = lines(&path)?;
        if newest_first {
            lines.reverse();
        }
        for text in lines {
            if let Ok((line, _)) = open(&text)
                && wanted.takes(&line)
            {
                found.push((line.entry.at.0, text));
            }
            if found.len() >= wanted.limit {
                break;
            }
        }
        if found.len() >= wanted.limit {
            break;
        }
    }
    if newest_first {
        found.reverse();
    }
    Ok(found)
}

/// Checks every line that is kept: how many there are, and what is wrong, when anything is.
pub(crate) fn verify(data_dir: &Path) -> Result<(u64, Option<String>), AuditError> {
    let dir = data_dir.join("audit");
    let noted = read_head(&dir)?;
    let (mut head, mut count) = (None::<Head>, 0);
    for path in files(&dir)? {
        for (number, text) in (1..).zip(lines(&path)?) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let checked = open(&text).and_then(|(line, hash)| {
                if let Some(head) = &head {
                    follows(&line, head)?;
                } else if line.seq == 1 && line.prev != BEGINNING {
                    return Err("the first line of all follows on another".to_owned());
                }
                Ok(Head { seq: line.seq, hash })
            });
            match checked {
                Ok(next) => head = Some(next),
                Err(broken) => return Ok((count, Some(format!("{name}, line {number}: {broken}")))),
            }
            count += 1;
        }
    }
    let last = head.as_ref().map_or(0, |head| head.seq);
    match noted {
        Some(noted) if noted.seq > last => Ok((
            count,
            Some(format!("it ends with line {last}; line {} was written: lines are cut off", noted.seq)),
        )),
        Some(noted) if noted.seq == last && head.is_some_and(|head| head.hash != noted.hash) => {
            Ok((count, Some(format!("line {last} is not the one that was written"))))
        }
        _ => Ok((count, None)),
    }
}
