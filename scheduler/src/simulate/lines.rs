//! Lines and fields of text files, and what is wrong with them.

use thiserror::Error;

/// Longest line taken, bytes: a file without line breaks is not one of ours.
const LINE_BYTES_MAX: usize = 1 << 16;

/// A refused line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}: {field}: {reason}")]
pub struct BadLine {
    /// The file, as it was named to the reader.
    pub file: String,
    /// 1 and up; 0 when it is about the whole file.
    pub line: u32,
    /// Which field, by its name in the header or in the line.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// Where in a file the reader is.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) file: &'a str,
    pub(super) line: u32,
}

impl At<'_> {
    pub(super) fn bad(self, field: &str, reason: impl Into<String>) -> BadLine {
        BadLine {
            file: self.file.to_owned(),
            line: self.line,
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    /// A whole number within a range.
    pub(super) fn number(self, field: &str, text: &str, least: u64, most: u64) -> Result<u64, BadLine> {
        let allowed = || format!("{text:?} is not a whole number from {least} to {most}");
        let number = text.trim().parse::<u64>().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| self.bad(field, allowed()))
    }

    /// A decimal number in thousandths, within a range of thousandths; digits past the third must be 0.
    pub(super) fn milli(self, field: &str, text: &str, least: u64, most: u64) -> Result<u64, BadLine> {
        let found = thousandths(text.trim()).filter(|milli| (least..=most).contains(milli));
        found.ok_or_else(|| {
            let reason = format!("{text:?} is not a decimal number from {} to {}", shown(least), shown(most));
            self.bad(field, reason)
        })
    }
}

fn shown(milli: u64) -> String {
    if milli.is_multiple_of(1_000) {
        format!("{}", milli / 1_000)
    } else {
        format!("{}.{:03}", milli / 1_000, milli % 1_000)
    }
}

fn thousandths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let (kept, rest) = part.split_at(part.len().min(3));
    if rest.bytes().any(|byte| byte != b'0') {
        return None;
    }
    let part: u64 = format!("{kept:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(part)
}

/// The lines that are not empty, each with its place.
pub(super) fn lines<'a>(
    file: &'a str,
    bytes: &'a [u8],
) -> impl Iterator<Item = Result<(At<'a>, &'a str), BadLine>> {
    let numbered = bytes.split(|byte| *byte == b'\n').zip(1_u32..);
    numbered.filter(|(line, _)| !line.trim_ascii().is_empty()).map(move |(line, number)| {
        let at = At { file, line: number };
        if line.len() > LINE_BYTES_MAX {
            return Err(at.bad("line", format!("longer than {LINE_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(line).map_err(|_| at.bad("line", "not UTF-8 text"))?;
        Ok((at, text.trim_end_matches('\r')))
    })
}

/// The rows below a header of exactly these columns.
pub(super) fn table<'a, const N: usize>(
    file: &'a str,
    bytes: &'a [u8],
    columns: [&'static str; N],
) -> Result<impl Iterator<Item = Result<(At<'a>, [&'a str; N]), BadLine>>, BadLine> {
    let mut all = lines(file, bytes);
    let start = At { file, line: 1 };
    let (at, header) = all.next().unwrap_or_else(|| Err(start.bad("header", "the file is empty")))?;
    if split(header) != Some(columns) {
        return Err(at.bad("header", format!("{header:?} is not {:?}", columns.join(","))));
    }
    Ok(all.map(move |line| {
        let (at, text) = line?;
        let count = text.split(',').count();
        let fields = split(text).ok_or_else(|| at.bad("line", format!("{count} fields, {N} are due")))?;
        Ok((at, fields))
    }))
}

fn split<const N: usize>(text: &str) -> Option<[&str; N]> {
    let mut fields = text.split(',').map(str::trim);
    let mut all = [""; N];
    for slot in &mut all {
        *slot = fields.next()?;
    }
    fields.next().is_none().then_some(all)
}
