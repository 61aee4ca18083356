//! One line of the log as text, and how it hangs on the one before.

use serde::{Deserialize, Serialize};

use super::Entry;
use crate::mint;

/// What the first line of all hangs on.
pub(super) const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What stands between a line's text and its hash.
const HASH_FIELD: &str = ",\"hash\":\"";

/// One line. The hash is SHA-256 over the text before it, in which the hash of the line before stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Counts the lines of this controller, from 1.
    pub(crate) seq: u64,
    pub(crate) controller: u64,
    #[serde(flatten)]
    pub(crate) entry: Entry,
    pub(crate) prev: String,
}

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: String,
}

/// The line's text, and the head after it.
pub(super) fn seal(head: &Head, controller: u64, entry: &Entry) -> (String, Head) {
    let seq = head.seq + 1;
    let line = Line { seq, controller, entry: entry.clone(), prev: head.hash.clone() };
    let json = serde_json::to_string(&line).expect("a line has only string keys");
    let body = json.trim_end_matches('}');
    let hash = mint::sha256_hex(body);
    (format!("{body}{HASH_FIELD}{hash}\"}}\n"), Head { seq, hash })
}

/// Reads a line whose hash is right; else what is wrong with it.
pub(super) fn open(text: &str) -> Result<(Line, String), String> {
    let (body, rest) = text.rsplit_once(HASH_FIELD).ok_or("it has no hash")?;
    let hash = rest.strip_suffix("\"}").ok_or("it does not end with its hash")?;
    if mint::sha256_hex(body) != hash {
        return Err("it was changed: its hash does not fit".to_owned());
    }
    let line = serde_json::from_str(&format!("{body}}}")).map_err(|e| format!("it cannot be read: {e}"))?;
    Ok((line, hash.to_owned()))
}

/// Refuses a line that does not follow on `head`.
pub(super) fn follows(line: &Line, head: &Head) -> Result<(), String> {
    if line.seq != head.seq + 1 {
        return Err(format!("line {} is followed by line {}: lines are missing", head.seq, line.seq));
    }
    if line.prev != head.hash {
        return Err(format!(
            "line {} does not follow on the line {} that stands before it",
            line.seq, head.seq
        ));
    }
    Ok(())
}
