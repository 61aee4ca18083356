//! The management console of a User Mode Linux: datagrams on a unix socket, and the news that it sends by itself.
//!
//! A request is 0xcafebabe, version 2, a length and up to 512 bytes of text; an answer is an error, whether more follows,
//! a length and text; numbers are the host's own. Source: the kernel's documentation, `virt/uml`, and what a real one
//! sends. Every byte that comes is checked and bounded: it may come from anybody who is root in the guest.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::DriverErrorKind;
use crate::keep::{Fault, News, Place};

const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
/// Longest text of a request or a notice, bytes.
const TEXT_MAX: usize = 512;
/// Longest answer that is read, bytes: a page and its head are what a kernel sends at once.
const ANSWER_BYTES_MAX: usize = 8192;
/// Answers to one request that are put together; a kernel's whole log has about 30.
const ANSWERS_MAX: usize = 64;
/// A kernel answers within milliseconds unless its host swaps.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// `recvfrom` on x86-64: what a stopped kernel waits in.
const RECVFROM: &str = "45";

/// Sends a command and gives what was answered.
pub(super) async fn run(place: &Place, command: &str) -> Result<String, Fault> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let broken = |e: io::Error| Fault::new(DriverErrorKind::Transient, format!("mconsole {command}: {e}"));
    // The answer comes to the name of our own socket, which must be one for each request that is under way.
    let own = place.socket(&format!("ask{}.sock", COUNT.fetch_add(1, Ordering::Relaxed)));
    let _gone = Unlink(own.clone());
    let _ = std::fs::remove_file(&own);
    let socket = UnixDatagram::bind(&own).map_err(broken)?;
    let to = place.socket(&format!("{}/mconsole", place.token));
    let asked = async {
        socket.send_to(&request(command), &to).await.map_err(broken)?;
        let (mut text, mut bytes) = (String::new(), vec![0; ANSWER_BYTES_MAX]);
        for _ in 0..ANSWERS_MAX {
            let count = socket.recv(&mut bytes).await.map_err(broken)?;
            let answer = Answer::parse(&bytes[..count])
                .ok_or_else(|| Fault::refused(format!("mconsole {command}: {count} bytes are no answer")))?;
            text.push_str(&answer.text);
            match (answer.failed, answer.more) {
                (true, _) => return Err(Fault::refused(format!("mconsole {command}: {}", text.trim()))),
                (false, true) => {}
                (false, false) => return Ok(text),
            }
        }
        Err(Fault::refused(format!("mconsole {command}: the answer has no end")))
    };
    let late = || {
        let limit_s = ANSWER_DEADLINE.as_secs();
        Fault::new(DriverErrorKind::Deadline, format!("mconsole {command}: no answer within {limit_s} s"))
    };
    timeout(ANSWER_DEADLINE, asked).await.unwrap_or_else(|_| Err(late()))
}

/// Removes a socket's name, however the request ends.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn request(command: &str) -> Vec<u8> {
    debug_assert!(command.len() < TEXT_MAX);
    let mut bytes = Vec::with_capacity(12 + TEXT_MAX);
    for number in [MAGIC, VERSION, u32::try_from(command.len()).unwrap_or(0)] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(command.as_bytes());
    bytes.resize(12 + TEXT_MAX, 0);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    failed: bool,
    more: bool,
    text: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [failed, more, length] = [0, 4, 8].map(|at| number(bytes, at));
        let text = bytes.get(12..)?;
        let text = text.get(..usize::try_from(length?).ok()?.min(text.len()))?;
        Some(Self { failed: failed? != 0, more: more? != 0, text: clean(text) })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The text up to its NUL, nothing in it that a terminal would obey.
fn clean(text: &[u8]) -> String {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c };
    String::from_utf8_lossy(&text[..end]).chars().map(shown).collect()
}

/// What a kernel says by itself. What its users make it say means nothing here.
fn news(bytes: &[u8]) -> Option<News> {
    if number(bytes, 0)? != MAGIC || number(bytes, 4)? != VERSION {
        return None;
    }
    let text = bytes.get(16..)?;
    let text = clean(&text[..usize::try_from(number(bytes, 12)?).ok()?.min(text.len()).min(TEXT_MAX)]);
    match number(bytes, 8)? {
        0 => Some(News::Up),
        1 => Some(News::Panicked(format!("the guest's kernel panicked: {}", text.trim()))),
        2 => Some(News::Panicked(format!("the guest's kernel hangs: {}", text.trim()))),
        _ => None,
    }
}

/// Hears what the kernel sends to this socket.
pub(super) fn listen(path: &Path, tell: mpsc::Sender<News>) -> Result<JoinSet<()>, Fault> {
    // Left by an earlier agent.
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path).map_err(|e| Fault::file("listen on", path, &e))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut bytes = vec![0; 16 + TEXT_MAX];
        while let Ok(count) = socket.recv(&mut bytes).await {
            if let Some(news) = news(&bytes[..count])
                && tell.send(news).await.is_err()
            {
                return;
            }
        }
    });
    Ok(tasks)
}

/// Does the kernel wait for `go`? A stopped one blocks in `recvfrom`, a running one never does: it waits for signals, or
/// for its processes. Source: syscall in proc(5). None when it cannot be seen.
pub(super) fn stands_still(pid: u32) -> Option<bool> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    Some(text.split_ascii_whitespace().next() == Some(RECVFROM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(kind: u32, length: u32, text: &[u8]) -> Vec<u8> {
        let head = [MAGIC, VERSION, kind, length].into_iter().flat_map(u32::to_ne_bytes);
        head.chain(text.iter().copied()).collect()
    }

    /// Requests are laid out as a kernel reads them; of what comes back nothing is believed beyond its bytes.
    #[test]
    fn datagrams_are_read_within_their_bounds() {
        let asked = request("stop");
        assert_eq!((asked.len(), &asked[12..17]), (524, &b"stop\0"[..]));
        let head = |numbers: [u32; 3]| numbers.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>();
        let whole = [head([0, 0, 8]), b"stopped\0".to_vec()].concat();
        assert_eq!(
            Answer::parse(&whole),
            Some(Answer { failed: false, more: false, text: "stopped".into() })
        );
        let lies = [head([1, 1, u32::MAX]), b"no\x1b[2J".to_vec()].concat();
        assert_eq!(Answer::parse(&lies), Some(Answer { failed: true, more: true, text: "no [2J".into() }));
        for count in 0..12 {
            assert_eq!(Answer::parse(&whole[..count]), None);
        }
        assert_eq!(news(&notice(0, 3, b"/x\0")), Some(News::Up));
        let panicked = Some(News::Panicked("the guest's kernel panicked: oh".into()));
        assert_eq!(news(&notice(1, 9999, b"oh\n\0ignored")), panicked);
        assert_eq!(news(&notice(3, 2, b"hi")), None);
        assert_eq!(news(&notice(0, 0, b"")[..15]), None);
        let mut foreign = notice(0, 0, b"");
        foreign[0] ^= 1;
        assert_eq!(news(&foreign), None);
    }
}
