//! Bounds a document before a tree is built of it: bytes, characters, nesting.

use super::{At, XML_BYTES_MAX, XML_DEPTH_MAX, XmlError};

/// What stands between `<` and the next thing.
enum Markup {
    Open {
        name_end: usize,
        end: usize,
        empty: bool,
    },
    Close {
        end: usize,
    },
    /// Comment, processing instruction, CDATA, declaration.
    Other {
        end: usize,
    },
}

/// Refuses what no reader should have to look at. Leaves everything else, malformed text too, to the parser, except an
/// element that is never closed: the parser cannot say which.
pub(super) fn check(bytes: &[u8]) -> Result<&str, XmlError> {
    if bytes.len() > XML_BYTES_MAX {
        return Err(XmlError::TooLong { bytes: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let sound = String::from_utf8_lossy(bytes.get(..e.valid_up_to()).unwrap_or_default());
        XmlError::NotUtf8 { at: at(&sound, sound.len()) }
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(XmlError::Syntax { at: at(text, offset), reason: "a NUL byte".to_owned() });
    }
    bound_depth(text)?;
    Ok(text)
}

/// Line and column of a byte.
pub(super) fn at(text: &str, offset: usize) -> At {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    At { line: count(before.matches('\n').count()), column: count(column) }
}

fn bound_depth(text: &str) -> Result<(), XmlError> {
    let mut depth = 0_usize;
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find('<')) {
        let start = from + found;
        from = match markup(text, start) {
            Some(Markup::Open { end, empty, .. }) => {
                depth += 1;
                if depth > XML_DEPTH_MAX {
                    return Err(XmlError::TooDeep { at: at(text, start) });
                }
                depth -= usize::from(empty);
                end
            }
            Some(Markup::Close { end }) => {
                depth = depth.saturating_sub(1);
                end
            }
            Some(Markup::Other { end }) => end,
            None => return Ok(()),
        };
    }
    Ok(())
}

/// The innermost element that is open at the end of the text, and where it was opened.
pub(super) fn unclosed(text: &str) -> Option<(&str, At)> {
    let mut open = Vec::new();
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find('<')) {
        let start = from + found;
        from = match markup(text, start)? {
            Markup::Open { name_end, end, empty } => {
                if !empty {
                    open.push((text.get(start + 1..name_end)?, start));
                }
                end
            }
            Markup::Close { end } => {
                open.pop();
                end
            }
            Markup::Other { end } => end,
        };
    }
    open.pop().map(|(name, start)| (name, at(text, start)))
}

/// None when it does not end.
fn markup(text: &str, start: usize) -> Option<Markup> {
    let rest = text.get(start..)?;
    for (opening, closing) in [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>"), ("<!", ">")] {
        if rest.starts_with(opening) {
            let end = rest.get(opening.len()..)?.find(closing)?;
            return Some(Markup::Other { end: start + opening.len() + end + closing.len() });
        }
    }
    let mut quote = None;
    let mut name_end = None;
    for (index, byte) in rest.bytes().enumerate().skip(1) {
        match (byte, quote) {
            (b'>', None) => {
                let end = start + index + 1;
                if rest.starts_with("</") {
                    return Some(Markup::Close { end });
                }
                let empty = rest.as_bytes().get(index - 1) == Some(&b'/');
                let name_end = name_end.unwrap_or(start + index - usize::from(empty));
                return Some(Markup::Open { name_end, end, empty });
            }
            (b'"' | b'\'', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            (b' ' | b'\t' | b'\r' | b'\n', None) => {
                name_end.get_or_insert(start + index);
            }
            _ => {}
        }
    }
    None
}
